"""Reductions and the softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyattn import _core
from pyattn.ops._rules import normalize_axis, same_spec
from pyattn.tensor import Array, Node, Op, Size, Spec, Value, apply

Axes = tuple[int, ...]


def _reduction(
    name: str,
    evaluate: Callable[..., Array],
    derivative: Callable[[Array, Array, Array, Axes], Array],
    onnx: str,
) -> Op:
    """Make a reduction's Op; ``derivative(g, x, y, axes)`` sees kept axes of size 1."""

    def shape(x: Spec, *, axes: Axes, keepdims: bool) -> Spec:
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
        axes, keepdims = node.params["axes"], int(node.params["keepdims"])
        return graph.node(onnx, x, graph.constant(np.array(axes, np.int64)), keepdims=keepdims)

    return Op(
        name,
        lambda x, axes, keepdims: np.asarray(evaluate(x, axis=axes, keepdims=keepdims)),
        shape,
        vjp,
        rule,
    )


def _max_derivative(g: Array, x: Array, y: Array, axes: Axes) -> Array:
    hit = x == y
    share: Array = g * hit / hit.sum(axis=axes, keepdims=True, dtype=x.dtype)
    return share


_SUM = _reduction("sum", np.sum, lambda g, x, _, __: np.broadcast_to(g, x.shape), "ReduceSum")
_MAX = _reduction("max", np.max, _max_derivative, "ReduceMax")


def _mean_derivative(g: Array, x: Array, _: Array, axes: Axes) -> Array:
    count = np.prod([x.shape[axis] for axis in axes], dtype=x.dtype)
    return np.broadcast_to(g / count, x.shape)


_MEAN = _reduction("mean", np.mean, _mean_derivative, "ReduceMean")


def _softmax_vjp(_: Node, g: tuple[Array], __: tuple[Array], y: tuple[Array]) -> tuple[Array]:
    return (y[0] * (g[0] - (g[0] * y[0]).sum(axis=-1, keepdims=True)),)


_SOFTMAX = Op(
    "softmax",
    _core.softmax,
    same_spec("softmax", floating=True),
    _softmax_vjp,
    lambda graph, _, x: graph.node("Softmax", x, axis=-1),
)


def _axes(name: str, x: Value, axis: int | Sequence[int] | None) -> Axes:
    if axis is None:
        return tuple(range(x.ndim))
    listed = (axis,) if isinstance(axis, int) else tuple(axis)
    return tuple(sorted(normalize_axis(name, a, x.ndim) for a in listed))


def sum(x: Value, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> Any:
    """Return the sum over the given axes, over all by default."""
    return apply(_SUM, x, axes=_axes("sum", x, axis), keepdims=keepdims)


def mean(x: Value, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> Any:
    """Return the mean over the given axes, over all by default."""
    return apply(_MEAN, x, axes=_axes("mean", x, axis), keepdims=keepdims)


def max(x: Value, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> Any:
    """Return the largest entry over the given axes; equal entries share the gradient."""
    return apply(_MAX, x, axes=_axes("max", x, axis), keepdims=keepdims)


def softmax(x: Value) -> Any:
    """Return ``exp(x) / sum(exp(x))`` over the last axis."""
    return apply(_SOFTMAX, x)
