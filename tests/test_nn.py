"""Modules against oracles, and the base class's bookkeeping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import nn
from tests import reference


def heads_of(attention: Any) -> reference.MultiHeadWeights:
    return reference.MultiHeadWeights(
        attention.query.weight, attention.key.weight, attention.value.weight,
        attention.output.weight, attention.query.bias, attention.key.bias,
        attention.value.bias, attention.output.bias,
    )  # fmt: skip


@pytest.mark.parametrize("kv_heads", [6, 3, 1])
def test_multi_head_attention(rng: Any, kv_heads: int) -> None:
    attention = nn.MultiHeadAttention(24, 6, kv_heads=kv_heads, rng=rng)
    q, k, v = (rng.standard_normal((2, n, 24)).astype(np.float32) for n in (5, 7, 7))
    mask = rng.random((2, 1, 5, 7)) < 0.6
    exact = reference.multi_head(
        q, k, v, heads_of(attention), num_heads=6, num_kv_heads=kv_heads, mask=mask
    )
    out, weights = attention(q, k, v, mask, aux=("weights",))
    np.testing.assert_allclose(out, exact.out, atol=1e-5)
    np.testing.assert_allclose(weights, exact.weights, atol=1e-6)


def test_key_and_value_may_have_other_sizes(rng: Any) -> None:
    attention = nn.MultiHeadAttention(8, 2, key_size=5, value_size=3, bias=False, rng=rng)
    q, k, v = (rng.standard_normal((2, 4, n)).astype(np.float32) for n in (8, 5, 3))
    exact = reference.multi_head(q, k, v, heads_of(attention), num_heads=2)
    np.testing.assert_allclose(attention(q, k, v), exact.out, atol=1e-5)


def test_self_attention_is_multi_head_attention_of_one_array(rng: Any) -> None:
    attention = nn.SelfAttention(12, 3, rng=rng)
    x = rng.standard_normal((2, 6, 12)).astype(np.float32)
    exact = reference.multi_head(x, x, x, heads_of(attention), num_heads=3, is_causal=True)
    np.testing.assert_allclose(attention(x, is_causal=True), exact.out, atol=1e-5)
    assert nn.SelfAttention(12, rng=rng).heads == 1


def test_additive_attention(rng: Any) -> None:
    attention = nn.AdditiveAttention(6, 5, 16, rng=rng)
    s, h = (rng.standard_normal((2, n, size)).astype(np.float32) for n, size in ((3, 6), (7, 5)))
    exact = reference.additive(
        reference.linear(s, attention.query.weight), reference.linear(h, attention.key.weight),
        h, attention.v, kv_lengths=np.array([7, 2]),
    )  # fmt: skip
    out, weights = attention(s, h, kv_lengths=np.array([7, 2]), aux=("weights",))
    np.testing.assert_allclose(out, exact.out, atol=1e-5)
    np.testing.assert_allclose(weights, exact.weights, atol=1e-5)


def test_transformer_encoder_layer(rng: Any) -> None:
    layer = nn.TransformerEncoderLayer(12, 3, 24, eps=1e-12, rng=rng)
    x = rng.standard_normal((2, 6, 12)).astype(np.float32)
    weights = reference.EncoderLayerWeights(
        heads_of(layer.attention), layer.attention_norm.weight, layer.attention_norm.bias,
        layer.hidden.weight, layer.hidden.bias, layer.output.weight, layer.output.bias,
        layer.output_norm.weight, layer.output_norm.bias,
    )  # fmt: skip
    lengths = np.array([6, 4])
    exact = reference.transformer_encoder_layer(x, weights, num_heads=3, kv_lengths=lengths)
    np.testing.assert_allclose(layer(x, kv_lengths=lengths), exact, atol=1e-5)
    _, attention = layer(x, kv_lengths=lengths, aux=("weights",))
    assert attention.shape == (2, 3, 6, 6)


def test_norm_first_leaves_the_residual_path_clear(rng: Any) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, activation="relu", rng=rng)
    silent = layer.replace(
        {n: np.zeros_like(p) for n, p in layer.parameters().items() if ".output." in f".{n}"}
    )
    x = rng.standard_normal((1, 3, 8)).astype(np.float32)
    np.testing.assert_array_equal(silent(x), x)


def test_dropout(rng: Any) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, rng=rng)
    x = rng.standard_normal((2, 3, 8)).astype(np.float32)
    np.testing.assert_array_equal(layer(x), layer(x))
    noisy = [layer(x, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert (noisy[0] != noisy[2]).any()
    many = nn.Dropout(0.25)(np.ones(100_000, np.float32), rng)
    assert set(np.unique(many)) == {0.0, np.float32(1 / 0.75)}
    assert many.mean() == pytest.approx(1, abs=0.02)


def test_parameters_by_name(rng: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.scale = np.ones(1, np.float32)
            self.layers = [nn.Linear(2, 2, rng=rng), nn.Linear(2, 2, bias=False, rng=rng)]
            self.count = np.arange(3)
            self._cache = np.zeros(3)

    model = Model()
    assert list(model.parameters()) == [
        "scale", "layers.0.weight", "layers.0.bias", "layers.1.weight",
    ]  # fmt: skip
    copy = model.replace({"layers.1.weight": np.zeros((2, 2), np.float32)})
    assert not copy.layers[1].weight.any()
    assert model.layers[1].weight.any()
    with pytest.raises(KeyError, match=r"no parameter 'layers\.2\.weight'"):
        model.replace({"layers.2.weight": np.zeros(1)})


def test_modules_in_tuples_and_dicts_and_in_two_places(rng: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.pair = (nn.Linear(2, 2, bias=False, rng=rng), [nn.LayerNorm(2)])
            self.named = {"a": nn.Linear(2, 2, bias=False, rng=rng)}
            self.again = self.pair[0]

        def __call__(self, x: Any) -> Any:
            return self.again(self.named["a"](self.pair[0](x)))

    model = Model()
    assert list(model.parameters()) == [
        "pair.0.weight", "pair.1.0.weight", "pair.1.0.bias", "named.a.weight",
    ]  # fmt: skip
    x = rng.standard_normal((3, 2)).astype(np.float32)
    gradient = pa.grad(lambda m: pa.ops.sum(m(x)))(model)
    assert all(isinstance(p, np.ndarray) for p in model.parameters().values())
    assert gradient["pair.0.weight"].any()
    copy = model.replace({"pair.0.weight": np.zeros((2, 2), np.float32)})
    assert copy.again is copy.pair[0]
    assert not copy(x).any()


def test_load_copies(rng: Any) -> None:
    given = {"weight": np.ones((2, 2), np.float32)}
    layer = nn.Linear(2, 2, bias=False, rng=rng).load(given)
    given["weight"][:] = 7
    assert (layer.weight == 1).all()


def test_load_reports_every_problem_and_changes_nothing(rng: Any) -> None:
    layer = nn.Linear(2, 3, rng=rng)
    before = layer.weight
    with pytest.raises(ValueError, match=r"missing bias; unexpected b; weight must be .*\(2, 3\)"):
        layer.load({"weight": np.zeros((2, 3), np.float32), "b": np.zeros(3)})
    assert layer.weight is before
    given = {"weight": np.zeros((3, 2), np.float32), "bias": np.zeros(3, np.float32)}
    assert layer.load(given) is layer
    assert not layer.weight.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MultiHeadAttention(10, 3, rng=None),
        lambda: nn.MultiHeadAttention(12, 4, kv_heads=3, rng=None),
        lambda: nn.SelfAttention(12, 0, rng=None),
        lambda: nn.LuongAttention(4, 5, score="dot", rng=None),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, activation="tanh", rng=None),  # type: ignore[arg-type]
        lambda: nn.Dropout(1.5),
        lambda: nn.Linear(0, 2, rng=None),
        lambda: nn.Linear(2, -1, rng=None),
        lambda: nn.AdditiveAttention(2, 2, 0, rng=None),
        lambda: nn.MultiHeadAttention(4, 2, key_size=0, rng=None),
        lambda: nn.LayerNorm(4, eps=-1.0),
        lambda: nn.LuongAttention(4, score="cosine", rng=None),  # type: ignore[arg-type]
        lambda: nn.SelfAttention(4, rng=None)(np.ones((3, 4), np.float32)),
    ],
)
def test_sizes_that_do_not_fit(make: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|needs|must lie"):
        make()


def test_rng_must_be_a_generator() -> None:
    with pytest.raises(TypeError, match=r"numpy\.random\.Generator"):
        nn.Linear(2, 2, rng=0)  # type: ignore[arg-type]


def test_mixing_float64_input_with_float32_weights_is_refused(rng: Any) -> None:
    with pytest.raises(TypeError, match="dtypes must be equal"):
        nn.Linear(2, 2, rng=rng)(np.ones((1, 2)))
    assert pa.nn.Linear(2, 2, rng=None).weight.dtype == np.float32
