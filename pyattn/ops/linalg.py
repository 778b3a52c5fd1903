"""Matrix products: those of layers by the core, the others by NumPy's BLAS."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyattn import _core
from pyattn.ops._rules import broadcast, join, require_float, standard, unbroadcast
from pyattn.tensor import Array, Node, Op, Spec, Value, apply


def _matmul_shape(x: Spec, y: Spec) -> Spec:
    dtype = require_float("matmul", x, y)
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(f"{join('matmul', x, y)}; both need rank 2 or more")
    if x.shape[-1] != y.shape[-2]:
        raise ValueError(f"{join('matmul', x, y)}; sizes {x.shape[-1]} and {y.shape[-2]} differ")
    batch = broadcast("matmul", x.shape[:-2], y.shape[:-2])
    return Spec((*batch, x.shape[-2], y.shape[-1]), dtype)


def _matmul_vjp(
    _: Node, g: tuple[Array], inputs: tuple[Array, Array], __: tuple[Array]
) -> tuple[Array, Array]:
    x, y = inputs
    return (
        unbroadcast(g[0] @ y.swapaxes(-1, -2), x.shape),
        unbroadcast(x.swapaxes(-1, -2) @ g[0], y.shape),
    )


_MATMUL = Op("matmul", np.matmul, _matmul_shape, _matmul_vjp, standard("MatMul"))


def matmul(x: Value, y: Value) -> Any:
    """Return the matrix product over the last two axes, the others broadcast."""
    return apply(_MATMUL, x, y)


# Below these the core packs for longer than it multiplies.
_FEWEST_ROWS, _FEWEST_COLUMNS = 16, 32


def product(x: Array, y: Array, bias: Array | None = None) -> Array:
    """Return ``x y + bias`` for matrices of one dtype, float32 or float64.

    Where it is worth packing ``y``, by the core's kernel: faster than OpenBLAS, whose threads would
    also wait for the same processors as ours.
    """
    if len(x) < _FEWEST_ROWS or y.shape[1] < _FEWEST_COLUMNS:
        result: Array = x @ y
        if bias is not None:
            result += bias
        return result
    return _core.product(_with_unit_stride(x), _with_unit_stride(y), bias)


def _with_unit_stride(x: Array) -> Array:
    return x if x.itemsize in x.strides else np.ascontiguousarray(x)


def _flat(x: Array) -> Array:
    """Return ``(..., n)`` as a matrix of n columns."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _linear_eval(x: Array, weight: Array, bias: Array | None) -> Array:
    if bias is not None and not bias.flags.c_contiguous:
        bias = np.ascontiguousarray(bias)
    rows = product(_flat(x), weight.T, bias)
    return rows.reshape(*x.shape[:-1], weight.shape[0])


def _linear_shape(x: Spec, weight: Spec, bias: Spec | None) -> Spec:
    given = [x, weight] if bias is None else [x, weight, bias]
    dtype = require_float("linear", *given)
    if x.ndim < 1 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"{join('linear', x, weight)}; expected (..., in) and weight (out, in)")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{join('linear', weight, bias)}; expected bias (out,)")
    return Spec((*x.shape[:-1], weight.shape[0]), dtype)


def _linear_vjp(
    _: Node, g: tuple[Array], inputs: tuple[Array, Array, Array | None], __: tuple[Array]
) -> tuple[Array, Array, Array | None]:
    x, weight, bias = inputs
    rows = _flat(g[0])
    return (
        product(rows, weight).reshape(x.shape),
        product(rows.T, _flat(x)),
        None if bias is None else rows.sum(axis=0),
    )


def _linear_onnx(graph: Any, node: Node, x: str, weight: str, bias: str) -> str:
    tensor = node.required(1)
    if tensor.value is not None:
        # ONNX Runtime packs a constant right-hand side once, at load.
        weight = graph.constant(tensor.value.T, tensor.name and f"{tensor.name}.T")
    else:
        weight = graph.node("Transpose", weight, perm=(1, 0))
    product: str = graph.node("MatMul", x, weight)
    return graph.node("Add", product, bias) if bias else product


_LINEAR = Op("linear", _linear_eval, _linear_shape, _linear_vjp, _linear_onnx, optional=1)


def linear(x: Value, weight: Value, bias: Value | None = None) -> Any:
    """Return ``x W^T + b`` for ``x (..., in)``, ``weight (out, in)`` and ``bias (out,)``."""
    return apply(_LINEAR, x, weight, bias)
