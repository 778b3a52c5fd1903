"""Requests that are refused, and what the client is told."""

from __future__ import annotations

import numpy as np
import pytest

from .asgi_client import tensor

pytestmark = pytest.mark.usefixtures("each_reader")

X = tensor("x", "FP32", (2,), [1, 2])


def refused(answer, *words):
    assert answer.status == 400, answer.body
    message = answer.error
    for word in words:
        assert word in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", ["no JSON body"]),
        (b"{", ["malformed JSON"]),
        (b'{"inputs": [}', ["malformed JSON at character 12"]),
        (b"\xff\xfe", ["malformed JSON"]),
        (b'"\\ud800"', ["malformed JSON"]),
        (b"[]", ["JSON object", "a list"]),
        (b"null", ["JSON object", "null"]),
        (b"12", ["JSON object", "a number"]),
        (b"{}", ["missing input 'x'"]),
        (b'{"inputs": {}}', ["'inputs' must be a list", "an object"]),
        (b'{"inputs": [1]}', ["inputs[0] must be an object"]),
        (b'{"inputs": [{}]}', ["inputs[0] has no 'name'"]),
        (b'{"inputs": [{"name": 3}]}', ["'name' must be a string"]),
        (b'{"inputs": [], "id": 7}', ["'id' must be a string"]),
        (b'{"inputs": [], "parameters": []}', ["'parameters' must be an object"]),
        (b'{"inputs": [], "parameters": {"a": {}}}', ["parameter 'a'"]),
        (b'{"inputs": [], "parameters": {"a": null}}', ["parameter 'a'"]),
        (b'{"inputs": [], "parameters": {"binary_data_output": 1}}', ["binary_data_output"]),
        (b'{"inputs": [{"name": "x", "data": []}]}', ["input 'x' has no 'datatype'"]),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "data": []}]}', ["has no 'shape'"]),
        (b"[" * 101 + b"]" * 101, ["more than 100 deep"]),
        (b"[" * 1_000_000, ["more than 100 deep"]),
        (b'{"a":' * 5000, ["more than 100 deep"]),
        (b'{"id": "' + b'\\"' * 300_000, ["malformed JSON"]),
        (b'{"id": "' + b'\\"' * 30_000 + b'", "a": ' + b"[" * 100, ["more than 100 deep"]),
        (b"[" * 100, ["malformed JSON"]),
    ],
)
def test_malformed_json(client, text, words):
    refused(client.infer("vector", text), *words)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "nan", "-inf"])
def test_non_finite_numbers_need_binary(client, word):
    text = (
        '{"id": "☃☃", "inputs": [{"name": "x", "datatype": "FP32", "shape": [2], '
        f'"data": [1.0, {word}]}}]}}'
    )
    refused(client.infer("vector", text.encode()), "binary")


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        ("vector", [tensor("z", "FP32", (1,), [1])], ["no input 'z'", "it has 'x'"]),
        ("vector", [X, X], ["1 inputs", "lists 2"]),
        ("vector", [X] * 5000, ["1 inputs", "lists 5000"]),
        ("add", [tensor("a", "FP32", (1, 1), [1])], ["missing input 'b'"]),
        ("add", [tensor("a", "FP32", (1, 1), [1])] * 2, ["'a' is given twice"]),
        ("constant", [X], ["0 inputs"]),
        ("vector", [tensor("x", "FP64", (1,), [1])], ["FP32", "'FP64'"]),
        ("vector", [tensor("x", "FLOAT", (1,), [1])], ["'FLOAT'"]),
        ("vector", [tensor("x", "fp32", (1,), [1])], ["'fp32'"]),
        ("vector", [tensor("x", 1, (1,), [1])], ["'datatype' must be a string"]),
        ("vector", [tensor("x", "FP32", (1, 1), [1])], ["1 dimensions", "[1, 1]"]),
        ("scalar", [tensor("x", "FP32", (1,), [1])], ["0 dimensions", "[1]"]),
        ("columns", [tensor("x", "FP32", (1, 3), [1, 2, 3])], ["dimension 1", "is 4", "[1, 3]"]),
        ("fixed", [tensor("x", "FP32", (3, 2), [0] * 6)], ["dimension 0", "[2, 3]"]),
        ("vector", [tensor("x", "FP32", (-1,), [1])], ["0 or more"]),
        ("vector", [tensor("x", "FP32", (True,), [1])], ["integers"]),
        ("vector", [tensor("x", "FP32", (1.0,), [1])], ["integers"]),
        ("vector", [tensor("x", "FP32", ("1",), [1])], ["integers"]),
        ("unranked", [tensor("x", "FP32", (1,) * 33, [1])], ["33 dimensions"]),
        ("vector", [tensor("x", "FP32", (2**61,), [1])], ["too large"]),
        ("vector", [tensor("x", "FP32", (2**64 - 1,), [1])], ["too large"]),
        ("unranked", [tensor("x", "FP32", (2**40, 2**40, 0), [])], ["too large"]),
        ("unranked", [tensor("x", "FP32", (2**31, 2**31), [1])], ["too large"]),
        ("vector", [tensor("x", "FP32", (2**60,), [1])], [f"{2**60} elements", "has 1"]),
        ("vector", [tensor("x", "FP32", (3,), [1, 2])], ["3 elements", "has 2"]),
        ("vector", [tensor("x", "FP32", (1,), [1, 2])], ["1 elements", "has 2"]),
        ("vector", [tensor("x", "FP32", (1,), [[1]])], ["numbers", "element 0"]),
        ("vector", [tensor("x", "FP32", (1,), 5)], ["must be a list"]),
        ("vector", [tensor("x", "FP32", (1,), "1")], ["must be a list"]),
        ("vector", [tensor("x", "FP32", (1,), {"0": 1})], ["must be a list"]),
        ("vector", [tensor("x", "FP32", (1,))], ["'data' or", "'binary_data_size'"]),
        ("vector", [tensor("x", "FP32", (1,), [1], binary_data_size=4)], ["either"]),
        ("vector", [tensor("x", "FP32", (1,), shared_memory_region="r")], ["shared memory"]),
        ("columns", [tensor("x", "FP32", (2, 4), [[1, 2, 3, 4]])], ["nested otherwise"]),
        ("columns", [tensor("x", "FP32", (2, 4), [[1, 2, 3, 4], [5]])], ["nested otherwise"]),
        ("columns", [tensor("x", "FP32", (2, 4), [[1, 2, 3, 4], 5])], ["nested otherwise"]),
        ("columns", [tensor("x", "FP32", (1, 4), [1, 2, 3, [4]])], ["element 3"]),
        ("columns", [tensor("x", "FP32", (1, 4), [[1, 2, 3, [4]]])], ["element 3"]),
        ("vector", [tensor("x", "FP32", (2,), [1, None])], ["element 1 is null"]),
        ("vector", [tensor("x", "FP32", (2,), [1, "2"])], ["element 1 is '2'"]),
        ("vector", [tensor("x", "FP32", (2,), [True, 2])], ["element 0 is True"]),
        ("vector", [tensor("x", "FP32", (1,), ["y" * 9999])], ["element 0", "..."]),
        ("vector", [tensor("x", "FP32", (1,), [1e39])], ["too large for FP32", "binary"]),
        ("identity_FP16", [tensor("x", "FP16", (1, 1), [65520])], ["too large for FP16"]),
        ("identity_INT8", [tensor("x", "INT8", (1, 1), [128])], ["range for INT8"]),
        ("identity_UINT8", [tensor("x", "UINT8", (1, 1), [-1])], ["range for UINT8"]),
        ("identity_INT64", [tensor("x", "INT64", (1, 1), [2**63])], ["range for INT64"]),
        ("identity_INT64", [tensor("x", "INT64", (1, 1), [2**64])], ["must hold integers"]),
        ("identity_INT32", [tensor("x", "INT32", (1, 1), [1.0])], ["must hold integers"]),
        ("identity_BOOL", [tensor("x", "BOOL", (1, 2), [1, 0])], ["true or false"]),
        ("identity_BYTES", [tensor("x", "BYTES", (1, 1), [1])], ["must hold strings"]),
        ("identity_BF16", [tensor("x", "BF16", (1, 1), [1])], ["BF16", "binary only"]),
    ],
)
def test_wrong_inputs(client, model, inputs, words):
    refused(client.infer(model, {"inputs": inputs}), *words)


def test_one_name_is_one_size(client):
    inputs = [tensor("a", "FP32", (2, 3), [0] * 6), tensor("b", "FP32", (2, 1), [0] * 2)]
    refused(client.infer("add", {"inputs": inputs}), "'b'", "dimension 1", "is 3 here")


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([{"name": "z"}], ["no output 'z'", "'total', 'rows'"]),
        ([{"name": "rows"}, {"name": "rows"}], ["'rows' is given twice"]),
        ([{"name": "rows"}] * 3, ["2 outputs", "lists 3"]),
        ([{}], ["outputs[0] has no 'name'"]),
        (["rows"], ["outputs[0] must be an object"]),
        ({"name": "rows"}, ["'outputs' must be a list"]),
        ([{"name": "rows", "parameters": {"binary_data": "yes"}}], ["'binary_data'"]),
        ([{"name": "rows", "parameters": {"classification": 3}}], ["'classification'"]),
    ],
)
def test_wrong_outputs(client, outputs, words):
    inputs = [tensor(name, "FP32", (1, 1), [1]) for name in "ab"]
    refused(client.infer("add", {"inputs": inputs, "outputs": outputs}), *words)


def test_bfloat16_output_needs_binary(client):
    request = {"inputs": [tensor("x", "BF16", (1, 1), binary_data_size=2)]}
    refused(client.infer("identity_BF16", request, b"\0\0"), "output 'y'", "BF16")


@pytest.mark.parametrize(
    ("datatype", "shape", "size", "sent", "words"),
    [
        ("FP32", (1, 2), 8, 7, ["'binary_data_size' is 8", "7 bytes are left"]),
        ("FP32", (1, 2), 8, 9, ["1 bytes follow"]),
        ("FP32", (1, 2), 4, 8, ["takes 8 bytes", "got 4"]),
        ("FP32", (1, 2), 12, 12, ["takes 8 bytes", "got 12"]),
        ("FP32", (1, 2**59), 8, 8, ["bytes; got 8"]),
        ("FP32", (1, 2), -8, 8, ["0 or more"]),
        ("FP32", (1, 2), "8", 8, ["must be an integer"]),
        ("FP32", (1, 2), 8.0, 8, ["must be an integer"]),
        ("FP32", (1, 2), True, 8, ["must be an integer"]),
        ("FP32", (1, 2), 2**63, 8, ["8 bytes are left"]),
        ("BYTES", (1, 2**40), 8, 8, ["8 bytes are not"]),
        ("BYTES", (1, 1), 3, 3, ["3 bytes are not 1 elements"]),
        ("BYTES", (1, 1), 8, 8, ["8 bytes are not 1 elements"]),
        ("BYTES", (1, 3), 8, 8, ["8 bytes are not 3 elements"]),
    ],
)
def test_wrong_byte_counts(client, datatype, shape, size, sent, words):
    request = {"inputs": [tensor("x", datatype, shape, binary_data_size=size)]}
    refused(client.infer(f"identity_{datatype}", request, bytes(sent)), *words)


@pytest.mark.parametrize(
    ("datatype", "content", "words"),
    [
        ("BOOL", b"\1\2", ["other than 0 and 1"]),
        ("BYTES", b"\2\0\0\0\xff\xfe\0\0\0\0", ["not UTF-8"]),
        ("BYTES", b"\xff\xff\xff\xff1234", ["are not 2 elements"]),
        ("BYTES", b"\5\0\0\0hello\1\0\0", ["are not 2 elements"]),
    ],
)
def test_wrong_bytes(client, datatype, content, words):
    request = {"inputs": [tensor("x", datatype, (1, 2), binary_data_size=len(content))]}
    refused(client.infer(f"identity_{datatype}", request, content), *words)


@pytest.mark.parametrize(
    "value", ["-1", "+5", "1_0", " 5", "5 ", "", "0x10", "1.0", "٣", "9" * 19, "5,5"]
)
def test_json_length_is_plain_digits(client, value):
    header = ("Inference-Header-Content-Length", value.encode().decode("latin-1"))
    refused(client.infer("vector", {"inputs": [X]}, headers=[header]), "must be digits")


def test_json_length_within_the_body(client):
    header = ("Inference-Header-Content-Length", "1000000000000")
    refused(client.infer("vector", {"inputs": [X]}, headers=[header]), "but the body has")


def test_json_length_that_cuts_the_json(client):
    header = ("Inference-Header-Content-Length", "10")
    refused(client.infer("vector", {"inputs": [X]}, headers=[header]), "malformed JSON")


@pytest.mark.parametrize("name", ["Content-Length", "Content-Type", "Content-Encoding"])
def test_header_given_twice(client, name):
    headers = [(name, "identity"), (name, "identity")]
    refused(client.infer("vector", {"inputs": [X]}, headers=headers), "2 times")


@pytest.mark.parametrize("value", ["-1", "+1", "1e3", "abc"])
def test_content_length_is_plain_digits(client, value):
    answer = client.infer("vector", {"inputs": [X]}, headers=[("Content-Length", value)])
    refused(answer, "Content-Length must be digits")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "", "*/*", "json"]
)
def test_wrong_content_type(client, content_type):
    answer = client.infer("vector", {"inputs": [X]}, headers=[("Content-Type", content_type)])
    assert answer.status == 415
    assert "application/json" in answer.error
    assert answer.headers["accept"] == "application/json, application/octet-stream"


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", None]
)
def test_right_content_type(client, content_type):
    headers = [] if content_type is None else [("Content-Type", content_type)]
    text = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}'
    answer = client.request("POST", "/v2/models/vector/infer", text, headers)
    assert answer.status == 200


def test_binary_type_needs_the_length_of_its_json(client):
    headers = [("Content-Type", "application/octet-stream")]
    refused(client.infer("vector", {"inputs": [X]}, headers=headers), "Inference-Header")


@pytest.mark.parametrize("encoding", ["br", "zstd", "identity, gzip", "gzip, gzip"])
def test_wrong_encoding(client, encoding):
    answer = client.infer("vector", {"inputs": [X]}, headers=[("Content-Encoding", encoding)])
    assert answer.status == 415
    assert "gzip or deflate" in answer.error
    assert answer.headers["accept-encoding"] == "gzip, deflate, identity"


def test_identity_encoding_is_none(client):
    answer = client.infer("vector", {"inputs": [X]}, headers=[("Content-Encoding", "identity")])
    assert answer.status == 200


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        ("gather", [tensor("index", "INT64", (1,), [10])], ["Gather", "idx=10"]),
        (
            "broadcast",
            [tensor("a", "FP32", (2, 3), [0] * 6), tensor("b", "FP32", (4, 3), [0] * 12)],
            ["Add", "Attempting to broadcast", "2 by 4"],
        ),
    ],
)
def test_inputs_that_onnxruntime_refuses(client, model, inputs, words):
    refused(client.infer(model, {"inputs": inputs}), *words)


def test_memory_that_cannot_be_had_is_the_servers_fault(client, caplog):
    request = {"inputs": [tensor("shape", "INT64", (2,), [2**30, 2**28])]}
    answer = client.infer("fill", request)
    assert answer.status == 500
    assert "/" not in answer.error
    assert "failed" in caplog.text
    request = {"inputs": [tensor("shape", "INT64", (2,), [2, 2])]}
    assert client.infer("fill", request).tensors() == {"y": [0] * 4}


def test_string_that_is_not_text_is_the_models_fault(client, caplog):
    answer = client.infer("broken_string", {})
    assert answer.status == 500
    assert "UTF-8" in answer.error
    assert "failed" in caplog.text


def test_unforeseen_error_tells_nothing(client, caplog, monkeypatch):
    monkeypatch.setattr("pyattn_serving.asgi.endpoints.decode_request", None)
    answer = client.infer("vector", {"inputs": [X]})
    assert answer.status == 500
    assert answer.error == "internal server error"
    assert "TypeError" in caplog.text


@pytest.mark.parametrize("seed", range(200))
def test_mutated_requests_never_break_the_server(client, seed):
    rng = np.random.default_rng(seed)
    text = bytearray(
        b'{"id":"1","parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[1,2],'
        b'"datatype":"FP32","data":[[1.5,-2e3]]}],"outputs":[{"name":"y"}]}'
    )
    for _ in range(rng.integers(1, 4)):
        position = int(rng.integers(len(text)))
        kind = rng.integers(3)
        if kind == 0:
            text[position] = int(rng.integers(256))
        elif kind == 1:
            del text[position]
        else:
            text[position:position] = text[position : position + int(rng.integers(1, 30))]
    answer = client.infer("identity_FP32", bytes(text))
    assert answer.status in (200, 400)
    if answer.status == 400:
        assert answer.error
