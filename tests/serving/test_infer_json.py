"""Inference with tensors as JSON."""

from __future__ import annotations

import numpy as np
import pytest

from .asgi_client import tensor

pytestmark = pytest.mark.usefixtures("each_reader")

VALUES = {
    "BOOL": [True, False, True],
    "UINT8": [0, 1, 255],
    "UINT16": [0, 1, 65535],
    "UINT32": [0, 1, 2**32 - 1],
    "UINT64": [0, 1, 2**64 - 1],
    "INT8": [-128, 0, 127],
    "INT16": [-(2**15), 0, 2**15 - 1],
    "INT32": [-(2**31), 0, 2**31 - 1],
    "INT64": [-(2**63), 0, 2**63 - 1],
    "FP16": [-65504.0, 0.5, 6.1e-05],
    "FP32": [-3.4028235e38, 0.1, 1e-38],
    "FP64": [-1.7976931348623157e308, 0.1, 5e-324],
    "BYTES": ["", "plain", 'Grüße ☃ "quoted" \x00 \n'],
}
NUMPY = {"FP16": np.float16, "FP32": np.float32}


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("nested", [True, False])
def test_identity_of_every_datatype(client, datatype, nested):
    values = VALUES[datatype]
    data = [values] if nested else values
    answer = client.infer(f"identity_{datatype}", {"inputs": [tensor("x", datatype, (1, 3), data)]})
    assert answer.status == 200, answer.body
    (output,) = answer.json["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", datatype, [1, 3])
    kind = NUMPY.get(datatype)
    if kind is None:
        assert output["data"] == values
    else:
        np.testing.assert_array_equal(kind(output["data"]), kind(values))


def test_answer_has_model_version_and_id(client):
    request = {"id": "käse-1", "inputs": [tensor("x", "FP32", (1,), [1.5])]}
    assert client.infer("vector", request).json == {
        "model_name": "vector",
        "model_version": "1",
        "id": "käse-1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1.5]}],
    }


def test_no_id_is_no_id(client):
    answer = client.infer("vector", {"inputs": [tensor("x", "FP32", (1,), [1])]})
    assert "id" not in answer.json


def test_version_in_the_path(client):
    request = {"inputs": [tensor("x", "FP32", (1,), [1])]}
    assert client.infer("vector/versions/1", request).status == 200
    assert client.infer("vector/versions/2", request).status == 404


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_inputs_in_any_order_and_flat_or_nested(client, order):
    data = {"a": [[1, 2, 3], [4, 5, 6]], "b": [10, 20, 30, 40, 50, 60]}
    request = {"inputs": [tensor(name, "FP32", (2, 3), data[name]) for name in order]}
    answer = client.infer("add", request)
    assert answer.tensors() == {"total": [11, 22, 33, 44, 55, 66], "rows": [66, 165]}


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (None, ["total", "rows"]),
        ([], ["total", "rows"]),
        ([{"name": "rows"}], ["rows"]),
        ([{"name": "rows"}, {"name": "total"}], ["rows", "total"]),
    ],
)
def test_selection_of_outputs(client, outputs, expected):
    request = {"inputs": [tensor(name, "FP32", (1, 1), [1]) for name in "ab"]}
    if outputs is not None:
        request["outputs"] = outputs
    assert [o["name"] for o in client.infer("add", request).json["outputs"]] == expected


def test_parameters_are_accepted(client):
    request = {
        "parameters": {
            "priority": 1,
            "timeout": 30_000_000,
            "note": "x",
            "flag": True,
            "share": 0.5,
        },
        "inputs": [tensor("x", "FP32", (1,), [1], content_type="np")],
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
        "model_name": "vector",
    }
    assert client.infer("vector", request).tensors() == {"y": [1]}


@pytest.mark.parametrize(
    ("shape", "data"),
    [((0, 3), []), ((2, 0), []), ((2, 0), [[], []]), ((1, 1), [[7]]), ((3, 2), [1, 2, 3, 4, 5, 6])],
)
def test_shapes_with_ones_and_zeros(client, shape, data):
    answer = client.infer("identity_FP32", {"inputs": [tensor("x", "FP32", shape, data)]})
    assert answer.status == 200, answer.body
    (output,) = answer.json["outputs"]
    assert output["shape"] == list(shape)
    assert output["data"] == np.ravel(data).tolist()


def test_scalar_and_unknown_rank(client):
    assert client.infer("scalar", {"inputs": [tensor("x", "FP32", (), [2.5])]}).tensors() == {
        "y": [2.5]
    }
    for shape in ((), (1,), (1, 1, 1)):
        request = {"inputs": [tensor("x", "FP32", shape, [2.5])]}
        (output,) = client.infer("unranked", request).json["outputs"]
        assert output["shape"] == list(shape)


@pytest.mark.parametrize("inputs", [{}, {"inputs": []}])
def test_model_without_inputs(client, inputs):
    assert client.infer("constant", inputs).tensors() == {"y": [3, 4]}


def test_integers_are_numbers_for_floats(client):
    request = {"inputs": [tensor("x", "FP32", (3,), [1, 2.5, -(2**20)])]}
    assert client.infer("vector", request).tensors() == {"y": [1, 2.5, -(2.0**20)]}


def test_float32_is_written_short(client):
    answer = client.infer("vector", {"inputs": [tensor("x", "FP32", (1,), [0.1])]})
    assert b'"data":[0.1]' in answer.body


@pytest.mark.parametrize(("a", "b"), [(1, 0), (-1, 0), (0, 0)])
def test_non_finite_outputs_need_binary(client, a, b):
    request = {
        "inputs": [tensor("a", "FP32", (1,), [a]), tensor("b", "FP32", (1,), [b])],
    }
    answer = client.infer("divide", request)
    assert answer.status == 400
    assert "binary" in answer.error
    request["parameters"] = {"binary_data_output": True}
    (value,) = np.frombuffer(client.infer("divide", request).tensors()["y"], "<f4")
    assert not np.isfinite(value)


def test_deep_but_legal_json(client):
    request = {"inputs": [tensor("x", "FP32", (1,) * 30, _nest([1.0], 29))]}
    assert client.infer("unranked", request).tensors() == {"y": [1.0]}


def test_brackets_in_strings_are_not_depth(client):
    text = '[{"' * 200 + "\\"
    request = {"inputs": [tensor("x", "BYTES", (1, 1), [text])]}
    assert client.infer("identity_BYTES", request).tensors() == {"y": [text]}


def test_large_tensor_goes_through_the_threads(client):
    values = np.linspace(-1, 1, 30_000, dtype=np.float32)
    answer = client.infer("vector", {"inputs": [tensor("x", "FP32", values.shape, values)]})
    np.testing.assert_array_equal(np.float32(answer.tensors()["y"]), values)


def _nest(data, times):
    for _ in range(times):
        data = [data]
    return data
