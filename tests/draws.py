"""What Hypothesis draws for the attention kernels: layouts, masks, lengths, variants, poison."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

EDGES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129]
LONG = [257, 511, 513, 1030]  # caches, for a few queries
FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def draw_layout(draw: Any, array: Any) -> Any:
    """Return an equal array in another memory layout: strided, reversed, Fortran, read-only."""
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed", "swapped", "read-only"]))
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "strided":
        spread = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        spread[..., ::2] = array
        return spread[..., ::2]
    if layout == "reversed":
        return np.ascontiguousarray(array[..., ::-1, :])[..., ::-1, :]
    if layout == "swapped":
        return np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1)
    if layout == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


def draw_mask(
    draw: Any, rng: Any, shape: tuple[int, ...], dtype: Any, *, short: bool = False
) -> Any:
    """Return a mask that broadcasts to ``shape``, boolean or float, or None.

    With ``short`` its last axis may stop before that of ``shape``.
    """
    kind = draw(st.sampled_from(["none", "bool", "float"]))
    if kind == "none":
        return None
    rank = draw(st.integers(1, len(shape)))
    sizes = tuple(n if draw(st.booleans()) else 1 for n in shape[-rank:])
    if short and shape[-1] > 2 and draw(st.integers(0, 2)) == 0:
        sizes = (*sizes[:-1], draw(st.integers(2, shape[-1] - 1)))
    allowed = rng.random(sizes) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    if kind == "bool":
        return allowed
    return np.where(allowed, rng.standard_normal(sizes), -np.inf).astype(dtype)


def draw_lengths(draw: Any, rng: Any, batch: int, keys: int) -> Any:
    """Return the number of valid keys of each batch entry, or None."""
    if not draw(st.booleans()):
        return None
    return rng.integers(0, keys + 1, batch).astype(draw(st.sampled_from([np.int32, np.int64])))


def poison(array: Any, never: Any) -> Any:
    """Return the array with NaN and infinities in the rows of axis -2 where ``never`` is true."""
    array = array.copy()
    array[never] = np.nan
    array[never, ::2] = np.inf
    return array


def _sometimes(draw: Any, strategy: Any, otherwise: Any) -> Any:
    """Draw from the strategy one time in three: all variants at once would hide each other."""
    return draw(strategy) if draw(st.integers(0, 2)) == 0 else otherwise


def draw_sizes(draw: Any) -> tuple[int, int, int, int]:
    """Query length, key length, head size, value head size; long caches for few queries."""
    size = st.sampled_from(EDGES)
    rows = draw(size)
    keys = draw(st.sampled_from(EDGES + LONG if rows < 17 else EDGES))
    return rows, keys, draw(size), draw(size)


def draw_bounds(draw: Any) -> dict[str, Any]:
    """Options that say how far a query sees from its position."""
    side = st.sampled_from([-1, 0, 1, 5, 40, 200])
    return {
        "is_causal": draw(st.sampled_from([False, True, "top_left", "bottom_right"])),
        "window": _sometimes(draw, st.one_of(side, st.tuples(side, side)), None),
    }


def draw_positions(draw: Any, rng: Any, batch: int, rows: int, keys: int) -> dict[str, Any]:
    """Options that say which keys a query sees by its position."""
    bounds, start = draw_bounds(draw), None
    if bounds["is_causal"] != "bottom_right" and draw(st.booleans()):
        kind = draw(st.sampled_from([np.int32, np.int64]))
        beyond = draw(st.sampled_from([0, 0, rows + 3]))  # where some queries see nothing
        start = rng.integers(-beyond, keys + beyond, batch).astype(kind)
        start = int(start[0]) if draw(st.booleans()) else start
    lengths = draw_lengths(draw, rng, batch, keys)
    return bounds | {"query_start": start, "kv_lengths": lengths}


def draw_scoring(draw: Any, rng: Any, heads: int, dtype: Any) -> dict[str, Any]:
    """Options that say what becomes of a score."""
    compute = np.float64 if dtype == np.float64 else np.float32
    options: dict[str, Any] = {
        "scale": draw(st.sampled_from([None, None, 0.0, -0.2, 0.4])),
        "softcap": _sometimes(draw, st.sampled_from([0.5, 2.0, 30.0]), 0.0),
    }
    if _sometimes(draw, st.just(True), False):
        options["alibi_slopes"] = (rng.random(heads) ** 2 / 4).astype(compute)
    if _sometimes(draw, st.just(True), False):
        options["sinks"] = rng.standard_normal(heads).astype(compute)
    return options


def draw_dropout(draw: Any) -> dict[str, Any]:
    """Dropout and its seed."""
    probability = _sometimes(draw, st.sampled_from([0.1, 0.5, 0.9]), 0.0)
    return {"dropout_p": probability, "rng": draw(st.integers(0, 2**64 - 1))}


def draw_heads(draw: Any) -> tuple[int, int]:
    """Query heads and key/value heads."""
    groups = draw(st.integers(1, 2))
    return groups * draw(st.integers(1, 3)), groups


def draw_sdpa(draw: Any, rng: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Return query, key, value and options (`tests.reference_sdpa.Options`), without poison."""
    batch, (heads, groups) = draw(st.integers(1, 2)), draw_heads(draw)
    rows, keys, depth, width = draw_sizes(draw)
    past = _sometimes(draw, st.integers(0, keys - 1), None)
    dtype = draw(st.sampled_from(FLOATS))
    old = past or 0

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    options = draw_positions(draw, rng, batch, rows, keys) | {
        "mask": draw_mask(draw, rng, (batch, heads, rows, keys), dtype, short=True),
        **draw_scoring(draw, rng, heads, dtype),
        **draw_dropout(draw),
    }
    if past is not None:
        options["past_key"] = normal(batch, groups, old, depth)
        options["past_value"] = normal(batch, groups, old, width)
    new = (batch, groups, keys - old)
    return normal(batch, heads, rows, depth), normal(*new, depth), normal(*new, width), options
