"""Models that nobody should trust: damaged ones, and ones made to harm who loads them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
OPSETS = [helper.make_opsetid(domain, 18 if not domain else 1) for domain in ("", "pyattn", "d")]
BILLION = 1 << 30


def model(nodes: list[NodeProto], *, x: list[Any] | None = None, **graph: Any) -> ModelProto:
    """A model from x to y."""
    shape = ["n"] if x is None else x
    given = helper.make_tensor_value_info("x", FLOAT, shape)
    made = helper.make_tensor_value_info("y", FLOAT, None)
    proto = helper.make_graph(nodes, "g", [given], [made], graph.get("initializer", []))
    return helper.make_model(
        proto, opset_imports=OPSETS, ir_version=10, functions=graph.get("functions", [])
    )


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def function(name: str, nodes: list[NodeProto]) -> onnx.FunctionProto:
    return helper.make_function("d", name, ["a"], ["b"], nodes, OPSETS)


def tensor(dims: list[int], data: bytes = b"", data_type: int = FLOAT) -> TensorProto:
    return TensorProto(name="w", data_type=data_type, dims=dims, raw_data=data)


def external(location: str | None = None, **more: Any) -> TensorProto:
    made = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    given = more if location is None else {"location": location, **more}
    for key, value in given.items():
        made.external_data.add(key=key, value=str(value))
    return made


def with_weights(weights: TensorProto) -> ModelProto:
    return model([node("Add", "x w", "y")], x=[4], initializer=[weights])


def nested(depth: int) -> ModelProto:
    """Branches in branches."""
    graph = helper.make_graph([node("Identity", "x", "r")], "g", [], [info("r")])
    for level in range(depth):
        inner = node("If", "c", f"r{level}", then_branch=graph, else_branch=leaf())
        graph = helper.make_graph([inner], "g", [], [info(f"r{level}")])
    return with_condition(model([*graph.node, node("Identity", graph.output[0].name, "y")]))


def leaf() -> GraphProto:
    return helper.make_graph([node("Identity", "x", "r")], "g", [], [info("r")])


def info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, None)


def with_condition(proto: ModelProto) -> ModelProto:
    condition = TensorProto(name="c", data_type=TensorProto.BOOL, raw_data=b"\1")
    proto.graph.initializer.append(condition)
    return proto


def message(field: int, content: bytes) -> bytes:
    """A field of a protocol-buffer message."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def deep(levels: int) -> bytes:
    """Branches in branches, deeper than protobuf writes them: graph.node.attribute.g.node ..."""
    graph = b""
    for _ in range(levels):
        graph = message(1, message(4, b"If") + message(5, message(1, b"g") + message(6, graph)))
    return message(7, graph)


def siblings(count: int) -> ModelProto:
    branches = {"then_branch": leaf(), "else_branch": leaf()}
    nodes = [node("If", "c", f"s{i}", **branches) for i in range(count)]
    return with_condition(model([*nodes, node("Identity", "s0", "y")]))


def doubling(levels: int) -> ModelProto:
    """Functions that each call the one before twice."""
    functions = [function("F0", [node("Neg", "a", "b")])]
    for i in range(levels):
        calls = [node(f"F{i}", "a", "c", domain="d"), node(f"F{i}", "c", "b", domain="d")]
        functions.append(function(f"F{i + 1}", calls))
    return model([node(f"F{levels}", "x", "y", domain="d")], functions=functions)


def filled(op_type: str) -> ModelProto:
    """A tensor of a billion numbers from a few bytes."""
    one = helper.make_tensor("one", FLOAT, [1], [1.0])
    size = helper.make_tensor("size", INT64, [1], [BILLION])
    made = {
        "ConstantOfShape": [node("ConstantOfShape", "size", "big")],
        "Expand": [node("Expand", "one size", "big")],
        "Tile": [node("Tile", "one size", "big")],
        "Constant": [node("Constant", "", "big", value=tensor([BILLION]))],
    }[op_type]
    nodes = [*made, node("ReduceSum", "big", "sum", keepdims=0), node("Add", "x sum", "y")]
    return model(nodes, initializer=[one, size])


def sparse() -> ModelProto:
    proto = model([node("Add", "x w", "y")])
    made = proto.graph.sparse_initializer.add(dims=[BILLION])
    made.values.CopyFrom(helper.make_tensor("w", FLOAT, [1], [1.0]))
    made.indices.CopyFrom(helper.make_tensor("", INT64, [1], [5]))
    return proto


def names(name: bytes, field: str) -> bytes:
    """A model in which a name holds bytes that Python's protobuf would not let in."""
    proto = model([node("Neg", "x", "zzzz", name="nnnn"), node("Neg", "zzzz", "y")])
    wanted = {"output": b"zzzz", "node": b"nnnn"}[field]
    assert len(name) == len(wanted)
    return proto.SerializeToString().replace(wanted, name)


def attention(operator: str, inputs: str, **attributes: Any) -> ModelProto:
    call = node(operator, inputs, "y", domain="pyattn", **attributes)
    integers = helper.make_tensor("i", INT64, [2], [1, 2])
    return model([call], x=[1, 2, 3, 4], initializer=[integers])


SDPA = "ScaledDotProductAttention"
MODELS: dict[str, Callable[[], ModelProto | bytes]] = {
    "empty": lambda: b"",
    "noise": lambda: bytes(range(256)) * 8,
    "ort format": lambda: b"\0\0\0\0ORTM" + bytes(64),
    "no graph": lambda: ModelProto(ir_version=10),
    "cycle": lambda: model([node("Add", "x q", "y"), node("Neg", "y", "q")]),
    "reads itself": lambda: model([node("Add", "x y", "y")]),
    "reads what nobody writes": lambda: model([node("Add", "x nothing", "y")]),
    "missing input": lambda: model([node("Add", "x", "y")]),
    "missing output": lambda: model([node("Neg", "x", "other")]),
    "written twice": lambda: model([node("Neg", "x", "y"), node("Abs", "x", "y")]),
    "unknown operator": lambda: model([node("Nonsense", "x", "y")]),
    "unknown type": lambda: with_weights(tensor([4], bytes(16), 99)),
    "wrong type": lambda: with_weights(tensor([4], bytes(32), INT64)),
    "negative size": lambda: with_weights(tensor([-4], bytes(16))),
    "overflowing size": lambda: with_weights(tensor([1 << 62, 1 << 62])),
    "overflow to zero": lambda: with_weights(tensor([1 << 32, 1 << 32])),
    "short weights": lambda: with_weights(tensor([4], bytes(15))),
    "billion weights": lambda: with_weights(tensor([BILLION])),
    "sparse billion": sparse,
    "constant": lambda: filled("Constant"),
    "constant of shape": lambda: filled("ConstantOfShape"),
    "expand": lambda: filled("Expand"),
    "tile": lambda: filled("Tile"),
    "calls itself": lambda: model(
        [node("F", "x", "y", domain="d")],
        functions=[function("F", [node("F", "a", "b", domain="d")])],
    ),
    "call each other": lambda: model(
        [node("F", "x", "y", domain="d")],
        functions=[
            function("F", [node("G", "a", "b", domain="d")]),
            function("G", [node("F", "a", "b", domain="d")]),
        ],
    ),
    "calls itself in a branch": lambda: with_condition(
        model(
            [node("F", "x", "y", domain="d")],
            functions=[
                function(
                    "F",
                    [
                        node("Constant", "", "c", value=TensorProto(data_type=9, raw_data=b"\1")),
                        node("If", "c", "b", then_branch=calling("F"), else_branch=calling("F")),
                    ],
                )
            ],
        )
    ),
    "doubling functions": lambda: doubling(40),
    "deep branches": lambda: deep(40),
    "thousands deep": lambda: deep(5000),
    "attention without inputs": lambda: attention(SDPA, "", scale=1.0),
    "attention with one input": lambda: attention(SDPA, "x", scale=1.0),
    "attention with many inputs": lambda: attention(SDPA, "x " * 40, scale=1.0),
    "attention of integers": lambda: attention(SDPA, "i i i", scale=1.0),
    "attention of another type": lambda: attention(SDPA + "Half", "x x x", scale=1.0),
    "attention without scale": lambda: attention(SDPA, "x x x"),
    "attention with a text as scale": lambda: attention(SDPA, "x x x", scale="1"),
    "attention with lists as scale": lambda: attention(SDPA, "x x x", scale=[1.0, 2.0]),
    "attention of ragged shapes": lambda: attention(SDPA, "x i x", scale=1.0),
    "invalid utf-8 in a node": lambda: names(b"n\xff\xfen", "node"),
    "invalid utf-8 in an output": lambda: names(b"n\xff\xfen", "output"),
}


def calling(name: str) -> GraphProto:
    call = node(name, "a", "r", domain="d")
    return helper.make_graph([call], "g", [], [info("r")])


# Models that are odd and yet right.
HARMLESS: dict[str, Callable[[], ModelProto | bytes]] = {
    "declared billion": lambda: model([node("Neg", "x", "y")], x=[BILLION, BILLION]),
    "nested branches": lambda: nested(15),
    "many branches": lambda: siblings(3000),
    "huge attribute": lambda: model([node("Neg", "x", "y"), huge()]),
    "nul in a name": lambda: names(b"n\0\0n", "node"),
}


def huge() -> NodeProto:
    return node("Constant", "", "unused", value_string="a" * (50 << 20))


# What the location of weights is, and what else is said of them.
OUTSIDE: dict[str, dict[str, Any]] = {
    "parent": {"location": "../weights.bin"},
    "parent from below": {"location": "below/../../weights.bin"},
    "backslash": {"location": "..\\weights.bin"},
    "absolute": {"location": "/etc/hostname"},
    "device": {"location": "/dev/zero"},
    "link out": {"location": "link"},
    "linked folder": {"location": "up/weights.bin"},
    "linked device": {"location": "null"},
    "link to itself": {"location": "loop"},
    "hard link": {"location": "two names"},
    "pipe": {"location": "pipe"},
    "folder": {"location": "below"},
    "folder itself": {"location": "."},
    "empty name": {"location": ""},
    "no name": {},
    "nul": {"location": "plain\0"},
    "missing": {"location": "nothing.bin"},
    "too long": {"location": "a" * 5000},
    "memory": {"location": "*/_ORT_MEM_ADDR_/*"},
    "offset beyond the file": {"location": "plain", "offset": 8},
    "length beyond the file": {"location": "plain", "length": BILLION},
    "negative offset": {"location": "plain", "offset": -8},
    "huge offset": {"location": "plain", "offset": 1 << 63},
    "offset that is no number": {"location": "plain", "offset": "eight"},
}


def outside(folder: Path) -> dict[str, TensorProto]:
    """Weights that do not lie in a plain file inside the folder; makes what they refer to."""
    folder.mkdir(parents=True)
    for file in (folder.parent / "weights.bin", folder / "plain"):
        file.write_bytes(bytes(16))
    (folder / "link").symlink_to(folder.parent / "weights.bin")
    (folder / "up").symlink_to(folder.parent)
    (folder / "null").symlink_to("/dev/zero")
    (folder / "below").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "two names").hardlink_to(folder.parent / "weights.bin")
    os.mkfifo(folder / "pipe")
    return {name: external(**entries) for name, entries in OUTSIDE.items()}
