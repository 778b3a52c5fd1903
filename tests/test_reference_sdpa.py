"""The oracle of scaled dot-product attention against hand-worked cases, identities, differences."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.draws import draw_sdpa
from tests.naive_sdpa import WIDE, naive_outputs
from tests.naive_sdpa_grad import naive_gradients
from tests.philox import WORD, dropout_factors, dropout_words, philox4x32
from tests.reference import max_error, tolerance
from tests.reference_sdpa import sdpa, sdpa_outputs
from tests.reference_sdpa_grad import sdpa_gradients, sum_to


def _normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed + 31 * len(shape)).standard_normal(shape)


def widened(options: dict[str, Any]) -> Any:
    """The options with every float array in float64."""
    return {
        name: option.astype(np.float64)
        if isinstance(option, np.ndarray) and option.dtype.kind not in "bi"
        else option
        for name, option in options.items()
    }


def _qkv(rows: int = 3, keys: int = 5) -> tuple[Any, Any, Any]:
    return _normal(2, 4, rows, 4), _normal(2, 2, keys, 4, seed=1), _normal(2, 2, keys, 3, seed=2)


# Counter, key and words: the philox4x32 10 lines of Random123's file kat_vectors.
KNOWN = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([WORD] * 4, (WORD, WORD), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter: Any, key: Any, words: Any) -> None:
    np.testing.assert_array_equal(philox4x32(counter, key), words)
    twice = philox4x32([counter, [1, 2, 3, 4]], key)
    np.testing.assert_array_equal(twice[0], words)


def test_dropout_words_follow_counter_and_seed() -> None:
    seed = (7 << 32) + 5
    found = dropout_words(seed, 3, 2, 1, 6)
    blocks = [philox4x32([block, 1, 2, 3], (5, 7)) for block in (0, 1)]
    np.testing.assert_array_equal(found, np.concatenate(blocks)[:6])
    b, h, i = np.ogrid[:4, :3, :2]
    np.testing.assert_array_equal(dropout_words(seed, b, h, i, 6)[3, 2, 1], found)


def test_dropout_keeps_its_share() -> None:
    factors = dropout_factors(0.25, 11, 0, 0, np.arange(100), 1000)
    assert set(np.unique(factors)) == {0.0, 4 / 3}
    assert abs((factors == 0).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / factors.size)
    words = dropout_words(11, 0, 0, 0, 8)
    edge = int(np.sort(words)[3]) / 2.0**32  # a word equal to the threshold is kept
    np.testing.assert_array_equal(dropout_factors(edge, 11, 0, 0, 0, 8) > 0, words >= edge * 2**32)


def test_sink_cap_and_slope_by_hand() -> None:
    # Scores 0 and log 3 against a sink of log 4: the denominator is 8.
    query, key = np.ones((1, 1, 1, 1)), np.array([0.0, math.log(3)]).reshape(1, 1, 2, 1)
    value = np.array([8.0, 16.0]).reshape(1, 1, 2, 1)
    found = sdpa_outputs(query, key, value, sinks=[math.log(4)], top_k=3)
    np.testing.assert_allclose(found["weights"].ravel(), [1 / 8, 3 / 8])
    assert found["out"].item() == pytest.approx(7.0)
    assert found["lse"].item() == pytest.approx(math.log(8))
    assert found["max"].item() == pytest.approx(math.log(3))
    assert found["entropy"].item() == pytest.approx(math.log(8) / 8 + math.log(8 / 3) * 3 / 8)
    np.testing.assert_allclose(found["top_weights"].ravel(), [3 / 8, 1 / 8, 0])
    np.testing.assert_array_equal(found["top_indices"].ravel(), [1, 0, -1])
    capped = sdpa_outputs(query, 5 * key, value, softcap=2.0)
    np.testing.assert_allclose(capped["scores"].ravel(), [0, 5 * math.log(3)])
    np.testing.assert_allclose(capped["biased_scores"].ravel()[1], 2 * math.tanh(2.5 * math.log(3)))
    # At position 3 the keys are 3 and 2 away: biases -1.5 and -1.
    sloped = sdpa_outputs(query, key, value, alibi_slopes=[0.5], query_start=3)
    np.testing.assert_allclose(sloped["biased_scores"].ravel(), [-1.5, math.log(3) - 1])
    np.testing.assert_array_equal(sloped["capped_scores"], sloped["scores"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"window": 1}, [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]),
        ({"window": (1, -1)}, [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]),
        ({"window": (-1, 0)}, [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]),
        ({"window": (0, 2), "is_causal": True}, np.eye(3, 5)),
        ({"window": (1, 0), "query_start": 2}, [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]),
        ({"is_causal": True, "query_start": [-1]}, np.tri(3, 5, -1)),
        ({"is_causal": True, "query_start": 9}, np.ones((3, 5))),
        ({"is_causal": "bottom_right", "kv_lengths": [2]}, np.tri(3, 5, -1)),
        ({"is_causal": "bottom_right", "query_start": 0}, np.tri(3, 5)),
        ({"window": 0, "is_causal": "bottom_right"}, np.eye(3, 5, 2)),
        ({"kv_lengths": [0]}, np.zeros((3, 5))),
        ({"mask": np.ones((1, 3), bool), "kv_lengths": [2]}, [[1, 1, 0, 0, 0]] * 3),
        ({"mask": np.zeros((3, 4))}, [[1, 1, 1, 1, 0]] * 3),
    ],
)
def test_which_keys_a_query_sees(options: Any, expected: Any) -> None:
    found = sdpa_outputs(_normal(1, 1, 3, 4), _normal(1, 1, 5, 4), _normal(1, 1, 5, 2), **options)
    np.testing.assert_array_equal(found["weights"][0, 0] > 0, np.asarray(expected, bool))
    np.testing.assert_array_equal(
        found["biased_scores"][0, 0] > -np.inf, np.asarray(expected, bool)
    )


def test_past_is_in_front_and_moves_the_queries() -> None:
    query, key, value = _qkv(3, 9)
    halves: Any = {"past_key": key[:, :, :6], "past_value": value[:, :, :6]}
    new = (query, key[:, :, 6:], value[:, :, 6:])
    for causal in (True, "bottom_right"):
        split = sdpa_outputs(*new, is_causal=causal, **halves)
        whole = sdpa_outputs(query, key, value, is_causal=causal, query_start=6)
        for name, array in whole.items():
            np.testing.assert_array_equal(split[name], array, err_msg=name)
    np.testing.assert_array_equal(split["present_value"], value)


def test_outputs_hang_together() -> None:
    query, key, value = _qkv(4, 6)
    mask = np.array([True, False, True, True, False, True])
    found = sdpa_outputs(query, key, value, mask=mask, is_causal=True, query_start=-1, top_k=6)
    weights, biased = found["weights"], found["biased_scores"]
    allowed = biased > -np.inf
    assert np.isneginf(found["lse"][:, :, 0]).all()
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(allowed, np.log(weights), 0.0)
    np.testing.assert_allclose(found["entropy"], -(weights * logs).sum(-1), atol=1e-15)
    np.testing.assert_allclose(found["max"], biased.max(-1))
    np.testing.assert_allclose(found["column_mass"], weights.sum(2))
    np.testing.assert_allclose(found["top_weights"], -np.sort(-weights, axis=-1))
    picked = np.take_along_axis(weights, np.maximum(found["top_indices"], 0), -1)
    np.testing.assert_array_equal(
        found["top_weights"] * (found["top_indices"] >= 0), picked * (found["top_indices"] >= 0)
    )
    np.testing.assert_array_equal((found["top_indices"] >= 0).sum(-1), allowed.sum(-1))


def test_equal_weights_go_by_the_lower_key() -> None:
    key = np.zeros((1, 1, 4, 2))
    key[..., 2, :] = 1.0
    found = sdpa_outputs(np.ones((1, 1, 1, 2)), key, key, top_k=3)
    np.testing.assert_array_equal(found["top_indices"].ravel(), [2, 0, 1])


def test_dropout_leaves_weights_and_lse_alone() -> None:
    query, key, value = _qkv()
    plain, dropped = sdpa(query, key, value), sdpa(query, key, value, dropout_p=0.4, rng=3)
    np.testing.assert_array_equal(plain.weights, dropped.weights)
    np.testing.assert_array_equal(plain.lse, dropped.lse)
    b, h, i = np.ogrid[:2, :4, :3]
    applied = plain.weights * dropout_factors(0.4, 3, b, h, i, 5)
    np.testing.assert_allclose(dropped.out, applied @ np.repeat(value, 2, axis=1))


def test_poison_in_what_no_row_sees() -> None:
    query, key, value = _qkv(2, 8)
    options: Any = {"window": (2, 0), "query_start": 4, "softcap": 3.0, "kv_lengths": [5, 0]}
    clean = sdpa_outputs(query, key, value, **options)
    for array in (key, value):
        array[:, :, :2], array[:, :, 5:], array[1] = np.nan, np.inf, np.nan
    found = sdpa_outputs(query, key, value, **options)
    for name in set(clean) - {"scores", "capped_scores", "present_key", "present_value"}:
        np.testing.assert_array_equal(found[name], clean[name], err_msg=name)
    cotangents = (_normal(2, 4, 2, 3), _normal(2, 4, 2))
    gradients = sdpa_gradients(
        query, key, value, out_cotangent=cotangents[0], lse_cotangent=cotangents[1], **options
    )
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@given(st.data(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_naive_agrees(data: Any, seed: int) -> None:
    query, key, value, options = draw_sdpa(data.draw, np.random.default_rng(seed))
    wide = widened(options)
    arrays = [array.astype(np.float64) for array in (query, key, value)]
    exact, plain = sdpa_outputs(*arrays, top_k=4, **wide), naive_outputs(*arrays, top_k=4, **wide)
    assert exact.keys() - plain.keys() == {
        "spread", "top_indices", "present_key", "present_value",
    }  # fmt: skip
    for name, array in plain.items():
        assert array.dtype == np.float64
        assert max_error(array, exact[name]) < 1e-11, name
    rounded = naive_outputs(query, key, value, top_k=4, **options)
    for name, array in rounded.items():
        wide_name = name in WIDE
        expected = np.float64 if query.dtype == np.float64 else np.float32
        assert array.dtype == (expected if wide_name else query.dtype), name


def test_tolerance_of_half_types() -> None:
    for dtype, unit in ((np.float16, 2.0**-10), (ml_dtypes.bfloat16, 2.0**-7)):
        exact, plain = np.array([0.5, -2.0]), np.array([0.5, -2.0]).astype(dtype)
        assert tolerance(plain, exact) == 2 * unit + 32 * 2.0**-23
        assert tolerance(plain, exact, spread=3.0, score=1.0) == 8 * unit + 40 * 2.0**-23
        assert tolerance(plain, exact + 0.25) == 0.5 + 1.75 * unit + 28 * 2.0**-23


VARIANTS: dict[str, Any] = {
    "plain": {},
    "scale": {"scale": -0.7},
    "causal": {"is_causal": True},
    "bottom-right": {"is_causal": "bottom_right", "kv_lengths": np.array([5, 2])},
    "window": {"window": (1, 1), "query_start": np.array([3, -1])},
    "softcap": {"softcap": 0.6},
    "bool-mask": {"mask": _normal(2, 1, 3, 5) > 0},
    "float-mask": {"mask": _normal(2, 4, 3, 5)},
    "head-mask": {"mask": _normal(4, 1, 5), "softcap": 1.0},
    "row-mask": {"mask": np.where(_normal(5) > 0.5, -np.inf, _normal(5))},
    "column-mask": {"mask": _normal(2, 1, 3, 1)},
    "short-mask": {"mask": _normal(3, 3)},
    "alibi": {"alibi_slopes": np.array([0.1, 0.2, 0.4, 0.8])},
    "sinks": {"sinks": _normal(4), "kv_lengths": np.array([3, 0])},
    "dropout": {"dropout_p": 0.4, "rng": 2**40 + 9},
    "past": {"past_key": _normal(2, 2, 2, 4, seed=3), "past_value": _normal(2, 2, 2, 3, seed=4)},
}
VARIANTS["additive"] = {"v": _normal(4, 4, seed=5), "mask": _normal(2, 4, 3, 5)}
VARIANTS["all"] = {
    **VARIANTS["past"], **VARIANTS["dropout"], **VARIANTS["sinks"], **VARIANTS["alibi"],
    "softcap": 0.9, "mask": _normal(4, 1, 7), "is_causal": True, "window": (4, 3),
    "kv_lengths": np.array([6, 3]), "query_start": np.array([3, -1]),
}  # fmt: skip
VARIANTS["all of float masks"] = {**VARIANTS["all"], "mask": _normal(2, 1, 3, 6)}


FLOAT_OPTIONS = ("mask", "sinks", "v", "past_key", "past_value")


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_central_differences(name: str) -> None:
    options, step = VARIANTS[name], 1e-5
    arrays: dict[str, Any] = dict(zip(("query", "key", "value"), _qkv(), strict=True))
    floats = {n: a for n, a in options.items() if n in FLOAT_OPTIONS}
    arrays |= {n: a.copy() for n, a in floats.items() if a.dtype == np.float64}
    g_out, g_lse = _normal(2, 4, 3, 3, seed=9), _normal(2, 4, 3, seed=8)

    def loss() -> float:
        found = sdpa(**(options | arrays))
        finite = np.where(found.lse > -np.inf, found.lse, 0.0)
        return float((found.out * g_out).sum() + (finite * g_lse).sum())

    gradients = sdpa_gradients(**(options | arrays), out_cotangent=g_out, lse_cotangent=g_lse)
    assert gradients.keys() == arrays.keys()
    for argument, array in arrays.items():
        assert gradients[argument].shape == array.shape
        for at in np.ndindex(array.shape):
            kept = array[at]
            array[at] = kept + step
            above = loss()
            array[at] = kept - step
            difference = (above - loss()) / (2 * step)
            array[at] = kept
            assert gradients[argument][at] == pytest.approx(difference, rel=1e-6, abs=1e-8), (
                argument
            )


def test_rows_without_a_key_have_no_gradient() -> None:
    query, key, value = _qkv()
    gradients = sdpa_gradients(
        query, key, value, kv_lengths=[5, 0], mask=np.zeros((2, 1, 3, 5)),
        out_cotangent=_normal(2, 4, 3, 3), lse_cotangent=_normal(2, 4, 3),
    )  # fmt: skip
    for gradient in gradients.values():
        assert gradient[0].any()
        assert not gradient[1].any()


def test_sum_to_is_the_transpose_of_broadcasting() -> None:
    array = _normal(2, 3, 4, 5)
    assert sum_to(array, (1,)).shape == (1,)
    np.testing.assert_allclose(sum_to(array, (1,)), array.sum())
    np.testing.assert_allclose(sum_to(array, (3, 1, 5)), array.sum((0, 2))[:, None])
    np.testing.assert_allclose(sum_to(array, (2, 1, 1, 3))[:, 0, 0], array.sum((1, 2))[:, :3])


@given(st.data(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_naive_gradients_agree(data: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, key, value, options = draw_sdpa(data.draw, rng)
    g_out = rng.standard_normal((*query.shape[:3], value.shape[3]))
    given: Any = {"out_cotangent": g_out, "lse_cotangent": rng.standard_normal(query.shape[:3])}
    wide, arrays = widened(options), [array.astype(np.float64) for array in (query, key, value)]
    exact = sdpa_gradients(*arrays, **given, **wide)
    plain = naive_gradients(*arrays, **given, **wide)
    assert plain.found.keys() == plain.spread.keys() == exact.keys()
    for name, array in plain.found.items():
        assert max_error(array, exact[name]) < 1e-10, name
