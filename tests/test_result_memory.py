"""Large results lie in memory of earlier ones, and nobody can tell."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyattn as pa

KEPT = 2**26  # bytes


def result(value: float, count: int = 2**16, dtype: Any = np.float32) -> Any:
    """An array of `count` numbers of the core."""
    return pa.ops.gelu(np.full(count, value, dtype))


def test_memory_of_a_result_that_is_gone_is_used_again() -> None:
    first = result(1.0)
    place = first.ctypes.data
    del first
    other = np.empty(2**16, np.float32)  # would have it otherwise
    assert result(2.0).ctypes.data == place
    assert other.ctypes.data != place


def test_another_dtype_or_length_has_memory_of_its_own() -> None:
    first = result(1.0)
    place = first.ctypes.data
    del first
    assert result(1.0, 2**15, np.float64).ctypes.data != place
    assert result(1.0, 2**16 + 1).ctypes.data != place


@pytest.mark.parametrize(
    "look",
    [
        lambda array: array,
        lambda array: array[3:7],
        lambda array: array.reshape(2, -1).T,
        lambda array: array.base,
        memoryview,
        np.from_dlpack,
    ],
    ids=["itself", "part", "shape", "base", "buffer", "dlpack"],
)
def test_memory_that_someone_sees_is_not_used_again(look: Callable[[Any], Any]) -> None:
    seen = look(result(1.0))
    before = np.array(seen)
    others = [result(float(i)) for i in range(3)]
    np.testing.assert_array_equal(np.array(seen), before)
    assert not any(np.shares_memory(np.asarray(seen), other) for other in others)


def test_results_that_are_kept_do_not_share_memory() -> None:
    results = [result(float(i)) for i in range(70)]
    places = {array.ctypes.data for array in results}
    assert len(places) == len(results)
    expected = pa.ops.gelu(np.arange(70, dtype=np.float32))
    for array, value in zip(results, expected, strict=True):
        np.testing.assert_array_equal(array, value)


def test_no_more_is_kept_than_said() -> None:
    tracemalloc.start()
    try:
        for i in range(30):
            result(1.0, 2**20 + i)
        gc.collect()
        many = tracemalloc.get_traced_memory()[0]
        result(1.0, KEPT // 4 + 1)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert many < KEPT + 10**6
    assert after < KEPT + 10**6


def test_gradients_are_their_owners(rng: Any) -> None:
    """No copy is made of a gradient on its way to the caller, and it may be changed."""
    arrays = [rng.standard_normal((4, n, 128)).astype(np.float32) for n in (1, 300, 300)]
    v = rng.standard_normal(128).astype(np.float32)
    find = pa.grad(lambda *x: pa.ops.sum(pa.additive_attention(*x)), (0, 1, 2, 3))
    first = find(*arrays, v)
    kept = [gradient.copy() for gradient in first]
    for gradient in find(*arrays, v):
        gradient.fill(np.nan)
    for gradient, copy in zip(first, kept, strict=True):
        assert gradient.flags.writeable
        np.testing.assert_array_equal(gradient, copy)
