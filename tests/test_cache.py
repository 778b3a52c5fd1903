"""Caches of keys and values: written in place, read by attention, inside ONNX Runtime too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyattn as pa
from pyattn import nn, ops

CACHE = np.zeros((2, 3, 8, 4), np.float32)
ROWS = np.ones((2, 3, 2, 4), np.float32)
STARTS = np.array([0, 6])


def test_the_cache_is_written_in_place_on_request() -> None:
    cache = CACHE.copy()
    assert pa.update_cache(cache, ROWS, STARTS, out=cache) is cache
    assert cache.sum() == ROWS.sum()
    kept = CACHE.copy()
    other = np.full_like(kept, np.nan)
    np.testing.assert_array_equal(pa.update_cache(kept, ROWS, STARTS, out=other), cache)
    np.testing.assert_array_equal(pa.update_cache(kept, ROWS, STARTS), cache)
    assert not kept.any()


def test_rows_of_other_strides_are_written(rng: Any) -> None:
    rows = rng.standard_normal((2, 2, 3, 4)).astype(np.float32).transpose(0, 2, 1, 3)
    wide = np.zeros((2, 3, 16, 4), np.float32)
    found = pa.update_cache(wide[:, :, ::2], rows, STARTS, out=wide[:, :, ::2])
    np.testing.assert_array_equal(found[0, :, :2], rows[0])
    assert not wide[:, :, 1::2].any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cache": CACHE[0]}, ValueError, r"cache must be \(B, G, C, D\)"),
        ({"update": ROWS[:, :2]}, ValueError, "must share G"),
        ({"update": ROWS[..., :3]}, ValueError, "must share D"),
        ({"update": ROWS.astype(np.float64)}, TypeError, "one dtype"),
        ({"update": ROWS.tolist()}, TypeError, "update must be"),
        ({"write_indices": STARTS.astype(np.float32)}, TypeError, "write_indices must be int32"),
        ({"write_indices": STARTS[:1]}, ValueError, r"write_indices must have shape \(2,\)"),
        ({"write_indices": np.array([0, 7])}, ValueError, r"in 0\.\.6 .* got 0\.\.7"),
        ({"write_indices": np.array([-1, 0])}, ValueError, r"got -1\.\.0"),
        ({"update": np.ones((2, 3, 9, 4), np.float32)}, ValueError, "9 rows in a cache of 8"),
        ({"out": CACHE[:1]}, ValueError, "out must have shape"),
        ({"out": np.broadcast_to(CACHE[:1], CACHE.shape)}, ValueError, "read-only"),
        ({"out": pa.Tensor(CACHE)}, TypeError, "out takes arrays only"),
    ],
)
def test_bad_input(change: Any, error: Any, message: str) -> None:
    given = {"cache": CACHE.copy(), "update": ROWS, "write_indices": STARTS} | change
    before = given["cache"].copy()
    with pytest.raises(error, match=f"^update_cache: .*{message}"):
        pa.update_cache(**given)
    np.testing.assert_array_equal(given["cache"], before)


def test_out_and_update_must_not_overlap() -> None:
    cache = CACHE.copy()
    with pytest.raises(ValueError, match="out and update must not overlap"):
        pa.update_cache(cache, cache[:, :, :2], STARTS, out=cache)
    with pytest.raises(ValueError, match="out and cache must not overlap"):
        pa.update_cache(cache[:, :, :4], ROWS, np.array([0, 1]), out=cache[:, :, 1:5])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_parts_of_a_sequence_attend_as_the_whole(parts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = nn.SelfAttention(16, heads=4, kv_heads=2, rng=rng)
    total = sum(parts)
    x = rng.standard_normal((2, total, 16), dtype=np.float32)
    # What lies behind the tokens is never looked at.
    empty = np.full((2, 2, total + 3, 4), np.nan, np.float32)
    cache = nn.LayerCache(empty, empty.copy())
    found, at = [], 0
    for length in parts:
        start = np.full(2, at)
        out, cache = layer(x[:, at : at + length], cache=cache, query_start=start)
        found.append(out)
        at += length
    np.testing.assert_allclose(np.concatenate(found, 1), layer(x, is_causal=True), atol=2e-6)


def test_a_cache_excludes_masks_and_other_scores(rng: Any) -> None:
    x = np.zeros((2, 3, 16), np.float32)
    cache = nn.LayerCache(np.zeros((2, 4, 5, 4), np.float32), np.zeros((2, 4, 5, 4), np.float32))
    layer = nn.SelfAttention(16, heads=4, rng=rng)
    with pytest.raises(ValueError, match="cache needs query_start"):
        layer(x, cache=cache)
    with pytest.raises(ValueError, match="excludes attn_mask"):
        layer(x, np.ones((3, 3), bool), cache=cache, query_start=STARTS)
    with pytest.raises(ValueError, match=r"in 0\.\.2 for 3 rows in a cache of 5"):
        layer(x, cache=cache, query_start=np.array([0, 3]))
    additive = nn.SelfAttention(16, heads=4, score="additive", rng=rng)
    with pytest.raises(ValueError, match="cache is not for score 'additive'"):
        additive(x, cache=cache, query_start=STARTS)


def test_the_gradient_goes_through_a_cache(rng: Any) -> None:
    layer = nn.SelfAttention(6, heads=2, rng=rng)
    layer = layer.replace({k: v.astype(np.float64) for k, v in layer.parameters().items()})

    def attend(x: Any, past: Any) -> Any:
        cache = nn.LayerCache(past, ops.multiply(past, 2.0))
        out, cache = layer(x, cache=cache, query_start=np.array([1, 2]))
        return out, cache.key

    pa.check_grad(
        attend, rng.standard_normal((2, 3, 6)), rng.standard_normal((2, 2, 7, 3)), rng=rng
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_the_operator_tells_what_does_not_fit(dtype: str, rng: Any) -> None:
    """Inside ONNX Runtime, in all four types; bfloat16 cannot be fed, so all are cast."""

    def model(cache: Any, update: Any, at: Any) -> Any:
        narrow = (ops.astype(x, np.dtype(dtype)) for x in (cache, update))
        return ops.astype(pa.update_cache(*narrow, at), np.float32)

    inputs = {
        "cache": pa.Input(CACHE, ("b", None, "room", None)),
        "update": pa.Input(ROWS, ("b", None, "rows", None)),
        "at": pa.Input(STARTS, ("b",)),
    }
    proto = pa.export(model, inputs, opset=18, verify=False)
    run = pa.ort.session(proto)
    assert [p.accelerated for p in pa.ort.describe(run)] == [True]
    given = {"cache": CACHE, "update": ROWS, "at": STARTS}
    np.testing.assert_array_equal(run.run(None, given)[0], model(**given))
    for change, message in (
        ({"at": np.array([0, 7])}, r"write_indices must lie in 0\.\.6; got 7"),
        ({"at": np.array([-1, 0])}, r"write_indices must lie in 0\.\.6; got -1"),
        ({"update": np.ones((2, 3, 9, 4), np.float32)}, "must have room for the rows"),
    ):
        with pytest.raises(Exception, match=message):
            run.run(None, given | change)
        with pytest.raises(Exception, match=r"ScatterND|indices"):
            pa.ort.session(proto, accelerate=False).run(None, given | change)
