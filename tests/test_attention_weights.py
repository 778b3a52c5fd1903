"""Weights of chosen queries: the oracle's rows, whichever rows and however many are chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyattn as pa
from pyattn.dtypes import compute_dtype
from tests.draws import (
    EDGES,
    FLOATS,
    draw_heads,
    draw_layout,
    draw_mask,
    draw_positions,
    draw_scoring,
    poison,
)
from tests.naive_sdpa import naive_outputs
from tests.reference import max_error, tolerance
from tests.reference_sdpa import sdpa_outputs

ISAS = pa.runtime.available_isas()

every_isa = pytest.mark.parametrize("isa", ISAS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)


def draw_rows(draw: Any, rng: Any, length: int) -> Any:
    """Indices in any order, some twice, or none; an array or a list."""
    rows = rng.integers(0, length, draw(st.sampled_from([0, 1, 2, 5, 20])))
    return rows.tolist() if draw(st.booleans()) else rows.astype(np.int32)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_rows_of_anything(data: Any, isa: str, seed: int) -> None:
    draw, rng = data.draw, np.random.default_rng(seed)
    (heads, groups), dtype = draw_heads(draw), draw(st.sampled_from(FLOATS))
    size = st.sampled_from(EDGES)
    batch, length, keys, depth = draw(st.integers(1, 2)), draw(size), draw(size), draw(size)
    shapes = (heads, length, depth), (groups, keys, depth), (groups, keys, 4)
    q, k, v = (rng.standard_normal((batch, *shape)).astype(dtype) for shape in shapes)
    options = draw_positions(draw, rng, batch, length, keys) | draw_scoring(draw, rng, heads, dtype)
    options["mask"] = draw_mask(draw, rng, (batch, heads, length, keys), dtype, short=True)
    exact = sdpa_outputs(q, k, v, **options)
    plain = naive_outputs(q, k, v, **options)
    biased = exact["biased_scores"]
    seen = (biased > -np.inf).reshape(batch, groups, -1, keys).any(2)
    k, rows = poison(k, ~seen), draw_rows(draw, rng, length)
    pa.runtime.set_isa(isa)
    mask, sinks = options.pop("mask"), options.pop("sinks", None)
    _, lse = pa.scaled_dot_product_attention(q, k, v, mask, sinks=sinks, aux=("lse",), **options)
    q, k, lse = (draw_layout(draw, a) for a in (q, k, lse))
    found = pa.attention_weights(q, k, mask, rows=rows, lse=lse, **options)
    assert found.shape == (batch, heads, len(rows), keys)
    assert found.dtype == dtype
    chosen = np.asarray(rows, np.int64)
    truth, yardstick = exact["weights"][:, :, chosen], plain["weights"][:, :, chosen]
    score = float(np.abs(biased[np.isfinite(biased)]).max(initial=0.0))
    assert max_error(found, truth) <= tolerance(yardstick, truth, score=score)
    every = pa.attention_weights(q, k, mask, rows=range(length), lse=lse, **options)
    assert found.tobytes() == np.ascontiguousarray(every[:, :, chosen]).tobytes()


@every_isa
@every_dtype
def test_rows_agree_with_the_output(
    dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    """Long keys: the log-sum-exp is put together from parts, the rows come from elsewhere in T."""
    use_isa(isa)
    shapes = (1, 4, 70, 32), (1, 2, 1500, 32), (1, 2, 1500, 32)
    q, k, v = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    wide = compute_dtype(np.dtype(dtype))
    options = {"is_causal": "bottom_right", "softcap": 5.0, "window": (900, -1)}
    sinks = rng.standard_normal(4).astype(wide)
    out, lse = pa.scaled_dot_product_attention(q, k, v, sinks=sinks, aux=("lse",), **options)
    rows = [69, 0, 33, 0]
    weights = pa.attention_weights(q, k, rows=rows, lse=lse, **options).astype(np.float64)
    again = weights @ np.repeat(v, 2, axis=1).astype(np.float64)
    unit = float(ml_dtypes.finfo(dtype).eps)
    assert max_error(again, out[:, :, rows]) <= 40 * unit
    share = weights.sum(-1) + np.exp(sinks[:, None] - lse[:, :, rows].astype(np.float64))
    np.testing.assert_allclose(share, 1.0, atol=100 * unit)


@every_isa
def test_threads_have_the_same_bits(isa: str, rng: Any, use_isa: Callable[[str], None]) -> None:
    use_isa(isa)
    q, k = (rng.standard_normal((2, 4, n, 32), dtype=np.float32) for n in (200, 600))
    _, lse = pa.scaled_dot_product_attention(q, k, k, aux=("lse",))
    before, results = pa.runtime.threads(), set()
    try:
        for threads in (1, 2, 5):
            pa.runtime.set_threads(threads)
            results.add(pa.attention_weights(q, k, rows=range(0, 200, 7), lse=lse).tobytes())
    finally:
        pa.runtime.set_threads(before)
    assert len(results) == 1


@every_dtype
def test_nothing_in_nothing_out(dtype: Any) -> None:
    wide = compute_dtype(np.dtype(dtype))
    sizes = (0, 3, 4, [1]), (2, 3, 0, [2, 0]), (2, 0, 4, []), (1, 3, 4, [])
    for batch, length, keys, rows in sizes:
        q, k = np.ones((batch, 2, length, 8), dtype), np.ones((batch, 2, keys, 8), dtype)
        lse = np.full((batch, 2, length), -np.inf, wide)
        found = pa.attention_weights(q, k, rows=rows, lse=lse, kv_lengths=np.zeros(batch, np.int32))
        assert found.shape == (batch, 2, len(rows), keys)
        assert not found.any()
