"""Additive attention with heads and weight normalisation; self-attention over every score."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import nn
from tests import reference, reference_decoder
from tests.reference_luong import luong


def sequences(rng: Any, *shapes: tuple[int, ...]) -> list[Any]:
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def by_head(x: Any, heads: int, head: int) -> Any:
    """Return the part of the last axis that a head has."""
    size = x.shape[-1] // heads
    return x[..., head * size : (head + 1) * size]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("num_heads", [None, 1, 3])
def test_additive_attention(rng: Any, num_heads: Any, normalize: bool) -> None:
    attention = nn.AdditiveAttention(5, 6, 12, num_heads=num_heads, normalize=normalize, rng=rng)
    if normalize:
        assert attention.g == pytest.approx(np.sqrt((num_heads or 1) / 12))
        changed = rng.standard_normal(12).astype(np.float32)
        attention = attention.replace({"bias": changed, "g": 2 * attention.g})
    s, h = sequences(rng, (2, 4, 5), (2, 7, 6))
    options = {"kv_lengths": np.array([7, 2]), "is_causal": True}
    out, weights = attention(s, h, aux=("weights",), **options)
    heads = num_heads or 1
    for head in range(heads):
        exact = reference_decoder.additive_head(
            *(by_head(x, heads, head) for x in (
                reference.linear(s, attention.query.weight),
                reference.linear(h, attention.key.weight), h, attention.v,
            )),
            g=attention.g[head] if normalize else None,
            bias=by_head(attention.bias, heads, head) if normalize else None,
            **options,
        )  # fmt: skip
        np.testing.assert_allclose(by_head(out, heads, head), exact.out, atol=1e-5)
        of_head = weights if num_heads is None else weights[:, head]
        np.testing.assert_allclose(of_head, exact.weights, atol=1e-5)


def test_keys_projected_once_give_the_same_bits(rng: Any) -> None:
    attention = nn.AdditiveAttention(5, 6, 12, normalize=True, rng=rng)
    s, h = sequences(rng, (2, 4, 5), (2, 7, 6))
    projected = attention.project_key(h)
    whole = attention(s, h)
    for t in range(4):
        step = attention(s[:, t : t + 1], h, projected_key=projected)
        np.testing.assert_allclose(step[:, 0], whole[:, t], atol=1e-6)
    np.testing.assert_array_equal(attention(s, h, projected_key=projected), whole)


def test_options_reach_the_function(rng: Any) -> None:
    attention = nn.AdditiveAttention(5, 6, 12, rng=rng)
    s, h = sequences(rng, (2, 4, 5), (2, 7, 6))
    (value,) = sequences(rng, (2, 7, 3))
    options: dict[str, Any] = {
        "window": (1, 2), "query_start": np.array([0, 2]), "dropout_p": 0.3, "rng": 5, "top_k": 2,
        "aux": ("top_weights", "top_indices", "entropy"),
    }  # fmt: skip
    found = attention(s, h, value, **options)
    exact = pa.additive_attention(attention.query(s), attention.key(h), value, attention.v,
                                  **options)  # fmt: skip
    for f, e in zip(found, exact, strict=True):
        np.testing.assert_array_equal(f, e)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("score", ["additive", "general"])
def test_self_attention_over_other_scores(rng: Any, score: Any, heads: int) -> None:
    attention = nn.SelfAttention(12, heads, score=score, rng=rng)
    (x,) = sequences(rng, (2, 6, 12))
    mask = rng.random((2, 1, 6, 6)) < 0.7
    lengths = np.array([6, 4])
    out, weights = attention(x, mask, kv_lengths=lengths, aux=("weights",))
    assert weights.shape == (2, heads, 6, 6)
    query = reference.linear(x, attention.query.weight, attention.query.bias)
    value = reference.linear(x, attention.value.weight, attention.value.bias)
    parts = []
    for head in range(heads):
        q, v = by_head(query, heads, head), by_head(value, heads, head)
        if score == "additive":
            key = reference.linear(x, attention.key.weight, attention.key.bias)
            vector = by_head(attention.v, heads, head)
            exact = reference.additive(
                q, by_head(key, heads, head), v, vector, mask=mask[:, 0], kv_lengths=lengths
            )._asdict()
        else:
            exact = luong(q, by_head(x, heads, head), v, attn_mask=mask[:, 0], kv_lengths=lengths)
        np.testing.assert_allclose(weights[:, head], exact["weights"], atol=1e-5)
        parts.append(exact["out"])
    joined = reference.linear(
        np.concatenate(parts, -1), attention.output.weight, attention.output.bias
    )
    np.testing.assert_allclose(out, joined, atol=1e-5)


def test_general_draws_no_key(rng: Any) -> None:
    attention = nn.SelfAttention(6, score="general", rng=np.random.default_rng(5))
    draws = np.random.default_rng(5)
    query, value, output = (nn.Linear(6, 6, bias=bias, rng=draws) for bias in (False, True, True))
    for made, expected in zip(
        (attention.query, attention.value, attention.output), (query, value, output), strict=True
    ):
        np.testing.assert_array_equal(made.weight, expected.weight)


def test_one_head_of_general_is_luongs_score(rng: Any) -> None:
    attention = nn.SelfAttention(6, score="general", rng=rng)
    (x,) = sequences(rng, (2, 5, 6))
    assert set(attention.parameters()) == {
        "query.weight", "value.weight", "value.bias", "output.weight", "output.bias",
    }  # fmt: skip
    exact = luong(x, x, score="general", weight=attention.query.weight.T)
    _, weights = attention(x, aux=("weights",))
    np.testing.assert_allclose(weights[:, 0], exact["weights"], atol=1e-5)


@pytest.mark.parametrize("score", ["scaled-dot", "general"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_packed_sequences_attend_within_themselves(rng: Any, score: Any, is_causal: bool) -> None:
    layer = nn.SelfAttention(12, 3, score=score, rng=rng)
    x, ends = rng.standard_normal((9, 12)).astype(np.float32), np.array([0, 4, 4, 9])
    found, lse = layer(x, cu_seqlens=ends, is_causal=is_causal, aux=("lse",))
    assert lse.shape == (3, 9)
    for begin, end in pairwise(ends):
        alone = layer(x[None, begin:end], is_causal=is_causal)[0]
        np.testing.assert_allclose(found[begin:end], alone, atol=1e-6)
    inputs = {
        "x": pa.Input(x, ("tokens", None)),
        "cu_seqlens": pa.Input(ends, ("offsets",), offsets_of="tokens"),
    }
    pa.export(layer, inputs)  # verifies


@pytest.mark.parametrize("score", ["scaled-dot", "additive", "general"])
def test_gradient_and_export(rng: Any, score: Any) -> None:
    attention = nn.SelfAttention(12, 2, score=score, rng=rng)
    (x,) = sequences(rng, (2, 5, 12))
    wide = {name: array.astype(np.float64) for name, array in attention.parameters().items()}
    pa.check_grad(
        lambda x, weights: attention.replace(weights)(x, is_causal=True),
        x.astype(np.float64), wide, rng=rng,
    )  # fmt: skip
    for target in ("functions", "primitive"):
        proto = pa.export(
            lambda x: attention(x, is_causal=True, aux=("weights",)),
            {"x": pa.Input(x, ("B", "T", None))}, target=target,
        )  # fmt: skip
        assert bool(proto.functions) == (target == "functions")


@pytest.mark.parametrize("num_heads", [None, 2])
def test_gradient_and_export_of_normalised_additive_attention(rng: Any, num_heads: Any) -> None:
    attention = nn.AdditiveAttention(5, 6, 8, num_heads=num_heads, normalize=True, rng=rng)
    s, h = sequences(rng, (2, 4, 5), (2, 7, 6))
    wide = {name: array.astype(np.float64) for name, array in attention.parameters().items()}
    assert {"g", "bias", "v"} < set(wide)
    pa.check_grad(
        lambda s, h, weights: attention.replace(weights)(s, h),
        s.astype(np.float64), h.astype(np.float64), wide, rng=rng,
    )  # fmt: skip
    inputs = {"query": pa.Input(s, ("B", "T", None)), "key": pa.Input(h, ("B", "S", None))}
    pa.export(attention, inputs)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("score must be one of", lambda: nn.SelfAttention(4, score="cosine", rng=None)),  # type: ignore[arg-type]
        (
            "kv_heads must be heads for score 'additive'; got 1 for 2",
            lambda: nn.SelfAttention(4, 2, kv_heads=1, score="additive", rng=None),
        ),
        (
            r"x must be \(B, length, size\); got shape \(3, 4\)",
            lambda: nn.SelfAttention(4, score="general", rng=None)(np.ones((3, 4), np.float32)),
        ),
        (
            "units must be a multiple of num_heads; got units 8, num_heads 3",
            lambda: nn.AdditiveAttention(4, 4, 8, num_heads=3, rng=None),
        ),
        (
            "units must be a multiple of num_heads; got units 8, num_heads 0",
            lambda: nn.AdditiveAttention(4, 4, 8, num_heads=0, rng=None),
        ),
    ],
)
def test_bad_arguments(message: str, make: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make()
