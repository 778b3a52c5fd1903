"""Packed sequences as padded ones and back, so that one oracle serves both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def padded(array: Any, offsets: Any, fill: float = 0.0) -> Any:
    """(N, H, D) as (B, H, longest, D), with ``fill`` behind the shorter sequences."""
    lengths = np.diff(offsets)
    shape = (lengths.size, array.shape[1], lengths.max(initial=0), array.shape[2])
    result = np.full(shape, fill, array.dtype)
    for b, length in enumerate(lengths):
        result[b, :, :length] = array[offsets[b] : offsets[b + 1]].swapaxes(0, 1)
    return result


def packed(array: Any, offsets: Any) -> Any:
    """(B, H, longest, ...) as (H, N, ...): the sequences without what is behind them."""
    result = np.empty((array.shape[1], offsets[-1], *array.shape[3:]), array.dtype)
    for b, length in enumerate(np.diff(offsets)):
        result[:, offsets[b] : offsets[b + 1]] = array[b, :, :length]
    return result


def by_padding(
    attend: Callable[..., dict[str, Any]],
    query: Any,
    key: Any,
    value: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    is_causal: Any = False,
    fill: float = 0.0,
    **options: Any,
) -> dict[str, Any]:
    """The output and lse of varlen_attention by a dense ``attend``, and what `tolerance` needs.

    That is "spread" of `sdpa_outputs` and "score", the largest score.
    """
    rows, keys = np.diff(cu_seqlens_q), np.diff(cu_seqlens_k)
    found = attend(
        padded(query, cu_seqlens_q, fill),
        padded(key, cu_seqlens_k, fill),
        padded(value, cu_seqlens_k, fill),
        kv_lengths=keys,
        query_start=keys - rows if is_causal == "bottom_right" else np.zeros_like(keys),
        is_causal=bool(is_causal),
        **options,
    )
    result = {"lse": packed(found["lse"], cu_seqlens_q)}
    for name in found.keys() & {"out", "spread"}:
        result[name] = packed(found[name], cu_seqlens_q).swapaxes(0, 1)
    scores, sinks = found.get("biased_scores", np.zeros(0)), np.asarray(options.get("sinks", 0.0))
    sizes = (np.abs(scores[np.isfinite(scores)]), np.abs(sinks))
    result["score"] = max(float(size.max(initial=0.0)) for size in sizes)
    return result
