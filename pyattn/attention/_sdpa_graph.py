"""Scaled dot-product attention in smaller operations, and the names of its forms in ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn.attention import _checks as checks
from pyattn.dtypes import IN_A_NAME, compute_dtype
from pyattn.ops import (
    arange_like,
    astype,
    concat,
    exp,
    expand_dims,
    greater,
    less_equal,
    log,
    logical_and,
    matmul,
    maximum,
    repeat,
    sigmoid,
    size,
    softmax,
    tanh,
    transpose,
    where,
)
from pyattn.ops import max as reduce_max
from pyattn.ops import sum as reduce_sum
from pyattn.tensor import Dim, Node, Tensor, Value

UNBOUNDED = -1

_IN_A_NAME = str.maketrans({".": "p", "-": "Minus", "+": None})  # of a number


def expand(
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    kv_lengths: Value | None,
    query_starts: Value | None,
    alibi_slopes: Value | None,
    sinks: Value | None,
    *,
    scale: Any,
    aux: tuple[str, ...],
    dropout_p: float = 0.0,
    **params: Any,
) -> Any:
    """The same mathematics, with the T x S matrix of scores."""
    if mask is not None and mask.dtype != np.bool_:
        mask = _cast(mask, compute_dtype(query.dtype))
    distance = distances(query, key, kv_lengths, query_starts, params)
    allowed = checks.allowed_keys(key, mask, kv_lengths)
    return attend(
        query, key, value, mask, allowed, distance, alibi_slopes, sinks, scale=scale, aux=aux,
        dropout_p=dropout_p, **params,
    )  # fmt: skip


def attend(
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    allowed: Value | None,
    distance: Any,
    alibi_slopes: Value | None,
    sinks: Value | None,
    *,
    scale: Any,
    aux: tuple[str, ...],
    dropout_p: float = 0.0,
    **params: Any,
) -> Any:
    """Attend where ``allowed`` and where ``distance`` ``(1 or B, T, S)``, j - p, is in bounds.

    ``mask`` and ``scale``, where that is a Tensor, are in the dtype of the arithmetic.
    """
    dtype, wide = query.dtype, compute_dtype(query.dtype)
    query, key, value = (_cast(x, wide) for x in (query, key, value))
    groups: Any = query.shape[1]
    if key.shape[1] != groups:
        repeats = groups // key.shape[1]
        key, value = repeat(key, repeats, 1), repeat(value, repeats, 1)
    scores = matmul(query * scale, transpose(key, (0, 1, 3, 2)))
    return weigh(
        scores, value, mask, allowed, distance, alibi_slopes, sinks, dtype=dtype, aux=aux,
        dropout_p=dropout_p, **params,
    )  # fmt: skip


def weigh(
    scores: Any,
    value: Value,
    mask: Value | None,
    allowed: Value | None,
    distance: Any,
    alibi_slopes: Value | None,
    sinks: Value | None,
    *,
    dtype: Any,
    aux: tuple[str, ...],
    dropout_p: float,
    **params: Any,
) -> Any:
    """Return the output and what ``aux`` names, rounded to ``dtype``, from scores of any kind.

    ``scores`` ``(B, H, T, S)`` and ``value`` ``(B, H, S, E)`` are in the dtype of the arithmetic.
    """
    if dropout_p > 0 or {"top_weights", "top_indices"} & set(aux):
        raise TypeError(
            "attention: dropout and top_k have no form in smaller operations, which an export and "
            "some gradients need"
        )
    wide = value.dtype
    found: dict[str, Any] = {"scores": scores}
    found["capped_scores"] = scores = _capped(found["scores"], params["softcap"])
    if alibi_slopes is not None:
        scores = scores - penalty(alibi_slopes, distance, wide)
    allowed = in_bounds(allowed, distance, params["left"], params["right"])
    scores = checks.masked_bias(scores, mask)
    found["biased_scores"] = scores if allowed is None else where(allowed, scores, -np.inf)
    add_weights(found, allowed, sinks, aux)
    out = _cast(matmul(found["weights"], value), dtype)
    narrow = ("weights", "scores", "capped_scores", "biased_scores")
    extra = tuple(_cast(found[name], dtype) if name in narrow else found[name] for name in aux)
    return (out, *extra) if aux else out


def penalty(alibi_slopes: Value, distance: Any, dtype: Any) -> Any:
    """Return ``slope[h] * |p - j|``, which is subtracted from the scores."""
    slopes = expand_dims(expand_dims(constant(alibi_slopes), 1), 2)
    away = astype(maximum(distance, distance * -1), dtype)
    return slopes * expand_dims(away, 1)


def _cast(x: Any, dtype: Any) -> Any:
    return x if x.dtype == dtype else astype(x, dtype)


def constant(x: Value) -> Value:
    """Return ``x`` without its gradient."""
    return Tensor(x.value) if isinstance(x, Tensor) and x.value is not None else x


def _capped(scores: Any, softcap: float) -> Any:
    return tanh(scores * (1 / softcap)) * softcap if softcap else scores


def distances(
    query: Value,
    key: Value,
    kv_lengths: Value | None,
    query_starts: Value | None,
    params: dict[str, Any],
) -> Any:
    """Return j - p, int64 ``(1 or B, T, S)``: key j less the position p of the query."""
    positions = query_positions(query, key, kv_lengths, query_starts, params)
    return expand_dims(expand_dims(arange_like(key, 2), 0), 0) - expand_dims(positions, 2)


def query_positions(
    query: Value,
    key: Value,
    kv_lengths: Value | None,
    query_starts: Value | None,
    params: dict[str, Any],
) -> Any:
    """Return p, int64 ``(1 or B, T)``: where the queries stand among the keys."""
    start: Any = np.full((1, 1), params["start"], np.int64)
    if params["bottom_right"]:
        end = size(key, 2) if kv_lengths is None else expand_dims(astype_int(kv_lengths), 1)
        start = start + end - size(query, 2)
    elif query_starts is not None:
        start = start + expand_dims(astype_int(query_starts), 1)
    return expand_dims(arange_like(query, 2), 0) + start


def astype_int(x: Value) -> Any:
    """Return ``x`` as int64; a cast always, so that one ONNX function serves int32 and int64."""
    return astype(x, np.int64)


def in_bounds(allowed: Value | None, distance: Any, left: int, right: int) -> Value | None:
    """Restrict ``allowed`` to ``-left <= distance <= right``; None where all keys may be seen."""
    bounds = []
    if right != UNBOUNDED:
        bounds.append(less_equal(distance, np.array(right)))
    if left != UNBOUNDED:
        bounds.append(less_equal(np.array(-left), distance))
    for bound in bounds:
        wide = expand_dims(bound, 1)
        allowed = wide if allowed is None else logical_and(allowed, wide)
    return allowed


def add_weights(
    found: dict[str, Any], allowed: Value | None, sinks: Value | None, aux: tuple[str, ...]
) -> None:
    """Add the weights, and what ``aux`` names of their statistics."""
    scores = found["biased_scores"]
    weights = softmax(scores)
    if allowed is not None:
        # Such a row of -inf only has a NaN for a softmax; a select keeps it out of the gradient.
        weights = where(allowed, weights, 0.0)
    if sinks is not None or {"lse", "max", "entropy"} & set(aux):
        peak = reduce_max(scores, -1, keepdims=True)
        some = greater(peak, -np.inf)
        shift = where(some, peak, 0.0)
        total = where(some, reduce_sum(exp(scores - shift), -1, keepdims=True), 1.0)
        lse = where(some, log(total) + shift, -np.inf)
        found["max"] = peak[..., 0]
        if sinks is not None:
            sink = expand_dims(expand_dims(sinks, 1), 2)
            share = where(some, sigmoid(where(some, lse, 0.0) - sink), 0.0)
            weights = weights * share
            lse = _log_sum(lse, sink)
        found["lse"] = lse[..., 0]
    found["weights"] = weights
    if "entropy" in aux:
        positive = greater(weights, 0.0)
        logarithm = log(where(positive, weights, 1.0))
        found["entropy"] = -reduce_sum(weights * logarithm, -1)
    if "column_mass" in aux:
        found["column_mass"] = reduce_sum(weights, 2)


def _log_sum(x: Any, y: Any) -> Any:
    """Return ``log(exp(x) + exp(y))``; either may be -inf."""
    top = maximum(x, y)
    some = greater(top, -np.inf)
    shift = where(some, top, 0.0)
    total = where(some, exp(x - shift) + exp(y - shift), 1.0)
    return where(some, log(total) + shift, -np.inf)


def full_mask(mask: Value, keys: Any) -> Value:
    """Return a mask whose last axis is padded to S with "masked"; a size of 1 is broadcast."""
    last = mask.shape[-1]
    if isinstance(last, Dim) or last == 1 or last == keys or isinstance(keys, Dim):
        return mask
    padding = False if mask.dtype == np.bool_ else -np.inf
    if not isinstance(mask, Tensor):
        wide = [(0, 0)] * (mask.ndim - 1) + [(0, keys - last)]
        return np.pad(mask, wide, constant_values=padding)
    missing = (1,) * (mask.ndim - 1) + (keys - last,)
    if last == 0:
        return np.full(missing, padding, mask.dtype)
    if mask.dtype == np.bool_:
        rest = logical_and(mask[..., :1], np.zeros(missing, np.bool_))
    else:  # in float32 at least: ONNX Runtime selects no bfloat16
        wide = _cast(mask[..., :1], compute_dtype(mask.dtype))
        rest = _cast(where(np.zeros(missing, np.bool_), wide, padding), mask.dtype)
    padded: Value = concat([mask, rest], -1)
    return padded


def function_name(node: Node) -> str:
    """Name the ONNX function of a node: it must tell everything that the body depends on."""
    return "ScaledDotProductAttention" + variant_name(node, *node.inputs[3:])


def variant_name(
    node: Node,
    mask: Tensor | None,
    lengths: Tensor | None,
    starts: Tensor | None,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> str:
    """Return the part of the name that follows the mechanism's."""
    query, key = node.required(0), node.required(1)
    params = node.params
    left, right = params["left"], params["right"]
    parts = {
        IN_A_NAME[query.dtype.name]: True,
        "BoolMask": mask is not None and mask.dtype == np.bool_,
        "FloatMask": mask is not None and mask.dtype != np.bool_,
        "Lengths": lengths is not None,
        "Causal": right == 0 and left == UNBOUNDED,
        f"Window{left}To{right}".replace("-1", "Any"): left != UNBOUNDED or right > 0,
        "BottomRight": params["bottom_right"],
        "Starts": starts is not None,
        f"From{params.get('start')}".replace("-", "Minus"): params.get("start", 0) != 0,
        f"Softcap{params['softcap']!r}".translate(_IN_A_NAME): params["softcap"] != 0,
        "Alibi": slopes is not None,
        "Sinks": sinks is not None,
        **{name.title().replace("_", ""): True for name in params["aux"]},
        f"Heads{query.shape[1]}Of{key.shape[1]}": query.shape[1] != key.shape[1],
        "NegativeScale": params.get("scale", 1) <= 0,
    }
    return "".join(part for part, present in parts.items() if present)
