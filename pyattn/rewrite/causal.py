"""Proves of a mask that it hides from each query the later keys, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pyattn.rewrite import facts
from pyattn.rewrite.facts import Size
from pyattn.rewrite.scores import MASKED, Bias

# Of comparisons of key and query positions: how the key is to stand to the query, True or False.
_KEY_FIRST = {"LessOrEqual": True, "Greater": False}
_QUERY_FIRST = {"GreaterOrEqual": True, "Less": False}


def is_causal(bias: Bias, scores: list[Size] | None) -> bool:
    """Tell whether a bias certainly masks key j for query i where j > i, and adds nothing else.

    ``scores`` are the sizes of the scores.
    """
    if bias.fill is not None:
        return keeps_earlier(bias.value, bias.where, scores)
    array = facts.constant(bias.value)
    if array is None or array.dtype.kind != "f" or not _is_square(array):
        return False
    square = array.reshape(array.shape[-2:]) * bias.sign
    seen = np.tri(len(square), dtype=bool)
    return bool((square[~seen] <= MASKED).all() and (square[seen] == 0).all())


def keeps_earlier(value: ir.Value | None, kept: bool, scores: list[Size] | None) -> bool:
    """Tell whether a value is certainly ``kept`` (as a truth) where j <= i and only there."""
    array = facts.constant(value)
    if array is not None:
        return _is_square(array) and bool(
            ((array.reshape(array.shape[-2:]) != 0) == (np.tri(array.shape[-1]) == kept)).all()
        )
    node = facts.producer(value)
    if value is None or node is None or scores is None or len(scores) < 2:
        return False
    first = node.inputs[0]
    if node.op_type == "Not":
        return keeps_earlier(first, not kept, scores)
    if node.op_type in ("Cast", "Identity") or (node.op_type == "Unsqueeze" and _keeps_last(node)):
        return keeps_earlier(first, kept, scores)
    if node.op_type == "Equal":
        is_zero = facts.scalar(node.inputs[1]) == 0
        return is_zero and keeps_earlier(first, not kept, scores)
    if node.op_type == "And" and kept:
        return any(
            keeps_earlier(one, kept, scores) and is_true(other)
            for one, other in (node.inputs, reversed(node.inputs))
        )
    if node.op_type == "Trilu":
        return _is_triangle(node, kept, scores)
    return _compares(node, kept, scores)


def _is_square(array: np.ndarray) -> bool:
    """Tell whether an array is one matrix that is not broadcast, as 1 x 1 would be."""
    n = array.shape[-1] if array.ndim > 1 else 0
    return n > 1 and array.shape[-2] == n and array.size == n * n


def _keeps_last(node: ir.Node) -> bool:
    """Tell whether new axes come before the last two."""
    before, after = facts.dims(node.inputs[0]), facts.dims(node.outputs[0])
    axes = facts.constant(node.inputs[1])
    if before is None or after is None or axes is None:
        return False
    return all(int(axis) % len(after) < len(after) - 2 for axis in axes.flat)


def is_true(value: ir.Value | None) -> bool:
    """Tell whether a condition always holds."""
    if facts.scalar(value):
        return True
    node = facts.producer(value, "Cast", "GreaterOrEqual", "And")
    if node is None:
        return False
    if node.op_type == "Cast":
        return is_true(node.inputs[0])
    if node.op_type == "And":
        return all(is_true(x) for x in node.inputs)
    return _range(node.inputs[0]) is not None and facts.scalar(node.inputs[1]) == 0


def _is_triangle(node: ir.Node, kept: bool, scores: list[Size]) -> bool:
    """Tell whether a triangle is cut out of ones: the lower one, or what is above it."""
    upper, ones = bool(facts.attribute(node, "upper", 1)), node.inputs[0]
    offset = facts.scalar(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else 0.0
    is_cut = kept is not upper and offset == float(upper)
    sizes = facts.dims(ones)
    filled = facts.producer(ones, "Expand", "ConstantOfShape")
    if not is_cut or filled is None or sizes is None or not facts.same(sizes[-2:], scores[-2:]):
        return False
    if filled.op_type == "Expand":
        return bool(facts.is_one_number(filled.inputs[0]) and facts.scalar(filled.inputs[0]))
    fill = filled.attributes.get("value")
    return fill is not None and bool(np.all(fill.value.numpy()))


def _compares(node: ir.Node, kept: bool, scores: list[Size]) -> bool:
    """Tell whether the positions of keys and queries are compared."""
    if len(node.inputs) != 2:
        return False
    one, other = (_range(x) for x in node.inputs)
    keys, queries = (-1, scores[-1]), (-2, scores[-2])
    if None in (scores[-1], scores[-2]):
        return False
    if (one, other) == (keys, queries):
        return _KEY_FIRST.get(node.op_type) is kept
    return (one, other) == (queries, keys) and _QUERY_FIRST.get(node.op_type) is kept


def _range(value: ir.Value | None) -> tuple[int, Size] | None:
    """Return the axis along which a value counts 0, 1, ..., and how far, if it does."""
    known = facts.dims(value)
    if known is None:
        return None
    counting = [i - len(known) for i, size in enumerate(known) if size != 1]
    node = facts.producer(value, "Unsqueeze", "Cast", "Identity", "Range")
    while node is not None and node.op_type != "Range":
        node = facts.producer(node.inputs[0], "Unsqueeze", "Cast", "Identity", "Range")
    if node is None or len(counting) != 1:
        return None
    start, step = facts.scalar(node.inputs[0]), facts.scalar(node.inputs[2])
    limit = facts.sizes(node.inputs[1])
    if (start, step) != (0, 1) or limit is None or len(limit) != 1:
        return None
    return counting[0], limit[0]
