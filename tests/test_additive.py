"""Every variant of additive attention at random, and what heads and half types are equal to."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyattn as pa
from pyattn.grad import pullback
from tests.draws import (
    EDGES,
    FLOATS,
    draw_dropout,
    draw_layout,
    draw_mask,
    draw_positions,
    poison,
)
from tests.naive_sdpa import naive_outputs
from tests.naive_sdpa_grad import naive_gradients
from tests.outputs import TOP_K, check_all
from tests.reference import max_error, tolerance
from tests.reference_sdpa import sdpa_outputs
from tests.reference_sdpa_grad import sdpa_gradients

ISAS = pa.runtime.available_isas()
AUX = (
    *("weights", "lse", "max", "entropy"),
    *("top_weights", "top_indices", "scores", "biased_scores"),
)


def heads_of(array: Any, heads: int) -> Any:
    """(B, L, n) as (B, H, L, n / H)."""
    return array.reshape(*array.shape[:2], heads, -1).swapaxes(1, 2)


def merged(array: Any) -> Any:
    return array.swapaxes(1, 2).reshape(array.shape[0], array.shape[2], -1)


def draw_sizes(draw: Any) -> tuple[int, ...]:
    """B, H, T, S, A / H and E / H."""
    size = st.sampled_from(EDGES[:13])
    return draw(st.integers(1, 2)), draw(st.integers(1, 3)), *(draw(size) for _ in range(4))


SPREADS = st.sampled_from([0.1, 1.0, 12.0, 1e3])  # of queries and keys


@settings(deadline=None, max_examples=80)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_variants_on_anything(data: Any, isa: str, seed: int) -> None:
    draw, rng = data.draw, np.random.default_rng(seed)
    batch, heads, rows, keys, units, width = draw_sizes(draw)
    dtype = draw(st.sampled_from(FLOATS))
    spread = draw(SPREADS)

    def normal(length: int, each: int) -> Any:
        return rng.standard_normal((batch, length, heads * each)).astype(dtype)

    q, k, value = spread * normal(rows, units), spread * normal(keys, units), normal(keys, width)
    q, k = q.astype(dtype), k.astype(dtype)
    v = rng.uniform(-1, 1, heads * units).astype(dtype)
    mask = draw_mask(draw, rng, (batch, heads, rows, keys), dtype, short=True)
    options = draw_positions(draw, rng, batch, rows, keys) | draw_dropout(draw)
    given_heads = [heads_of(x, heads) for x in (q, k, value)]
    oracle = options | {"mask": mask, "v": v.reshape(heads, -1)}
    exact = sdpa_outputs(*given_heads, top_k=TOP_K, **oracle)
    plain = naive_outputs(*given_heads, top_k=TOP_K, **oracle)
    aux = draw(st.lists(st.sampled_from(AUX), unique=True))
    never = ~(exact["biased_scores"] > -np.inf).any(2)
    k, value = (merged(poison(heads_of(x, heads), never)) for x in (k, value))
    q, k, value = (draw_layout(draw, x) for x in (q, k, value))
    v = np.repeat(v, 2)[::2]
    pa.runtime.set_isa(isa)
    found = pa.additive_attention(
        q, k, value, v, attn_mask=mask, num_heads=heads, aux=aux, top_k=TOP_K, **options
    )
    named = dict(zip(("out", *aux), found if aux else (found,), strict=True))
    named["out"] = heads_of(named["out"], heads)
    check_all(named, exact, plain, options)


def test_one_head_has_no_axis(rng: Any) -> None:
    q, k, x = (rng.standard_normal((2, n, 8)).astype(np.float32) for n in (3, 7, 7))
    v, mask = rng.standard_normal(8).astype(np.float32), rng.random((2, 3, 7)) < 0.7
    alone = pa.additive_attention(q, k, x, v, attn_mask=mask, aux=AUX, top_k=2)
    one = pa.additive_attention(q, k, x, v, attn_mask=mask[:, None], num_heads=1, aux=AUX, top_k=2)
    np.testing.assert_array_equal(alone[0], one[0])
    for a, b in zip(alone[1:], one[1:], strict=True):
        assert b.ndim == a.ndim + 1
        np.testing.assert_array_equal(a, b[:, 0])


@pytest.mark.parametrize("isa", ISAS)
def test_half_types_are_float32_rounded_once(use_isa: Any, rng: Any, isa: str) -> None:
    use_isa(isa)
    for dtype in FLOATS[2:]:
        for rows in (1, 20):
            q, k, x = (rng.standard_normal((2, n, 37)).astype(dtype) for n in (rows, 70, 70))
            v = rng.standard_normal(37).astype(dtype)
            narrow = pa.additive_attention(q, k, x, v, aux=("lse",))
            wide = pa.additive_attention(
                *(a.astype(np.float32) for a in (q, k, x, v)), aux=("lse",)
            )
            np.testing.assert_array_equal(narrow[0], wide[0].astype(dtype))
            np.testing.assert_array_equal(narrow[1], wide[1])


QUERY, KEY, VALUE = (np.ones((2, n, e), np.float32) for n, e in ((5, 8), (7, 8), (7, 6)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_heads": 4}, ValueError, r"divide A and E; got 4 for query \(2, 5, 8\), value \(2"),
        ({"num_heads": 0}, ValueError, "num_heads must divide A and E; got 0"),
        ({"num_heads": 2.0}, TypeError, "num_heads must be an integer; got 2.0"),
        ({"num_heads": True}, TypeError, "num_heads must be an integer; got True"),
        ({"num_heads": 2, "attn_mask": np.ones((5, 5, 7), bool)}, ValueError, r"\(2, 2, 5, 7\)"),
        ({"attn_mask": np.ones((1, 2, 5, 7), bool)}, ValueError, r"broadcast to \(2, 5, 7\)"),
        ({"window": -2}, ValueError, "window must lie in"),
        ({"query_start": 1.5}, TypeError, "query_start must be"),
        ({"query_start": np.zeros(3, np.int64)}, ValueError, r"query_start.*\(2,\)"),
        ({"dropout_p": 0.5}, ValueError, "dropout_p needs rng"),
        ({"aux": ("top_weights",)}, ValueError, "top_weights and top_indices need top_k"),
        ({"aux": ("column_mass",)}, ValueError, "aux may name each of"),
        ({"is_causal": "middle"}, ValueError, "is_causal must be a bool"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        pa.additive_attention(QUERY, KEY, VALUE, np.ones(8, np.float32), **options)
    assert str(caught.value).startswith("additive_attention: ")


def gradients(arrays: Any, weight: Any, lse_weight: Any, **options: Any) -> Any:
    """Of the weighted sum of output and log-sum-exp, with respect to query, key, value and v."""

    def loss(q: Any, k: Any, x: Any, v: Any) -> Any:
        out, lse = pa.additive_attention(q, k, x, v, aux=("lse",), **options)
        return pa.ops.sum(out * weight) + pa.ops.sum(lse * lse_weight)

    return pa.grad(loss, argnums=(0, 1, 2, 3))(*arrays)


@pytest.mark.parametrize("lengths", [EDGES[:13], (1, 2, 3)], ids=["any", "few"])
@settings(deadline=None, max_examples=60)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_gradients_on_anything(data: Any, isa: str, seed: int, lengths: tuple[int, ...]) -> None:
    draw, rng = data.draw, np.random.default_rng(seed)
    batch, heads, _, keys, units, width = draw_sizes(draw)
    rows = draw(st.sampled_from(lengths))
    dtype, spread = draw(st.sampled_from(FLOATS)), draw(SPREADS)
    wide = np.float64 if dtype == np.float64 else np.float32
    shapes = ((rows, spread, units), (keys, spread, units), (keys, 1.0, width), (rows, 1.0, width))
    q, k, x, g_out = (
        (size * rng.standard_normal((batch, heads, n, e))).astype(dtype) for n, size, e in shapes
    )
    g_lse = rng.standard_normal((batch, heads, rows)).astype(wide)
    v = rng.uniform(-1, 1, (heads, units)).astype(dtype)
    mask = draw_mask(draw, rng, (batch, heads, rows, keys), dtype, short=True)
    options = draw_positions(draw, rng, batch, rows, keys) | draw_dropout(draw)
    cotangents = {"out_cotangent": g_out, "lse_cotangent": g_lse}
    oracle = cotangents | options | {"mask": mask, "v": v}
    exact = sdpa_gradients(q, k, x, **oracle)
    plain = naive_gradients(q, k, x, **oracle)
    seen = sdpa_outputs(q, k, x, mask=mask, v=v, **options)["biased_scores"] > -np.inf
    arrays = {"query": merged(poison(q, ~seen.any(3))), "v": v.reshape(-1)}
    arrays |= {n: merged(poison(a, ~seen.any(2))) for n, a in (("key", k), ("value", x))}
    if "mask" in exact:
        arrays["mask"] = mask
    leaves = {name: pa.Tensor(array, requires_grad=True) for name, array in arrays.items()}
    pa.runtime.set_isa(isa)
    outputs = pa.additive_attention(
        leaves["query"], leaves["key"], leaves["value"], leaves["v"],
        attn_mask=leaves.get("mask", mask), num_heads=heads, aux=("lse",), **options,
    )  # fmt: skip
    found = dict(
        zip(leaves, pullback(outputs, (merged(g_out), g_lse), [*leaves.values()]), strict=True)
    )
    found |= {name: heads_of(found[name], heads) for name in ("query", "key", "value")}
    found["v"] = found["v"].reshape(heads, -1)
    assert found.keys() == exact.keys()
    for name, array in found.items():
        assert array.dtype == dtype, name
        rough = plain.spread[name]
        score = float(np.abs(v).astype(np.float64).sum(1).max())
        bound = tolerance(plain.found[name], exact[name], score=score, spread=rough)
        # Terms of this size cancel before they get as small as the result.
        bound += 8 * float(np.finfo(wide).eps) * rough
        assert max_error(array, exact[name]) <= bound, name


@pytest.mark.parametrize(("batch", "rows"), [(2, 300), (9, 1), (9, 2)])
def test_gradients_do_not_depend_on_the_threads(rng: Any, batch: int, rows: int) -> None:
    arrays = [rng.standard_normal((batch, n, 24)).astype(np.float32) for n in (rows, 700, 700)]
    arrays.append(rng.standard_normal(24).astype(np.float32))
    weight = rng.standard_normal((batch, rows, 24)).astype(np.float32)
    lse_weight = rng.standard_normal((batch, rows)).astype(np.float32)
    before = pa.runtime.threads()
    try:
        results = []
        for count in (1, 2, 5):
            pa.runtime.set_threads(count)
            results.append(gradients(arrays, weight, lse_weight))
    finally:
        pa.runtime.set_threads(before)
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_one_query_sees_stays_there(rng: Any) -> None:
    """A NaN in a row reaches the gradients of the rows that see it, and of v, and no others."""
    q, k, x = (rng.standard_normal((1, n, 20)).astype(np.float32) for n in (3, 6, 6))
    v, weight = rng.standard_normal(20).astype(np.float32), np.ones((1, 3, 20), np.float32)
    mask = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]], bool)
    q[0, 1, 3] = np.nan
    k[0, 4, 7] = np.inf
    k[0, 5, 7] = -np.inf
    found = gradients((q, k, x, v), weight, np.ones((1, 3), np.float32), attn_mask=mask)
    assert np.isnan(found[0][0, 1]).any()
    assert np.isfinite(found[0][0, 0]).all()
    assert np.isfinite(found[0][0, 2]).all()
    for grad in found[1:3]:
        assert np.isfinite(grad[0, [0, 1, 4, 5]]).all()
        assert np.isnan(grad[0, 2:4]).any()
    assert np.isnan(found[3]).any()


def test_memory_is_linear() -> None:
    """T = S = 8192, A = 256, forward and backward: below 64 MB, where the sums are 69 GB."""
    script = """
import resource
import sys
import numpy as np
from pyattn import _core
rng = np.random.default_rng(0)
q, k, x, g = (rng.standard_normal((1, 1, 8192, 256), dtype=np.float32) for _ in range(4))
v = rng.standard_normal((1, 256), dtype=np.float32)
_core.additive(q[:, :, :1], k, x, v, None, -1, None, None)
unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, per MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
out, lse = _core.additive(q, k, x, v, None, -1, ("lse",), None)
want = {"query", "key", "value", "v"}
grads = _core.additive_backward(q, k, x, v, None, -1, None, out, lse, g, None, want)
results = sum(array.nbytes for array in (out, lse, *grads) if array is not None) / 2**20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit - before - results)
"""
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) < 64
