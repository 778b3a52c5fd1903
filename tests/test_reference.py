"""The oracles against cases worked out by hand and against identities of the mathematics."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import naive, reference
from tests.naive_luong import naive_luong
from tests.reference_luong import luong

SIZES = st.sampled_from([1, 2, 3, 7, 8])


def _normal(*shape: int, seed: int = 0) -> reference.Array:
    return np.random.default_rng(seed + 31 * len(shape)).standard_normal(shape)


def test_sdpa_by_hand() -> None:
    # Scores 0 and log 3, so the weights are 1/4 and 3/4 and the log-sum-exp is log 4.
    query, key = np.ones((1, 1, 1, 1)), np.array([0.0, math.log(3)]).reshape(1, 1, 2, 1)
    value = np.array([[4.0, 0.0], [8.0, 4.0]]).reshape(1, 1, 2, 2)
    found = reference.sdpa(query, key, value)
    np.testing.assert_allclose(found.weights.ravel(), [0.25, 0.75])
    np.testing.assert_allclose(found.out.ravel(), [7.0, 3.0])
    np.testing.assert_allclose(found.lse.ravel(), math.log(4))


def test_sdpa_default_scale_is_one_over_root_depth() -> None:
    query, key = np.full((1, 1, 1, 4), 2.0), np.zeros((1, 1, 2, 4))
    key[0, 0, 1] = 1.0  # score 8 / sqrt(4) = 4 against 0
    found = reference.sdpa(query, key, key)
    assert found.lse.item() == pytest.approx(math.log(1 + math.exp(4)))
    doubled = reference.sdpa(query, key, key, scale=1.0)
    assert doubled.lse.item() == pytest.approx(math.log(1 + math.exp(8)))


def test_additive_by_hand() -> None:
    # tanh(1 - 1) = 0 for the first key; v * tanh(atanh(1/2)) = log 3 for the second.
    query = np.ones((1, 1, 1))
    key = np.array([-1.0, math.atanh(0.5) - 1.0]).reshape(1, 2, 1)
    value, v = np.array([0.0, 4.0]).reshape(1, 2, 1), np.array([2 * math.log(3)])
    found = reference.additive(query, key, value, v)
    np.testing.assert_allclose(found.weights.ravel(), [0.25, 0.75])
    assert found.out.item() == pytest.approx(3.0)
    moved = reference.additive(query - 0.5, key, value, v, bias=np.array([0.5]))
    np.testing.assert_allclose(moved.out, found.out)


@given(
    st.tuples(SIZES, SIZES, SIZES),
    st.sampled_from([(1, 1), (4, 4), (6, 2)]),
    st.sampled_from([False, "top_left", "bottom_right"]),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_rows_sum_to_one_or_are_empty(
    sizes: tuple[int, int, int], heads: tuple[int, int], causal: reference.Causal, seed: int
) -> None:
    rows, size, depth = sizes
    query = _normal(2, heads[0], rows, depth, seed=seed)
    key, value = _normal(2, heads[1], size, depth, seed=seed + 1), _normal(2, heads[1], size, 3)
    mask = np.random.default_rng(seed).random((2, 1, rows, size)) < 0.7
    lengths = np.array([size, size // 2])
    found = reference.sdpa(query, key, value, mask=mask, kv_lengths=lengths, is_causal=causal)
    total = found.weights.sum(axis=-1)
    empty = np.isneginf(found.lse)
    np.testing.assert_allclose(total, np.where(empty, 0.0, 1.0), atol=1e-12)
    assert not found.out[empty].any()
    plain = naive.naive_sdpa(query, key, value, mask=mask, kv_lengths=lengths, is_causal=causal)
    for ours, theirs in zip(found, plain, strict=True):
        assert reference.max_error(theirs, ours) < 1e-12


def test_order_of_keys_does_not_matter() -> None:
    query, key, value = _normal(1, 2, 3, 4), _normal(1, 2, 5, 4, seed=1), _normal(1, 2, 5, 6)
    order = np.array([3, 0, 4, 1, 2])
    plain = reference.sdpa(query, key, value)
    moved = reference.sdpa(query, key[:, :, order], value[:, :, order])
    np.testing.assert_allclose(moved.out, plain.out)
    np.testing.assert_allclose(moved.weights, plain.weights[..., order])


def test_equal_scores_give_the_mean() -> None:
    value = _normal(1, 1, 5, 3)
    found = reference.sdpa(np.zeros((1, 1, 2, 4)), _normal(1, 1, 5, 4), value)
    np.testing.assert_allclose(found.out[0, 0, 1], value[0, 0].mean(axis=0))
    added = reference.additive(_normal(1, 2, 4), _normal(1, 5, 4), value[0], np.zeros(4))
    np.testing.assert_allclose(added.out[0, 1], value[0, 0].mean(axis=0))
    lowest = np.full((2, 5), np.finfo(np.float32).min)
    biased = reference.sdpa(np.zeros((1, 1, 2, 4)), _normal(1, 1, 5, 4), value, mask=lowest)
    np.testing.assert_allclose(biased.out, found.out)


def test_causal_alignment() -> None:
    query, key, value = _normal(1, 1, 3, 4), _normal(1, 1, 5, 4, seed=1), _normal(1, 1, 5, 2)
    top = reference.sdpa(query, key, value, is_causal=True)
    np.testing.assert_allclose(top.out[0, 0, 0], value[0, 0, 0])
    np.testing.assert_array_equal(top.weights[0, 0] != 0, np.tri(3, 5, 0, dtype=bool))
    bottom = reference.sdpa(query, key, value, is_causal="bottom_right")
    np.testing.assert_array_equal(bottom.weights[0, 0] != 0, np.tri(3, 5, 2, dtype=bool))
    padded = reference.sdpa(query, key, value, is_causal="bottom_right", kv_lengths=[4])
    np.testing.assert_array_equal(padded.weights[0, 0] != 0, np.tri(3, 5, 1, dtype=bool))
    # More queries than keys: the first rows have no key at all.
    tall = reference.sdpa(key, query, query, is_causal="bottom_right")
    np.testing.assert_array_equal(np.isneginf(tall.lse[0, 0]), [True, True, False, False, False])
    assert not tall.out[0, 0, :2].any()


def test_query_heads_share_key_heads_in_order() -> None:
    query, key, value = _normal(2, 6, 3, 4), _normal(2, 2, 5, 4, seed=1), _normal(2, 2, 5, 3)
    grouped = reference.sdpa(query, key, value)
    copied = reference.sdpa(query, key.repeat(3, axis=1), value.repeat(3, axis=1))
    np.testing.assert_array_equal(grouped.out, copied.out)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 1, 5), (2, 1, 3, 1), (1, 2, 1, 5)])
def test_bool_mask_equals_float_mask(shape: tuple[int, ...]) -> None:
    query, key, value = _normal(2, 2, 3, 4), _normal(2, 2, 5, 4, seed=1), _normal(2, 2, 5, 3)
    mask = np.random.default_rng(len(shape)).random(shape) < 0.6
    by_bool = reference.sdpa(query, key, value, mask=mask)
    by_float = reference.sdpa(query, key, value, mask=np.where(mask, 0.0, -np.inf))
    for ours, theirs in zip(by_bool, by_float, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_short_mask_masks_the_rest() -> None:
    query, key, value = _normal(1, 1, 3, 4), _normal(1, 1, 5, 4, seed=1), _normal(1, 1, 5, 3)
    short = reference.sdpa(query, key, value, mask=np.ones((3, 3), dtype=bool))
    counted = reference.sdpa(query, key, value, kv_lengths=[3])
    np.testing.assert_array_equal(short.out, counted.out)


def test_masked_entries_are_never_read() -> None:
    query, key, value = _normal(2, 1, 3, 4), _normal(2, 1, 5, 4, seed=1), _normal(2, 1, 5, 3)
    mask, lengths = np.array([True, False, True, True, True]), np.array([4, 0])
    clean = reference.sdpa(query, key, value, mask=mask, kv_lengths=lengths)
    key[:, :, 1], value[:, :, 1], key[0, :, 4], value[0, :, 4] = np.nan, np.inf, np.nan, np.nan
    key[1], value[1], query[1] = np.nan, np.nan, np.nan
    poisoned = reference.sdpa(query, key, value, mask=mask, kv_lengths=lengths)
    for before, after in zip(clean, poisoned, strict=True):
        np.testing.assert_array_equal(before, after)
    assert not poisoned.out[1].any()
    assert np.isneginf(poisoned.lse[1]).all()


def test_no_keys_gives_zeros() -> None:
    found = reference.sdpa(_normal(2, 2, 3, 4), np.zeros((2, 2, 0, 4)), np.zeros((2, 2, 0, 5)))
    np.testing.assert_array_equal(found.out, np.zeros((2, 2, 3, 5)))
    assert found.weights.shape == (2, 2, 3, 0)
    added = reference.additive(
        _normal(2, 3, 4), np.zeros((2, 0, 4)), np.zeros((2, 0, 5)), _normal(4)
    )
    np.testing.assert_array_equal(added.out, np.zeros((2, 3, 5)))
    assert np.isneginf(added.lse).all()


def test_naive_additive_agrees() -> None:
    query, key, value = _normal(2, 3, 4), _normal(2, 5, 4, seed=1), _normal(2, 5, 3, seed=2)
    v, bias, mask = _normal(4), _normal(4, seed=3), _normal(3, 5)
    exact = reference.additive(
        query, key, value, v, bias=bias, mask=mask, kv_lengths=[5, 2], is_causal=True
    )
    plain = naive.naive_additive(
        query, key, value, v, bias=bias, mask=mask, kv_lengths=[5, 2], is_causal=True
    )
    for ours, theirs in zip(exact, plain, strict=True):
        assert reference.max_error(theirs, ours) < 1e-12


def test_luong_scores() -> None:
    target, source = _normal(2, 3, 4), _normal(2, 5, 4, seed=1)
    dot = luong(target, source)
    heads = reference.sdpa(target[:, None], source[:, None], source[:, None], scale=1.0)
    np.testing.assert_allclose(dot["out"], heads.out[:, 0])
    general = luong(target, source, score="general", weight=np.eye(4))
    np.testing.assert_allclose(general["out"], dot["out"])
    weight, v = _normal(6, 8), _normal(6)
    concat = luong(target, source, score="concat", weight=weight, v=v)
    added = reference.additive(target @ weight[:, :4].T, source @ weight[:, 4:].T, source, v)
    np.testing.assert_allclose(concat["out"], added.out)
    np.testing.assert_allclose(concat["lse"], added.lse)


def test_luong_location_ignores_the_source_states() -> None:
    target, source, weight = _normal(2, 3, 4), _normal(2, 5, 6, seed=1), _normal(9, 4)
    found = luong(target, source, score="location", weight=weight)
    np.testing.assert_allclose(found["weights"], reference.softmax(target @ weight[:5].T))
    with pytest.raises(ValueError, match="location has 3 positions"):
        luong(target, source, score="location", weight=weight[:3])


def test_luong_local_p_by_hand() -> None:
    # Equal scores, p = 4 sigmoid(0) = 2 and D = 1: keys 1, 2, 3, and sigma = 1/2.
    query, key = np.zeros((1, 1, 2)), np.arange(8.0).reshape(1, 4, 2)
    position = {"position_weight": np.ones((3, 2)), "position_v": np.ones(3)}
    found = luong(query, key, align="local-p", half_width=1, **position)
    beside = math.exp(-2) / 3
    np.testing.assert_allclose(found["weights"][0, 0], [0, beside, 1 / 3, beside])
    np.testing.assert_allclose(found["window_weights"][0, 0], [beside, 1 / 3, beside])
    np.testing.assert_allclose(found["position"], 2.0)
    np.testing.assert_allclose(found["lse"], math.log(3))
    whole = luong(query, key, align="local-p", half_width=1, renormalize=True, **position)
    np.testing.assert_allclose(whole["weights"].sum(), 1.0)


def test_luong_local_m_by_hand() -> None:
    query, key = np.zeros((1, 3, 2)), np.arange(8.0).reshape(1, 4, 2)
    found = luong(query, key, align="local-m", half_width=1, query_start=2)
    np.testing.assert_allclose(
        found["weights"][0], [[0, 1 / 3, 1 / 3, 1 / 3], [0, 0, 1 / 2, 1 / 2], [0, 0, 0, 1]]
    )


def test_naive_luong_is_the_oracle() -> None:
    query, key, weight, v = _normal(2, 5, 4), _normal(2, 9, 4, seed=1), _normal(6, 4), _normal(6)
    position = {"position_weight": weight, "position_v": v}
    for align, more in (("local-m", {"query_start": [1, -2]}), ("local-p", position)):
        options = {"align": align, "half_width": 2, "kv_lengths": [9, 4]} | more
        exact, plain = luong(query, key, **options), naive_luong(query, key, **options)  # type: ignore[arg-type]
        for name, array in plain.items():
            assert reference.max_error(array, exact[name]) < 1e-12, name


def test_gelu_and_erf() -> None:
    np.testing.assert_allclose(reference.gelu([0.0, 1.0]), [0.0, 0.8413447460685429])
    x = _normal(4, 5)
    np.testing.assert_allclose(reference.gelu(x) - reference.gelu(-x), x)
    np.testing.assert_allclose(reference.erf(-x), -reference.erf(x))


def test_softmax_and_layer_norm() -> None:
    np.testing.assert_allclose(reference.softmax([[0.0, math.log(3)]]), [[0.25, 0.75]])
    np.testing.assert_array_equal(reference.softmax([-np.inf, -np.inf]), [0.0, 0.0])
    np.testing.assert_allclose(reference.softmax([1e4, 1e4 - 800]), [1.0, 0.0])
    normed = reference.layer_norm([1.0, 3.0], [2.0, 2.0], [10.0, 10.0], eps=0.0)
    np.testing.assert_allclose(normed, [8.0, 12.0])


def _heads(model: int, seed: int = 0) -> reference.MultiHeadWeights:
    matrices = (_normal(model, model, seed=seed + i) for i in range(4))
    vectors = (_normal(model, seed=seed + i) for i in range(4))
    return reference.MultiHeadWeights(*matrices, *vectors)


def test_one_head_with_identity_projections_is_sdpa() -> None:
    x, eye = _normal(2, 3, 4), np.eye(4)
    found = reference.multi_head(
        x, x, x, reference.MultiHeadWeights(eye, eye, eye, eye), num_heads=1
    )
    plain = reference.sdpa(x[:, None], x[:, None], x[:, None])
    np.testing.assert_allclose(found.out, plain.out[:, 0])


def test_heads_are_summed_by_blocks_of_the_output_matrix() -> None:
    x, weights, depth = _normal(2, 3, 6), _heads(6), 2
    found = reference.multi_head(x, x, x, weights, num_heads=3)
    total = np.zeros((2, 3, 6))
    for h in range(3):
        own = slice(h * depth, (h + 1) * depth)
        q, k, v = (
            (reference.linear(x, w, b)[..., own])[:, None]
            for w, b in (
                (weights.query, weights.query_bias),
                (weights.key, weights.key_bias),
                (weights.value, weights.value_bias),
            )
        )
        total += reference.sdpa(q, k, v).out[:, 0] @ np.asarray(weights.out)[:, own].T
    np.testing.assert_allclose(found.out, total + np.asarray(weights.out_bias))


def test_encoder_layer_ignores_padding_and_normalises() -> None:
    ones, zeros = np.ones(4), np.zeros(4)
    weights = reference.EncoderLayerWeights(
        _heads(4), ones, zeros, _normal(8, 4), _normal(8), _normal(4, 8), _normal(4), ones, zeros
    )
    x = _normal(2, 5, 4)
    full = reference.transformer_encoder_layer(x, weights, num_heads=2, kv_lengths=[5, 3])
    np.testing.assert_allclose(full.mean(axis=-1), 0.0, atol=1e-12)
    short = reference.transformer_encoder_layer(x[1:, :3], weights, num_heads=2)
    np.testing.assert_allclose(full[1, :3], short[0])


def test_pooling() -> None:
    hidden = np.array([[[3.0, 4.0], [9.0, 12.0], [np.nan, np.nan]], [[np.nan] * 2] * 3])
    pooled = reference.mean_pool(hidden, [[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(pooled, [[6.0, 8.0], [0.0, 0.0]])
    np.testing.assert_allclose(reference.l2_normalize(pooled), [[0.6, 0.8], [0.0, 0.0]])


def test_tolerance_and_error() -> None:
    exact = np.array([1.0, -np.inf, 2.0])
    assert reference.max_error([1.0, -np.inf, 2.5], exact) == 0.5
    assert reference.max_error([np.nan, -np.inf, 2.0], exact) == math.inf
    assert reference.max_error([1.0, 0.0, 2.0], exact) == math.inf
    plain = np.array([1.25, -np.inf, 2.0], dtype=np.float32)
    assert reference.tolerance(plain, exact, eps=0.0) == 0.5
    assert reference.tolerance(plain, exact) == 0.5 + 32 * np.finfo(np.float32).eps
