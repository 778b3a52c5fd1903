"""Rotary position embedding of queries and keys on their way into attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn.attention._sdpa_graph import query_positions
from pyattn.attention._sdpa_options import resolve_starts
from pyattn.dtypes import compute_dtype
from pyattn.ops import arange_like, expand_dims, rotary_embedding
from pyattn.tensor import Array, Dim, Tensor, Value, spec_of

# Blocks of 64 queries that read the same keys: with more of them it takes less time to turn the
# keys before, once, than to turn them whenever they are read.
MOST_BLOCKS = 8


def turn(
    function: str,
    query: Value,
    key: Value,
    kv_lengths: Value | None,
    query_starts: Value | None,
    params: dict[str, Any],
    cosine: Value | None,
    sine: Value | None,
    interleaved: Any,
    *,
    whole: bool,
) -> tuple[Value, Value, Any]:
    """Return query, key, and what the kernel is to turn by as it loads them, or None.

    ``whole``: no kernel can; then, and for a trace, a gradient or rows with gaps, both come back
    turned. The bits are the same.
    """
    if cosine is None and sine is None:
        if interleaved is not False:
            raise ValueError(f"{function}: rotary_interleaved needs rotary_cos and rotary_sin")
        return query, key, None
    if cosine is None or sine is None:
        raise ValueError(f"{function}: rotary_cos and rotary_sin must be given together")
    _check(function, query, key, cosine, sine, interleaved)
    given = (query, key, cosine, sine, kv_lengths, query_starts)
    q: Any = query
    k: Any = key
    if all(not isinstance(x, Tensor) for x in given):
        _check_positions(function, query, key, kv_lengths, query_starts, params, cosine)
        dense = all(x.shape[3] <= 1 or x.strides[3] == x.itemsize for x in (q, k))
        if dense and not whole:
            tables = _tables(cosine, sine, interleaved)
            blocks = -(-q.shape[2] * q.shape[1] // (64 * max(k.shape[1], 1)))
            if blocks > MOST_BLOCKS:
                key = _turned(key, expand_dims(arange_like(key, 2), 0), cosine, sine, interleaved)
            return query, key, (*tables, interleaved, blocks <= MOST_BLOCKS)
    positions = query_positions(query, key, kv_lengths, query_starts, params)
    query = _turned(query, positions, cosine, sine, interleaved)
    key = _turned(key, expand_dims(arange_like(key, 2), 0), cosine, sine, interleaved)
    return query, key, None


def _check(
    function: str, query: Value, key: Value, cosine: Value, sine: Value, interleaved: Any
) -> None:
    """Raise TypeError or ValueError where the tables do not fit the queries."""
    if not isinstance(interleaved, bool):
        raise TypeError(f"{function}: rotary_interleaved must be a bool; got {interleaved!r}")
    for name, table in (("rotary_cos", cosine), ("rotary_sin", sine)):
        if table.dtype != query.dtype:
            raise TypeError(
                f"{function}: {name} must have the dtype of query; got {table.dtype} for "
                f"{query.dtype}"
            )
    for name, x in (("query", query), ("key", key)):
        if x.ndim != 4:
            raise ValueError(f"{function}: {name} must have four axes; got shape {x.shape}")
    size, (rows, pairs) = query.shape[3], cosine.shape if cosine.ndim == 2 else (0, 0)
    fits = cosine.ndim == 2 and cosine.shape == sine.shape
    static = not any(isinstance(x, Dim) for x in (size, rows, pairs))
    if not fits or not static or not 0 < 2 * pairs <= size:
        raise ValueError(
            f"{function}: rotary_cos and rotary_sin must be (positions, R / 2) with an even R, "
            f"above 0 and at most D; got {spec_of(cosine)}, {spec_of(sine)} for query {query.shape}"
        )


def _check_positions(
    function: str,
    query: Any,
    key: Any,
    kv_lengths: Any,
    query_starts: Any,
    params: dict[str, Any],
    cosine: Any,
) -> None:
    """Raise ValueError where a position is outside the tables."""
    starts = resolve_starts(query, key, kv_lengths, query_starts, params)
    first, last = (0, 0) if starts is None or not starts.size else (starts.min(), starts.max())
    end = max(int(last) + query.shape[2], key.shape[2])
    if first < 0 or end > cosine.shape[0]:
        raise ValueError(
            f"{function}: rotary_cos must have a row for each position of a query or key; got "
            f"{cosine.shape[0]} rows for positions {min(int(first), 0)}..{end - 1}"
        )


def _turned(x: Value, positions: Any, cosine: Value, sine: Value, interleaved: bool) -> Any:
    """Return x ``(B, H, T, D)`` turned; positions are ``(1 or B, T)``."""
    every = positions + expand_dims(arange_like(x, 0) * 0, 1)
    pairs: Any = cosine.shape[1]
    return rotary_embedding(
        x, cosine, sine, every, interleaved=interleaved, rotary_embedding_dim=2 * pairs
    )


def _tables(cosine: Any, sine: Any, interleaved: bool) -> tuple[Array, Array]:
    """Return the tables as the kernel reads them: in its dtype, a number for each of the row."""
    dtype = compute_dtype(cosine.dtype)
    cosine, sine = (np.ascontiguousarray(x, dtype) for x in (cosine, sine))
    if not interleaved:
        return cosine, sine
    return np.repeat(cosine, 2, -1), np.stack((-sine, sine), -1).reshape(len(sine), -1)
