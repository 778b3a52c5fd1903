"""Keys and values in pages: the oracle, and the bits of the same keys in one piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyattn as pa
from tests.draws import FLOATS, draw_bounds, draw_heads, draw_layout, draw_scoring
from tests.naive_sdpa import naive_outputs
from tests.reference import max_error, tolerance
from tests.reference_sdpa import sdpa_outputs

ISAS = pa.runtime.available_isas()
PAGES = [1, 3, 16, 64, 100]
NOWHERE = [-1, 2**31 - 1, -(2**31)]  # what stands in a table behind the last page in use

every_isa = pytest.mark.parametrize("isa", ISAS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
every_page = pytest.mark.parametrize("page", PAGES)


def paginate(key: Any, value: Any, lengths: Any, page: int, rng: Any) -> tuple[Any, Any, Any]:
    """Scatter (B, G, S, D) over pages in any order; NaN wherever no valid key is."""
    batch, groups, size, _ = key.shape
    counts = -(-lengths // page)
    spare = 3
    order = rng.permutation(int(counts.sum()) + spare)
    table = rng.choice(NOWHERE, (batch, -(-size // page))).astype(np.int32)
    pages = [
        np.full((order.size, groups, page, array.shape[3]), np.nan, array.dtype)
        for array in (key, value)
    ]
    for b, count in enumerate(counts):
        table[b, :count], order = order[:count], order[count:]
        for array, into in zip((key, value), pages, strict=True):
            for i, at in enumerate(table[b, :count]):
                part = array[b, :, i * page : min((i + 1) * page, lengths[b])]
                into[at, :, : part.shape[1]] = part
    return pages[0], pages[1], table


def as_dense(lengths: Any, rows: int, is_causal: Any) -> dict[str, Any]:
    """The options of dense attention that mean the same."""
    start = np.zeros_like(lengths) if is_causal == "top_left" else lengths - rows
    return {"kv_lengths": lengths, "query_start": start, "is_causal": bool(is_causal)}


@settings(deadline=None, max_examples=60)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_pages_on_anything(data: Any, isa: str, seed: int) -> None:
    draw, rng = data.draw, np.random.default_rng(seed)
    (heads, groups), dtype = draw_heads(draw), draw(st.sampled_from(FLOATS))
    size = st.sampled_from([1, 2, 8, 17, 31, 64, 65])
    batch, rows, depth, width = draw(st.integers(0, 3)), draw(size), draw(size), draw(size)
    keys, page = draw(st.sampled_from([0, 1, 17, 64, 130, 520])), draw(st.sampled_from(PAGES))
    lengths = rng.integers(0, keys + 1, batch).astype(draw(st.sampled_from([np.int32, np.int64])))
    shapes = (heads, rows, depth), (groups, keys, depth), (groups, keys, width)
    q, k, v = (rng.standard_normal((batch, *shape)).astype(dtype) for shape in shapes)
    bounds, scoring = draw_bounds(draw), draw_scoring(draw, rng, heads, dtype)
    options = as_dense(lengths, rows, bounds["is_causal"]) | scoring
    exact = sdpa_outputs(q, k, v, window=bounds["window"], **options)
    plain = naive_outputs(q, k, v, window=bounds["window"], **options)
    pa.runtime.set_isa(isa)
    key_pages, value_pages, table = paginate(k, v, lengths, page, rng)
    laid_out = (draw_layout(draw, a) for a in (q, key_pages, value_pages))
    if draw(st.booleans()):  # a slice of a table of more columns, the other way round in memory
        table = np.repeat(np.asfortranarray(table), 2, 1)[:, ::2]
    found = pa.paged_attention(*laid_out, table, lengths, **bounds, **scoring)
    assert found.shape == q.shape[:3] + v.shape[3:]
    assert found.dtype == dtype
    biased = exact["biased_scores"]
    score = float(np.abs(biased[np.isfinite(biased)]).max(initial=0.0))
    spread = float(exact["spread"].max(initial=0.0))
    assert max_error(found, exact["out"]) <= tolerance(
        plain["out"], exact["out"], score=score, spread=spread
    )


def kinds(rng: Any, heads: int, dtype: Any) -> Iterator[dict[str, Any]]:
    """Variants with a different way through the kernels each."""
    wide = np.float64 if dtype == np.float64 else np.float32
    slopes = (rng.random(heads) / 50).astype(wide)
    sinks = rng.standard_normal(heads).astype(wide)
    yield {}
    yield {"is_causal": "top_left", "softcap": 5.0}
    yield {"is_causal": True, "window": (70, -1)}
    yield {"is_causal": False, "alibi_slopes": slopes, "sinks": sinks, "scale": 0.3}


def make(rng: Any, dtype: Any, rows: int) -> tuple[Any, ...]:
    """Query, key, value, lengths: 8 query heads, 2 key heads, lengths around the ends of pages."""
    lengths = np.array([1100, 0, 1, 300, 64])
    shapes = (8, rows, 32), (2, 1100, 32), (2, 1100, 24)
    q, k, v = (rng.standard_normal((5, *shape)).astype(dtype) for shape in shapes)
    return q, k, v, lengths


@every_isa
@every_dtype
@every_page
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_pages_have_the_bits_of_one_piece(
    dtype: Any, isa: str, page: int, rows: int, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    q, k, v, lengths = make(rng, dtype, rows)
    pages = paginate(k, v, lengths, page, rng)
    for options in kinds(rng, 8, dtype):
        rest = {n: o for n, o in options.items() if n != "is_causal"}
        place = as_dense(lengths, rows, options.get("is_causal", "bottom_right"))
        whole = pa.scaled_dot_product_attention(q, k, v, **place, **rest)
        found = pa.paged_attention(q, *pages, lengths, **options)
        assert found.tobytes() == whole.tobytes(), options
        assert not found[1].any()


@every_isa
@every_dtype
def test_threads_have_the_same_bits(
    dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    q, k, v, lengths = make(rng, dtype, 2)
    pages, before = paginate(k, v, lengths, 16, rng), pa.runtime.threads()
    try:
        for options in kinds(rng, 8, dtype):
            results = set()
            for threads in (1, 2, 5):
                pa.runtime.set_threads(threads)
                results.add(pa.paged_attention(q, *pages, lengths, **options).tobytes())
            assert len(results) == 1, options
    finally:
        pa.runtime.set_threads(before)


@every_isa
@every_dtype
@every_page
def test_entries_share_pages(
    dtype: Any, isa: str, page: int, rng: Any, use_isa: Callable[[str], None]
) -> None:
    """Entries with the same beginning name the same pages for it; a page may stand twice in one."""
    use_isa(isa)
    shapes = (8, 2, page, 16), (8, 2, page, 24)
    key_pages, value_pages = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    q = rng.standard_normal((3, 4, 3, 16)).astype(dtype)
    table = np.array([[5, 2, 7], [5, 2, 0], [5, 5, 5]], np.int32)
    lengths = np.array([3 * page, 2 * page + (page + 1) // 2, 3 * page])
    k, v = (
        pages[table].transpose(0, 2, 1, 3, 4).reshape(3, 2, 3 * page, -1)
        for pages in (key_pages, value_pages)
    )
    found = pa.paged_attention(q, key_pages, value_pages, table, lengths)
    whole = pa.scaled_dot_product_attention(q, k, v, kv_lengths=lengths, is_causal="bottom_right")
    assert found.tobytes() == whole.tobytes()
    again = pa.paged_attention(q[:1], key_pages, value_pages, table[:1], lengths[:1])
    assert again.tobytes() == found[:1].tobytes()


@every_dtype
def test_a_cache_with_tokens_before_heads(dtype: Any, rng: Any) -> None:
    cache = rng.standard_normal((2, 6, 16, 2, 32)).astype(dtype)  # pages of (token, head, size)
    q = rng.standard_normal((2, 4, 1, 32)).astype(dtype)
    table, lengths = np.array([[3, 1], [0, 5]], np.int32), np.array([20, 32], np.int32)
    views = [part.transpose(0, 2, 1, 3) for part in cache]
    found = pa.paged_attention(q, *views, table, lengths)
    copied = pa.paged_attention(q, *map(np.ascontiguousarray, views), table, lengths)
    assert found.tobytes() == copied.tobytes()


@every_dtype
def test_decoding_writes_a_token_and_attends(dtype: Any, rng: Any) -> None:
    """Token by token into pages, as a server does it, against one call over all tokens."""
    q, k, v = (rng.standard_normal((1, 2, 40, 16)).astype(dtype) for _ in range(3))
    whole = pa.scaled_dot_product_attention(q, k, v, is_causal=True)
    pages = np.full((2, 5, 2, 16, 16), np.nan, dtype)
    table = np.array([[4, 0, 2]], np.int32)
    for t in range(40):
        pages[:, table[0, t // 16], :, t % 16] = k[0, :, t], v[0, :, t]
        row = pa.paged_attention(q[:, :, t : t + 1], *pages, table, np.array([t + 1]))
        assert row.tobytes() == np.ascontiguousarray(whole[:, :, t : t + 1]).tobytes()


@every_dtype
def test_nothing_in_nothing_out(dtype: Any, rng: Any) -> None:
    def call(batch: int, rows: int, pages: int, columns: int) -> Any:
        key, value = (np.full((pages, 2, 16, n), np.nan, dtype) for n in (8, 5))
        table = np.full((batch, columns), -1, np.int32)
        query = np.full((batch, 4, rows, 8), np.nan, dtype)
        return pa.paged_attention(query, key, value, table, np.zeros(batch, np.int64))

    for shape in ((0, 3, 2, 4), (2, 0, 2, 4), (2, 3, 0, 4), (2, 3, 2, 0), (0, 3, 0, 0)):
        found = call(*shape)
        assert found.shape == (shape[0], 4, shape[1], 5)
        assert not found.any()
