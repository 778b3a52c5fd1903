"""Scaled dot-product attention as a user without a library would write it in NumPy.

The arithmetic is in the dtype of the inputs; for float16 and bfloat16 each step computes in float32
and rounds what it hands on, as an eager framework does. Its error against the float64 oracle is the
yardstick for a kernel of the same dtype (`tests.reference.tolerance`), and it is a contender in the
benchmarks. It reads masked entries, so it is given arrays without poison.
"""

import math
from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from tests.philox import dropout_factors
from tests.reference_sdpa import (
    AnyArray,
    Options,
    Result,
    bounds,
    broadcast_mask,
    positions,
    with_past,
)

# What is returned in float32 for half inputs has to be as good as float32 inputs would make it.
WIDE = ("lse", "max", "entropy", "top_weights", "column_mass")

Step = Callable[[AnyArray], AnyArray]


def naive_sdpa(
    query: AnyArray, key: AnyArray, value: AnyArray, **options: Unpack[Options]
) -> Result:
    """Scaled dot-product attention with the (B, H, T, S) scores in memory."""
    found = _steps(query, key, value, rounding(query.dtype), options)
    return Result(found["out"], found["weights"], found["lse"])


def naive_outputs(
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    *,
    top_k: int = 0,
    **options: Unpack[Options],
) -> dict[str, AnyArray]:
    """The outputs of `tests.reference_sdpa.sdpa_outputs` but the indices and the present."""
    found = _steps(query, key, value, rounding(query.dtype), options)
    wide = found
    if found["out"].dtype != found["lse"].dtype:
        wide = _steps(query, key, value, _unrounded, options)
    weights = wide["weights"]
    logarithms = np.log(np.where(weights > 0, weights, weights.dtype.type(1)))
    wide["entropy"] = -(weights * logarithms).sum(axis=-1)
    wide["top_weights"] = _largest(weights, top_k)
    wide["column_mass"] = weights.sum(axis=2)
    return found | {name: wide[name] for name in WIDE}


def _unrounded(array: AnyArray) -> AnyArray:
    return array


def rounding(dtype: np.dtype[Any]) -> Step:
    """What ends a step: rounding to the dtype for a half one, nothing for the others."""
    if dtype in (np.float32, np.float64):
        return _unrounded

    def rounded(array: AnyArray) -> AnyArray:
        return array.astype(dtype).astype(np.float32)

    return rounded


def _steps(
    query: AnyArray, key: AnyArray, value: AnyArray, rounded: Step, options: Options
) -> dict[str, AnyArray]:
    """Evaluate the formula on whole arrays, one step after another.

    Arrays of the result have the query's dtype where `rounded` rounds to it, else float32.
    """
    compute = np.float64 if query.dtype == np.float64 else np.float32
    q, k, v = inputs_of(query, key, value, options, compute)
    shape = (*q.shape[:3], k.shape[2])
    found = {"scores": _scores(q, k, rounded, options)}
    found["capped_scores"] = _capped(found["scores"], options.get("softcap", 0.0), rounded)
    bias, allowed = _bias(options, shape, np.shape(key)[2], compute)
    biased = found["capped_scores"] if bias is None else rounded(found["capped_scores"] + bias)
    if allowed is not None:
        biased = np.where(allowed, biased, compute(-np.inf))
    found["biased_scores"] = biased
    weights, lse, largest = _softmax(biased, options)
    found["weights"] = weights = rounded(weights)
    if options.get("dropout_p", 0.0) > 0:
        weights = rounded(weights * dropout_of(options, shape, compute))
    found["out"] = rounded(weights @ v)
    narrow = query.dtype if rounded is not _unrounded else compute
    found = {name: array.astype(narrow, copy=False) for name, array in found.items()}
    return found | {"lse": lse, "max": largest}


def _scores(q: AnyArray, k: AnyArray, rounded: Step, options: Options) -> AnyArray:
    v = options.get("v")
    if v is not None:
        terms = rounded(np.tanh(rounded(q[:, :, :, None] + k[:, :, None])))
        vectors = np.asarray(v).astype(q.dtype)
        return rounded((terms @ vectors[:, None, :, None])[..., 0])
    scale = options.get("scale")
    factor = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    return rounded(rounded(q * q.dtype.type(factor)) @ k.swapaxes(-1, -2))


def inputs_of(
    query: AnyArray, key: AnyArray, value: AnyArray, options: Options, compute: Any
) -> Any:
    """Query, key and value in the compute dtype, the past in front, a copy for each query head."""
    key = with_past(options.get("past_key"), key)
    value = with_past(options.get("past_value"), value)
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = np.repeat(key, repeats, axis=1), np.repeat(value, repeats, axis=1)
    return tuple(array.astype(compute, copy=False) for array in (query, key, value))


def _capped(scores: AnyArray, softcap: float, rounded: Step) -> AnyArray:
    if softcap <= 0:
        return scores
    c = scores.dtype.type(softcap)
    return rounded(c * rounded(np.tanh(rounded(scores / c))))


def _bias(
    options: Options, shape: tuple[int, ...], new: int, compute: Any
) -> tuple[AnyArray | None, NDArray[np.bool_] | None]:
    """What is added to the scores, and which keys are allowed; both broadcast to the scores."""
    batch, _, rows, size = shape
    starts, lengths = positions(options, batch, rows, size, size - new)
    first, last = bounds(options.get("is_causal", False), options.get("window"))
    column = np.arange(size)
    distance = column - (starts[:, None] + np.arange(rows))[:, None, :, None]
    allowed, bias = None, None
    if first > -math.inf or last < math.inf:
        allowed = (distance >= first) & (distance <= last)
    if options.get("kv_lengths") is not None:
        valid = column < lengths[:, None, None, None]
        allowed = valid if allowed is None else allowed & valid
    slopes, mask = options.get("alibi_slopes"), broadcast_mask(options.get("mask"), shape)
    if slopes is not None:
        bias = -np.asarray(slopes, compute)[:, None, None] * np.abs(distance).astype(compute)
    if mask is not None and mask.dtype == np.bool_:
        allowed = mask if allowed is None else allowed & mask
    elif mask is not None:
        bias = mask.astype(compute) if bias is None else bias + mask.astype(compute)
    return bias, allowed


def _softmax(scores: AnyArray, options: Options) -> tuple[AnyArray, AnyArray, AnyArray]:
    """Weights, log-sum-exp and maximum; the sink takes part in the first two."""
    zero, lowest = scores.dtype.type(0), scores.dtype.type(-np.inf)
    largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    sinks = options.get("sinks")
    sink = lowest if sinks is None else np.asarray(sinks, scores.dtype)[:, None, None]
    shift = np.maximum(largest, sink)
    shift = np.where(shift > -np.inf, shift, zero)
    numerators = np.exp(scores - shift)
    total = numerators.sum(axis=-1, keepdims=True) + np.exp(sink - shift)
    weights = numerators / np.where(total > 0, total, scores.dtype.type(1))
    with np.errstate(divide="ignore"):
        lse = shift + np.log(total)
    return weights, lse[..., 0], largest[..., 0]


def dropout_of(options: Options, shape: tuple[int, ...], compute: Any) -> AnyArray:
    """What dropout multiplies the weights by; 1 where it is off."""
    dropout_p = options.get("dropout_p", 0.0)
    if dropout_p == 0:
        return np.ones((), compute)
    b, h, i = np.ogrid[: shape[0], : shape[1], : shape[2]]
    seed = options.get("rng") or 0
    return dropout_factors(dropout_p, seed, b, h, i, shape[3]).astype(compute)


def _largest(weights: AnyArray, top_k: int) -> AnyArray:
    """The `top_k` largest of the last axis, descending, zeros behind them where it is shorter."""
    top = -np.sort(-weights, axis=-1)[..., :top_k]
    missing = top_k - top.shape[-1]
    return np.pad(top, [(0, 0)] * (top.ndim - 1) + [(0, missing)])
