"""Luong's attention as a user without a library would write it: the full matrix, then masked.

The arithmetic is that of `tests.naive_sdpa`: in the dtype of the inputs, for half types in float32
with each step rounded; what is returned in float32 for them knows of rounded projections only, for
these are arrays of the dtype. Its error is the yardstick for a kernel of the same dtype, and it is
a contender in the benchmarks. It reads masked entries, so it is given arrays without poison.
"""

from typing import Any, Unpack

import numpy as np

from tests.naive_sdpa import rounding
from tests.reference_luong import Alignment
from tests.reference_sdpa import AnyArray, broadcast_mask


def naive_luong(
    query: AnyArray, key: AnyArray, value: AnyArray | None = None, **options: Unpack[Alignment]
) -> dict[str, AnyArray]:
    """What `tests.reference_luong.luong` returns, but the scores, in whole arrays."""
    narrow = _steps(query, key, value, rounding(query.dtype), options)
    if query.dtype in (np.float32, np.float64):
        return narrow
    wide = _steps(query, key, value, lambda array: array, options)
    half = ("out", "weights", "window_weights")
    return wide | {n: narrow[n].astype(query.dtype) for n in half if n in narrow}


def _steps(query: Any, key: Any, value: Any, rounded: Any, options: Alignment) -> dict[str, Any]:
    compute = np.float64 if query.dtype == np.float64 else np.float32
    q, k = query.astype(compute), key.astype(compute)
    x = k if value is None else value.astype(compute)
    found: dict[str, Any] = {}
    scores = _scores(q, k, rounding(query.dtype), rounded, options, compute)
    mask = broadcast_mask(options.get("attn_mask"), scores.shape)
    allowed = np.ones(scores.shape, bool) if mask is None or mask.dtype != np.bool_ else mask
    if mask is not None and mask.dtype != np.bool_:
        scores = rounded(scores + mask.astype(compute))
    column, lengths = np.arange(k.shape[1]), options.get("kv_lengths")
    if lengths is not None:
        allowed = allowed & (column < np.asarray(lengths)[:, None, None])
    centre, half = _centres(q, k.shape[1], options, compute), options.get("half_width")
    if centre is not None and half is not None:
        away = column.astype(compute) - centre[..., None]
        allowed = allowed & (np.abs(away) <= half)
        found["position"] = centre
    scores = np.where(allowed, scores, compute(-np.inf))
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    shift = np.where(top > -np.inf, top, compute(0))
    numerators = np.exp(scores - shift)
    total = numerators.sum(axis=-1, keepdims=True)
    weights = rounded(numerators / np.where(total > 0, total, compute(1)))
    if options.get("align") == "local-p" and half is not None:
        weights = rounded(weights * rounded(np.exp(away * away * compute(-2 / half**2))))
        if options.get("renormalize"):
            whole = weights.sum(axis=-1, keepdims=True)
            weights = rounded(weights / np.where(whole > 0, whole, compute(1)))
    with np.errstate(divide="ignore"):
        found |= {"lse": (shift + np.log(total))[..., 0], "max": top[..., 0]}
    logarithms = np.log(np.where(weights > 0, weights, compute(1)))
    found["entropy"] = -(weights * logarithms).sum(axis=-1)
    if centre is not None and half is not None:
        found["window_weights"] = _windows(weights, centre, half)
    return found | {"weights": weights, "out": rounded(weights @ x)}


def _scores(q: Any, k: Any, projected: Any, rounded: Any, options: Alignment, compute: Any) -> Any:
    score = options.get("score", "dot")
    if score == "dot":
        return rounded(q @ k.swapaxes(1, 2))
    weight = np.asarray(options["weight"]).astype(compute)
    if score == "general":
        return rounded(projected(q @ weight) @ k.swapaxes(1, 2))
    if score == "location":
        return rounded(q @ weight[: k.shape[1]].T)
    v, size = np.asarray(options["v"]).astype(compute), q.shape[2]
    left, right = projected(q @ weight[:, :size].T), projected(k @ weight[:, size:].T)
    return rounded(rounded(np.tanh(rounded(left[:, :, None] + right[:, None]))) @ v)


def _centres(q: Any, size: int, options: Alignment, compute: Any) -> Any:
    align, given = options.get("align", "global"), options.get("position")
    if align == "global":
        return None
    if align == "local-m":
        start = options.get("query_start")
        start = np.reshape(np.asarray(0 if start is None else start), (-1, 1))
        return np.broadcast_to(start + np.arange(q.shape[1]), q.shape[:2]).astype(compute)
    if given is not None:
        return np.asarray(given).astype(compute)
    weight = np.asarray(options["position_weight"]).astype(compute)
    v = np.asarray(options["position_v"]).astype(compute)
    share = np.tanh(np.tanh(q @ weight.T) @ v / 2) / 2 + compute(0.5)  # a sigmoid
    lengths = options.get("kv_lengths")
    sizes = np.full((1, 1), size) if lengths is None else np.asarray(lengths)[:, None]
    return share * sizes.astype(compute)


def _windows(weights: Any, centre: Any, half: int) -> Any:
    at = np.ceil(centre).astype(np.int64)[..., None] - half + np.arange(2 * half + 1)
    inside = (at >= 0) & (at < weights.shape[2])
    if weights.shape[2] == 0:
        return np.zeros(at.shape, weights.dtype)
    picked = np.take_along_axis(weights, np.clip(at, 0, weights.shape[2] - 1), axis=2)
    return np.where(inside, picked, weights.dtype.type(0))
