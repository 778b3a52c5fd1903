"""What is known of the values of a graph before it runs: types, sizes, constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from pyattn.dtypes import FLOATS
from pyattn.tensor import Array

Size = int | str | None  # a number, the name of a dynamic size, or nothing known
LARGEST = 2**20  # elements of a constant that is looked at: a mask may be, a weight is not

_ELEMENTWISE: dict[str, Any] = {
    "Identity": lambda x: x,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "Mul": np.multiply,
    "Pow": np.power,
    "Div": np.divide,
}
_SAME_ELEMENTS = ("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten")


class Unmatched(Exception):  # noqa: N818 -- a finding, not a failure
    """Why something that looks like attention stays as it is."""


def dims(value: ir.Value | None) -> list[Size] | None:
    """Return the sizes of a value, or None where not even their number is known."""
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else size.value for size in value.shape]


def rank(value: ir.Value | None) -> int | None:
    """Return the number of axes."""
    known = dims(value)
    return None if known is None else len(known)


def same(one: list[Size] | None, other: list[Size] | None) -> bool:
    """Tell whether two lists of sizes are certainly equal."""
    return one is not None and one == other and None not in one


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the standard node that makes a value, if it is one of ``op_types`` (or any)."""
    node = None if value is None else value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    return node if not op_types or node.op_type in op_types else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """Return the value of an attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def is_passing(node: ir.Node) -> bool:
    """Tell whether a node passes on the numbers it gets, but for their precision."""
    floats = (str(x.dtype.numpy()) if x and x.dtype else "" for x in (*node.inputs, *node.outputs))
    return node.op_type == "Identity" or (node.op_type == "Cast" and set(floats) <= set(FLOATS))


def keeps_rows(reshape: ir.Node) -> bool:
    """Tell whether a reshape certainly leaves the last two axes as they are."""
    before, after = dims(reshape.inputs[0]), dims(reshape.outputs[0])
    return before is not None and after is not None and same(before[-2:], after[-2:])


def constant(value: ir.Value | None) -> Array | None:
    """Return the array of a value that is the same in every run, if it can be told."""
    if value is None:
        return None
    if value.is_initializer():
        # One that is an input too may be given another value.
        large = value.const_value is not None and value.const_value.size > LARGEST
        return None if value.is_graph_input() or large else _array(value.const_value)
    node = producer(value)
    if node is None:
        return None
    if node.op_type == "Constant":
        return _array(ir.convenience.get_const_tensor(value))
    if node.op_type == "ConstantOfShape":
        return _filled(node)
    found = _evaluated(node)
    if found is None and value.dtype in (ir.DataType.INT64, ir.DataType.INT32):
        known = sizes(value)
        if known is not None and all(isinstance(size, int) for size in known):
            found = np.array(known, np.int64).reshape(() if rank(value) == 0 else (-1,))
    return found


def _array(tensor: Any) -> Array | None:
    return None if tensor is None else np.asarray(tensor.numpy())


def _filled(node: ir.Node) -> Array | None:
    """Return one element of a constant that has the same everywhere, if its sizes are known."""
    shape = constant(node.inputs[0])
    if shape is None or math.prod(shape.tolist()) > LARGEST:
        return None
    fill = node.attributes.get("value")
    element = np.zeros(1, np.float32) if fill is None else _array(fill.value)
    return np.full(shape, element)


def _evaluated(node: ir.Node) -> Array | None:
    """Return what a node makes of constants, for the operations that scales are made with."""
    if node.op_type not in (*_ELEMENTWISE, *_SAME_ELEMENTS, "Expand"):
        return None
    arrays = []
    for value in node.inputs:
        array = constant(value)
        if array is None:
            return None
        arrays.append(array)
    first = arrays[0]
    if node.op_type == "Cast":
        return first.astype(ir.DataType(attribute(node, "to")).numpy())
    if node.op_type in _ELEMENTWISE:
        result = np.asarray(_ELEMENTWISE[node.op_type](*arrays))
        return result.astype(first.dtype) if first.dtype.kind == "f" else None
    if node.op_type == "Expand":
        shape = np.broadcast_shapes(first.shape, tuple(arrays[1]))
        return np.broadcast_to(first, shape) if math.prod(shape) <= LARGEST else None
    known = dims(node.outputs[0])
    if known is None or not all(isinstance(size, int) for size in known):
        return None
    return first.reshape([int(size) for size in known if size is not None])


def scalar(value: ir.Value | None) -> float | None:
    """Return the number that a constant holds, in all its elements if it has several."""
    array = constant(value)
    if array is None or array.size == 0 or array.dtype.kind not in "bfiuV":
        return None
    number = float(array.flat[0])
    return number if array.size == 1 or bool((array == array.flat[0]).all()) else None


def is_one_number(value: ir.Value | None) -> bool:
    """Tell whether a value certainly has one element only, so that it broadcasts anywhere."""
    known = dims(value)
    return known is not None and all(size == 1 for size in known)


def sizes(value: ir.Value | None) -> list[Size] | None:
    """Return the elements of a vector (or number) of sizes: numbers, and names of dynamic sizes."""
    node = producer(value)
    if value is not None and (node is None or node.op_type == "Constant"):
        array = constant(value)
        whole = array is not None and array.dtype.kind == "i" and array.ndim <= 1
        return [int(x) for x in array.flat] if array is not None and whole else None
    if node is None:
        return None
    if node.op_type == "Shape":
        known = dims(node.inputs[0])
        start, end = attribute(node, "start", 0), attribute(node, "end")
        return None if known is None else known[start:end]
    if node.op_type in _SAME_ELEMENTS:
        return sizes(node.inputs[0]) if (rank(value) or 0) <= 1 else None
    rule = {"Gather": _gathered, "Slice": _sliced, "Concat": _joined, "Where": _chosen}
    if node.op_type in rule:
        return rule[node.op_type](node)
    if node.op_type == "ConstantOfShape" or node.op_type == "Mul":
        array = _evaluated(node) if node.op_type == "Mul" else _filled(node)
        if array is None and node.op_type == "Mul":
            return _multiplied(node)
        return None if array is None else [int(x) for x in array.flat]
    return None


def _gathered(node: ir.Node) -> list[Size] | None:
    data, index = sizes(node.inputs[0]), constant(node.inputs[1])
    if data is None or index is None or index.ndim > 1:
        return None
    return [data[int(i)] for i in index.flat if -len(data) <= int(i) < len(data)]


def _sliced(node: ir.Node) -> list[Size] | None:
    data = sizes(node.inputs[0])
    bounds = [constant(x) for x in node.inputs[1:]]
    if data is None or len(bounds) < 2 or any(b is None or b.size != 1 for b in bounds):
        return None
    start, end, *rest = (int(b.flat[0]) for b in bounds if b is not None)
    return data[start : end : rest[1] if len(rest) > 1 else 1]


def _joined(node: ir.Node) -> list[Size] | None:
    parts = [sizes(x) for x in node.inputs]
    return None if any(p is None for p in parts) else [s for p in parts if p is not None for s in p]


def _multiplied(node: ir.Node) -> list[Size] | None:
    one, other = (sizes(x) for x in node.inputs)
    if one is None or other is None or len({len(one), len(other)} - {1}) > 1:
        return None
    pairs = np.broadcast(np.array(one, object), np.array(other, object))
    return [a * b if isinstance(a, int) and isinstance(b, int) else None for a, b in pairs]


def _chosen(node: ir.Node) -> list[Size] | None:
    """Return ``Where(sizes == number, a, b)``: so PyTorch writes sizes that an Expand keeps."""
    test = producer(node.inputs[0], "Equal")
    if test is None:
        return None
    found = [sizes(x) for x in (*test.inputs, *node.inputs[1:])]
    if any(f is None for f in found):
        return None
    columns = [np.array(f, object) for f in found]
    result: list[Size] = []
    for a, b, yes, no in zip(*np.broadcast_arrays(*columns), strict=True):
        if isinstance(a, int) and isinstance(b, int):
            result.append(yes if a == b else no)
        elif (isinstance(a, str) and isinstance(b, int) and b < 0) or yes == no:
            result.append(no)  # a size is never negative
        else:
            result.append(None)
    return result
