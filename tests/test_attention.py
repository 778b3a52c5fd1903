"""What the attention kernels promise beyond the right numbers on tidy input."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyattn as pa
from tests import naive, reference
from tests.draws import EDGES, draw_layout, draw_lengths, draw_mask, poison
from tests.reference import max_error, tolerance

ISAS = pa.runtime.available_isas()


def check(found: Any, exact: Any, plain: Any) -> None:
    for f, e, p in zip(found, exact, plain, strict=True):
        assert max_error(f, e) <= tolerance(p, e)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_sdpa_on_anything(data: Any, isa: str, seed: int) -> None:
    draw, rng = data.draw, np.random.default_rng(seed)
    size = st.sampled_from(EDGES)
    batch, groups, repeats = (draw(st.integers(1, 3)) for _ in range(3))
    rows, keys, depth, width = (draw(size) for _ in range(4))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float64]))
    q = rng.standard_normal((batch, groups * repeats, rows, depth)).astype(dtype)
    k = rng.standard_normal((batch, groups, keys, depth)).astype(dtype)
    v = rng.standard_normal((batch, groups, keys, width)).astype(dtype)
    mask = draw_mask(draw, rng, (batch, groups * repeats, rows, keys), dtype)
    options = {
        "kv_lengths": draw_lengths(draw, rng, batch, keys),
        "is_causal": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, 0.0, -0.2, 1.0])),
    }
    exact = reference.sdpa(q, k, v, mask=mask, **options)
    plain = naive.naive_sdpa(q, k, v, mask=mask, **options)
    seen = (exact.weights > 0).any(2).reshape(batch, groups, repeats, keys).any(2)
    q, k, v = (draw_layout(draw, a) for a in (q, poison(k, ~seen), poison(v, ~seen)))
    pa.runtime.set_isa(isa)
    found = pa.scaled_dot_product_attention(q, k, v, mask, aux=("weights", "lse"), **options)
    check(found, exact, plain)
    alone = pa.scaled_dot_product_attention(q, k, v, mask, **options)
    np.testing.assert_array_equal(found[0], alone)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_additive_on_anything(data: Any, isa: str, seed: int) -> None:
    draw, rng = data.draw, np.random.default_rng(seed)
    size = st.sampled_from(EDGES[:13])
    batch = draw(st.integers(1, 3))
    rows, keys, units, width = (draw(size) for _ in range(4))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float64]))
    spread = draw(st.sampled_from([0.1, 1.0, 12.0, 1e4]))
    q = (spread * rng.standard_normal((batch, rows, units))).astype(dtype)
    k = (spread * rng.standard_normal((batch, keys, units))).astype(dtype)
    value = rng.standard_normal((batch, keys, width)).astype(dtype)
    v = rng.uniform(-1, 1, units).astype(dtype)
    mask = draw_mask(draw, rng, (batch, rows, keys), dtype)
    options = {
        "kv_lengths": draw_lengths(draw, rng, batch, keys),
        "is_causal": draw(st.booleans()),
    }
    exact = reference.additive(q, k, value, v, mask=mask, **options)
    plain = naive.naive_additive(q, k, value, v, mask=mask, **options)
    seen = (exact.weights > 0).any(1)
    q, k, value = (draw_layout(draw, a) for a in (q, poison(k, ~seen), poison(value, ~seen)))
    pa.runtime.set_isa(isa)
    found = pa.additive_attention(q, k, value, v, attn_mask=mask, aux=("weights", "lse"), **options)
    check(found, exact, plain)


def masked_entries(isa: str, rng: Any) -> tuple[Any, ...]:
    """Query, key, value and a mask in which every row leaves some entries out."""
    q, k, v = (rng.standard_normal((1, 2, n, 16)).astype(np.float32) for n in (40, 70, 70))
    return q, k, v, rng.random((1, 2, 40, 70)) < 0.5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_entry_masked_for_one_row_is_used_only_by_the_others(
    isa: str, bad: float, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    q, k, v, mask = masked_entries(isa, rng)
    before = pa.scaled_dot_product_attention(q, k, v, mask)
    where = mask[..., 33]
    for array in (k, v):
        kept = array[:, :, 33].copy()
        array[:, :, 33] = bad
        after = pa.scaled_dot_product_attention(q, k, v, mask)
        np.testing.assert_array_equal(before[~where], after[~where])
        assert not np.isfinite(after[where]).all(-1).any() or bad == -np.inf
        array[:, :, 33] = kept


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_of_the_lowest_finite_bias_is_a_mean(
    isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    q, k, v, _ = masked_entries(isa, rng)
    lowest = np.full((40, 70), np.finfo(np.float32).min, np.float32)
    found = pa.scaled_dot_product_attention(q, k, v, lowest)
    np.testing.assert_allclose(
        found, np.broadcast_to(v.mean(2, keepdims=True), found.shape), atol=1e-6
    )


@pytest.mark.parametrize("isa", ISAS)
def test_results_do_not_depend_on_threads_or_batch(
    isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    q, k, v = (rng.standard_normal((3, 4, n, 32)).astype(np.float32) for n in (77, 130, 130))
    aq, ak, av = (rng.standard_normal((3, n, 48)).astype(np.float32) for n in (77, 130, 130))
    weight = rng.standard_normal(48).astype(np.float32)
    before = pa.runtime.threads()
    results = []
    try:
        for threads in (1, 2, 5):
            pa.runtime.set_threads(threads)
            results.append(
                (
                    pa.scaled_dot_product_attention(q, k, v, is_causal=True),
                    pa.additive_attention(aq, ak, av, weight),
                )
            )
    finally:
        pa.runtime.set_threads(before)
    for sdpa, additive in results[1:]:
        np.testing.assert_array_equal(sdpa, results[0][0])
        np.testing.assert_array_equal(additive, results[0][1])
    one = pa.scaled_dot_product_attention(q[1:2, 2:3], k[1:2, 2:3], v[1:2, 2:3], is_causal=True)
    np.testing.assert_array_equal(one, results[0][0][1:2, 2:3])
    one = pa.additive_attention(aq[2:], ak[2:], av[2:], weight)
    np.testing.assert_array_equal(one, results[0][1][2:])


def test_memory_does_not_grow_with_the_product_of_lengths() -> None:
    code = """
import resource
import numpy as np, pyattn as pa
q = np.ones((1, 1, 8192, 16), np.float32)
pa.scaled_dot_product_attention(q[:, :, :64], q, q)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pa.scaled_dot_product_attention(q, q, q)
pa.additive_attention(q[0, :, :2048], q[0], q[0], np.ones(16, np.float32))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""  # in a process of its own: the peak never falls, and the tests before this one raised it
    grown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert int(grown) * 1024 < 8192 * 8192 * 4 / 8


def test_many_threads_of_python_may_call_at_once(rng: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    q = rng.standard_normal((2, 4, 100, 32)).astype(np.float32)
    expected = pa.scaled_dot_product_attention(q, q, q)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: pa.scaled_dot_product_attention(q, q, q), range(64)):
            np.testing.assert_array_equal(found, expected)


def _in_a_child(array: Any) -> Any:
    return pa.scaled_dot_product_attention(array, array, array)


def test_a_forked_child_computes(rng: Any) -> None:
    import multiprocessing

    q = rng.standard_normal((2, 4, 300, 32)).astype(np.float32)
    expected = pa.scaled_dot_product_attention(q, q, q)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for found in pool.map(_in_a_child, [q] * 4):
            np.testing.assert_array_equal(found, expected)
