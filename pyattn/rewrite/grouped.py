"""ONNX Runtime's GroupQueryAttention: each entry of the batch has a past of its own length."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from pyattn.rewrite import facts
from pyattn.rewrite.facts import Unmatched
from pyattn.rewrite.operators import (
    CONTRIB,
    Rewritten,
    head_size,
    input_of,
    joined,
    output_of,
    parts_of,
    refuse,
    scale_of,
)
from pyattn.rewrite.writer import Call, Writer


def grouped(node: ir.Node, writer: Writer) -> Rewritten:
    """com.microsoft::GroupQueryAttention: each entry of the batch has a past of its own length."""
    refuse(
        node,
        inputs={10: "attention_bias", 11: "head_sink"} | {i: f"number {i}" for i in range(12, 17)},
        attributes=("smooth_softmax", "qk_output", "sliding_window_cache", "kv_cache_bit_width"),
    )
    if not facts.attribute(node, "causal", 1):
        raise Unmatched("its attribute causal is 0")
    heads, groups = (int(facts.attribute(node, f"{x}num_heads", 0)) for x in ("", "kv_"))
    query, key, value = (input_of(node, i) for i in range(3))
    lengths, total = input_of(node, 5), input_of(node, 6)
    if query is None or lengths is None or total is None:
        raise Unmatched("an input is missing")
    width = (facts.dims(query) or [None])[-1]
    if key is None or value is None:
        depth = head_size(width, heads + 2 * groups)
        query, key, value = parts_of(writer, query, [n * depth for n in (heads, groups, groups)])
    else:
        depth = head_size(width, heads)
    rows = writer.size(query, 1)
    first, starts = _starts(writer, lengths, total, rows)
    query = writer.heads_first(query, heads)
    key, value = (writer.heads_first(x, groups) for x in (key, value))
    if facts.attribute(node, "do_rotary", 0):
        query, key = (
            _rotated(node, writer, x, first, rows, depth, n)
            for x, n in ((query, heads), (key, groups))
        )
    past = input_of(node, 3)
    if past is not None:
        total = writer.cast(writer.reshape(total, [1]), ir.DataType.INT64)
        place = _places(writer, past, total, first, rows)
        key, value = (
            _scattered(writer, old, new, place)
            for old, new in ((past, key), (input_of(node, 4), value))
            if old is not None
        )
    left = int(facts.attribute(node, "local_window_size", -1))
    call = Call(
        query, key, value, starts=starts, heads=heads, groups=groups, depth=depth,
        scale=scale_of(node, depth), softcap=facts.attribute(node, "softcap", 0.0), causal=True,
        window=None if left < 0 else (left - 1, -1),
    )  # fmt: skip
    presents = [(output_of(node, 1), key), (output_of(node, 2), value)]
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


def _rotated(
    node: ir.Node,
    writer: Writer,
    value: ir.Value,
    first: ir.Value,
    rows: ir.Value,
    depth: int,
    heads: int,
) -> ir.Value:
    """Turn queries or keys, as ONNX Runtime's own operator for that does."""
    cos, sin, places = (input_of(node, i) for i in (7, 8, 9))
    half = (facts.dims(cos) or [None])[-1]
    if cos is None or sin is None or not isinstance(half, int):
        raise Unmatched("the sizes of its rotary tables are not known")
    if places is None:
        places = writer.node("Add", first, writer.count(rows))
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
    position = writer.count(writer.node("Max", old, total))
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
    both = joined(writer, old, new)
    zeros = writer.node(
        "Mul", writer.node("Shape", both), writer.constant(np.array([1, 1, 0, 1], np.int64))
    )
    shape = writer.node("Add", zeros, writer.constant(np.array([0, 0, 1, 0], np.int64)))
    return writer.node(
        "GatherElements", both, writer.node("Expand", place, shape), axis=2, dtype=new.dtype
    )
