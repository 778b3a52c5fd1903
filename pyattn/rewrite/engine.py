"""Goes over the nodes of a model and replaces the attention among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
import onnx_ir as ir

from pyattn.accelerate import Left, Matched
from pyattn.onnx_graph import DOMAIN
from pyattn.rewrite import decomposed, operators
from pyattn.rewrite.facts import Unmatched
from pyattn.rewrite.grouped import grouped
from pyattn.rewrite.inference import with_sizes
from pyattn.rewrite.writer import OLDEST_OPSET, Call, Draft, Writer

RULES = {
    ("", "Attention"): operators.standard,
    (operators.CONTRIB, "Attention"): operators.with_projections,
    (operators.CONTRIB, "MultiHeadAttention"): operators.multi_head,
    (operators.CONTRIB, "GroupQueryAttention"): grouped,
}
FUNCTIONS_SINCE = 8  # the version of the file format that has functions


def rewrite(
    proto: onnx.ModelProto, folder: str
) -> tuple[onnx.ModelProto, list[Matched], list[Left]]:
    """Return the model with pyattn's functions, and what was replaced and what was not."""
    model = with_sizes(proto, folder)
    draft = Draft(model, {f.name: f for f in proto.functions if f.domain == DOMAIN})
    matched: list[Matched] = []
    left = [
        _in_function(f, node)
        for f in model.functions.values()
        for node in f.all_nodes()
        if _looks(f, node)
    ]
    for graph in list(model.graphs()):
        for node in list(graph):
            if node.graph is None:  # replaced by now
                continue
            if node.domain == "" and node.op_type == "Softmax":
                _attempt(draft, node, _softmax, matched, left)
            elif (node.domain, node.op_type) in RULES:
                _attempt(draft, node, _operator, matched, left)
    if not matched:
        return proto, [], left
    result = ir.to_proto(model)
    _restore(proto.graph, result.graph)
    _add_functions(proto, draft.functions, result)
    return result, matched, left


def _add_functions(
    before: onnx.ModelProto, functions: dict[str, onnx.FunctionProto], after: onnx.ModelProto
) -> None:
    """Give a model its functions: those it came with, to the byte, and pyattn's."""
    others = [f for f in before.functions if f.domain != DOMAIN]
    del after.functions[:]
    after.functions.extend([*others, *functions.values()])
    if DOMAIN not in {opset.domain for opset in after.opset_import}:
        after.opset_import.add(domain=DOMAIN, version=1)
    after.ir_version = max(after.ir_version, FUNCTIONS_SINCE)


def _restore(before: onnx.GraphProto, after: onnx.GraphProto) -> None:
    """Describe inputs, outputs and values as the model did, and say nothing about other values.

    Told the shapes between nodes, ONNX Runtime fuses other nodes than without, and may be slower.
    """
    weights = {tensor.name for tensor in after.initializer}
    there = weights | {name for node in after.node for name in node.output}
    kept = {
        "input": before.input,
        "output": before.output,
        "initializer": [x for x in before.initializer if x.name in weights],
        "value_info": [x for x in before.value_info if x.name in there],
    }
    for field, values in kept.items():
        del getattr(after, field)[:]
        getattr(after, field).extend(values)
    bodies = dict(_bodies(before))
    for key, body in _bodies(after):
        _restore(bodies[key], body)


def _bodies(graph: onnx.GraphProto) -> Iterator[tuple[tuple[str, str], onnx.GraphProto]]:
    """Yield the branches and loops of a graph, told by an output of their node."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield (next(filter(None, node.output)), attribute.name), attribute.g


def _looks(function: ir.Function, node: ir.Node) -> bool:
    if function.domain == DOMAIN:
        return False
    softmax = (
        node.domain == "" and node.op_type == "Softmax" and decomposed.looks_like_attention(node)
    )
    return softmax or (node.domain, node.op_type) in RULES


def _in_function(function: ir.Function, node: ir.Node) -> Left:
    where = f"{function.domain}::{function.name}"
    return Left(
        _name(node), _kind(node), f"it is in the function {where}, which is to be inlined first"
    )


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _kind(node: ir.Node) -> str:
    if node.op_type == "Softmax":
        return decomposed.KIND
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _attempt(
    draft: Draft,
    node: ir.Node,
    rule: Callable[[Draft, ir.Node], tuple[Call, str]],
    matched: list[Matched],
    left: list[Left],
) -> None:
    """Replace one attention, or say why not."""
    name, kind = _name(node), _kind(node)
    try:
        newest = onnx.defs.onnx_opset_version()
        if not OLDEST_OPSET <= draft.opset <= newest:
            known = f"{OLDEST_OPSET}..{newest}"
            raise Unmatched(f"the model is of opset {draft.opset}; known are {known}")
        call, function = rule(draft, node)
    except Unmatched as reason:
        if node.op_type != "Softmax" or decomposed.looks_like_attention(node):
            left.append(Left(name, kind, str(reason)))
        return
    matched.append(
        Matched(
            name, kind, function,
            heads=call.heads if isinstance(call.heads, int) else None,
            key_heads=call.groups if isinstance(call.groups, int) else None,
            head_size=call.depth if isinstance(call.depth, int) else None,
            mask=call.mask_kind, causal=bool(call.causal), scale=call.scale,
        )
    )  # fmt: skip


def _softmax(draft: Draft, node: ir.Node) -> tuple[Call, str]:
    found = decomposed.find(node)
    writer = Writer(draft, found.last)
    try:
        call, old = decomposed.rewrite(found, writer)
        output, function = writer.call(call)
        decomposed.replace_shapes(draft, found)
        writer.replace(old, decomposed.flat_again(output, found, writer))
    finally:
        writer.sweep()
    return call, function


def _operator(draft: Draft, node: ir.Node) -> tuple[Call, str]:
    writer = Writer(draft, node)
    try:
        found = RULES[node.domain, node.op_type](node, writer)
        output, function = writer.call(found.call)
        output = writer.heads_last(output) if found.flat else output
        for old, new in ((node.outputs[0], output), *found.others):
            writer.replace(old, new)
    finally:
        writer.sweep()
    return found.call, function
