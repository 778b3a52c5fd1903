"""The options of scaled dot-product attention, checked and in the terms of its operation."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from pyattn.dtypes import COMPUTE
from pyattn.ops import arange_like, size
from pyattn.tensor import Array, Dim, Tensor, TraceError, Value

UNBOUNDED = -1
LARGEST = 2**40  # of a position or a window, so that sums of two stay in 64 bits


def normalize_options(
    function: str,
    query: Value,
    is_causal: Any,
    window: Any,
    query_start: Any,
    past_key: Value | None,
    scale: Any,
    softcap: Any,
    dropout_p: Any,
    rng: Any,
    top_k: Any,
    aux: tuple[str, ...],
) -> tuple[Value | None, dict[str, Any]]:
    """Return ``query_starts`` ``(B,)`` or None, and the parameters of the operation."""
    bottom_right = isinstance(is_causal, str) and is_causal == "bottom_right"
    left, right = normalize_window(function, is_causal, window)
    starts, start = _query_start(function, query_start, past_key)
    if bottom_right and query_start is not None:
        raise ValueError(f'{function}: query_start and is_causal="bottom_right" exclude each other')
    if isinstance(start, Dim):  # known at run time only, where it is a vector
        starts, start = _past_lengths(query, past_key), 0
    if bottom_right:
        starts = None
    return starts, {
        "left": left,
        "right": right,
        "bottom_right": bottom_right,
        "start": 0 if bottom_right else start,
        "scale": normalize_scale(function, scale, query),
        "softcap": normalize_softcap(function, softcap),
        "top_k": normalize_top_k(function, top_k, aux),
        **normalize_dropout(function, dropout_p, rng),
    }


def normalize_window(function: str, is_causal: Any, window: Any) -> tuple[int, int]:
    """Return how many keys before and behind its position a query sees, -1 for all."""
    named = isinstance(is_causal, str) and is_causal in ("top_left", "bottom_right")
    if not (named or isinstance(is_causal, (bool, np.bool_))):
        raise ValueError(
            f'{function}: is_causal must be a bool, "top_left" or "bottom_right"; got {is_causal!r}'
        )
    sides = (UNBOUNDED, UNBOUNDED) if window is None else window
    if isinstance(sides, (int, np.integer)) and not isinstance(sides, bool):
        sides = (sides, sides)
    if not isinstance(sides, (tuple, list)) or len(sides) != 2:
        raise TypeError(f"{function}: window must be an int or (left, right); got {window!r}")
    left, right = (_integer(function, "window", side, UNBOUNDED, LARGEST) for side in sides)
    return left, 0 if is_causal else right


def normalize_scale(function: str, scale: Any, query: Value) -> float:
    """Return the scale as a float, by default 1 / sqrt(D)."""
    if scale is not None:
        arithmetic = COMPUTE.get(query.dtype.name, np.dtype(np.float64))
        most = float(np.finfo(arithmetic).max)
        return _number(function, "scale", scale, -most, most)
    size = query.shape[-1] if query.ndim > 1 else 1
    if isinstance(size, Dim):
        raise TraceError(f"{function}: the head size must be static, or scale given")
    if size == 0:
        raise ValueError(f"{function}: query must have D > 0; got query {query.shape}")
    return 1 / math.sqrt(size)


def normalize_softcap(function: str, softcap: Any) -> float:
    """Return the cap as a float; 0 is none."""
    return _number(function, "softcap", softcap, 0.0, math.inf)


def normalize_dropout(function: str, dropout_p: Any, rng: Any) -> dict[str, Any]:
    """Return the probability and the seed of dropout."""
    probability = _number(function, "dropout_p", dropout_p, 0.0, 1.0)
    if probability == 1.0:
        raise ValueError(f"{function}: dropout_p must be below 1; got {dropout_p}")
    if rng is None and probability > 0.0:
        raise ValueError(f"{function}: dropout_p needs rng, a seed or a numpy.random.Generator")
    seed = 0
    if isinstance(rng, np.random.Generator):
        if probability > 0.0:
            seed = int(rng.integers(2**64, dtype=np.uint64))
    elif rng is not None:
        what = "an integer or a numpy.random.Generator"
        seed = _integer(function, "rng", rng, 0, 2**64 - 1, what)
    return {"dropout_p": probability, "seed": seed if probability > 0.0 else 0}


def normalize_top_k(function: str, top_k: Any, aux: tuple[str, ...]) -> int:
    """Return ``top_k``; it is needed where ``aux`` names its outputs."""
    count = _integer(function, "top_k", top_k, 0, 2**31)
    if count == 0 and {"top_weights", "top_indices"} & set(aux):
        raise ValueError(f"{function}: top_weights and top_indices need top_k > 0; got {top_k}")
    return count


def resolve_starts(
    query: Array,
    key: Array,
    kv_lengths: Array | None,
    query_starts: Array | None,
    params: dict[str, Any],
) -> Array | None:
    """Return the position of the first query of each batch entry, or None for 0."""
    if params["bottom_right"]:
        rows, keys = query.shape[2], key.shape[2]
        if kv_lengths is not None:
            starts: Array = kv_lengths.astype(np.int64) - rows
            return starts
        return None if keys == rows else np.full(query.shape[0], keys - rows, np.int64)
    if params["start"]:
        return np.full(query.shape[0], params["start"], np.int64)
    return query_starts


def core_options(
    query: Array,
    key: Array,
    kv_lengths: Array | None,
    query_starts: Array | None,
    alibi_slopes: Array | None,
    sinks: Array | None,
    params: dict[str, Any],
) -> dict[str, Any]:
    """Return what differs from the defaults, in the terms of the compiled core."""
    starts = resolve_starts(query, key, kv_lengths, query_starts, params)
    options = {
        "kv_lengths": kv_lengths,
        "query_starts": starts,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "left": None if params["left"] == UNBOUNDED else params["left"],
        "softcap": params["softcap"] or None,
        "dropout": params["dropout_p"] or None,
        "seed": params["seed"] if params["dropout_p"] else None,
        "top_k": params["top_k"] or None,
        "rotary": params.get("rotary"),
    }
    return {name: value for name, value in options.items() if value is not None}


def _query_start(
    function: str, query_start: Any, past_key: Value | None
) -> tuple[Value | None, Any]:
    """Return the starts as a vector or None, and one for all entries."""
    if query_start is None:
        return None, 0 if past_key is None or past_key.ndim != 4 else past_key.shape[2]
    if isinstance(query_start, (np.ndarray, Tensor)):
        _check_starts(function, query_start)
        return query_start, 0
    what = "an integer, a NumPy array or a Tensor"
    return None, _integer(function, "query_start", query_start, -LARGEST, LARGEST, what)


def _check_starts(function: str, starts: Value) -> None:
    """Raise ValueError where a start, if its value is known, is out of range."""
    known = starts.value if isinstance(starts, Tensor) else starts
    if known is None or known.size == 0 or known.dtype.kind not in "iu":
        return
    if known.min() < -LARGEST or known.max() > LARGEST:
        raise ValueError(
            f"{function}: query_start must lie in {-LARGEST}..{LARGEST}; got {known.min()}.."
            f"{known.max()}"
        )


def _past_lengths(query: Value, past_key: Any) -> Any:
    """Return ``(B,)``, the length of a past whose size is dynamic."""
    return arange_like(query, 0) * 0 + size(past_key, 2)


def _integer(
    function: str, name: str, value: Any, least: int, most: int, what: str = "an integer"
) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: {name} must be {what}; got {value!r}") from None
    if not least <= number <= most:
        raise ValueError(f"{function}: {name} must lie in {least}..{most}; got {number}")
    return number


def _number(function: str, name: str, value: Any, least: float, most: float) -> float:
    try:
        if isinstance(value, (str, bytes, bool, Tensor)) or np.ndim(value):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{function}: {name} must be a number; got {value!r}") from None
    if not least <= number <= most or not math.isfinite(number):
        raise ValueError(
            f"{function}: {name} must be finite and lie in {least:g}..{most:g}; got {number}"
        )
    return number
