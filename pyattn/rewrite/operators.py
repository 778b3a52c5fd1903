"""Attention that is one operator: ONNX's, and those of ONNX Runtime's domain com.microsoft."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
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


def is_attention(node: ir.Node) -> bool:
    """Tell whether a node is one of the operators."""
    return (node.domain, node.op_type) in RULES


def rewrite(node: ir.Node, writer: Writer) -> Rewritten:
    """Write the arguments of the call; raise Unmatched with the reason if there is none."""
    return RULES[node.domain, node.op_type](node, writer)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _output(node: ir.Node, index: int) -> ir.Value | None:
    """Return an output if somebody reads it."""
    value = node.outputs[index] if index < len(node.outputs) else None
    return value if value is not None and (value.uses() or value.is_graph_output()) else None


def _refuse(node: ir.Node, *, inputs: dict[int, str], attributes: tuple[str, ...] = ()) -> None:
    """Raise Unmatched for inputs and attributes whose meaning no function of pyattn has."""
    for index, name in inputs.items():
        if _input(node, index) is not None:
            raise Unmatched(f"its input {name} is given")
    for name in attributes:
        if facts.attribute(node, name, 0):
            raise Unmatched(f"its attribute {name} is {facts.attribute(node, name)}")


def _three(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    query, key, value = (_input(node, i) for i in range(3))
    if query is None or key is None or value is None:
        raise Unmatched("queries, keys and values are packed in one array")
    return query, key, value


def _depth(size: Any, heads: int = 1) -> int:
    if not isinstance(size, int) or heads < 1 or size % heads:
        raise Unmatched("the head size is not known")
    return size // heads


def _scale(node: ir.Node, depth: Any) -> float:
    """Return the scale; a missing one, and 0 among ONNX Runtime's, is 1 / sqrt(D)."""
    scale = facts.attribute(node, "scale")
    if scale is None or (node.domain == CONTRIB and scale == 0):
        return 1 / math.sqrt(_depth(depth))
    return float(scale)


def _joined(writer: Writer, past: ir.Value | None, new: ir.Value) -> ir.Value:
    """Return keys or values behind those of the past."""
    if past is None:
        return new
    return writer.node("Concat", past, new, axis=2, dtype=new.dtype)


def _every(writer: Writer, number: ir.Value, query: ir.Value) -> ir.Value:
    """Return a number of each entry of the batch."""
    return writer.node("Expand", number, writer.size(query, 0), dtype=ir.DataType.INT64)


def _standard(node: ir.Node, writer: Writer) -> Rewritten:
    query, key, value = _three(node)
    if _output(node, 3) is not None:
        raise Unmatched("its scores or weights are read")
    if query.dtype == ir.DataType.FLOAT and facts.attribute(node, "softmax_precision", 1) == 11:
        raise Unmatched("its softmax is in float64")
    heads, groups = (facts.attribute(node, f"{name}_num_heads", 0) for name in ("q", "kv"))
    flat = facts.rank(query) == 3
    keys = (facts.dims(key) or [None] * 4)[1 if flat else 2]
    if flat:
        depth = _depth((facts.dims(query) or [None])[-1], heads)
        query = writer.heads_first(query, heads)
        key, value = (writer.heads_first(x, groups) for x in (key, value))
    else:
        heads, groups, depth = _heads(query, key)
    past = _input(node, 4)
    key, value = _joined(writer, past, key), _joined(writer, _input(node, 5), value)
    lengths, mask = _input(node, 6), _input(node, 3)
    call = Call(
        query, key, value, mask, lengths, heads=heads, groups=groups, depth=depth,
        scale=_scale(node, depth), softcap=facts.attribute(node, "softcap", 0.0),
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
    presents = [(_output(node, 1), key), (_output(node, 2), value)]
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


def _padding(writer: Writer, node: ir.Node, mask: ir.Value | None, dtype: Any) -> ir.Value | None:
    """Return what ONNX Runtime adds to the scores for a mask of ones and zeros."""
    if mask is None:
        return None
    count = facts.rank(mask)
    if count not in (2, 3):
        raise Unmatched(f"its mask has {'an unknown number of' if count is None else count} axes")
    zero = writer.constant(np.array(0, mask.dtype.numpy() if mask.dtype else np.int32))
    wide = writer.unsqueeze(mask, *((1, 2) if count == 2 else (1,)))
    low = facts.attribute(node, "mask_filter_value", FILTER)
    numbers = (writer.constant(np.array(x, dtype.numpy())) for x in (0.0, low))
    return writer.node("Where", writer.node("Greater", wide, zero), *numbers, dtype=dtype)


def _sum(writer: Writer, one: ir.Value | None, other: ir.Value | None) -> ir.Value | None:
    if one is None or other is None:
        return other if one is None else one
    return writer.node("Add", one, other, dtype=one.dtype)


def _parts(writer: Writer, value: ir.Value, widths: list[int]) -> list[ir.Value]:
    """Cut the last axis."""
    ends = np.cumsum([0, *widths])
    parts = []
    for start, end in zip(ends, ends[1:], strict=False):
        bounds = (writer.constant(np.array([x], np.int64)) for x in (start, end, -1))
        parts.append(writer.node("Slice", value, *bounds, dtype=value.dtype))
    return parts


def _multi_head(node: ir.Node, writer: Writer) -> Rewritten:
    query, key, value = _three(node)
    _refuse(node, inputs={8: "past_sequence_length", 9: "cache_indirection"})
    if _output(node, 3) is not None:
        raise Unmatched("its scores are read")
    heads = int(facts.attribute(node, "num_heads", 0))
    of_query, of_value = facts.dims(query), facts.dims(value)
    if of_query is None or len(of_query) != 3 or facts.rank(key) not in (3, 4) or of_value is None:
        raise Unmatched("queries, keys or values are packed, or their number of axes is not known")
    depth = _depth(of_query[-1], heads)
    bias = _input(node, 3)
    if bias is not None:
        if facts.rank(key) == 4:
            raise Unmatched("a bias is added to keys that are split into heads")
        widths = [heads * depth] * 2 + [_depth(of_value[-1])]
        biases = _parts(writer, bias, widths)
        query, key, value = (
            _sum(writer, *x) for x in zip((query, key, value), biases, strict=True)
        )
    query = writer.heads_first(query, heads)
    if facts.rank(_input(node, 1)) == 3:
        key, value = (writer.heads_first(x, heads) for x in (key, value))
    past = _input(node, 6)
    key, value = _joined(writer, past, key), _joined(writer, _input(node, 7), value)
    padding = _padding(writer, node, _input(node, 4), query.dtype)
    call = Call(
        query, key, value, _sum(writer, _input(node, 5), padding), heads=heads, depth=depth,
        scale=_scale(node, depth), causal=bool(facts.attribute(node, "unidirectional", 0)),
    )  # fmt: skip
    if call.causal and past is not None:
        call.starts = _every(writer, writer.size(past, 2), query)
    presents = [(_output(node, 1), key), (_output(node, 2), value)]
    return Rewritten(call, True, [(old, new) for old, new in presents if old is not None])


def _projecting(node: ir.Node, writer: Writer) -> Rewritten:
    """com.microsoft::Attention, which has the projections of queries, keys and values in it."""
    _refuse(
        node,
        inputs={6: "past_sequence_length"},
        attributes=("do_rotary", "past_present_share_buffer"),
    )
    source, weights, bias = (_input(node, i) for i in range(3))
    width = (facts.dims(weights) or [None])[-1]
    if source is None or weights is None or not isinstance(width, int):
        raise Unmatched("the size of its weights is not known")
    heads = int(facts.attribute(node, "num_heads", 0))
    widths = [int(x) for x in facts.attribute(node, "qkv_hidden_sizes", ()) or [width // 3] * 3]
    depth = _depth(widths[0], heads)
    projected = writer.node("MatMul", source, weights, dtype=weights.dtype)
    if bias is not None:
        projected = _sum(writer, projected, bias)
    query, key, value = (writer.heads_first(x, heads) for x in _parts(writer, projected, widths))
    past = _input(node, 4)
    if past is not None:
        one = [writer.constant(np.array(i, np.int64)) for i in (0, 1)]
        old = [writer.node("Gather", past, i, axis=0) for i in one]
        key, value = _joined(writer, old[0], key), _joined(writer, old[1], value)
    padding = _padding(writer, node, _input(node, 3), query.dtype)
    call = Call(
        query, key, value, _sum(writer, _input(node, 5), padding), heads=heads, depth=depth,
        scale=_scale(node, depth), causal=bool(facts.attribute(node, "unidirectional", 0)),
    )  # fmt: skip
    if call.causal and past is not None:
        call.starts = _every(writer, writer.size(past, 3), query)
    present, others = _output(node, 1), []
    if present is not None:
        pair = (writer.unsqueeze(x, 0) for x in (key, value))
        others.append((present, writer.node("Concat", *pair, axis=0)))
    return Rewritten(call, True, others)


def _grouped(node: ir.Node, writer: Writer) -> Rewritten:
    """com.microsoft::GroupQueryAttention: each entry of the batch has a past of its own length."""
    _refuse(
        node,
        inputs={10: "attention_bias", 11: "head_sink"} | {i: f"number {i}" for i in range(12, 17)},
        attributes=("smooth_softmax", "qk_output", "sliding_window_cache", "kv_cache_bit_width"),
    )
    if not facts.attribute(node, "causal", 1):
        raise Unmatched("its attribute causal is 0")
    heads, groups = (int(facts.attribute(node, f"{x}num_heads", 0)) for x in ("", "kv_"))
    query, key, value = (_input(node, i) for i in range(3))
    lengths, total = _input(node, 5), _input(node, 6)
    if query is None or lengths is None or total is None:
        raise Unmatched("an input is missing")
    width = (facts.dims(query) or [None])[-1]
    if key is None or value is None:
        depth = _depth(width, heads + 2 * groups)
        query, key, value = _parts(writer, query, [n * depth for n in (heads, groups, groups)])
    else:
        depth = _depth(width, heads)
    rows = writer.size(query, 1)
    first, starts = _starts(writer, lengths, total, rows)
    query = writer.heads_first(query, heads)
    key, value = (writer.heads_first(x, groups) for x in (key, value))
    if facts.attribute(node, "do_rotary", 0):
        query, key = (
            _rotated(node, writer, x, first, rows, depth, n)
            for x, n in ((query, heads), (key, groups))
        )
    past = _input(node, 3)
    if past is not None:
        total = writer.cast(writer.reshape(total, [1]), ir.DataType.INT64)
        place = _places(writer, past, total, first, rows)
        key, value = (
            _scattered(writer, old, new, place)
            for old, new in ((past, key), (_input(node, 4), value))
            if old is not None
        )
    left = int(facts.attribute(node, "local_window_size", -1))
    call = Call(
        query, key, value, starts=starts, heads=heads, groups=groups, depth=depth,
        scale=_scale(node, depth), softcap=facts.attribute(node, "softcap", 0.0), causal=True,
        window=None if left < 0 else (left - 1, -1),
    )  # fmt: skip
    presents = [(_output(node, 1), key), (_output(node, 2), value)]
    return Rewritten(call, True, [(old, new) for old, new in presents if old is not None])


def _starts(
    writer: Writer, lengths: ir.Value, total: ir.Value, rows: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Return the position of the first query of each entry, ``(B, 1)`` and ``(B,)``.

    A prompt, whose queries are all there is, starts at 0 and may be padded on the right.
    """
    last = writer.reshape(writer.cast(lengths, ir.DataType.INT64), [-1, 1])
    after = writer.node("Add", last, writer.constant(np.array([1], np.int64)))
    whole = writer.cast(writer.reshape(total, [1]), ir.DataType.INT64)
    zero = writer.constant(np.array([0], np.int64))
    is_prompt = writer.node("Equal", whole, rows)
    behind = writer.node("Sub", after, rows)
    first = writer.node("Where", is_prompt, zero, behind, dtype=ir.DataType.INT64)
    return first, writer.reshape(first, [-1])


def _count(writer: Writer, size: ir.Value) -> ir.Value:
    """Return 0, 1, ... up to a size."""
    numbers = (writer.constant(np.array(x, np.int64)) for x in (0, 1))
    zero, one = numbers
    scalar = writer.node("Squeeze", size, writer.constant(np.array([0], np.int64)))
    return writer.node("Range", zero, scalar, one)


def _rotated(
    node: ir.Node, writer: Writer, value: ir.Value, first: ir.Value, rows: ir.Value, depth: int, heads: int
) -> ir.Value:  # fmt: skip
    """Turn queries or keys, as ONNX Runtime's own operator for that does."""
    cos, sin, places = (_input(node, i) for i in (7, 8, 9))
    half = (facts.dims(cos) or [None])[-1]
    if cos is None or sin is None or not isinstance(half, int):
        raise Unmatched("the sizes of its rotary tables are not known")
    if places is None:
        places = writer.node("Add", first, _count(writer, rows))
    attributes: dict[str, Any] = {"interleaved": facts.attribute(node, "rotary_interleaved", 0)}
    if 2 * half != depth:
        attributes |= {"num_heads": heads, "rotary_embedding_dim": 2 * half}
    return writer.node(
        "RotaryEmbedding", value, places, cos, sin, domain=CONTRIB, **attributes, dtype=value.dtype
    )


def _places(
    writer: Writer, past: ir.Value, total: ir.Value, first: ir.Value, rows: ir.Value
) -> ir.Value:
    """Return where each key of the cache lies in past and new keys joined, ``(B, 1, L, 1)``."""
    old = writer.size(past, 2)
    position = _count(writer, writer.node("Max", old, total))
    since = writer.node("Sub", position, first)
    zero, one = (writer.constant(np.array([x], np.int64)) for x in (0, 1))
    is_new = writer.node(
        "And",
        writer.node("GreaterOrEqual", since, zero),
        writer.node("Less", since, rows),
    )
    place = writer.node("Where", is_new, writer.node("Add", since, old), position)
    last = writer.node("Sub", writer.node("Add", old, rows), one)
    return writer.unsqueeze(writer.node("Min", place, last), 1, 3)


def _scattered(writer: Writer, old: ir.Value, new: ir.Value, place: ir.Value) -> ir.Value:
    """Return the cache with the new keys or values of each entry behind its own past."""
    joined = _joined(writer, old, new)
    zeros = writer.node(
        "Mul", writer.node("Shape", joined), writer.constant(np.array([1, 1, 0, 1], np.int64))
    )
    shape = writer.node("Add", zeros, writer.constant(np.array([0, 0, 1, 0], np.int64)))
    return writer.node(
        "GatherElements", joined, writer.node("Expand", place, shape), axis=2, dtype=new.dtype
    )


RULES: dict[tuple[str, str], Callable[[ir.Node, Writer], Rewritten]] = {
    ("", "Attention"): _standard,
    (CONTRIB, "Attention"): _projecting,
    (CONTRIB, "MultiHeadAttention"): _multi_head,
    (CONTRIB, "GroupQueryAttention"): _grouped,
}
