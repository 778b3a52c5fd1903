"""Attention that is one operator: ONNX's, and those of ONNX Runtime's domain com.microsoft."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir

from pyattn.rewrite import facts
from pyattn.rewrite.facts import Unmatched
from pyattn.rewrite.writer import Call, Writer

CONTRIB = "com.microsoft"
FLOAT32 = 1  # of ONNX's element types
FILTER = (
    -10000.0
)  # what ONNX Runtime's operators add to masked scores, if nothing else is asked for


@dataclass
class Rewritten:
    """A call of pyattn's function, and what else replaces outputs of the operator."""

    call: Call
    flat: bool  # whether the output is (B, T, H * E)
    others: list[tuple[ir.Value, ir.Value]] = field(default_factory=list)


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def output_of(node: ir.Node, index: int) -> ir.Value | None:
    """Return an output if somebody reads it."""
    value = node.outputs[index] if index < len(node.outputs) else None
    return value if value is not None and (value.uses() or value.is_graph_output()) else None


def refuse(node: ir.Node, *, inputs: dict[int, str], attributes: tuple[str, ...] = ()) -> None:
    """Raise Unmatched for inputs and attributes whose meaning no function of pyattn has."""
    for index, name in inputs.items():
        if input_of(node, index) is not None:
            raise Unmatched(f"its input {name} is given")
    for name in attributes:
        if facts.attribute(node, name, 0):
            raise Unmatched(f"its attribute {name} is {facts.attribute(node, name)}")


def _three(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    query, key, value = (input_of(node, i) for i in range(3))
    if query is None or key is None or value is None:
        raise Unmatched("queries, keys and values are packed in one array")
    return query, key, value


def head_size(size: Any, heads: int = 1) -> int:
    if not isinstance(size, int) or heads < 1 or size % heads:
        raise Unmatched("the head size is not known")
    return size // heads


def scale_of(node: ir.Node, depth: Any) -> float:
    """Return the scale; a missing one, and 0 among ONNX Runtime's, is 1 / sqrt(D)."""
    scale = facts.attribute(node, "scale")
    if scale is None or (node.domain == CONTRIB and scale == 0):
        return 1 / math.sqrt(head_size(depth))
    return float(scale)


def joined(writer: Writer, past: ir.Value | None, new: ir.Value) -> ir.Value:
    """Return keys or values behind those of the past."""
    if past is None:
        return new
    return writer.node("Concat", past, new, axis=2, dtype=new.dtype)


def _every(writer: Writer, number: ir.Value, query: ir.Value) -> ir.Value:
    """Return a number of each entry of the batch."""
    return writer.node("Expand", number, writer.size(query, 0), dtype=ir.DataType.INT64)


def standard(node: ir.Node, writer: Writer) -> Rewritten:
    query, key, value = _three(node)
    if output_of(node, 3) is not None:
        raise Unmatched("its scores or weights are read")
    if query.dtype == ir.DataType.FLOAT and facts.attribute(node, "softmax_precision", 1) == 11:
        raise Unmatched("its softmax is in float64")
    heads, groups = (facts.attribute(node, f"{name}_num_heads", 0) for name in ("q", "kv"))
    flat = facts.rank(query) == 3
    keys = (facts.dims(key) or [None] * 4)[1 if flat else 2]
    if flat:
        depth = head_size((facts.dims(query) or [None])[-1], heads)
        query = writer.heads_first(query, heads)
        key, value = (writer.heads_first(x, groups) for x in (key, value))
    else:
        heads, groups, depth = _heads(query, key)
    past = input_of(node, 4)
    key, value = joined(writer, past, key), joined(writer, input_of(node, 5), value)
    lengths, mask = input_of(node, 6), input_of(node, 3)
    call = Call(
        query, key, value, mask, lengths, heads=heads, groups=groups, depth=depth,
        scale=scale_of(node, depth), softcap=facts.attribute(node, "softcap", 0.0),
        causal=bool(facts.attribute(node, "is_causal", 0)), window=_window(node),
    )  # fmt: skip
    _require_mask(mask, query, keys, past)
    if lengths is not None:
        call.lengths = writer.cast(lengths, ir.DataType.INT64)
        call.starts = writer.node("Sub", call.lengths, writer.size(query, 2))
    elif past is not None:
        call.starts = _every(writer, writer.size(past, 2), query)
    if not call.causal and call.window is None:
        call.starts = None
    presents = [(output_of(node, 1), key), (output_of(node, 2), value)]
    return Rewritten(call, flat, [(old, new) for old, new in presents if old is not None])


def _heads(query: ir.Value, key: ir.Value) -> tuple[Any, Any, Any]:
    """Return the heads of queries and keys, and the head size, of arrays with four axes."""
    of_query, of_key = facts.dims(query), facts.dims(key)
    if of_query is None or of_key is None or len(of_query) != 4 or len(of_key) != 4:
        raise Unmatched("the number of axes of queries or keys is not known")
    heads, groups = of_query[1], of_key[1]
    if heads == groups and heads is not None:
        return heads, None, of_query[3]
    if not isinstance(heads, int) or not isinstance(groups, int):
        raise Unmatched("the number of heads is not known")
    return heads, groups, of_query[3]


def _window(node: ir.Node) -> tuple[int, int] | None:
    left, right = (
        int(facts.attribute(node, f"{side}_window_size", -1)) for side in ("left", "right")
    )
    return None if (left, right) == (-1, -1) else (left, right)


def _require_mask(
    mask: ir.Value | None, query: ir.Value, keys: facts.Size, past: ir.Value | None
) -> None:
    """Raise Unmatched unless a mask is of the right dtype and for all keys."""
    if mask is None:
        return
    if mask.dtype not in (ir.DataType.BOOL, query.dtype):
        raise Unmatched(f"its mask is {mask.dtype}, the queries are {query.dtype}")
    last = (facts.dims(mask) or [None])[-1]
    before = 0 if past is None else (facts.dims(past) or [None] * 3)[2]
    if all(isinstance(size, int) for size in (last, keys, before)):
        total = int(keys or 0) + int(before or 0)
        if last not in (1, total):
            raise Unmatched(f"its mask is for {last} of {total} keys")


def _padding(
    writer: Writer, node: ir.Node, mask: ir.Value | None, key: ir.Value, dtype: Any
) -> ir.Value | None:
    """Return what ONNX Runtime adds to the scores for a mask of ones and zeros, or for lengths."""
    if mask is None:
        return None
    count = facts.rank(mask)
    if count == 1:
        seen = _before_lengths(writer, node, mask, key)
    elif count in (2, 3):
        zero = writer.constant(np.array(0, mask.dtype.numpy() if mask.dtype else np.int32))
        wide = writer.unsqueeze(mask, *((1, 2) if count == 2 else (1,)))
        seen = writer.node("Greater", wide, zero)
    else:
        raise Unmatched(f"its mask has {'an unknown number of' if count is None else count} axes")
    low = facts.attribute(node, "mask_filter_value", FILTER)
    numbers = (writer.constant(np.array(x, dtype.numpy())) for x in (0.0, low))
    return writer.node("Where", seen, *numbers, dtype=dtype)


def _before_lengths(writer: Writer, node: ir.Node, mask: ir.Value, key: ir.Value) -> ir.Value:
    """Return which keys lie before the length of their entry, ``(B, 1, 1, S)``."""
    made, batch = mask.producer(), (facts.dims(input_of(node, 0)) or [None])[0]
    counted = made is not None and made.op_type == "EmbedLayerNormalization"
    if not counted and (batch is None or facts.dims(mask) != [batch]):
        raise Unmatched("its mask has one axis, and may be more than lengths")
    lengths = writer.unsqueeze(writer.cast(mask, ir.DataType.INT64), 1, 2, 3)
    return writer.node("Less", writer.count(writer.size(key, 2)), lengths)


def _sum(writer: Writer, one: ir.Value, other: ir.Value) -> ir.Value:
    return writer.node("Add", one, other, dtype=one.dtype)


def _bias(writer: Writer, node: ir.Node, mask: int, bias: int, key: ir.Value) -> ir.Value | None:
    """Return the two inputs that say what is added to the scores, as one float mask."""
    padding = _padding(writer, node, input_of(node, mask), key, key.dtype)
    added = input_of(node, bias)
    if padding is None or added is None:
        return added if padding is None else padding
    return _sum(writer, added, padding)


def parts_of(writer: Writer, value: ir.Value, widths: list[int]) -> list[ir.Value]:
    """Cut the last axis."""
    ends = np.cumsum([0, *widths])
    parts = []
    for start, end in pairwise(ends.tolist()):
        bounds = (writer.constant(np.array([x], np.int64)) for x in (start, end, -1))
        parts.append(writer.node("Slice", value, *bounds, dtype=value.dtype))
    return parts


def multi_head(node: ir.Node, writer: Writer) -> Rewritten:
    query, key, value = _three(node)
    refuse(node, inputs={8: "past_sequence_length", 9: "cache_indirection"})
    if output_of(node, 3) is not None:
        raise Unmatched("its scores are read")
    heads = int(facts.attribute(node, "num_heads", 0))
    of_query, of_value = facts.dims(query), facts.dims(value)
    if of_query is None or len(of_query) != 3 or facts.rank(key) not in (3, 4) or of_value is None:
        raise Unmatched("queries, keys or values are packed, or their number of axes is not known")
    depth = head_size(of_query[-1], heads)
    bias = input_of(node, 3)
    if bias is not None:
        if facts.rank(key) == 4:
            raise Unmatched("a bias is added to keys that are split into heads")
        widths = [heads * depth] * 2 + [head_size(of_value[-1])]
        biases = parts_of(writer, bias, widths)
        query, key, value = (
            _sum(writer, *x) for x in zip((query, key, value), biases, strict=True)
        )
    query = writer.heads_first(query, heads)
    if facts.rank(input_of(node, 1)) == 3:
        key, value = (writer.heads_first(x, heads) for x in (key, value))
    past = input_of(node, 6)
    key, value = joined(writer, past, key), joined(writer, input_of(node, 7), value)
    call = Call(
        query, key, value, _bias(writer, node, 4, 5, key), heads=heads, depth=depth,
        scale=scale_of(node, depth), causal=bool(facts.attribute(node, "unidirectional", 0)),
    )  # fmt: skip
    if call.causal and past is not None:
        call.starts = _every(writer, writer.size(past, 2), query)
    presents = [(output_of(node, 1), key), (output_of(node, 2), value)]
    return Rewritten(call, True, [(old, new) for old, new in presents if old is not None])


def with_projections(node: ir.Node, writer: Writer) -> Rewritten:
    """com.microsoft::Attention, which has the projections of queries, keys and values in it."""
    refuse(
        node,
        inputs={6: "past_sequence_length"},
        attributes=("do_rotary", "past_present_share_buffer"),
    )
    source, weights, bias = (input_of(node, i) for i in range(3))
    width = (facts.dims(weights) or [None])[-1]
    if source is None or weights is None or not isinstance(width, int):
        raise Unmatched("the size of its weights is not known")
    heads = int(facts.attribute(node, "num_heads", 0))
    widths = [int(x) for x in facts.attribute(node, "qkv_hidden_sizes", ()) or [width // 3] * 3]
    depth = head_size(widths[0], heads)
    projected = writer.node("MatMul", source, weights, dtype=weights.dtype)
    if bias is not None:
        projected = _sum(writer, projected, bias)
    query, key, value = (writer.heads_first(x, heads) for x in parts_of(writer, projected, widths))
    past = input_of(node, 4)
    if past is not None:
        one = [writer.constant(np.array(i, np.int64)) for i in (0, 1)]
        old = [writer.node("Gather", past, i, axis=0) for i in one]
        key, value = joined(writer, old[0], key), joined(writer, old[1], value)
    call = Call(
        query, key, value, _bias(writer, node, 3, 5, key), heads=heads, depth=depth,
        scale=scale_of(node, depth), causal=bool(facts.attribute(node, "unidirectional", 0)),
    )  # fmt: skip
    if call.causal and past is not None:
        call.starts = _every(writer, writer.size(past, 3), query)
    present, others = output_of(node, 1), []
    if present is not None:
        pair = (writer.unsqueeze(x, 0) for x in (key, value))
        others.append((present, writer.node("Concat", *pair, axis=0)))
    return Rewritten(call, True, others)
