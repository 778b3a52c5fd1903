"""Faults of clients and machines that are nowhere else: what the others see, and what is left."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import resource
import statistics
import threading
import time

import pytest

from . import models
from .asgi_client import tensor
from .process import PATIENCE, ServerProcess, read_response
from .test_process import EYE, SLOW, VECTOR, slow_body
from .test_store import put
from .test_workers import Client, wait_for

ENDLESS = slow_body(10**12)
JSON = {"Content-Type": "application/json"}
GIB = 1 << 30


def send_infer(server, body, path=SLOW):
    """Send a request and return its connection, without reading the answer."""
    connection = server.connect()
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return connection


def gauges(server):
    """What waits, what runs, and what was given up, by name of the metric."""
    text = server.request("GET", "/metrics")[2].decode()
    found = re.findall(r"^(pyattn_[a-z_]+)(?:\{[^}]*\})? ([\d.e+-]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_a_full_queue_answers_429_at_once_and_does_not_grow(model_folder):
    options = ["--concurrency", "1", "--max-queue", "2", "--log-level", "error"]
    body = slow_body(1)
    with ServerProcess(model_folder / "slow.onnx", *options) as server:

        def refused():
            start = time.perf_counter()
            connection.request("POST", SLOW, body, JSON)
            response = connection.getresponse()
            took = time.perf_counter() - start
            assert (response.status, response.getheader("retry-after")) == (429, "1")
            assert json.loads(response.read()) == {"error": "2 requests wait for the model already"}
            return took

        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        with contextlib.closing(connection), send_infer(server, ENDLESS):
            wait_for(lambda: gauges(server)["pyattn_running_batches"] == 1)
            with send_infer(server, ENDLESS), send_infer(server, ENDLESS):
                wait_for(lambda: gauges(server)["pyattn_queue_requests"] == 2)
                for _ in range(100):
                    refused()
                before = server.resident_memory()
                took = [refused() for _ in range(1000)]
                assert statistics.median(took) < 0.01
                assert server.resident_memory() - before < 8 << 20  # of 20 MB that were sent
                assert gauges(server)["pyattn_queue_requests"] == 2
        wait_for(lambda: gauges(server)["pyattn_http_in_flight"] == 1)  # the one that asks
        assert server.request("POST", SLOW, body, JSON)[0] == 200


def test_clients_that_leave_while_they_wait_and_while_they_run(model_folder):
    """One runs, two wait; what they asked for would take hours."""
    with ServerProcess(model_folder / "slow.onnx", "--concurrency", "1") as server:
        with contextlib.ExitStack() as leaving:
            for _ in range(3):
                leaving.enter_context(send_infer(server, ENDLESS))
            wait_for(lambda: gauges(server)["pyattn_queue_requests"] == 2)
            staying = send_infer(server, slow_body(2))
        with staying:
            status, content = read_response(staying)
        assert (status, content["outputs"][0]["data"]) == (200, EYE)
        found = gauges(server)
        assert found["pyattn_requests_cancelled_total"] == 3
        assert found["pyattn_queue_requests"] == found["pyattn_running_batches"] == 0
        server.signal()
        code, errors = server.wait()
    assert code == 0
    assert len(re.findall(rf"POST {SLOW} gone", errors)) == 3


def test_clients_that_leave_in_the_middle_of_an_answer(model_folder):
    """What they did not read goes with them."""
    inputs = [tensor("shape", "INT64", (2,), [40, 1 << 18])]
    body = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    with ServerProcess(model_folder / "fill.onnx") as server:
        before = server.resident_memory()
        for _ in range(30):
            with send_infer(server, body, "/v2/models/fill/infer") as connection:
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        wait_for(lambda: gauges(server)["pyattn_http_in_flight"] == 1)  # the one that asks
        assert server.resident_memory() - before < 10 * (40 << 20)
        server.signal()
        assert server.wait()[0] == 0


def test_sigterm_runs_what_waits(model_folder):
    """Requests that wait for their turn were accepted: they are answered before the end."""
    with ServerProcess(model_folder / "slow.onnx", "--concurrency", "1") as server:
        with contextlib.ExitStack() as waiting:
            connections = [
                waiting.enter_context(send_infer(server, slow_body(1000))) for _ in range(8)
            ]
            wait_for(lambda: gauges(server)["pyattn_http_in_flight"] == 9)
            server.signal()
            for connection in connections:
                status, content = read_response(connection)
                assert (status, content["outputs"][0]["data"]) == (200, EYE)
        code, errors = server.wait()
    assert code == 0
    assert "cut off" not in errors


@pytest.fixture
def starved(model_folder):
    """A server that may have one GiB more than it has, and others who ask it all the time."""
    options = ["--max-body", str(8 * GIB), "--log-level", "error"]
    folder = model_folder.parent / "starved"
    for name in ("fill", "vector"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "model.onnx").write_bytes((model_folder / f"{name}.onnx").read_bytes())
    with ServerProcess(folder, *options) as server:
        assert server.infer("vector", VECTOR)[0] == 200  # its threads are there now
        size = server.resident_memory("VmSize")
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (size + GIB, size + GIB))
        others = [Client(server) for _ in range(4)]
        for other in others:
            other.start()
        yield server
        for other in others:
            other.ended.set()
            other.join()
            assert other.failures == []
            assert other.answers == [[1, 2]] * len(other.answers)
            assert other.answers
        server.signal()
        assert server.wait()[0] == 0


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("entries", [1 << 30, 3 << 26])  # the tensor, or only what is made of it
def test_memory_that_a_run_cannot_have(starved, entries, binary):
    request = {
        "inputs": [tensor("shape", "INT64", (1,), [entries])],
        "parameters": {"binary_data_output": binary},
    }
    status, headers, content = starved.infer("fill", request)
    if entries == 1 << 30:
        assert (status, "the model failed" in content["error"]) == (500, True)
    elif binary:
        assert (status, headers["content-type"]) == (200, "application/octet-stream")
    else:
        assert (status, "not enough memory" in content["error"]) == (503, True)


def test_memory_that_a_body_cannot_have(starved):
    with starved.connect() as connection:
        connection.sendall(
            b"POST /v2/models/vector/infer HTTP/1.1\r\nHost: x\r\n"
            b"Inference-Header-Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % (4 * GIB)
        )
        connection.sendall(bytes(1 << 16))
        status, content = read_response(connection)
    assert (status, "not enough memory" in content["error"]) == (503, True)


@pytest.fixture
def neighbours(tmp_path):
    """A server in the mode explicit whose folder has another one beside it, and a secret."""
    put(tmp_path / "models" / "m" / "1")
    put(tmp_path / "outside" / "1")
    (tmp_path / "secret").write_bytes(bytes(16))
    with ServerProcess(tmp_path / "models", "--mode", "explicit", "--load", "m") as server:
        yield server
        ids = {"inputs": [tensor("ids", "INT64", (1, 1), [2])]}
        total = next(o for o in server.infer("m", ids)[2]["outputs"] if o["name"] == "total")
        assert total["data"] == [4]


@pytest.mark.parametrize(
    "name",
    [
        "..%2foutside",
        "%2e%2e%2foutside",
        "%2e%2e/outside",
        "m%2f..%2f..%2foutside",
        "%2ftmp",
        "m%00",
        "m%00/../../outside",
        "..%5coutside",
        "m%e2%80%8b",
        "%ef%bd%8d",
        "%252e%252e%252foutside",
        ".",
        "%2e",
    ],
)
@pytest.mark.parametrize("action", ["load", "unload"])
def test_path_tricks_load_nothing(neighbours, name, action):
    path = f"/v2/repository/models/{name}/{action}"
    status, _, content = neighbours.request("POST", path, b"{}", JSON)
    assert (status, set(content)) == (404, {"error"})
    index = neighbours.request("POST", "/v2/repository/index", b"{}", JSON)[2]
    assert [(entry["name"], entry["state"]) for entry in index] == [("m", "READY")]


@pytest.mark.parametrize("location", ["../../../secret", "/etc/passwd", "link"])
def test_weights_outside_are_refused_while_others_are_served(neighbours, tmp_path, location):
    """A new version names a file that is not the model's: the old one goes on."""
    version = tmp_path / "models" / "m" / "2"
    put(version, proto=models.external(location))
    (version / "link").symlink_to(tmp_path / "secret")
    status, _, content = neighbours.request("POST", "/v2/repository/models/m/load", b"{}", JSON)
    assert status == 400
    assert "external data" in content["error"]
    assert str(tmp_path) not in content["error"]


def test_failing_clients_do_not_hurt_the_others(model_folder, tmp_path):
    """All kinds of failure at once, and next to them clients who want nothing but answers."""
    (tmp_path / "vector").mkdir()
    (tmp_path / "slow").mkdir()
    for name in ("vector", "slow"):
        content = (model_folder / f"{name}.onnx").read_bytes()
        (tmp_path / name / "model.onnx").write_bytes(content)
    options = ["--concurrency", "2", "--body-timeout", "1", "--log-level", "error"]
    with ServerProcess(tmp_path, *options) as server:
        others = [Client(server) for _ in range(4)]
        ended = threading.Event()

        def misbehave():
            while not ended.is_set():
                send_infer(server, ENDLESS).close()
                send_infer(server, b"[" * 100_000, "/v2/models/vector/infer").close()
                with server.accepted_request("/v2/models/vector/infer", 1000) as connection:
                    connection.sendall(b"{")
                server.infer("vector", {"inputs": [tensor("x", "FP32", [2**62, 4], [1])]})

        threads = [*others, threading.Thread(target=misbehave)]
        for thread in threads:
            thread.start()
        wait_for(lambda: all(len(other.answers) > 200 for other in others))
        ended.set()
        for other in others:
            other.ended.set()
        for thread in threads:
            thread.join()
        for other in others:
            assert other.failures == []
            assert other.answers == [[1, 2]] * len(other.answers)
        server.signal()
        code, errors = server.wait()
    assert code == 0
    assert "Traceback" not in errors
