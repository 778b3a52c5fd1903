"""Operations on positions: counting them, looking rows up by them, masks made of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pyattn.ops._rules import INT64, join, normalize_axis, require_numbers
from pyattn.ops.elementwise import astype, less, less_equal
from pyattn.ops.shape import expand_dims
from pyattn.tensor import Array, Dim, Node, Op, Spec, Value, apply, rank_of


def _size_shape(x: Spec, *, axis: int) -> Spec:
    normalize_axis("size", axis, x.ndim)
    return Spec((), INT64)


def _size_onnx(graph: Any, node: Node, x: str) -> Any:
    axis = node.params["axis"] % node.required(0).ndim
    sizes = graph.node("Shape", x, start=axis, end=axis + 1)
    return graph.node("Squeeze", sizes, graph.constant(np.array([0], np.int64)))


_SIZE = Op(
    "size",
    lambda x, axis: np.array(x.shape[axis], np.int64),
    _size_shape,
    onnx=_size_onnx,
)


def _arange_like_shape(x: Spec, *, axis: int) -> Spec:
    return Spec((x.shape[normalize_axis("arange_like", axis, x.ndim)],), INT64)


def _arange_like_onnx(graph: Any, node: Node, x: str) -> Any:
    count = _size_onnx(graph, node, x)
    zero, one = graph.constant(np.array(0, np.int64)), graph.constant(np.array(1, np.int64))
    return graph.node("Range", zero, count, one)


_ARANGE_LIKE = Op(
    "arange_like",
    lambda x, axis: np.arange(x.shape[axis], dtype=np.int64),
    _arange_like_shape,
    onnx=_arange_like_onnx,
)


def _take_shape(table: Spec, indices: Spec) -> Spec:
    if table.ndim < 1 or indices.dtype.kind not in "iu":
        raise TypeError(
            f"{join('take', table, indices)}; expected a (rows, ...) table and integer indices"
        )
    return Spec((*indices.shape, *table.shape[1:]), table.dtype)


def _take_eval(table: Array, indices: Array) -> Array:
    if indices.size and not (indices.min() >= 0 and indices.max() < len(table)):
        raise ValueError(
            f"take: indices must lie in 0..{len(table) - 1}; got {indices.min()}..{indices.max()}"
        )
    return table[indices]


def _take_vjp(
    _: Node, g: tuple[Array], inputs: tuple[Array, Array], __: tuple[Array]
) -> tuple[Array, None]:
    table, indices = inputs
    gradient = np.zeros_like(table)
    np.add.at(gradient, indices.reshape(-1), g[0].reshape(indices.size, *table.shape[1:]))
    return gradient, None


def _refuse_negative(graph: Any, node: Node, indices: str, axis: int) -> str:
    """Return the indices with negative ones, which ONNX counts from the end, sent outside."""
    size, dtype = node.required(0).shape[axis], node.required(1).dtype
    if isinstance(size, Dim):
        return indices
    negative = graph.node("Less", indices, graph.constant(np.array(0, dtype)))
    outside = graph.constant(np.array(size, dtype))
    checked: str = graph.node("Where", negative, outside, indices)
    return checked


def _take_onnx(graph: Any, node: Node, table: str, indices: str) -> Any:
    return graph.node("Gather", table, _refuse_negative(graph, node, indices, 0), axis=0)


_TAKE = Op(
    "take",
    _take_eval,
    _take_shape,
    _take_vjp,
    _take_onnx,
)


def _repeat_shape(x: Spec, *, repeats: int, axis: int) -> Spec:
    size = x.shape[axis]
    if isinstance(size, Dim):
        raise ValueError(f"repeat: axis {axis} of {x} must have a static size")
    return Spec((*x.shape[:axis], size * repeats, *x.shape[axis + 1 :]), x.dtype)


def _repeat_vjp(node: Node, g: tuple[Array], x: tuple[Array], _: tuple[Array]) -> tuple[Array]:
    axis, shape = node.params["axis"], x[0].shape
    split = (*shape[:axis], shape[axis], node.params["repeats"], *shape[axis + 1 :])
    return (g[0].reshape(split).sum(axis=axis + 1),)


def _repeat_onnx(graph: Any, node: Node, x: str) -> Any:
    source, axis = node.required(0), node.params["axis"]
    rows = np.repeat(np.arange(source.shape[axis], dtype=np.int64), node.params["repeats"])
    return graph.node("Gather", x, graph.constant(rows), axis=axis)


_REPEAT = Op(
    "repeat",
    lambda x, repeats, axis: np.repeat(x, repeats, axis=axis),
    _repeat_shape,
    _repeat_vjp,
    _repeat_onnx,
)


def _require_places(name: str, x: Spec, indices: Spec) -> None:
    """Raise unless ``indices (..., K)`` are integers for the last axis of ``x (..., V)``."""
    if indices.dtype.kind not in "iu":
        raise TypeError(f"{join(name, x, indices)}; expected integer indices")
    if x.ndim < 1 or indices.shape[:-1] != x.shape[:-1] or indices.ndim != x.ndim:
        raise ValueError(f"{join(name, x, indices)}; all axes but the last must be the same")


def _check_places(name: str, x: Array, indices: Array) -> None:
    if indices.size and not (indices.min() >= 0 and indices.max() < x.shape[-1]):
        raise ValueError(
            f"{name}: indices must lie in 0..{x.shape[-1] - 1}; got {indices.min()}.."
            f"{indices.max()}"
        )


def _add_at(x: Array, indices: Array, updates: Array) -> Array:
    """Return a copy of ``x`` with every update added at its index; equal indices add up."""
    out, size = np.array(x, order="C"), x.shape[-1]
    rows = np.arange(math.prod(x.shape[:-1])).reshape(*x.shape[:-1], 1)
    np.add.at(out.reshape(-1), (rows * size + indices).reshape(-1), updates.reshape(-1))
    return out


def _take_along_shape(x: Spec, indices: Spec) -> Spec:
    _require_places("take_along", x, indices)
    return Spec(indices.shape, x.dtype)


def _take_along_eval(x: Array, indices: Array) -> Array:
    _check_places("take_along", x, indices)
    return np.take_along_axis(x, indices, axis=-1)


def _take_along_vjp(
    _: Node, g: tuple[Array], inputs: tuple[Array, Array], __: tuple[Array]
) -> tuple[Array, None]:
    return _add_at(np.zeros_like(inputs[0]), inputs[1], g[0]), None


_TAKE_ALONG = Op(
    "take_along",
    _take_along_eval,
    _take_along_shape,
    _take_along_vjp,
    lambda graph, node, x, indices: graph.node(
        "GatherElements", x, _refuse_negative(graph, node, indices, -1), axis=-1
    ),
)


def _scatter_add_shape(x: Spec, indices: Spec, updates: Spec) -> Spec:
    require_numbers("scatter_add", x, updates)
    _require_places("scatter_add", x, indices)
    if updates.shape != indices.shape:
        raise ValueError(f"{join('scatter_add', indices, updates)}; the shapes must be equal")
    return x


def _scatter_add_eval(x: Array, indices: Array, updates: Array) -> Array:
    _check_places("scatter_add", x, indices)
    return _add_at(x, indices, updates)


_SCATTER_ADD = Op(
    "scatter_add",
    _scatter_add_eval,
    _scatter_add_shape,
    lambda _, g, inputs, __: (g[0], None, np.take_along_axis(g[0], inputs[1], axis=-1)),
    lambda graph, node, x, indices, updates: graph.node(
        "ScatterElements",
        x,
        _refuse_negative(graph, node, indices, -1),
        updates,
        axis=-1,
        reduction="add",
    ),
)


def _zeros_like_onnx(graph: Any, node: Node, x: str) -> Any:
    zero = np.zeros(1, node.outputs[0].dtype)
    return graph.node("ConstantOfShape", graph.node("Shape", x), value=zero)


_ZEROS_LIKE = Op(
    "zeros_like",
    lambda x, dtype: np.zeros(x.shape, dtype or x.dtype),
    lambda x, dtype: Spec(x.shape, dtype or x.dtype),
    lambda *_: (None,),
    _zeros_like_onnx,
)


def arange_like(x: Value, axis: int) -> Any:
    """Return the int64 positions 0, 1, ... along an axis of ``x``, whatever its size."""
    return apply(_ARANGE_LIKE, x, axis=axis)


def size(x: Value, axis: int) -> Any:
    """Return the size of an axis of ``x``, int64 of rank 0, also where only a run knows it."""
    return apply(_SIZE, x, axis=axis)


def take(table: Value, indices: Value) -> Any:
    """Return the rows of ``table (rows, ...)`` at integer ``indices (...)``: an embedding.

    Raises ValueError for an index outside the table; a negative index is outside.
    """
    return apply(_TAKE, table, indices)


def take_along(x: Value, indices: Value) -> Any:
    """Return the entries of ``x (..., V)`` at ``indices (..., K)`` of its last axis.

    Raises ValueError for an index outside 0..V-1.
    """
    return apply(_TAKE_ALONG, x, indices)


def scatter_add(x: Value, indices: Value, updates: Value) -> Any:
    """Return ``x (..., V)`` with ``updates (..., K)`` added at ``indices (..., K)``.

    Updates of equal index add up. Raises ValueError for an index outside 0..V-1.
    """
    return apply(_SCATTER_ADD, x, indices, updates)


def zeros_like(x: Value, dtype: DTypeLike | None = None) -> Any:
    """Return zeros of the shape of ``x``, of its dtype unless given; its entries are not read."""
    return apply(_ZEROS_LIKE, x, dtype=None if dtype is None else np.dtype(dtype))


def repeat(x: Value, repeats: int, axis: int) -> Any:
    """Return ``x`` with each entry of ``axis`` repeated ``repeats`` times in a row."""
    return apply(
        _REPEAT, x, repeats=repeats, axis=normalize_axis("repeat", axis, rank_of("repeat", x))
    )


def length_mask(lengths: Value, key: Value, axis: int = -2) -> Any:
    """Return booleans ``(B, S)``: whether key j of a row is below its length ``(B,)``."""
    positions = expand_dims(arange_like(key, axis), 0)
    return less(positions, expand_dims(astype(lengths, INT64), 1))


def causal_mask(query: Value, key: Value, axis: int = -2) -> Any:
    """Return booleans ``(T, S)``: whether key j is at or before query i (top-left aligned)."""
    columns, rows = arange_like(key, axis), arange_like(query, axis)
    return less_equal(expand_dims(columns, 0), expand_dims(rows, 1))
