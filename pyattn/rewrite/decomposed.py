"""Attention that is written out: a softmax between two matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from pyattn.rewrite import facts, masks, scores
from pyattn.rewrite.facts import Unmatched
from pyattn.rewrite.scores import Scores, is_wanted_elsewhere
from pyattn.rewrite.writer import Call, Draft, Writer

KIND = "MatMul, Softmax, MatMul"
LAST_TWO_SWAPPED = (0, 1, 3, 2)
NEAR = 12  # nodes; as far as a product is looked for
# What may stand between a product and a softmax in something that looks like attention.
BETWEEN = {
    *("Cast", "Identity", "Mul", "Div", "Add", "Sub", "Where", "Reshape", "Transpose", "Dropout"),
    *("Max", "Min", "Clip", "Tanh", "Neg", "Unsqueeze", "Squeeze", "Expand", "IsNaN", "Concat"),
    *("Slice", "Split", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
}
PRODUCTS = {"MatMul", "Einsum", "Gemm", "FusedMatMul", "MatMulInteger", "QLinearMatMul"}


@dataclass
class Found:
    """What the weights of an attention are made of, and the product that uses them."""

    scores: Scores
    last: ir.Node


def looks_like_attention(softmax: ir.Node) -> bool:
    """Tell whether there is a product of matrices on both sides of a softmax."""
    return _near(softmax, _makers) and _near(softmax, _users)


def _makers(node: ir.Node) -> Iterable[ir.Node]:
    return (made for x in node.inputs if x is not None and (made := x.producer()) is not None)


def _users(node: ir.Node) -> Iterable[ir.Node]:
    return (user for x in node.outputs for user, _ in x.uses())


def _near(softmax: ir.Node, step: Callable[[ir.Node], Iterable[ir.Node]]) -> bool:
    level, seen = {softmax}, {softmax}
    for _ in range(NEAR):
        level = {node for start in level for node in step(start)} - seen
        if any(node.op_type in PRODUCTS for node in level):
            return True
        level = {node for node in level if node.op_type in BETWEEN}
        seen |= level
    return False


def find(softmax: ir.Node) -> Found:
    """Return the attention around a softmax; raise Unmatched with the reason if it is none."""
    source, weights = softmax.inputs[0], softmax.outputs[0]
    count = facts.rank(weights)
    axis = facts.attribute(softmax, "axis", -1)
    if source is None or count is None or axis not in (-1, count - 1):
        raise Unmatched("the softmax is not over the last axis")
    last = _follow(weights)
    found = scores.read(source)
    before, after = facts.dims(found.product.outputs[0]), facts.dims(source)
    if before and after and any(a == 1 != b for a, b in zip(before, after, strict=False)):
        raise Unmatched("a mask broadcasts the scores")
    return Found(found, last)


def _follow(weights: ir.Value) -> ir.Node:
    """Walk on from the weights to the product with the values."""
    users = {node for node, _ in weights.uses()}
    guard = _nan_guard(weights, users)
    if guard is not None:
        if weights.is_graph_output():
            raise Unmatched("the weights are an output of the graph")
        return _follow(guard.outputs[0])
    if is_wanted_elsewhere(weights):
        what = "an output of the graph" if weights.is_graph_output() else "read elsewhere too"
        raise Unmatched(f"the weights are {what}")
    if not users:
        raise Unmatched("nobody reads the weights")
    (user,) = users
    if user.domain == "" and user.op_type == "MatMul":
        if user.inputs[0] is not weights or user.inputs[1] is weights:
            raise Unmatched("the weights are not the first factor of the product with the values")
        return user
    after = user.outputs[0]
    passes = facts.is_passing(user) or user.op_type == "Reshape" or _is_idle_dropout(user)
    if user.domain != "" or not passes:
        raise Unmatched(
            f"{user.op_type} stands between the softmax and the product with the values"
        )
    if user.op_type == "Reshape" and not facts.keeps_rows(user):
        raise Unmatched("a reshape of the weights may mix their rows")
    return _follow(after)


def _nan_guard(weights: ir.Value, users: set[ir.Node]) -> ir.Node | None:
    """Return ``Where(IsNaN(weights), 0, weights)``, which makes rows without a key zero."""
    tests = [node for node in users if node.op_type == "IsNaN"]
    choices = [node for node in users if node.op_type == "Where"]
    if len(users) != 2 or len(tests) != 1 or len(choices) != 1:
        return None
    test, choice = tests[0].outputs[0], choices[0]
    is_guard = choice.inputs[0] is test and choice.inputs[2] is weights
    return choice if is_guard and facts.scalar(choice.inputs[1]) == 0.0 else None


def _is_idle_dropout(node: ir.Node) -> bool:
    """Tell whether a dropout does nothing, as in inference."""
    if node.op_type != "Dropout" or any(x.uses() or x.is_graph_output() for x in node.outputs[1:]):
        return False
    training = node.inputs[2] if len(node.inputs) > 2 else None
    return training is None or facts.scalar(training) == 0.0


def scalars_off(value: ir.Value | None) -> tuple[ir.Value, float]:
    """Return a value before it was multiplied by constants, and their product."""
    if value is None:
        raise Unmatched("a product lacks an input")
    factor, node = 1.0, facts.producer(value, "Mul", "Div", "Identity")
    while node is not None:
        inner, other = _scaled_input(node)
        if inner is None:
            break
        value, factor = inner, factor * other
        node = facts.producer(value, "Mul", "Div", "Identity")
    return value, factor


def _scaled_input(node: ir.Node) -> tuple[ir.Value | None, float]:
    """Return the input of a multiplication by a constant, and that constant."""
    if node.op_type == "Identity":
        return node.inputs[0], 1.0
    for index in (1, 0) if node.op_type == "Mul" else (1,):
        other = node.inputs[index]
        if not facts.is_one_number(other):
            continue
        number, inner = facts.scalar(other), node.inputs[1 - index]
        if number and facts.rank(inner) == facts.rank(node.outputs[0]):
            return inner, number if node.op_type == "Mul" else 1 / number
    return None, 1.0


def key_of(factor: ir.Value | None, writer: Writer) -> tuple[ir.Value, float]:
    """Return keys ``(.., S, D)`` from the second factor ``(.., D, S)``, and its scale."""
    value, scale = scalars_off(factor)
    count = facts.rank(value) or 0
    swap = (*range(count - 2), count - 1, count - 2)
    axes = tuple(range(count))  # of ``value``, as the product sees them
    while axes != swap:
        inner, step = _transposed_input(value)
        if inner is None:
            break
        value, more = scalars_off(inner)
        axes, scale = tuple(step[i] for i in axes), scale * more
    wanted = tuple(axes[i] for i in swap)
    if wanted != tuple(range(count)):
        value = writer.transpose(value, wanted)
    return value, scale


def _transposed_input(value: ir.Value) -> tuple[ir.Value | None, tuple[int, ...]]:
    """Return what a value is the transpose of, and how."""
    node = facts.producer(value, "Transpose")
    if node is not None:
        count = facts.rank(value) or 0
        return node.inputs[0], tuple(facts.attribute(node, "perm", range(count)[::-1]))
    # PyTorch's exporter swaps the last two of four axes with three: reshape, transpose, reshape.
    outer = facts.producer(value, "Reshape")
    swap = facts.producer(outer.inputs[0], "Transpose") if outer else None
    inner = facts.producer(swap.inputs[0], "Reshape") if swap else None
    if swap is None or inner is None or tuple(facts.attribute(swap, "perm", ())) != (0, 2, 1):
        return None, ()
    before, flat, after = (facts.dims(x) for x in (inner.inputs[0], swap.inputs[0], value))
    if before is None or flat is None or after is None or len(before) != 4 or len(after) != 4:
        return None, ()
    swapped = [before[i] for i in LAST_TWO_SWAPPED]
    if facts.same(before, before) and after == swapped and flat[1:] == before[2:]:
        return inner.inputs[0], LAST_TWO_SWAPPED
    return None, ()


def replace_shapes(draft: Draft, found: Found) -> None:
    """Let the shape of the scores be made of those of queries and keys."""
    query, key = (scalars_off(x)[0] for x in found.scores.product.inputs)
    axis = (facts.rank(key) or 0) - 1
    inner, step = _transposed_input(key)
    while inner is not None:
        key, axis = scalars_off(inner)[0], step[axis]
        inner, step = _transposed_input(key)
    for node in found.scores.shapes:
        writer = Writer(draft, node)
        end = (facts.rank(query) or 0) - 1
        start, stop = facts.attribute(node, "start", 0), facts.attribute(node, "end")
        axes = range(end + 1)[start:stop]
        sizes = [writer.size(query, i) if i < end else writer.size(key, axis) for i in axes]
        writer.replace(node.outputs[0], writer.node("Concat", *sizes, axis=0))


def unrepeated(value: ir.Value) -> tuple[ir.Value, int | None]:
    """Return keys or values before each head was repeated for several queries, and their heads."""
    merge = facts.producer(value, "Reshape")
    spread = facts.producer(merge.inputs[0], "Expand") if merge else None
    insert = facts.producer(spread.inputs[0], "Unsqueeze") if spread else None
    if merge is None or spread is None or insert is None:
        return value, None
    source = insert.inputs[0]
    before, wide, after = (facts.dims(x) for x in (source, spread.outputs[0], value))
    if source is None or before is None or wide is None or after is None:
        return value, None
    if len(before) != 4 or len(wide) != 5 or len(after) != 4:
        return value, None
    axes = facts.constant(insert.inputs[1])
    batch, heads, rows, depth = before
    is_repeat = (
        axes is not None
        and axes.tolist() == [2]
        and None not in before
        and isinstance(heads, int)
        and isinstance(wide[2], int)
        and wide == [batch, heads, wide[2], rows, depth]
        and after == [batch, heads * wide[2], rows, depth]
    )
    return (source, heads) if is_repeat and isinstance(heads, int) else (value, None)


def rewrite(found: Found, writer: Writer) -> tuple[Call, ir.Value]:
    """Write the attention as a call's arguments; return them, and what the call replaces."""
    product, last = found.scores.product, found.last
    query, scale = scalars_off(product.inputs[0])
    for op_type, number in found.scores.factors:
        query = writer.node(op_type, query, number, dtype=number.dtype)
    key, key_scale = key_of(product.inputs[1], writer)
    value = last.inputs[1]
    ranks = [facts.rank(x) for x in (*product.inputs, value, last.outputs[0])]
    if value is None or len(set(ranks)) != 1 or ranks[0] not in (3, 4):
        raise Unmatched(f"queries, keys, values and result have {ranks} axes; expected 3 or 4")
    key, groups = unrepeated(key)
    whole_value, value_groups = unrepeated(value)
    if groups != value_groups:
        key, groups = key_of(product.inputs[1], writer)[0], None
    else:
        value = whole_value
    of_query, of_value = facts.dims(product.inputs[0]) or [], facts.dims(last.inputs[1]) or []
    call = Call(
        query, key, value, groups=groups, scale=scale * key_scale * found.scores.scale,
        heads=of_query[1] if ranks[0] == 4 else 1,
        depth=of_query[-1] if of_query[-1:] else None,
        softcap=found.scores.softcap,
    )  # fmt: skip
    if groups is not None and not isinstance(call.heads, int):
        call.heads = of_value[1]
    of_key = facts.dims(product.inputs[1]) or []
    if ranks[0] == 4 and of_key[1] == of_value[1] == 1 and isinstance(call.heads, int):
        call.groups = 1  # the products broadcast the one head of keys and values
    _require_one_batch(product, last, ranks[0] == 4 and call.groups is None)
    return _with_four_axes(call, found, writer, ranks[0] == 4)


def _require_one_batch(product: ir.Node, last: ir.Node, has_heads: bool) -> None:
    """Raise Unmatched where a product broadcasts its batch or heads."""
    known = [facts.dims(x) or [] for x in (product.inputs[0], product.inputs[1], last.inputs[1])]
    for axis in range(2 if has_heads else 1):
        found = {sizes[axis] for sizes in known} - {None}
        if len(found) > 1 and (1 in found or len([x for x in found if isinstance(x, int)]) > 1):
            raise Unmatched(f"a product broadcasts axis {axis}, of sizes {sorted(map(str, found))}")


def _with_four_axes(
    call: Call, found: Found, writer: Writer, has_heads: bool
) -> tuple[Call, ir.Value]:
    """Give queries, keys, values and masks an axis of heads, and take it off the result."""
    last = found.last
    split = None if has_heads else _heads_to_split(found)
    biases = [masks.with_four_axes(bias, split, has_heads, writer) for bias in found.scores.biases]
    if not has_heads:
        arrays = (writer.unsqueeze(x, 1) for x in (call.query, call.key, call.value))
        if split is not None:
            arrays = (writer.reshape(x, [-1, split, 0, 0]) for x in arrays)
        query, key, value = arrays
        call = replace(call, query=query, key=key, value=value, heads=split or 1)
    masks.to_one_dtype(call, biases, writer)
    sizes = facts.dims(found.scores.product.outputs[0])
    call.mask, call.causal = masks.combined(biases, call, sizes, writer)
    return call, last.outputs[0]


def flat_again(output: ir.Value, found: Found, writer: Writer) -> ir.Value:
    """Return the output of the call in the axes and the dtype of the product it replaces."""
    old = found.last.outputs[0]
    if facts.rank(old) == 3:
        if _heads_to_split(found) is not None:
            output = writer.reshape(output, [-1, 1, 0, 0])
        first = writer.constant(np.array([1], np.int64))
        output = writer.node("Squeeze", output, first, dtype=output.dtype)
    value = found.last.inputs[1]
    wanted = old.dtype or (value.dtype if value is not None else None)
    return output if wanted is None else writer.cast(output, wanted)


def _heads_to_split(found: Found) -> int | None:
    """Return how many heads are folded into the batch, where something depends on it."""
    if 4 not in found.scores.ranks:
        return None
    heads = found.scores.heads
    if not isinstance(heads, int):
        raise Unmatched("the number of heads in the batch is not known")
    return heads
