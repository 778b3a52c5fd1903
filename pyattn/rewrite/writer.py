"""Writes calls of pyattn's functions into a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from pyattn.attention import scaled_dot_product_attention
from pyattn.onnx_graph import DOMAIN, Graph, Shared
from pyattn.rewrite.facts import Size, Unmatched
from pyattn.tensor import Tensor

OLDEST_BODY = 18  # the opset that bodies are written in; all they use is there since 13
OLDEST_OPSET = 13


@dataclass
class Call:
    """What one attention computes, in the terms of pyattn's function."""

    query: ir.Value  # (B, H, T, D)
    key: ir.Value  # (B, G, S, D)
    value: ir.Value  # (B, G, S, E)
    mask: ir.Value | None = None
    lengths: ir.Value | None = None
    starts: ir.Value | None = None
    heads: Size = None
    groups: Size = None  # None: as many as heads
    depth: Size = None
    scale: float = 1.0
    softcap: float = 0.0
    causal: bool = False
    window: tuple[int, int] | None = None

    @property
    def mask_kind(self) -> str:
        """How keys are masked, in a word."""
        if self.mask is None:
            return "lengths" if self.lengths is not None else "none"
        return "boolean" if self.mask.dtype == ir.DataType.BOOL else "float"


@dataclass
class Draft:
    """A model that is being rewritten, and the functions of pyattn that it has by now."""

    model: ir.Model
    functions: dict[str, onnx.FunctionProto]

    @property
    def opset(self) -> int:
        """The version of ONNX's operators."""
        return int(self.model.opset_imports.get("", 0))


class Writer:
    """Puts nodes in front of ``anchor``, in the graph where that is."""

    def __init__(self, draft: Draft, anchor: ir.Node) -> None:
        graph = anchor.graph
        if graph is None:
            raise Unmatched("its node is in no graph")
        self._draft, self._anchor, self._graph = draft, anchor, graph
        self._written: list[ir.Node] = []

    def node(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Add a node; return its output."""
        # An output has a name that is nowhere else in the graph, nor in those around it.
        name = f"{self._anchor.outputs[0].name}/{op_type}_{len(self._written)}"
        node = ir.node(op_type, inputs, attributes or None, domain=domain, name=name)
        node.outputs[0].name = name
        if dtype is not None:
            node.outputs[0].dtype = dtype
        self._graph.insert_before(self._anchor, node)
        self._written.append(node)
        return node.outputs[0]

    def constant(self, array: Any) -> ir.Value:
        """Return a constant."""
        tensor = ir.tensor(np.asarray(array))
        made = self.node("Constant", dtype=tensor.dtype, value=tensor)
        made.shape = ir.Shape(np.shape(array))
        return made

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return the value in another dtype."""
        if value.dtype == dtype:
            return value
        made = self.node("Cast", value, dtype=dtype, to=int(dtype))
        made.shape = value.shape
        return made

    def reshape(self, value: ir.Value, sizes: Sequence[int]) -> ir.Value:
        """Return the value in another shape, as ONNX says it: 0 keeps a size, -1 is the rest."""
        return self.node(
            "Reshape", value, self.constant(np.array(sizes, np.int64)), dtype=value.dtype
        )

    def transpose(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """Return the value with its axes in another order."""
        return self.node("Transpose", value, perm=list(axes), dtype=value.dtype)

    def unsqueeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """Return the value with axes of size 1 added."""
        return self.node(
            "Unsqueeze", value, self.constant(np.array(axes, np.int64)), dtype=value.dtype
        )

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """Return one size of a value, as a vector."""
        index = self.constant(np.array([axis], np.int64))
        return self.node("Gather", self.node("Shape", value), index, dtype=ir.DataType.INT64)

    def count(self, size: ir.Value) -> ir.Value:
        """Return 0, 1, ... up to a size, which is a vector of one."""
        zero, one = (self.constant(np.array(x, np.int64)) for x in (0, 1))
        scalar = self.node("Squeeze", size, self.constant(np.array([0], np.int64)))
        return self.node("Range", zero, scalar, one, dtype=ir.DataType.INT64)

    def heads_first(self, value: ir.Value, heads: int) -> ir.Value:
        """(B, T, heads * D) to (B, heads, T, D)."""
        return self.transpose(self.reshape(value, [0, 0, heads, -1]), (0, 2, 1, 3))

    def heads_last(self, value: ir.Value) -> ir.Value:
        """(B, heads, T, E) to (B, T, heads * E)."""
        return self.reshape(self.transpose(value, (0, 2, 1, 3)), [0, 0, -1])

    def call(self, call: Call) -> tuple[ir.Value, str]:
        """Write a call of pyattn's function; return its output, and the function's name."""
        dtypes = {call.query.dtype, call.key.dtype, call.value.dtype}
        if len(dtypes) != 1 or None in dtypes:
            raise Unmatched(f"queries, keys and values have the dtypes {sorted(map(str, dtypes))}")
        body, node = _traced(call, self._draft.opset)
        self._define(body)
        names = ("query", "key", "value", "attn_mask", "kv_lengths", "query_start")
        values = (call.query, call.key, call.value, call.mask, call.lengths, call.starts)
        given = dict(zip(names, values, strict=True))
        inputs = [given[name] if name else None for name in node.input]
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        attributes = {
            name: ir.serde.deserialize_tensor(value)
            if isinstance(value, onnx.TensorProto)
            else value
            for name, value in attributes.items()
        }
        output = self.node(
            node.op_type, *inputs, dtype=call.value.dtype, domain=DOMAIN, **attributes
        )
        return output, node.op_type

    def _define(self, body: onnx.FunctionProto) -> None:
        """Add the function to the model, if it is not there."""
        if self._draft.functions.setdefault(body.name, body) != body:
            raise Unmatched(f"the model has another function {DOMAIN}::{body.name}")

    def sweep(self) -> None:
        """Remove what was written and is read by nobody."""
        for node in reversed(self._written):
            remove_unused(node)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let ``new`` be read in the place of ``old``, under the name of ``old``."""
        name, made = old.name, old.producer()
        new.shape = old.shape
        if new.type is None:
            new.type = old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = f"{name}/replaced", name
        if made is not None:
            remove_unused(made)


def remove_unused(node: ir.Node) -> None:
    """Remove a node that nobody reads any more, and then what it alone read."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.graph is None or any(x.uses() or x.is_graph_output() for x in node.outputs):
            continue
        inputs = {value for value in node.inputs if value is not None}
        node.graph.remove(node, safe=True)
        for value in inputs:
            made = value.producer()
            if made is not None:
                waiting.append(made)
            elif (
                value.is_initializer()
                and value.graph is not None
                and not (value.uses() or value.is_graph_input() or value.is_graph_output())
            ):
                value.graph.initializers.pop(str(value.name))


def _traced(call: Call, opset: int) -> tuple[onnx.FunctionProto, onnx.NodeProto]:
    """Return the function that an export of this call writes, and the node that calls it."""
    dtype = ir.DataType(call.query.dtype or 0).numpy()
    heads: Any = call.heads if isinstance(call.heads, int) else 1
    groups: Any = call.groups if isinstance(call.groups, int) else heads
    known: dict[str, Any] = {
        "query": Tensor.symbolic(("batch", heads, "rows", "depth"), dtype),
        "key": Tensor.symbolic(("batch", groups, "keys", "depth"), dtype),
        "value": Tensor.symbolic(("batch", groups, "keys", "width"), dtype),
    }
    if call.mask is not None:
        of_mask = np.dtype(np.bool_) if call.mask.dtype == ir.DataType.BOOL else dtype
        known["attn_mask"] = Tensor.symbolic(("batch", heads, "rows", "keys"), of_mask)
    for name, value in (("kv_lengths", call.lengths), ("query_start", call.starts)):
        if value is not None:
            known[name] = Tensor.symbolic(("batch",), np.dtype(np.int64))
    shared = Shared(max(opset, OLDEST_BODY))
    graph = Graph(shared, taken=list(known))
    for name, tensor in known.items():
        graph.bind(tensor, name)
    made = scaled_dot_product_attention(
        **known, is_causal=call.causal, scale=call.scale, softcap=call.softcap, window=call.window
    )
    graph.add([made])
    (body,) = shared.functions.values()
    for used in body.opset_import:
        used.version = min(used.version, opset)
    return body, graph.nodes[-1]
