"""Checks and pieces that the attention mechanisms share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyattn.ops import (
    causal_mask,
    exp,
    expand_dims,
    greater,
    length_mask,
    log,
    logical_and,
    softmax,
    where,
)
from pyattn.ops import max as reduce_max
from pyattn.ops import sum as reduce_sum
from pyattn.tensor import Dim, Node, Size, Spec, Tensor, Value

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
AUX = ("weights", "lse")


def require_arrays(function: str, optional: Mapping[str, Any], **required: Any) -> None:
    """Raise TypeError unless every argument is a NumPy array or a Tensor; ``optional`` or None."""
    given = {name: value for name, value in optional.items() if value is not None}
    for name, value in (required | given).items():
        if not isinstance(value, (np.ndarray, Tensor)):
            raise TypeError(
                f"{function}: {name} must be a NumPy array or a Tensor; got {type(value).__name__}"
            )


def require_floats(function: str, **arguments: Spec | Value) -> None:
    """Raise TypeError unless all have one dtype, float32 or float64."""
    found = ", ".join(f"{name} {spec.dtype}" for name, spec in arguments.items())
    dtypes = {spec.dtype for spec in arguments.values()}
    if len(dtypes) > 1 or not dtypes <= set(FLOATS):
        raise TypeError(f"{function}: expected one dtype, float32 or float64; got {found}")


def require_rank(function: str, layout: str, **arguments: Spec) -> None:
    """Raise ValueError unless each argument has as many axes as ``layout``, e.g. "B, H, T, D"."""
    for name, spec in arguments.items():
        if spec.ndim != layout.count(",") + 1:
            raise ValueError(f"{function}: {name} must be ({layout}); got shape {spec.shape}")


def require_shared(function: str, what: str, axis: int, **arguments: Spec) -> None:
    """Raise ValueError unless the arguments have the same size along ``axis``."""
    (first, a), (second, b) = arguments.items()
    if a.shape[axis] != b.shape[axis]:
        raise ValueError(
            f"{function}: {first} and {second} must share {what}; got {first} {a.shape}, "
            f"{second} {b.shape}"
        )


def require_mask(function: str, mask: Spec | None, dtype: Any, scores: tuple[Size, ...]) -> None:
    """Raise unless ``mask`` is bool or ``dtype`` and broadcasts to the shape of the scores."""
    if mask is None:
        return
    if mask.dtype not in (np.bool_, dtype):
        raise TypeError(f"{function}: attn_mask must be bool or {dtype}; got {mask.dtype}")
    aligned = scores[len(scores) - mask.ndim :]
    fits = 1 <= mask.ndim <= len(scores) and all(
        size in (1, full) for size, full in zip(mask.shape, aligned, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{function}: attn_mask must broadcast to {scores}; got shape {mask.shape}"
        )


def require_lengths(function: str, lengths: Spec | None, batch: Size) -> None:
    """Raise unless ``kv_lengths`` is an int32 or int64 array ``(B,)``."""
    if lengths is None:
        return
    if lengths.dtype not in (np.int32, np.int64):
        raise TypeError(f"{function}: kv_lengths must be int32 or int64; got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise ValueError(f"{function}: kv_lengths must have shape ({batch},); got {lengths.shape}")


def check_lengths(function: str, kv_lengths: Value | None, keys: Size) -> None:
    """Raise ValueError where a length, if its value is known, is outside 0..S."""
    if isinstance(kv_lengths, Tensor):
        kv_lengths = kv_lengths.value
    if kv_lengths is None or isinstance(keys, Dim) or kv_lengths.size == 0:
        return
    if kv_lengths.min() < 0 or kv_lengths.max() > keys:
        raise ValueError(
            f"{function}: kv_lengths must lie in 0..{keys}; got {kv_lengths.min()}.."
            f"{kv_lengths.max()}"
        )


def normalize_aux(function: str, aux: Sequence[str]) -> tuple[str, ...]:
    """Return ``aux`` as a tuple; ValueError for a name that is unknown or stands twice."""
    if not isinstance(aux, (str, tuple, list)):
        raise TypeError(f"{function}: aux must be a tuple of names; got {type(aux).__name__}")
    names = (aux,) if isinstance(aux, str) else tuple(aux)
    if not set(names) <= set(AUX) or len(set(names)) < len(names):
        raise ValueError(f"{function}: aux may name each of {AUX} once; got {names}")
    return names


def select_aux(out: Any, weights: Any, lse: Any, aux: tuple[str, ...]) -> Any:
    """Return the output alone, or in a tuple with what ``aux`` names, in its order."""
    extra = {"weights": weights, "lse": lse}
    return (out, *(extra[name] for name in aux)) if aux else out


def allowed_keys(
    query: Value, key: Value, mask: Value | None, kv_lengths: Value | None, *, is_causal: bool
) -> Value | None:
    """Return booleans that broadcast to the scores: which keys each query may see.

    None when all may be seen. ``query (B, ..., T, _)`` and ``key (B, ..., S, _)`` have equal rank.
    """
    parts: list[Value] = []
    if mask is not None:
        parts.append(mask if mask.dtype == np.bool_ else greater(mask, -np.inf))
    if kv_lengths is not None:
        valid = length_mask(kv_lengths, key)
        for _ in range(query.ndim - 2):
            valid = expand_dims(valid, 1)
        parts.append(valid)
    if is_causal:
        parts.append(causal_mask(query, key))
    result: Value | None = None
    for part in parts:
        result = part if result is None else logical_and(result, part)
    return result


def masked_softmax(
    scores: Value, allowed: Value | None, aux: tuple[str, ...]
) -> tuple[Value, Value | None]:
    """Return the weights and, if asked for, the log-sum-exp over the last axis.

    Rows without an allowed key have weights 0 and log-sum-exp -inf.
    """
    if allowed is not None:
        scores = where(allowed, scores, -np.inf)
    weights = softmax(scores)
    if allowed is not None:
        # Such a row of -inf only has a NaN for a softmax; a select keeps it out of the gradient.
        weights = where(allowed, weights, 0.0)
    lse = None
    if "lse" in aux:
        peak = reduce_max(scores, -1, keepdims=True)
        some = greater(peak, -np.inf)
        shift = where(some, peak, 0.0)
        total = where(some, reduce_sum(exp(scores - shift), -1, keepdims=True), 1.0)
        lse = where(some, log(total) + shift, -np.inf)[..., 0]
    return weights, lse


def masked_bias(scores: Value, mask: Value | None) -> Value:
    """Return the scores with a float mask added; a boolean mask is no bias."""
    return scores if mask is None or mask.dtype == np.bool_ else scores + mask


def variant(node: Node) -> str:
    """Return the part of an ONNX function's name that tells which variant its body computes."""
    query, mask, kv_lengths, params = node.required(0), *node.inputs[-2:], node.params
    parts = {
        "Double": query.dtype == np.float64,
        "BoolMask": mask is not None and mask.dtype == np.bool_,
        "FloatMask": mask is not None and mask.dtype != np.bool_,
        "Lengths": kv_lengths is not None,
        "Causal": params["is_causal"],
        **{name.title(): True for name in params["aux"]},
    }
    return "".join(part for part, present in parts.items() if present)
