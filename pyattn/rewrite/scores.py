"""Reads what stands between the product of queries and keys and the softmax over it."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from pyattn.rewrite import facts
from pyattn.rewrite.facts import Unmatched

# Scores that are replaced by this number or a lower one are masked: next to it a score is nothing,
# so that adding it to the score is the same, also where all the scores of a row are replaced.
MASKED = -1e9
MASKED_HALF = -6e4  # the same among the numbers of float16


class NoProduct(Unmatched):
    """There is no product of two arrays behind a value: it is no score."""


@dataclass(frozen=True)
class Bias:
    """Something that is added to the scores, or a condition under which they are replaced."""

    value: ir.Value
    rank: int  # of the scores where it is added
    fill: float | None = None  # what replaces the scores; None: ``value`` is added
    where: bool = True  # the outcome of the condition ``value`` that keeps the scores
    sign: int = 1


@dataclass
class Scores:
    """The product, and everything that is done to it."""

    product: ir.Node
    scale: float = 1.0
    factors: list[tuple[str, ir.Value]] = field(default_factory=list)  # known at run time only
    softcap: float = 0.0
    biases: list[Bias] = field(default_factory=list)
    rank: int = 0  # where the walk has come to
    ranks: set[int] = field(default_factory=set)
    shapes: list[ir.Node] = field(default_factory=list)  # nodes that ask for the product's shape
    heads: facts.Size = None  # where scores (B * H, T, S) become (B, H, T, S)


def is_wanted_elsewhere(value: ir.Value) -> bool:
    """Tell whether a value that is to disappear has more readers than one."""
    return value.is_graph_output() or len({node for node, _ in value.uses()}) > 1


def read(value: ir.Value) -> Scores:
    """Walk back from the input of a softmax to the product; raise Unmatched where that fails."""
    node = facts.producer(value)
    if node is None:
        raise NoProduct("the softmax is not taken of a product of two arrays")
    rules = {"Add": _added, "Sub": _added, "Where": _replaced, "Mul": _scaled, "Div": _scaled}
    if node.op_type == "MatMul":
        found = Scores(node)
    elif facts.is_passing(node):
        found = read(_input(node, 0))
    elif node.op_type == "Reshape":
        found = _reshaped(node)
    elif node.op_type in rules:
        found = rules[node.op_type](node)
    else:
        raise NoProduct(f"{node.op_type} stands between the product and the softmax")
    rank = facts.rank(value)
    users = {user for user, _ in value.uses()}
    shapes = {user for user in users if user.op_type == "Shape" and user.domain == ""}
    if found.biases or rank != facts.rank(found.product.outputs[0]):
        shapes = set()  # it may not be the product's
    if value.is_graph_output() or len(users - shapes) > 1:
        raise Unmatched(f"the scores {value.name} are read elsewhere too")
    found.shapes.extend(shapes)
    if rank not in (3, 4):
        raise Unmatched(f"the scores have {'an unknown number of' if rank is None else rank} axes")
    if node.op_type not in ("MatMul", "Reshape") and rank != found.rank:
        raise Unmatched(f"{node.op_type} adds axes to the scores")
    found.rank = rank
    found.ranks.add(rank)
    return found


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise Unmatched(f"{node.op_type} {node.name} lacks an input")
    return value


def _either(node: ir.Node, first: int, second: int) -> tuple[Scores, ir.Value, int]:
    """Return the scores behind one of two inputs, the other input, and which one it is."""
    try:
        return read(_input(node, first)), _input(node, second), second
    except Unmatched as reason:
        try:
            return read(_input(node, second)), _input(node, first), first
        except NoProduct:
            raise reason from None
        except Unmatched as other:
            raise (other if isinstance(reason, NoProduct) else reason) from None


def _rank(node: ir.Node) -> int:
    return facts.rank(node.outputs[0]) or 0


def _added(node: ir.Node) -> Scores:
    if node.op_type == "Sub":
        found, value, sign = read(_input(node, 0)), _input(node, 1), -1
    else:
        found, value, _ = _either(node, 0, 1)
        sign = 1
    # Where(condition, 0, fill) is a condition, however many times it is added.
    choice = facts.producer(value, "Where") if sign == 1 else None
    if choice is not None:
        yes, no = facts.scalar(choice.inputs[1]), facts.scalar(choice.inputs[2])
        if {yes, no} & {0.0} and (bias := _condition(node, choice, (no, yes)[yes != 0], yes == 0)):
            found.biases.append(bias)
            return found
    found.biases.append(Bias(value, _rank(node), sign=sign))
    return found


def _condition(node: ir.Node, choice: ir.Node, fill: float | None, where: bool) -> Bias | None:
    """Return a bias that replaces scores, if ``fill`` is low enough for that."""
    half = choice.outputs[0].dtype == ir.DataType.FLOAT16
    if fill is None or not fill <= (MASKED_HALF if half else MASKED):
        return None
    return Bias(_input(choice, 0), _rank(node), fill=fill, where=where)


def _replaced(node: ir.Node) -> Scores:
    found, other, index = _either(node, 2, 1)
    fill = facts.scalar(other)
    bias = _condition(node, node, fill, where=index == 2)
    if bias is None:
        shown = "a value that is not constant" if fill is None else f"{fill:g}"
        raise Unmatched(f"scores are replaced by {shown}, which is no mask")
    found.biases.append(bias)
    return found


def _scaled(node: ir.Node) -> Scores:
    capped = _softcap(node)
    if capped is not None:
        return capped
    if node.op_type == "Div":
        found, value = read(_input(node, 0)), _input(node, 1)
    else:
        found, value, _ = _either(node, 0, 1)
    if found.biases or found.softcap:
        raise Unmatched("the scores are scaled after something is added to them")
    number = facts.scalar(value)
    if number is not None and number != 0 and facts.is_one_number(value):
        found.scale *= number if node.op_type == "Mul" else 1 / number
    elif facts.is_one_number(value):
        found.factors.append((node.op_type, value))
    else:
        raise Unmatched("the scores are scaled by more than one number")
    return found


def _softcap(node: ir.Node) -> Scores | None:
    """Return the scores of ``c * tanh(scores / c)``."""
    if node.op_type != "Mul":
        return None
    for index in (0, 1):
        tanh, cap = facts.producer(node.inputs[index], "Tanh"), facts.scalar(node.inputs[1 - index])
        if tanh is None or cap is None or is_wanted_elsewhere(tanh.outputs[0]):
            continue
        found = read(_input(tanh, 0))
        # The division by the cap is part of the scale by now.
        if cap <= 0 or found.biases or found.softcap or found.factors:
            raise Unmatched("a soft cap stands where none is expected")
        found.softcap, found.scale = cap, found.scale * cap
        return found
    return None


def _reshaped(node: ir.Node) -> Scores:
    """Pass (B * H, T, S) to (B, H, T, S) or back."""
    found = read(_input(node, 0))
    if not facts.keeps_rows(node):
        raise Unmatched("a reshape of the scores may mix their rows")
    for value in (node.inputs[0], node.outputs[0]):
        known = facts.dims(value) or []
        if len(known) == 4:
            found.heads = known[1]
    return found
