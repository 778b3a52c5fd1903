"""Attention written out in standard operators, in the many ways that exporters do it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

H, D, E = 4, 8, 6  # query heads, head size, value head size


@dataclass(frozen=True)
class Way:
    """How the attention is written."""

    layout: str = "4d"  # "3d": batch and heads in one axis; "3d view": but for the mask
    scale: str = "scores"  # or "divided", "query", "key", "both", "computed", "none"
    key: str = "0132"  # or "0231", "views", "given"
    mask: str = "none"  # or "added", "subtracted", "selected", "swapped", "choice added", "two"
    mask_rank: int = 4
    fill: float = -np.inf
    guard: bool = False
    dropout: bool = False
    softcap: float = 0.0
    groups: int = H
    dtype: int = TensorProto.FLOAT
    wide_softmax: bool = False
    opset: int = 20
    static: bool = False


@dataclass
class Builder:
    """Nodes and initializers under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op_type: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name


def build(way: Way) -> onnx.ModelProto:
    """Return a model of query (B, T, H D), key (B, S, G D), value (B, S, G E) and masks."""
    b, dtype = Builder(), helper.tensor_dtype_to_np_dtype(way.dtype)
    query = split(b, "query", H, D)
    key, value = split(b, "key", way.groups, D, keys=True), split(b, "value", way.groups, E)
    if way.groups != H:
        key, value = repeated(b, key, way.groups, D), repeated(b, value, way.groups, E)
    if way.layout != "4d":
        query, key, value = (folded(b, x, n) for x, n in ((query, D), (key, D), (value, E)))
    root = b.constant(D**-0.25 if way.scale == "both" else D**-0.5, dtype)
    if way.scale == "computed":
        last = b.node(
            "Gather", b.node("Shape", query), b.constant([3 if way.layout == "4d" else 2])
        )
        root = b.node("Sqrt", b.node("Cast", last, to=way.dtype))
        root = b.node("Div", b.constant(1.0, dtype), root)
        query = b.node("Mul", query, root)
    if way.scale in ("query", "both"):
        query = b.node("Mul", query, root)
    key = turned(b, way, key)
    if way.scale in ("key", "both"):
        key = b.node("Mul", root, key)
    scores = b.node("MatMul", query, key, name="scores")
    if way.scale == "scores":
        scores = b.node("Mul", root, scores)
    if way.scale == "divided":
        scores = b.node("Div", scores, b.constant(D**0.5, dtype))
    if way.softcap:
        cap = b.constant(way.softcap, dtype)
        scores = b.node("Mul", b.node("Tanh", b.node("Div", scores, cap)), cap)
    scores = masked(b, way, scores, dtype)
    if way.wide_softmax:
        scores = b.node("Cast", scores, to=TensorProto.FLOAT)
    weights = b.node("Softmax", scores, name="weights", axis=-1)
    if way.guard:
        zero = b.constant(0.0, np.float32 if way.wide_softmax else dtype)
        weights = b.node("Where", b.node("IsNaN", weights), zero, weights)
    if way.wide_softmax:
        weights = b.node("Cast", weights, to=way.dtype)
    if way.dropout:
        weights = b.node(
            "Dropout", weights, b.constant(0.1, np.float32), b.constant(False, np.bool_)
        )
    output = b.node("MatMul", weights, value)
    if way.layout != "4d":
        b.node("Identity", output, name="output")
    else:
        swapped = b.node("Transpose", output, perm=[0, 2, 1, 3])
        b.node("Reshape", swapped, b.constant([0, 0, H * E]), name="output")
    return model(b, way)


def split(b: Builder, name: str, heads: int, size: int, *, keys: bool = False) -> str:
    """(B, T, heads * size) to (B, heads, T, size), the number of heads by what is left."""
    shape = b.node("Shape", name)
    front = [b.node("Gather", shape, b.constant([i])) for i in (0, 1)]
    target = b.node("Concat", *front, b.constant([-1]), b.constant([size]), axis=0)
    return b.node("Transpose", b.node("Reshape", name, target), perm=[0, 2, 1, 3])


def repeated(b: Builder, value: str, groups: int, size: int) -> str:
    """Repeat every head of keys or values, as Llama's code does."""
    shape = b.node("Shape", value)
    batch, rows = (b.node("Gather", shape, b.constant([i])) for i in (0, 2))
    numbers = {n: b.constant([n]) for n in (groups, H // groups, H, size)}
    wide = b.node(
        "Concat", batch, numbers[groups], numbers[H // groups], rows, numbers[size], axis=0
    )
    flat = b.node("Concat", batch, numbers[H], rows, numbers[size], axis=0)
    return b.node(
        "Reshape", b.node("Expand", b.node("Unsqueeze", value, b.constant([2])), wide), flat
    )


def folded(b: Builder, value: str, size: int) -> str:
    """(B, H, T, size) to (B * H, T, size)."""
    rows = b.node("Gather", b.node("Shape", value), b.constant([2]))
    return b.node(
        "Reshape", value, b.node("Concat", b.constant([-1]), rows, b.constant([size]), axis=0)
    )


def turned(b: Builder, way: Way, key: str) -> str:
    """Bring D in front of S."""
    if way.layout != "4d":
        return b.node("Transpose", key, perm=[0, 2, 1])
    if way.key == "0132":
        return b.node("Transpose", key, perm=[0, 1, 3, 2])
    if way.key == "0231":
        return b.node("Transpose", b.node("Transpose", key, perm=[0, 2, 1, 3]), perm=[0, 2, 3, 1])
    if way.key == "given":  # by something that does not look like a transpose
        return b.node("Einsum", key, equation="bhsd->bhds")
    shape = b.node("Shape", key)
    front = b.node("Slice", shape, b.constant([0]), b.constant([2]))
    rows, size = (b.node("Gather", shape, b.constant([i])) for i in (2, 3))
    flat = b.node("Reshape", key, b.node("Concat", b.constant([-1]), rows, size, axis=0))
    swapped = b.node("Transpose", flat, perm=[0, 2, 1])
    return b.node("Reshape", swapped, b.node("Concat", front, size, rows, axis=0))


def masked(b: Builder, way: Way, scores: str, dtype: Any) -> str:
    """Apply the mask."""
    if way.mask == "none":
        return scores
    shape = b.node("Shape", scores)
    if way.layout == "3d view":
        split_up = b.node(
            "Concat", b.constant([-1]), b.constant([H]),
            b.node("Slice", shape, b.constant([1]), b.constant([3])), axis=0,
        )  # fmt: skip
        scores = b.node("Reshape", scores, split_up)
    fill = b.constant(way.fill, dtype)
    if way.mask in ("added", "two"):
        scores = b.node("Add", "bias", scores)
    if way.mask == "subtracted":
        scores = b.node("Sub", scores, "bias")
    if way.mask in ("selected", "two"):
        scores = b.node("Where", "seen", scores, fill)
    if way.mask == "swapped":
        scores = b.node("Where", b.node("Not", "seen"), fill, scores)
    if way.mask == "choice added":
        scores = b.node("Add", scores, b.node("Where", "seen", b.constant(0.0, dtype), fill))
    return b.node("Reshape", scores, shape) if way.layout == "3d view" else scores


def model(b: Builder, way: Way) -> onnx.ModelProto:
    """Return the nodes as a model with the inputs that they read."""
    sizes: dict[str, Any] = {"B": 2, "T": 5, "S": 7} if way.static else {n: n for n in "BTS"}
    batch, rows, keys = sizes["B"], sizes["T"], sizes["S"]
    shapes: dict[str, tuple[int, list[Any]]] = {
        "query": (way.dtype, [batch, rows, H * D]),
        "key": (way.dtype, [batch, keys, way.groups * D]),
        "value": (way.dtype, [batch, keys, way.groups * E]),
        "bias": (way.dtype, mask_shape(way, batch, rows, keys)),
        "seen": (TensorProto.BOOL, mask_shape(way, batch, rows, keys)),
    }
    read = {name for node in b.nodes for name in node.input}
    inputs = [helper.make_tensor_value_info(n, *t) for n, t in shapes.items() if n in read]
    output = [batch, rows, H * E] if way.layout == "4d" else [None, rows, E]
    outputs = [helper.make_tensor_value_info("output", way.dtype, output)]
    graph = helper.make_graph(b.nodes, "attention", inputs, outputs, b.initializers)
    opsets = [helper.make_opsetid("", way.opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def mask_shape(way: Way, batch: Any, rows: Any, keys: Any) -> list[Any]:
    if way.layout == "3d":  # heads and batch are one axis
        return [1, rows, keys][3 - min(way.mask_rank, 3) :]
    return [batch, 1, rows, keys][4 - way.mask_rank :] if way.mask_rank != 3 else [H, rows, keys]


def feed(way: Way, rng: np.random.Generator, batch: int, rows: int, keys: int) -> dict[str, Any]:
    """Return random inputs; the last row of the masks sees no key."""
    dtype = helper.tensor_dtype_to_np_dtype(way.dtype)
    shape = mask_shape(way, batch, rows, keys)
    seen = rng.random(shape) < 0.7
    seen[..., 0] = True
    arrays = {
        "query": rng.standard_normal((batch, rows, H * D)).astype(dtype),
        "key": rng.standard_normal((batch, keys, way.groups * D)).astype(dtype),
        "value": rng.standard_normal((batch, keys, way.groups * E)).astype(dtype),
        "bias": rng.standard_normal(shape).astype(dtype),
    }
    if rows > 1:
        seen[..., -1, :] = False
        if way.dtype != TensorProto.FLOAT16:
            arrays["bias"][..., -1, :] = np.finfo(dtype).min * (
                -1 if way.mask == "subtracted" else 1
            )
    arrays["seen"] = seen
    given = {value.name for value in build(way).graph.input}
    return {name: array for name, array in arrays.items() if name in given}
