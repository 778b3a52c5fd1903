"""Checks and pieces that the attention mechanisms share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyattn.dtypes import FULL_FLOATS, compute_dtype
from pyattn.interchange import is_foreign
from pyattn.ops import (
    expand_dims,
    greater,
    length_mask,
    logical_and,
)
from pyattn.tensor import Array, Dim, Size, Spec, Tensor, Value


def require_arrays(function: str, optional: Mapping[str, Any], **required: Any) -> bool:
    """Raise TypeError unless every argument is a NumPy array or a Tensor; ``optional`` or None.

    Returns False where some are arrays of another library, which :func:`interchange.call` turns
    into NumPy's and back.
    """
    given = {name: value for name, value in optional.items() if value is not None}
    native = True
    for name, value in (required | given).items():
        if not isinstance(value, (np.ndarray, Tensor)):
            if is_foreign(value):
                native = False
                continue
            raise TypeError(
                f"{function}: {name} must be a NumPy array or a Tensor; got {type(value).__name__}"
            )
    return native


def require_ndarrays(function: str, optional: Mapping[str, Any], **required: Any) -> bool:
    """The same for a function without a gradient or a trace: no Tensors."""
    for name, value in (required | dict(optional)).items():
        if isinstance(value, Tensor):
            raise TypeError(f"{function}: {name} must be a NumPy array; got a Tensor")
    return require_arrays(function, optional, **required)


def require_floats(
    function: str, supported: Sequence[str] = FULL_FLOATS, **arguments: Spec | Value
) -> None:
    """Raise TypeError unless all have one dtype, one of those supported."""
    dtypes = {spec.dtype for spec in arguments.values()}
    if len(dtypes) > 1 or not {dtype.name for dtype in dtypes} <= set(supported):
        found = ", ".join(f"{name} {spec.dtype}" for name, spec in arguments.items())
        *others, last = supported
        raise TypeError(
            f"{function}: expected one dtype, {', '.join(others)} or {last}; got {found}"
        )


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


def require_groups(function: str, query: Spec, key: Spec) -> None:
    """Raise ValueError unless H, axis 1 of ``query``, is a multiple of G, axis 1 of ``key``."""
    heads, groups = query.shape[1], key.shape[1]
    if isinstance(heads, Dim) or isinstance(groups, Dim):
        divides = heads == groups
    else:
        divides = heads == groups or (groups > 0 and heads % groups == 0)
    if not divides:
        raise ValueError(
            f"{function}: the heads of query must be a multiple of those of key; got query "
            f"{query.shape}, key {key.shape}"
        )


def require_mask(
    function: str,
    mask: Spec | None,
    dtype: Any,
    scores: tuple[Size, ...],
    *,
    short: bool = False,
) -> None:
    """Raise unless ``mask`` is bool or ``dtype`` and broadcasts to the shape of the scores.

    With ``short``, its last axis may also be shorter than theirs.
    """
    if mask is None:
        return
    if mask.dtype not in (np.bool_, dtype):
        raise TypeError(f"{function}: attn_mask must be bool or {dtype}; got {mask.dtype}")
    aligned = scores[len(scores) - mask.ndim :]
    fits = 1 <= mask.ndim <= len(scores) and all(
        size in (1, full) for size, full in zip(mask.shape, aligned, strict=True)
    )
    if short and not fits and 1 <= mask.ndim <= len(scores):
        *front, last = zip(mask.shape, aligned, strict=True)
        static = not any(isinstance(size, Dim) for size in last)
        fits = static and last[0] < last[1] and all(size in (1, full) for size, full in front)
    if not fits:
        raise ValueError(
            f"{function}: attn_mask must broadcast to {scores}; got shape {mask.shape}"
        )


def require_integers(function: str, name: str, spec: Spec | None, size: Size) -> None:
    """Raise unless an optional argument is an int32 or int64 vector of ``size``."""
    if spec is None:
        return
    if spec.dtype not in (np.int32, np.int64):
        raise TypeError(f"{function}: {name} must be int32 or int64; got {spec.dtype}")
    if spec.shape != (size,):
        raise ValueError(f"{function}: {name} must have shape ({size},); got {spec.shape}")


def require_lengths(function: str, lengths: Spec | None, batch: Size) -> None:
    """Raise unless ``kv_lengths`` is an int32 or int64 array ``(B,)``."""
    require_integers(function, "kv_lengths", lengths, batch)


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


def require_vector(function: str, name: str, spec: Spec | None, size: Size, dtype: Any) -> None:
    """Raise unless an optional argument is a vector of ``size`` in ``dtype``."""
    if spec is None:
        return
    if spec.dtype != dtype:
        raise TypeError(f"{function}: {name} must be {dtype}; got {spec.dtype}")
    if spec.shape != (size,):
        raise ValueError(f"{function}: {name} must have shape ({size},); got {spec.shape}")


def require_offsets(function: str, name: str, offsets: Array, total: int) -> None:
    """Raise ValueError unless offsets rise from 0 to ``total``."""
    if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise ValueError(f"{function}: {name} must rise from 0 to {total}; got {offsets}")


def require_out(function: str, out: Array, shape: tuple[int, ...], dtype: Any) -> None:
    """Raise unless ``out`` can take a result of that shape and dtype."""
    if out.dtype != dtype:
        raise TypeError(f"{function}: out must be {dtype}; got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{function}: out must have shape {shape}; got {out.shape}")
    if not out.flags.writeable:
        raise ValueError(f"{function}: out is read-only; got an array of shape {out.shape}")
    if out.size and out.shape[-1] > 1 and out.strides[-1] != out.itemsize:
        raise ValueError(
            f"{function}: out must be contiguous along its last axis; got strides {out.strides} "
            f"for shape {out.shape}"
        )


def require_apart(function: str, out: Array, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError where ``out`` overlaps an input in memory."""
    for name, array in inputs.items():
        if isinstance(array, np.ndarray) and _overlap(out, array):
            raise ValueError(
                f"{function}: out and {name} must not overlap; got out {out.shape}, {name} "
                f"{array.shape}"
            )


def _overlap(one: Array, other: Array) -> bool:
    if not np.may_share_memory(one, other):
        return False
    try:  # whether the ranges overlap is quickly told; whether elements do, may be hard
        return np.shares_memory(one, other, max_work=100_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def normalize_aux(function: str, aux: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return ``aux`` as a tuple; ValueError for a name that is unknown or stands twice."""
    if not isinstance(aux, (str, tuple, list)):
        raise TypeError(f"{function}: aux must be a tuple of names; got {type(aux).__name__}")
    names = (aux,) if isinstance(aux, str) else tuple(aux)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{function}: aux must be a tuple of names; got {names}")
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise ValueError(f"{function}: aux may name each of {tuple(known)} once; got {names}")
    return names


def result_specs(
    query: Spec, key: Spec, value: Spec, top_k: int, aux: Sequence[str]
) -> Spec | tuple[Spec, ...]:
    """Return the Spec of the output ``(B, H, T, E)``, and of what ``aux`` names."""
    wide, scores = compute_dtype(query.dtype), (*query.shape[:3], key.shape[2])
    out = Spec((*scores[:3], value.shape[3]), query.dtype)
    extra = {
        **dict.fromkeys(("lse", "max", "entropy"), Spec(scores[:3], wide)),
        **dict.fromkeys(
            ("weights", "scores", "capped_scores", "biased_scores"), Spec(scores, query.dtype)
        ),
        "top_weights": Spec((*scores[:3], top_k), wide),
        "top_indices": Spec((*scores[:3], top_k), np.dtype(np.int64)),
        "column_mass": Spec((*scores[:2], scores[3]), wide),
    }
    return (out, *(extra[name] for name in aux)) if aux else out


def allowed_keys(key: Value, mask: Value | None, kv_lengths: Value | None) -> Value | None:
    """Return booleans that broadcast to the scores: which keys each query may see.

    None when all may be seen. ``key`` is ``(B, ..., S, _)``.
    """
    parts: list[Value] = []
    if mask is not None:
        parts.append(mask if mask.dtype == np.bool_ else greater(mask, -np.inf))
    if kv_lengths is not None:
        valid = length_mask(kv_lengths, key)
        for _ in range(key.ndim - 2):
            valid = expand_dims(valid, 1)
        parts.append(valid)
    result: Value | None = None
    for part in parts:
        result = part if result is None else logical_and(result, part)
    return result


def masked_bias(scores: Value, mask: Value | None) -> Value:
    """Return the scores with a float mask added; a boolean mask is no bias."""
    return scores if mask is None or mask.dtype == np.bool_ else scores + mask
