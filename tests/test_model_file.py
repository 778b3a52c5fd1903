"""What is read of a model before ONNX Runtime sees it."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import pyattn as pa
from pyattn import ops
from pyattn.model_file import MOST_CALLS, MOST_ENTRIES, Call, ModelError, inspect, mapped
from tests import hostile
from tests.hostile import function, message, model, node


def nodes(body: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for each in body:
        yield each
        for attribute in each.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from nodes(graph.node)


def calls(body: Iterable[onnx.NodeProto]) -> list[Call]:
    return [Call(n.name or n.output[0], (n.domain, n.op_type)) for n in nodes(body)]


def looping(rng: Any) -> onnx.ModelProto:
    """Attention and a rotation, outside of a loop and in its body."""
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    at = np.zeros((2, 3), np.int64)
    table = rng.standard_normal((5, 2)).astype(np.float32)

    def step(state: Any) -> Any:
        turned = ops.rotary_embedding(state, table, table, at, num_heads=1)
        return pa.luong_attention(turned, x, x, score="dot")

    def body(state: Any) -> Any:
        state = step(state)
        return state, state[:, 0]

    return pa.export(lambda x: step(ops.loop(body, step(x), 3)[0]), {"x": x}, verify=False)


def test_calls_are_those_that_protobuf_finds(rng: Any) -> None:
    layer = pa.nn.MultiHeadAttention(8, 2, rng=rng)
    x = rng.standard_normal((2, 5, 8)).astype(np.float32)
    for proto in (
        pa.export(lambda x: layer(x, x, x), {"x": x}, opset=18, verify=False),
        looping(rng),
        hostile.siblings(20),
        hostile.nested(5),
        hostile.doubling(3),
    ):
        found = inspect(proto.SerializeToString(), None, "test")
        assert found.calls == calls(proto.graph.node)
        assert found.bodies == {(f.domain, f.name): calls(f.node) for f in proto.functions}
        assert found.calls


def test_weights_are_not_read(tmp_path: Path) -> None:
    """A file of a gigabyte, nearly all of it weights, and that a hole in the file."""
    size = 1 << 30
    weights = message(8, b"w") + b"\x10\x01" + b"\x08" + hostile.varint(size // 4)
    weights += hostile.varint(9 << 3 | 2) + hostile.varint(size)
    graph = message(1, message(4, b"Neg") + message(2, b"y"))
    graph += hostile.varint(5 << 3 | 2) + hostile.varint(len(weights) + size) + weights
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.write(hostile.varint(7 << 3 | 2) + hostile.varint(len(graph) + size) + graph)
        file.truncate(file.tell() + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = inspect(mapped(path, "test"), tmp_path, "test")
    assert found.calls == [Call("y", ("", "Neg"))]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10 << 10


@pytest.mark.parametrize(
    "content",
    [
        b"\x08\x00" * (9 << 20),
        message(7, b"\x0a\x00" * (2 << 20)),
        message(7, b"\x2a\x00" * (2 << 20)),
    ],
    ids=["fields", "nodes", "weights"],
)
def test_too_many_parts(content: bytes) -> None:
    with pytest.raises(ModelError, match="too many parts"):
        inspect(content, None, "test")


def chain(length: int) -> onnx.ModelProto:
    """Functions that each call the next one."""
    functions = [
        function(f"F{i}", [node(f"F{i + 1}", "a", "b", domain="d")]) for i in range(length)
    ]
    functions.append(function(f"F{length}", [node("Neg", "a", "b")]))
    return model([node("F0", "x", "y", domain="d")], functions=functions)


def test_depth_of_calls() -> None:
    inspect(chain(MOST_CALLS - 1).SerializeToString(), None, "test")
    late = chain(MOST_CALLS)
    # What is known of the lower functions already counts, too.
    late.graph.node.insert(0, node("F30", "x", "z", domain="d"))
    for deep in (chain(MOST_CALLS), chain(5000), late):
        with pytest.raises(ModelError, match=r"test: the function 'F.*' calls itself, or calls go"):
            inspect(deep.SerializeToString(), None, "test")


@pytest.mark.parametrize("numbers", [[MOST_ENTRIES + 1], [1 << 20, 1 << 20], [3, -1, MOST_ENTRIES]])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_sizes_from_constants(numbers: list[int], packed: bool, constant: bool) -> None:
    size = helper.make_tensor("n", TensorProto.INT64, [len(numbers)], numbers)
    if not packed:
        size = onnx.numpy_helper.from_array(np.array(numbers), "n")
    nodes = [node("Expand", "x n", "y")]
    if constant:
        size.name = ""
        nodes.insert(0, node("Constant", "", "n", value=size))
    proto = model(nodes, initializer=[] if constant else [size])
    with pytest.raises(ModelError, match=r"constants make a tensor of \d+ entries; at most"):
        inspect(proto.SerializeToString(), None, "test")
    nodes[-1].op_type = "Slice"  # there a large number means "to the end"
    proto = model(nodes, initializer=[] if constant else [size])
    inspect(proto.SerializeToString(), None, "test")


@pytest.mark.parametrize("numbers", [[1, -1, 5], [MOST_ENTRIES], []])
def test_sizes_that_are_allowed(numbers: list[int]) -> None:
    size = helper.make_tensor("n", TensorProto.INT64, [len(numbers)], numbers)
    proto = model([node("Expand", "x n", "y")], initializer=[size])
    inspect(proto.SerializeToString(), None, "test")
