"""Operations that move, join and cut without computing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyattn.ops._rules import join, normalize_axis, same_dtypes
from pyattn.tensor import Array, Dim, Node, Op, Size, Spec, Value, apply, rank_of


def _reshaped(shape: tuple[Size, ...], target: tuple[int, ...]) -> tuple[Size, ...]:
    """Resolve a target with 0 (copy the size at this place) and -1 (infer) against ``shape``."""
    if any(size < -1 for size in target) or target.count(-1) > 1:
        raise ValueError(f"reshape: target {target} has a size below -1 or more than one -1")
    if any(size == 0 and i >= len(shape) for i, size in enumerate(target)):
        raise ValueError(f"reshape: target {target} copies an axis that {shape} does not have")
    sizes: list[Size] = [shape[i] if size == 0 else size for i, size in enumerate(target)]
    left = [size for i, size in enumerate(shape) if i >= len(target) or target[i] != 0]
    parts = [(s.product or (s, 1)) if isinstance(s, Dim) else (None, s) for s in left]
    named = [dim for dim, _ in parts if dim is not None]
    have = math.prod(count for _, count in parts)
    want = math.prod(size for size in target if size > 0)
    fits = have % want == 0 if -1 in target else have == want and not named
    if not fits:
        raise ValueError(f"reshape: shape {shape} does not become {target}")
    if -1 in target:
        sizes[target.index(-1)] = math.prod(named, start=have // want)
    return tuple(sizes)


def _reshape_eval(x: Array, target: tuple[int, ...]) -> Array:
    return x.reshape(_reshaped(x.shape, target))


def _reshape_onnx(graph: Any, node: Node, x: str) -> Any:
    return graph.node("Reshape", x, graph.constant(np.array(node.params["target"], np.int64)))


_RESHAPE = Op(
    "reshape",
    _reshape_eval,
    lambda x, target: Spec(_reshaped(x.shape, target), x.dtype),
    lambda _, g, x, __: (g[0].reshape(x[0].shape),),
    _reshape_onnx,
)


def _transpose_shape(x: Spec, *, axes: tuple[int, ...]) -> Spec:
    if sorted(axes) != list(range(x.ndim)):
        raise ValueError(f"transpose: axes {axes} do not permute rank {x.ndim}")
    return Spec(tuple(x.shape[axis] for axis in axes), x.dtype)


_TRANSPOSE = Op(
    "transpose",
    lambda x, axes: x.transpose(axes),
    _transpose_shape,
    lambda node, g, _, __: (g[0].transpose(np.argsort(node.params["axes"])),),
    lambda graph, node, x: graph.node("Transpose", x, perm=node.params["axes"]),
)


def _expand_dims_shape(x: Spec, *, axis: int) -> Spec:
    return Spec((*x.shape[:axis], 1, *x.shape[axis:]), x.dtype)


_EXPAND_DIMS = Op(
    "expand_dims",
    lambda x, axis: np.expand_dims(x, axis),
    _expand_dims_shape,
    lambda _, g, x, __: (g[0].reshape(x[0].shape),),
    lambda graph, node, x: graph.node(
        "Unsqueeze", x, graph.constant(np.array([node.params["axis"]], np.int64))
    ),
)


def _concat_shape(*specs: Spec, axis: int) -> Spec:
    dtype, first = same_dtypes("concat", *specs), specs[0].shape
    if any(
        s.ndim != len(first)
        or s.shape[:axis] != first[:axis]
        or s.shape[axis + 1 :] != first[axis + 1 :]
        for s in specs
    ):
        raise ValueError(f"{join('concat', *specs)}; only axis {axis} may differ")
    total: Any = sum(spec.shape[axis] for spec in specs)
    return Spec((*first[:axis], total, *first[axis + 1 :]), dtype)


def _concat_vjp(
    node: Node, g: tuple[Array], inputs: tuple[Array, ...], _: tuple[Array]
) -> tuple[Array, ...]:
    axis = node.params["axis"]
    ends = np.cumsum([x.shape[axis] for x in inputs])[:-1]
    return tuple(np.split(g[0], ends, axis=axis))


_CONCAT = Op(
    "concat",
    lambda *arrays, axis: np.concatenate(arrays, axis=axis),
    _concat_shape,
    _concat_vjp,
    lambda graph, node, *names: graph.node("Concat", *names, axis=node.params["axis"]),
)


def _pad_shape(x: Spec, *, count: int) -> Spec:
    if x.ndim < 1 or not _is_integer(count) or count < 0:
        raise ValueError(
            f"{join('pad', x)}; expected an axis and a count of 0 or more; got {count}"
        )
    return Spec((*x.shape[:-1], x.shape[-1] + count), x.dtype)


_PAD = Op(
    "pad",
    lambda x, count: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count)]),
    _pad_shape,
    lambda _, g, x, __: (g[0][..., : x[0].shape[-1]],),
    lambda graph, node, x: graph.node(
        "Pad",
        x,
        graph.constant(
            np.array([0] * (2 * node.outputs[0].ndim - 1) + [node.params["count"]], np.int64)
        ),
    ),
)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _index_items(x: Spec, index: tuple[Any, ...]) -> list[int | slice]:
    """Expand an index of integers, slices and one ellipsis to one item for each axis."""
    if not any(item is Ellipsis for item in index):
        index = (*index, Ellipsis)
    at = next(i for i, item in enumerate(index) if item is Ellipsis)
    missing = x.ndim - len(index) + 1
    if missing < 0:
        raise IndexError(f"getitem: {len(index) - 1} indices for {x}")
    items = [*index[:at], *[slice(None)] * missing, *index[at + 1 :]]
    for item in items:
        sliced = isinstance(item, slice)
        parts = (item.start, item.stop, item.step) if sliced else (item,)
        known = all((p is None and sliced) or _is_integer(p) for p in parts)
        if not known or (sliced and item.step not in (None, 1)):
            raise IndexError(f"getitem: expected integers and slices of step 1; got {item!r}")
    return items


def _getitem_shape(x: Spec, *, index: tuple[Any, ...]) -> Spec:
    sizes: list[Size] = []
    for axis, (item, size) in enumerate(zip(_index_items(x, index), x.shape, strict=True)):
        if isinstance(item, slice):
            if isinstance(size, Dim):
                whole = item.start in (None, 0) and item.stop is None
                sizes.append(size if whole else size.derived(f"{size}[{item.start}:{item.stop}]"))
            else:
                sizes.append(len(range(*item.indices(size))))
        elif not isinstance(size, Dim) and not -size <= item < size:
            raise IndexError(f"getitem: index {item} is out of range for axis {axis} of {x}")
    return Spec(tuple(sizes), x.dtype)


def _getitem_vjp(node: Node, g: tuple[Array], x: tuple[Array], _: tuple[Array]) -> tuple[Array]:
    if g[0].size == x[0].size:  # all of it, in order: slices have step 1
        return (g[0].reshape(x[0].shape),)
    gradient = np.zeros_like(x[0])
    gradient[node.params["index"]] = g[0]
    return (gradient,)


def _getitem_onnx(graph: Any, node: Node, x: str) -> Any:
    source = node.required(0)
    cuts, dropped = [], []
    for axis, item in enumerate(_index_items(source.spec, node.params["index"])):
        if not isinstance(item, slice):
            dropped.append(axis)
            cuts.append((axis, item, item + 1 if item != -1 else np.iinfo(np.int64).max))
        elif item.start or item.stop is not None:
            stop = np.iinfo(np.int64).max if item.stop is None else item.stop
            cuts.append((axis, item.start or 0, stop))
    if cuts:
        axes, starts, stops = (
            graph.constant(np.array(part, np.int64)) for part in zip(*cuts, strict=True)
        )
        x = graph.node("Slice", x, starts, stops, axes)
    if dropped:
        x = graph.node("Squeeze", x, graph.constant(np.array(dropped, np.int64)))
    return graph.node("Identity", x) if not cuts and not dropped else x


_GETITEM = Op("getitem", lambda x, index: x[index], _getitem_shape, _getitem_vjp, _getitem_onnx)


def reshape(x: Value, target: Sequence[int]) -> Any:
    """Return ``x`` in another shape; 0 copies the size at that place and -1 infers one size.

    The convention is ONNX's, so that no caller needs to read a dynamic size.
    """
    return apply(_RESHAPE, x, target=tuple(target))


def transpose(x: Value, axes: Sequence[int]) -> Any:
    """Return ``x`` with its axes in the given order."""
    rank = rank_of("transpose", x)
    return apply(_TRANSPOSE, x, axes=tuple(normalize_axis("transpose", a, rank) for a in axes))


def expand_dims(x: Value, axis: int) -> Any:
    """Return ``x`` with a new axis of size 1 at ``axis`` of the result."""
    return apply(
        _EXPAND_DIMS, x, axis=normalize_axis("expand_dims", axis, rank_of("expand_dims", x) + 1)
    )


def concat(values: Sequence[Value], axis: int) -> Any:
    """Return the values joined along ``axis``."""
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"concat: expected a list or tuple; got {type(values).__name__}")
    if not values:
        raise ValueError("concat: expected one value or more; got none")
    rank = rank_of("concat", values[0])
    return apply(_CONCAT, *values, axis=normalize_axis("concat", axis, rank))


def pad(x: Value, count: int) -> Any:
    """Return ``x`` with ``count`` zeros behind its last axis."""
    return apply(_PAD, x, count=count)


def stack(values: Sequence[Value], axis: int) -> Any:
    """Return the values joined along a new axis, at ``axis`` of the result."""
    if len(values) == 1:
        return expand_dims(values[0], axis)
    return concat([expand_dims(value, axis) for value in values], axis)


def getitem(x: Value, index: Any) -> Any:
    """Return ``x[index]`` for integers, slices of step 1 and an ellipsis."""
    return apply(_GETITEM, x, index=index if isinstance(index, tuple) else (index,))
