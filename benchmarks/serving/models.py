"""The models that every server is given, each a file of its own: ``NAME/1/model.onnx``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import pyattn
from benchmarks.suites import minilm

IMAGE = (3, 296, 296)  # 1.05 MB in float32
WIDTH = 256  # numbers in a row of the small model, 1 KB in float32
ROWS = {"inputs": {"x": {"batch": 0}}, "outputs": {"y": {"batch": 0}}, "kind": "padded"}


def write(folder: Path) -> dict[str, Path]:
    """Write all models below `folder`; return their files by name."""
    encoder = minilm.encoder()
    protos = {
        "small": _small(),
        "image": _image(),
        "minilm": pyattn.export(encoder, encoder.example_inputs()),
        "minilm-packed": pyattn.export(encoder, encoder.example_inputs(packed=True)),
    }
    files = {}
    for name, proto in protos.items():
        files[name] = folder / name / "1" / "model.onnx"
        files[name].parent.mkdir(parents=True)
        onnx.save(proto, files[name])
    return files


def _small() -> Any:
    """y = x: nothing but what a server adds."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return _rows(nodes, [WIDTH], [WIDTH])


def _image() -> Any:
    """Eight numbers about an image: a convolution in steps of 4, ReLU, the mean of all places."""
    kernel = np.random.default_rng(0).standard_normal((8, 3, 3, 3), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["edges"], strides=[4, 4]),
        helper.make_node("Relu", ["edges"], ["seen"]),
        helper.make_node("GlobalAveragePool", ["seen"], ["means"]),
        helper.make_node("Flatten", ["means"], ["y"]),
    ]
    return _rows(nodes, IMAGE, [8], [onnx.numpy_helper.from_array(kernel, "kernel")])


def _rows(
    nodes: Sequence[Any], given: Sequence[int], made: Sequence[int], weights: Sequence[Any] = ()
) -> Any:
    """A model from x (N, ...) to y (N, ...) whose metadata says that rows may run together."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", TensorProto.FLOAT, ["N", *given])],
        [value("y", TensorProto.FLOAT, ["N", *made])],
        list(weights),
    )
    opsets = [helper.make_opsetid("", 18)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    entry = proto.metadata_props.add()
    entry.key, entry.value = "pyattn.batching", json.dumps(ROWS)
    return proto
