"""Inference with tensors as bytes, in all forms of the binary tensor extension."""

from __future__ import annotations

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto
from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits
from pyattn_serving.engine.engine import Engine, ModelSource

from . import models
from .asgi_client import Client, tensor

DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": ml_dtypes.bfloat16,
}
BINARY_OUTPUT = {"binary_data_output": True}


def pack(*texts):
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("padding", range(4))
def test_identity_of_every_datatype(client, datatype, padding):
    """The bytes come back as they were, wherever in the body the tensor starts."""
    rng = np.random.default_rng(7)
    values = rng.integers(0, 2 if datatype == "BOOL" else 100, (3, 5)).astype(DTYPES[datatype])
    content = values.tobytes()
    request = {
        "id": "x" * padding,
        "parameters": BINARY_OUTPUT,
        "inputs": [tensor("x", datatype, (3, 5), binary_data_size=len(content))],
    }
    answer = client.infer(f"identity_{datatype}", request, content)
    assert answer.status == 200, answer.body
    assert answer.tensors() == {"y": content}


def test_special_values_survive(client):
    content = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], np.float32).tobytes()
    request = {
        "parameters": BINARY_OUTPUT,
        "inputs": [tensor("x", "FP32", (5,), binary_data_size=len(content))],
    }
    assert client.infer("vector", request, content).tensors() == {"y": content}


def test_strings(client):
    content = pack(b"", "Grüße".encode(), b"a\0b", b"x" * 1000)
    request = {
        "parameters": BINARY_OUTPUT,
        "inputs": [tensor("x", "BYTES", (2, 2), binary_data_size=len(content))],
    }
    assert client.infer("identity_BYTES", request, content).tensors() == {"y": content}


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BF16"])
def test_empty_tensor(client, datatype):
    request = {
        "parameters": BINARY_OUTPUT,
        "inputs": [tensor("x", datatype, (0, 4), binary_data_size=0)],
    }
    answer = client.infer(f"identity_{datatype}", request)
    assert answer.tensors() == {"y": b""}


@pytest.mark.parametrize("binary_input", ["a", "b", "ab", ""])
def test_mixed_inputs(client, binary_input):
    data = {name: np.float32([[1, 2], [3, 4]]) * scale for name, scale in (("a", 1), ("b", 10))}
    tail = b"".join(data[name].tobytes() for name in "ab" if name in binary_input)
    inputs = [
        tensor(name, "FP32", (2, 2), binary_data_size=16)
        if name in binary_input
        else tensor(name, "FP32", (2, 2), data[name])
        for name in "ab"
    ]
    answer = client.infer("add", {"inputs": inputs}, tail)
    assert answer.tensors() == {"total": [11, 22, 33, 44], "rows": [33, 77]}


@pytest.mark.parametrize("everything", [None, True, False])
@pytest.mark.parametrize("total", [None, True, False])
def test_each_output_may_override_the_request(client, everything, total):
    request = {
        "inputs": [tensor(name, "FP32", (1, 2), [1, 2]) for name in "ab"],
        "outputs": [{"name": "rows"}, {"name": "total"}],
    }
    if everything is not None:
        request["parameters"] = {"binary_data_output": everything}
    if total is not None:
        request["outputs"][1]["parameters"] = {"binary_data": total}
    found = client.infer("add", request).tensors()
    assert list(found) == ["rows", "total"]
    assert isinstance(found["rows"], bytes) == bool(everything)
    assert isinstance(found["total"], bytes) == bool(everything if total is None else total)


def test_response_header_is_the_length_of_the_json(client):
    request = {"parameters": BINARY_OUTPUT, "inputs": [tensor("x", "FP32", (1,), [1])], "id": "é"}
    answer = client.infer("vector", request)
    split = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:split]) == {
        "model_name": "vector",
        "model_version": "1",
        "id": "é",
        "outputs": [
            {
                "name": "y",
                "datatype": "FP32",
                "shape": [1],
                "parameters": {"binary_data_size": 4},
            }
        ],
    }
    assert answer.body[split:] == np.float32([1]).tobytes()


def test_header_over_an_all_json_body(client):
    text = json.dumps({"inputs": [tensor("x", "FP32", (1,), [1])]}).encode()
    header = ("Inference-Header-Content-Length", str(len(text)))
    assert client.infer("vector", text, headers=[header]).tensors() == {"y": [1]}


def raw(client, model, body):
    headers = [
        ("Inference-Header-Content-Length", "0"),
        ("Content-Type", "application/octet-stream"),
    ]
    return client.request("POST", f"/v2/models/{model}/infer", body, headers)


@pytest.mark.parametrize(
    ("model", "shape", "rows"), [("vector", [6], 6), ("columns", [3, 4], 12), ("fixed", [2, 3], 6)]
)
def test_raw_body(client, model, shape, rows):
    values = np.arange(rows, dtype=np.float32)
    answer = raw(client, model, values.tobytes())
    assert answer.status == 200, answer.body
    expected = -values if model == "fixed" else values
    assert answer.tensors() == {"y": expected.tobytes()}
    split = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:split])["outputs"][0]["shape"] == shape


def test_raw_string_is_the_whole_body(client):
    assert raw(client, "one_string", "Grüße".encode()).tensors() == {"y": pack("Grüße".encode())}
    assert raw(client, "identity_BYTES", b"").tensors() == {"y": pack(b"")}


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("add", 8),
        ("constant", 8),
        ("identity_FP32", 8),
        ("columns", 15),
        ("columns", 17),
        ("vector", 7),
        ("fixed", 20),
        ("fixed", 28),
        ("two_strings", 4),
    ],
)
def test_raw_body_that_does_not_settle_the_shape(client, model, size):
    answer = raw(client, model, bytes(size))
    assert answer.status == 400
    assert answer.error


def test_large_tensor(client):
    values = np.random.default_rng(0).standard_normal((250, 1000), dtype=np.float32)
    content = values.tobytes()
    request = {
        "parameters": BINARY_OUTPUT,
        "inputs": [tensor("x", "FP32", values.shape, binary_data_size=len(content))],
    }
    assert client.infer("identity_FP32", request, content).tensors() == {"y": content}


def test_bfloat16_beside_another_type(tmp_path):
    """Where one tensor is bfloat16 all of them reach ONNX Runtime by another way."""
    kinds = {"a": TensorProto.BFLOAT16, "b": TensorProto.FLOAT}
    proto = models.model(
        [models.node("Identity", [name], [f"{name}_out"]) for name in kinds],
        [models.value(name, kind, ["N"]) for name, kind in kinds.items()],
        [models.value(f"{name}_out", kind, ["N"]) for name, kind in kinds.items()],
    )
    engine = Engine([ModelSource.of(models.save(proto, tmp_path / "m.onnx"))], threads=1)
    engine.load()
    a, b = np.array([1, 2], ml_dtypes.bfloat16), np.array([3, 4], np.float32)
    inputs = [
        tensor("a", "BF16", (2,), binary_data_size=a.nbytes),
        tensor("b", "FP32", (2,), binary_data_size=b.nbytes),
    ]
    request = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    client = Client(Application(engine, Limits(1 << 20, 30.0)))
    answer = client.infer("m", request, a.tobytes() + b.tobytes())
    assert answer.tensors() == {"a_out": a.tobytes(), "b_out": b.tobytes()}
    engine.close()
