"""Small ONNX models for the tests of the server, made on the spot."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

OPSET = 18
IR_VERSION = 10

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}

value = helper.make_tensor_value_info
node = helper.make_node


def model(nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def identity(datatype, shape=("N", "D")):
    kind = ONNX_TYPES[datatype]
    return model(
        [node("Identity", ["x"], ["y"])], [value("x", kind, shape)], [value("y", kind, shape)]
    )


def add():
    """y = a + b; both inputs share the dimension names N and D. Also the sum of each row."""
    shape, kind = ["N", "D"], TensorProto.FLOAT
    return model(
        [node("Add", ["a", "b"], ["total"]), node("ReduceSum", ["total", "axis"], ["rows"])],
        [value("a", kind, shape), value("b", kind, shape)],
        [value("total", kind, shape), value("rows", kind, ["N", 1])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )


def broadcast():
    """y = a + b with dimensions that the model does not relate."""
    kind = TensorProto.FLOAT
    return model(
        [node("Add", ["a", "b"], ["y"])],
        [value("a", kind, ["A", "B"]), value("b", kind, ["C", "D"])],
        [value("y", kind, ["E", "F"])],
    )


def gather():
    """Rows of a table of 10 rows, chosen by index."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [10, 2], [float(i) for i in range(20)])
    return model(
        [node("Gather", ["table", "index"], ["y"])],
        [value("index", TensorProto.INT64, ["N"])],
        [value("y", TensorProto.FLOAT, ["N", 2])],
        [table],
    )


def fill():
    """Zeros of the shape that the input holds: asks for as much memory as the client says."""
    return model(
        [node("ConstantOfShape", ["shape"], ["y"])],
        [value("shape", TensorProto.INT64, ["R"])],
        [value("y", TensorProto.FLOAT, None)],
    )


def divide():
    kind = TensorProto.FLOAT
    return model(
        [node("Div", ["a", "b"], ["y"])],
        [value("a", kind, ["N"]), value("b", kind, ["N"])],
        [value("y", kind, ["N"])],
    )


def slow():
    """`count` products of a matrix with itself, one after the other."""
    kind, shape = TensorProto.FLOAT, [64, 64]
    body = helper.make_graph(
        [node("MatMul", ["before", "x"], ["after"]), node("Identity", ["going"], ["goes"])],
        "body",
        [
            value("step", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("before", kind, shape),
        ],
        [value("goes", TensorProto.BOOL, []), value("after", kind, shape)],
    )
    return model(
        [node("Loop", ["count", "", "x"], ["y"], body=body)],
        [value("x", kind, shape), value("count", TensorProto.INT64, [])],
        [value("y", kind, shape)],
    )


def fixed():
    kind, shape = TensorProto.FLOAT, [2, 3]
    return model([node("Neg", ["x"], ["y"])], [value("x", kind, shape)], [value("y", kind, shape)])


def constant():
    """No input at all."""
    tensor = helper.make_tensor("t", TensorProto.INT64, [2], [3, 4])
    return model(
        [node("Constant", [], ["y"], value=tensor)], [], [value("y", TensorProto.INT64, [2])]
    )


def broken_string():
    """A string output that is not UTF-8."""
    tensor = helper.make_tensor("t", TensorProto.STRING, [1], [b"\xff\xfe"])
    return model(
        [node("Constant", [], ["y"], value=tensor)], [], [value("y", TensorProto.STRING, [1])]
    )


def sequence_output():
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    return model(
        [node("SplitToSequence", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["N"])],
        [helper.make_value_info("y", kind)],
    )


def external(location, tensor_field=True):
    """x + w with four weights in the file `location`; or w as an attribute of a Constant node."""
    weights = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    if location is not None:
        entry = weights.external_data.add()
        entry.key, entry.value = "location", location
    nodes = [node("Add", ["x", "w"], ["y"])]
    if not tensor_field:
        nodes.insert(0, node("Constant", [], ["w"], value=weights))
    return model(
        nodes,
        [value("x", TensorProto.FLOAT, ["N"])],
        [value("y", TensorProto.FLOAT, ["N"])],
        [weights] if tensor_field else [],
    )


def save(proto, path: Path) -> Path:
    onnx.save(proto, path)
    return path
