"""Names of requests, and logs in which they can be found."""

from __future__ import annotations

import json
import logging
import re

import pytest
from pyattn_serving.logs import JsonFormatter

from .asgi_client import tensor
from .process import ServerProcess

VECTOR = {"inputs": [tensor("x", "FP32", (2,), [1, 2])]}


@pytest.mark.parametrize("name", ["abc", "a-b_c.d:e/f+g=h@i", "x" * 128])
def test_the_clients_name_is_kept(client, name):
    for path in ("/v2", "/none"):
        answer = client.request("GET", path, headers=[("X-Request-Id", name)])
        assert answer.headers["x-request-id"] == name


@pytest.mark.parametrize("name", [None, "", "a b", "x" * 129, "käse", "a\tb", '"'])
def test_a_name_of_our_own(client, name):
    headers = [] if name is None else [("X-Request-Id", name)]
    names = {client.request("GET", "/v2", headers=headers).headers["x-request-id"] for _ in "ab"}
    assert len(names) == 2
    assert all(re.fullmatch("[0-9a-f]{16}", each) for each in names)


def test_failures_are_logged_with_the_name(client, caplog):
    answer = client.infer("broken_string", {}, headers=[("X-Request-Id", "q7")])
    assert (answer.status, answer.headers["x-request-id"]) == (500, "q7")
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.request == {"request_id": "q7"}


def test_lines_of_json():
    record = logging.LogRecord("a.b", logging.WARNING, "f", 1, 'x "%s"\n', ("y",), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found.pop("time"))
    assert found == {"level": "warning", "logger": "a.b", "message": 'x "y"\n'}


def test_errors_in_lines_of_json():
    try:
        raise ValueError("no")
    except ValueError as error:
        record = logging.LogRecord(
            "a", 40, "f", 1, "m", (), (type(error), error, error.__traceback__)
        )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: no")


def test_log_of_a_server(model_folder):
    with ServerProcess(model_folder / "vector.onnx", "--log-format", "json") as server:
        server.request("GET", "/v2/models/vector%0a", headers={"X-Request-Id": "first"})
        server.infer("vector", VECTOR)
        server.signal()
        code, errors = server.wait()
    assert code == 0
    lines = [json.loads(line) for line in errors.splitlines()]
    first, second = (line for line in lines if line["logger"].endswith(".access"))
    assert first["request_id"] == "first"
    assert (first["method"], first["path"], first["status"]) == ("GET", "/v2/models/vector%0a", 404)
    assert (first["client"], first["level"]) == ("127.0.0.1", "info")
    assert (second["status"], second["path"]) == (200, "/v2/models/vector/infer")
    assert 0 < second["milliseconds"] < 60_000
