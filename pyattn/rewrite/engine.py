"""Goes over the nodes of a model and replaces the attention among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
import onnx_ir as ir

from pyattn.accelerate import Left, Matched
from pyattn.onnx_graph import DOMAIN
from pyattn.rewrite import decomposed, facts, operators
from pyattn.rewrite.facts import Unmatched
from pyattn.rewrite.writer import OLDEST_OPSET, Call, Writer


def rewrite(proto: onnx.ModelProto, folder: str) -> tuple[onnx.ModelProto, list[Matched], list[Left]]:
    """Return the model with pyattn's functions, and what was replaced and what was not."""
    model = facts.with_sizes(proto, folder)
    matched: list[Matched] = []
    left = [_in_function(f, node) for f in model.functions.values() for node in f.all_nodes() if _looks(f, node)]
    for graph in list(model.graphs()):
        for node in list(graph):
            if node.graph is None:  # replaced by now
                continue
            if node.domain == "" and node.op_type == "Softmax":
                _attempt(model, node, _softmax, matched, left)
            elif operators.is_attention(node):
                _attempt(model, node, _operator, matched, left)
    if not matched:
        return proto, [], left
    result = ir.to_proto(model)
    _restore(proto.graph, result.graph)
    onnx.checker.check_model(result)
    return result, matched, left


def _restore(before: onnx.GraphProto, after: onnx.GraphProto) -> None:
    """Describe inputs, outputs and values as the model did, and say nothing about other values.

    Told the shapes between nodes, ONNX Runtime fuses other nodes than without, and may be slower.
    """
    there = {name for node in after.node for name in node.output} | {x.name for x in after.initializer}
    for field in ("input", "output", "value_info"):
        kept = [x for x in getattr(before, field) if field != "value_info" or x.name in there]
        del getattr(after, field)[:]
        getattr(after, field).extend(kept)
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
    softmax = node.domain == "" and node.op_type == "Softmax" and decomposed.looks_like_attention(node)
    return softmax or operators.is_attention(node)


def _in_function(function: ir.Function, node: ir.Node) -> Left:
    where = f"{function.domain}::{function.name}"
    return Left(_name(node), _kind(node), f"it is in the function {where}, which is to be inlined first")


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _kind(node: ir.Node) -> str:
    if node.op_type == "Softmax":
        return decomposed.KIND
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _attempt(
    model: ir.Model,
    node: ir.Node,
    rule: Callable[[ir.Model, ir.Node], tuple[Call, str] | None],
    matched: list[Matched],
    left: list[Left],
) -> None:
    """Replace one attention, or say why not."""
    name, kind = _name(node), _kind(node)
    try:
        opset = model.opset_imports.get("", 0)
        if opset < OLDEST_OPSET:
            raise Unmatched(f"the model is of opset {opset}; pyattn's functions need {OLDEST_OPSET}")
        found = rule(model, node)
    except Unmatched as reason:
        if node.op_type != "Softmax" or decomposed.looks_like_attention(node):
            left.append(Left(name, kind, str(reason)))
        return
    if found is not None:
        call, function = found
        matched.append(
            Matched(
                name, kind, function,
                heads=call.heads if isinstance(call.heads, int) else None,
                key_heads=call.groups if isinstance(call.groups, int) else None,
                head_size=call.depth if isinstance(call.depth, int) else None,
                mask=call.mask_kind, causal=bool(call.causal), scale=call.scale,
            )
        )  # fmt: skip


def _softmax(model: ir.Model, node: ir.Node) -> tuple[Call, str]:
    found = decomposed.find(node)
    writer = Writer(model, found.last)
    try:
        call, old = decomposed.rewrite(found, writer)
        output, function = writer.call(call)
        writer.replace(old, decomposed.flat_again(output, found, writer))
    finally:
        writer.sweep()
    return call, function


def _operator(model: ir.Model, node: ir.Node) -> tuple[Call, str]:
    writer = Writer(model, node)
    try:
        found = operators.rewrite(node, writer)
        output, function = writer.call(found.call)
        output = writer.heads_last(output) if found.flat else output
        for old, new in ((node.outputs[0], output), *found.others):
            writer.replace(old, new)
    finally:
        writer.sweep()
    return found.call, function
