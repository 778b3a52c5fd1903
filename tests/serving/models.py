"""Small ONNX models for the tests of the server, made on the spot."""

from __future__ import annotations

import json
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


def batching(proto, table):
    """Write the axes of a model into its metadata."""
    entry = proto.metadata_props.add()
    entry.key = "pyattn.batching"
    entry.value = table if isinstance(table, str) else json.dumps(table)
    return proto


PADDED = {
    "kind": "padded",
    "inputs": {name: {"batch": 0, "sequence": 1, "pad": 0} for name in ("ids", "mask")},
    "mask": "mask",
    "outputs": {"tokens": {"batch": 0, "sequence": 1}, "total": {"batch": 0, "sequence": None}},
}
PACKED = {
    "kind": "packed",
    "offsets": "offsets",
    "inputs": {"ids": {"axis": 0}},
    "outputs": {
        "tokens": {"axis": 0, "per": "token"},
        "total": {"axis": 0, "per": "sequence"},
    },
}


def table_sum(table=PADDED, factor=1, rows=10):
    """Squares of the ids, looked up in a table of `rows`, each plus the row's sum of them.

    In integers, so that an answer has one value only, whatever the order of additions. An id
    beyond the table fails, and with it the whole run.
    """
    kind, shape = TensorProto.INT64, ["N", "S"]
    squares = [factor * i * i for i in range(rows)]
    proto = model(
        [
            node("Gather", ["squares", "ids"], ["found"]),
            node("Mul", ["found", "mask"], ["seen"]),
            node("ReduceSum", ["seen", "axis"], ["sums"]),
            node("Add", ["seen", "sums"], ["tokens"]),
            node("Squeeze", ["sums", "axis"], ["total"]),
        ],
        [value("ids", kind, shape), value("mask", kind, shape)],
        [value("tokens", kind, shape), value("total", kind, ["N"])],
        [
            helper.make_tensor("squares", kind, [rows], squares),
            helper.make_tensor("axis", kind, [1], [1]),
        ],
    )
    return proto if table is None else batching(proto, table)


def packed_sum(table=PACKED):
    """The same for packed sequences: `offsets` tells where each begins and the last one ends."""
    kind = TensorProto.INT64
    constants = {"zero": [0], "one": [1], "last": [-1], "end": [1 << 40]}
    proto = model(
        [
            node("Mul", ["ids", "ids"], ["tokens"]),
            node("CumSum", ["tokens", "axis"], ["sums"]),
            node("Concat", ["zero", "sums"], ["before"], axis=0),
            node("Slice", ["offsets", "one", "end"], ["ends"]),
            node("Slice", ["offsets", "zero", "last"], ["starts"]),
            node("Gather", ["before", "ends"], ["upper"]),
            node("Gather", ["before", "starts"], ["lower"]),
            node("Sub", ["upper", "lower"], ["total"]),
        ],
        [value("ids", kind, ["T"]), value("offsets", kind, ["E"])],
        [value("tokens", kind, ["T"]), value("total", kind, ["N"])],
        [
            *(helper.make_tensor(name, kind, [1], v) for name, v in constants.items()),
            helper.make_tensor("axis", kind, [], [0]),
        ],
    )
    return proto if table is None else batching(proto, table)


def self_attention(D=8):
    """Softmax attention of x (N, S, D) over itself, keys where mask (N, S) is 0 hidden."""
    kind, shape = TensorProto.FLOAT, ["N", "S", D]
    proto = model(
        [
            node("Transpose", ["x"], ["columns"], perm=[0, 2, 1]),
            node("MatMul", ["x", "columns"], ["scores"]),
            node("Sub", ["one", "mask"], ["hidden"]),
            node("Mul", ["hidden", "low"], ["bias"]),
            node("Unsqueeze", ["bias", "axis"], ["row"]),
            node("Add", ["scores", "row"], ["masked"]),
            node("Softmax", ["masked"], ["weights"], axis=-1),
            node("MatMul", ["weights", "x"], ["y"]),
        ],
        [value("x", kind, shape), value("mask", kind, ["N", "S"])],
        [value("y", kind, shape), value("weights", kind, ["N", "S", "S"])],
        [
            helper.make_tensor("one", kind, [], [1.0]),
            helper.make_tensor("low", kind, [], [-1e30]),
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        ],
    )
    axes = {"batch": 0, "sequence": 1, "pad": 0.0}
    outputs = {"y": {"batch": 0, "sequence": 1}, "weights": {"batch": 0, "sequence": [1, 2]}}
    inputs = {"x": axes, "mask": axes}
    return batching(proto, {"kind": "padded", "inputs": inputs, "mask": "mask", "outputs": outputs})
