"""What the installed ONNX Runtime can load."""

from __future__ import annotations

import functools

import onnx
import onnxruntime
from onnx import helper


@functools.cache
def newest_opset() -> int:
    """Return the newest opset that the runtime loads a model of."""
    for opset in range(onnx.defs.onnx_opset_version(), 17, -1):
        value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        other = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # noqa: BLE001, S112 - of types that differ from version to version
            continue
        return opset
    raise RuntimeError("onnxruntime loads no model of opset 18 or later")
