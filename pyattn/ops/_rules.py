"""Rules that many operations share: broadcasting, dtype checks, the plain ONNX node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyattn.dtypes import is_floating
from pyattn.tensor import Array, Dim, Node, Size, Spec

BOOL = np.dtype(np.bool_)
INT64 = np.dtype(np.int64)
REAL = tuple(map(np.dtype, (np.float32, np.float64, np.float16)))


def join(name: str, *specs: Spec) -> str:
    """Return ``name`` with the specs behind it, for an error message."""
    return f"{name}: got " + ", ".join(map(str, specs))


def broadcast_sizes(name: str, left: Size, right: Size) -> Size:
    if left == right or right == 1:
        return left
    if left == 1:
        return right
    hint = ""
    if isinstance(left, Dim) or isinstance(right, Dim):
        hint = " (dynamic dimensions must have the same name to be combined)"
    raise ValueError(f"{name}: sizes {left} and {right} do not broadcast{hint}")


def broadcast(name: str, *shapes: tuple[Size, ...]) -> tuple[Size, ...]:
    """Return the shape that NumPy's broadcasting gives, dynamic dimensions included."""
    rank = max(map(len, shapes))
    result: tuple[Size, ...] = (1,) * rank
    for shape in shapes:
        padded = (1,) * (rank - len(shape)) + shape
        try:
            result = tuple(broadcast_sizes(name, a, b) for a, b in zip(result, padded, strict=True))
        except ValueError as error:
            raise ValueError(f"{error}; got shapes {', '.join(map(str, shapes))}") from None
    return result


def same_dtypes(name: str, *specs: Spec) -> np.dtype[Any]:
    """Return the one dtype of all specs; TypeError where they differ: nothing is cast silently."""
    first = specs[0].dtype
    if any(spec.dtype != first for spec in specs):
        raise TypeError(f"{join(name, *specs)}; dtypes must be equal (see ops.astype)")
    return first


def require_numbers(name: str, *specs: Spec) -> np.dtype[Any]:
    dtype = same_dtypes(name, *specs)
    if dtype.kind not in "fiu" and not is_floating(dtype):  # the kind of bfloat16 is V
        raise TypeError(f"{join(name, *specs)}; expected numbers")
    return dtype


def require_bool(name: str, *specs: Spec) -> np.dtype[Any]:
    dtype = same_dtypes(name, *specs)
    if dtype != BOOL:
        raise TypeError(f"{join(name, *specs)}; expected booleans")
    return dtype


def require_float(name: str, *specs: Spec) -> np.dtype[Any]:
    dtype = same_dtypes(name, *specs)
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"{join(name, *specs)}; expected float32 or float64")
    return dtype


def require_real(name: str, *specs: Spec) -> np.dtype[Any]:
    """Return the one dtype of all specs, a float of half, single or double precision."""
    dtype = same_dtypes(name, *specs)
    # The name of a dtype takes NumPy a microsecond: it is asked for last.
    if dtype not in REAL and dtype.name != "bfloat16":
        raise TypeError(f"{join(name, *specs)}; expected float32, float64, float16 or bfloat16")
    return dtype


def through_float32(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``evaluate`` with arrays of half precision widened for it and its results rounded.

    For a kernel that has none of its own for them; ``x`` is an array whose dtype counts.
    """

    def run(x: Array, *more: Array | None, **params: Any) -> Any:
        dtype, arrays = x.dtype, (x, *more)
        if dtype.itemsize != 2:
            return evaluate(*arrays, **params)
        wide = [
            array if array is None or array.dtype != dtype else array.astype(np.float32)
            for array in arrays
        ]
        result = evaluate(*wide, **params)
        if isinstance(result, tuple):
            return tuple(part if part is None else part.astype(dtype) for part in result)
        return result.astype(dtype)

    return run


def same_spec(name: str, *, floating: bool = False) -> Callable[..., Spec]:
    """The shape rule of an elementwise operation of one input."""

    def shape(x: Spec, **_: Any) -> Spec:
        if floating:
            require_float(name, x)
        return x

    return shape


def standard(op_type: str) -> Callable[..., Any]:
    """The ONNX rule of an operation that is one standard operator without attributes."""

    def onnx(graph: Any, _: Node, *names: str) -> Any:
        return graph.node(op_type, *names)

    return onnx


def unbroadcast(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum a gradient over the axes along which an input of ``shape`` was broadcast."""
    extra = gradient.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        i + extra for i, size in enumerate(shape) if size == 1 and gradient.shape[i + extra] != 1
    )
    return gradient.sum(axis=axes, keepdims=True).reshape(shape) if axes else gradient


def normalize_axis(name: str, axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ValueError(f"{name}: axis {axis} is out of range for rank {rank}")
    return axis % rank
