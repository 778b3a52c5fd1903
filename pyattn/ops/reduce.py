"""Reductions and the softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyattn import _core
from pyattn.ops._rules import INT64, normalize_axis, require_float, require_numbers, same_spec
from pyattn.ops.elementwise import astype, equal, logical_not
from pyattn.tensor import Array, Node, Op, Size, Spec, Value, apply, rank_of

Axes = tuple[int, ...]


def _reduction(
    name: str,
    evaluate: Callable[..., Array],
    derivative: Callable[[Array, Array, Array, Axes], Array],
    onnx: str,
    require: Callable[..., Any] = require_numbers,
) -> Op:
    """Make a reduction's Op; ``derivative(g, x, y, axes)`` sees kept axes of size 1."""

    def shape(x: Spec, *, axes: Axes, keepdims: bool) -> Spec:
        require(name, x)
        sizes: list[Size] = []
        for axis, size in enumerate(x.shape):
            if axis not in axes:
                sizes.append(size)
            elif keepdims:
                sizes.append(1)
        return Spec(tuple(sizes), x.dtype)

    def vjp(node: Node, g: tuple[Array], x: tuple[Array], y: tuple[Array]) -> tuple[Array]:
        axes = node.params["axes"]
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(x[0].shape))
        return (derivative(g[0].reshape(kept), x[0], y[0].reshape(kept), axes),)

    def rule(graph: Any, node: Node, x: str) -> Any:
        axes = graph.constant(np.array(node.params["axes"], np.int64))
        keepdims = int(node.params["keepdims"])
        return graph.node(onnx, x, axes, keepdims=keepdims, noop_with_empty_axes=1)

    return Op(
        name,
        lambda x, axes, keepdims: evaluate(x, axis=axes, keepdims=keepdims),
        shape,
        vjp,
        rule,
    )


def _max_derivative(g: Array, x: Array, y: Array, axes: Axes) -> Array:
    hit = x == y
    share: Array = g * hit / hit.sum(axis=axes, keepdims=True, dtype=x.dtype)
    return share


def _sum(x: Array, axis: Axes, keepdims: bool) -> Array:
    # NumPy would widen small integers, ONNX does not.
    return np.asarray(np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype))


def _max(x: Array, axis: Axes, keepdims: bool) -> Array:
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return np.asarray(np.max(x, axis=axis, keepdims=keepdims, initial=lowest))


_SUM = _reduction("sum", _sum, lambda g, x, _, __: np.broadcast_to(g, x.shape), "ReduceSum")
_MAX = _reduction("max", _max, _max_derivative, "ReduceMax")


def _mean_derivative(g: Array, x: Array, _: Array, axes: Axes) -> Array:
    count = np.prod([x.shape[axis] for axis in axes], dtype=x.dtype)
    return np.broadcast_to(g / count, x.shape)


_MEAN = _reduction("mean", np.mean, _mean_derivative, "ReduceMean", require_float)


def _softmax_vjp(_: Node, g: tuple[Array], __: tuple[Array], y: tuple[Array]) -> tuple[Array]:
    return (y[0] * (g[0] - (g[0] * y[0]).sum(axis=-1, keepdims=True)),)


_SOFTMAX = Op(
    "softmax",
    _core.softmax,
    same_spec("softmax", floating=True),
    _softmax_vjp,
    lambda graph, _, x: graph.node("Softmax", x, axis=-1),
)


def _log_softmax(x: Array) -> Array:
    shifted = x - _max(x, (-1,), keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _log_softmax_vjp(_: Node, g: tuple[Array], __: tuple[Array], y: tuple[Array]) -> tuple[Array]:
    return (g[0] - np.exp(y[0]) * g[0].sum(axis=-1, keepdims=True),)


_LOG_SOFTMAX = Op(
    "log_softmax",
    _log_softmax,
    same_spec("log_softmax", floating=True),
    _log_softmax_vjp,
    lambda graph, _, x: graph.node("LogSoftmax", x, axis=-1),
)


def _argmax_shape(x: Spec, *, axis: int) -> Spec:
    require_numbers("argmax", x)
    if x.shape[axis] == 0:
        raise ValueError(f"argmax: axis {axis} of {x} is empty")
    return Spec((*x.shape[:axis], *x.shape[axis + 1 :]), INT64)


_ARGMAX = Op(
    "argmax",
    lambda x, axis: np.argmax(x, axis=axis),
    _argmax_shape,
    onnx=lambda graph, node, x: graph.node("ArgMax", x, axis=node.params["axis"], keepdims=0),
)


def _top_k_shape(x: Spec, *, k: int) -> tuple[Spec, Spec]:
    require_numbers("top_k", x)
    if x.ndim < 1 or isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"top_k: k must be a positive integer, and x have an axis; got {k}, {x}")
    if isinstance(x.shape[-1], int) and x.shape[-1] < k:
        raise ValueError(f"top_k: k must be at most {x.shape[-1]}, the last axis of {x}; got {k}")
    shape = (*x.shape[:-1], int(k))
    return Spec(shape, x.dtype), Spec(shape, INT64)


def _top_k(x: Array, k: int) -> tuple[Array, Array]:
    rows = x.reshape(-1, x.shape[-1])
    places = np.empty((len(rows), k), np.int64)
    for row, found in zip(rows, places, strict=True):
        least = np.partition(row, -k)[-k]
        # More than k of them where some are equal; a stable sort takes the first ones then.
        candidates = np.flatnonzero(row >= least)
        order = np.argsort(-row[candidates], kind="stable")[:k]
        found[:] = candidates[order]
    places = places.reshape(*x.shape[:-1], k)
    return np.take_along_axis(x, places, -1), places


def _top_k_vjp(
    _: Node, g: tuple[Array, Any], x: tuple[Array], y: tuple[Array, Array]
) -> tuple[Array]:
    gradient = np.zeros_like(x[0])
    np.put_along_axis(gradient, y[1], g[0], -1)
    return (gradient,)


_TOP_K = Op(
    "top_k",
    _top_k,
    _top_k_shape,
    _top_k_vjp,
    lambda graph, node, x: graph.node(
        "TopK", x, graph.constant(np.array([node.params["k"]], np.int64)), outputs=2
    ),
)


def _axes(name: str, x: Value, axis: int | Sequence[int] | None) -> Axes:
    rank = rank_of(name, x)
    if axis is None:
        return tuple(range(rank))
    listed = (axis,) if isinstance(axis, (int, np.integer)) else tuple(axis)
    axes = tuple(sorted(normalize_axis(name, int(a), rank) for a in listed))
    if len(set(axes)) < len(axes):
        raise ValueError(f"{name}: axis {axis} names one axis twice")
    return axes


def sum(x: Value, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> Any:
    """Return the sum over the given axes, over all by default."""
    return apply(_SUM, x, axes=_axes("sum", x, axis), keepdims=keepdims)


def mean(x: Value, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> Any:
    """Return the mean over the given axes, over all by default."""
    return apply(_MEAN, x, axes=_axes("mean", x, axis), keepdims=keepdims)


def max(x: Value, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> Any:
    """Return the largest entry over the given axes, -inf where there is none.

    Equal entries share the gradient.
    """
    return apply(_MAX, x, axes=_axes("max", x, axis), keepdims=keepdims)


def softmax(x: Value) -> Any:
    """Return ``exp(x) / sum(exp(x))`` over the last axis."""
    return apply(_SOFTMAX, x)


def log_softmax(x: Value) -> Any:
    """Return ``x - log(sum(exp(x)))`` over the last axis."""
    return apply(_LOG_SOFTMAX, x)


def argmax(x: Value, axis: int = -1) -> Any:
    """Return the int64 place of the largest entry along an axis, of equal ones the first."""
    return apply(_ARGMAX, x, axis=normalize_axis("argmax", axis, rank_of("argmax", x)))


def top_k(x: Value, k: int) -> tuple[Any, Any]:
    """Return the ``k`` largest entries of the last axis, falling, and their int64 places.

    Of equal entries the first come first. ``x`` holds no NaN.
    """
    values, places = apply(_TOP_K, x, k=k)
    return values, places


def all(x: Value, axis: int | Sequence[int] | None = None) -> Any:
    """Return whether every boolean over the given axes holds, over all by default."""
    return equal(sum(astype(logical_not(x), INT64), axis), 0)
