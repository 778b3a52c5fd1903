"""The command in a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pyattn_serving
import pytest

from .asgi_client import tensor
from .process import COMMAND, PATIENCE, ServerProcess, is_closed, read_response

PACKAGE_FOLDER = Path(pyattn_serving.__file__).parent
VECTOR = {"inputs": [tensor("x", "FP32", (2,), [1, 2])]}
EYE = [float(i == j) for i in range(64) for j in range(64)]
SLOW = "/v2/models/slow/infer"


def slow_body(count):
    inputs = [tensor("x", "FP32", (64, 64), EYE), tensor("count", "INT64", (), [count])]
    return json.dumps({"inputs": inputs}).encode()


def run(*arguments):
    """Run the command to its end; return exit code and standard error."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def server(model_folder):
    with ServerProcess(
        model_folder / "vector.onnx", "--max-body", "100000", "--body-timeout", "0.5"
    ) as server:
        yield server


def test_ready_line_has_a_hint_that_works(server):
    assert server.ready_line.startswith("pyattn-serve: vector is ready at http://127.0.0.1:")
    url = server.ready_line.split("curl ")[1].strip()
    status, _, content = server.request("GET", url.split(f":{server.port}")[1])
    assert (status, content["name"]) == (200, "vector")


def test_infer(server):
    status, headers, content = server.infer("vector", VECTOR)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert content["outputs"][0]["data"] == [1, 2]


def test_head(server):
    status, headers, content = server.request("HEAD", "/v2")
    assert (status, content) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_many_requests_on_one_connection(server):
    with server.connect() as connection:
        for path, expected in (("/v2", 200), ("/none", 404), ("/v2/models/vector", 200)):
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert read_response(connection)[0] == expected


def test_body_over_the_limit(server):
    """A client that sends everything before it reads still gets the answer."""
    status, _, content = server.request("POST", "/v2/models/vector/infer", b" " * 150_000)
    assert status == 413
    assert "100000" in content["error"]


def test_announced_body_over_the_limit_is_refused_before_it_is_sent(server):
    with server.connect() as connection:
        connection.sendall(
            b"POST /v2/models/vector/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n"
            b"Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n"
        )
        assert read_response(connection)[0] == 413


def test_slow_body(server):
    with server.accepted_request("/v2/models/vector/infer", 1000) as connection:
        connection.sendall(b'{"inputs"')
        status, content = read_response(connection)
        assert (status, "error" in content) == (408, True)
        assert is_closed(connection)


def test_truncated_body_does_not_hurt_others(server):
    with server.accepted_request("/v2/models/vector/infer", 1000) as connection:
        connection.sendall(b'{"inputs"')
    with server.accepted_request("/v2/models/vector/infer", 1000) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert is_closed(connection)
    assert server.infer("vector", VECTOR)[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_server_ends_at_once(model_folder, number):
    with ServerProcess(model_folder / "vector.onnx") as server, server.connect() as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_response(connection)[0] == 200
        server.signal(number)  # the connection that is open and idle does not hold the end up
        code, errors = server.wait()
    assert code == 0
    assert "Traceback" not in errors
    assert "GET /v2 200" in errors


def test_sigterm_finishes_what_is_in_flight(model_folder):
    with ServerProcess(model_folder / "slow.onnx") as server:
        body = slow_body(3000)
        uploading = server.accepted_request(SLOW, len(body))
        running = server.accepted_request(SLOW, len(body))
        running.sendall(body)
        server.signal()
        server.wait_until_draining()
        status, headers, content = server.request("POST", SLOW, body)
        assert (status, headers["connection"]) == (503, "close")
        assert "shutting down" in content["error"]
        assert server.request("GET", "/v2/health/live")[0] == 200
        uploading.sendall(body)
        for connection in (running, uploading):
            status, content = read_response(connection)
            assert status == 200
            assert content["outputs"][0]["data"] == EYE
            connection.close()
        code, errors = server.wait()
    assert code == 0
    assert "Traceback" not in errors


def raw_request(size):
    return (
        b"POST /v2/models/vector/infer HTTP/1.1\r\nHost: x\r\n"
        b"Inference-Header-Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % size
    ) + bytes(size)


def wait_until_closed(server):
    """Wait until the server does not listen any more."""
    while True:
        try:
            server.connect().close()
        except OSError:
            return


def test_sigterm_waits_for_a_slow_reader(model_folder):
    """An answer larger than what the system buffers arrives whole after the listener is closed."""
    size = 48_000_000
    with ServerProcess(model_folder / "vector.onnx") as server, server.connect() as connection:
        connection.sendall(raw_request(size))
        start = connection.recv(1000)
        assert start.startswith(b"HTTP/1.1 200")
        server.signal()
        wait_until_closed(server)
        received = len(start)
        while chunk := connection.recv(1 << 20):
            received += len(chunk)
        code, _ = server.wait()
    assert received > size
    assert code == 0


@pytest.mark.parametrize("hurry", ["timeout", "second signal"])
def test_reader_that_does_not_read_is_cut_off(model_folder, hurry):
    timeout = "0.3" if hurry == "timeout" else "1000"
    options = ["--drain-timeout", timeout]
    vector = model_folder / "vector.onnx"
    with ServerProcess(vector, *options) as server, server.connect() as connection:
        connection.sendall(raw_request(48_000_000))
        assert connection.recv(10).startswith(b"HTTP/1.1")
        server.signal()
        wait_until_closed(server)
        if hurry == "second signal":
            server.signal()
        code, errors = server.wait()
    assert code == 1
    assert "1 request cut off" in errors


@pytest.mark.parametrize("hurry", ["timeout", "second signal"])
def test_drain_ends_in_bounded_time(model_folder, hurry):
    timeout = "0.3" if hurry == "timeout" else "1000"
    with ServerProcess(model_folder / "slow.onnx", "--drain-timeout", timeout) as server:
        body = slow_body(10**12)
        with server.accepted_request(SLOW, len(body)) as connection:
            connection.sendall(body)
            server.signal()
            if hurry == "second signal":
                server.wait_until_draining()
                server.signal()
            status, content = read_response(connection)
            assert (status, "error" in content) == (503, True)
        code, errors = server.wait()
    assert code == 1
    assert "1 request cut off" in errors
    assert "Traceback" not in errors


def test_port_in_use(model_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, errors = run(model_folder / "vector.onnx", "--port", port)
    assert code == 1
    assert errors.strip().splitlines() == [
        f"pyattn-serve: error: cannot listen on 127.0.0.1 port {port}: Address already in use"
    ]


@pytest.mark.parametrize("host", ["256.0.0.1", "192.0.2.1", "no-such-host.invalid", "a..b"])
def test_address_that_is_not_ours(model_folder, host):
    code, errors = run(model_folder / "vector.onnx", "--port", 0, "--host", host)
    assert code == 1
    assert len(errors.strip().splitlines()) == 1
    assert f"cannot listen on {host}" in errors


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\x08\x09"])
def test_bad_model_file(tmp_path, content):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    code, errors = run(path, "--port", 0)
    assert code == 1
    assert len(errors.strip().splitlines()) == 1
    assert errors.startswith(f"pyattn-serve: error: model file {path}")


def test_names_that_are_no_files(tmp_path):
    for path, reason in ((Path("/dev/null"), "is not a regular file"), (tmp_path, "is a folder")):
        code, errors = run(path, "--port", 0, "--name", "x")
        assert (code, len(errors.strip().splitlines())) == (1, 1)
        assert reason in errors
    code, errors = run(tmp_path / ("a" * 300 + ".onnx"), "--port", 0, "--name", "x")
    assert (code, len(errors.strip().splitlines())) == (1, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["m.onnx", "--port", "99999"],
        ["m.onnx", "--port", "x"],
        ["m.onnx", "--threads", "0"],
        ["m.onnx", "--threads", "100000"],
        ["m.onnx", "--max-body", "-1"],
        ["m.onnx", "--drain-timeout", "nan"],
        ["m.onnx", "--body-timeout", "0"],
        ["m.onnx", "--header-timeout", "soon"],
        ["m.onnx", "--nonsense"],
    ],
)
def test_wrong_arguments(arguments):
    code, errors = run(*arguments)
    assert code == 2
    assert "Traceback" not in errors


def test_name_and_threads(model_folder):
    options = ["--name", "other", "--threads", "1", "--concurrency", "1", "--spin"]
    with ServerProcess(model_folder / "vector.onnx", *options) as server:
        assert server.infer("other", VECTOR)[0] == 200
        assert server.infer("vector", VECTOR)[0] == 404


def test_script_in_the_source_folder(model_folder, tmp_path):
    command = [sys.executable, str(PACKAGE_FOLDER / "serve.py")]
    with ServerProcess(model_folder / "vector.onnx", command=command, cwd=tmp_path) as server:
        assert server.infer("vector", VECTOR)[0] == 200
        server.signal()
        assert server.wait()[0] == 0


def test_without_httptools(model_folder):
    """The server works, without the limits of connections, and says so."""
    code = (
        "import sys; sys.modules['httptools'] = None; from pyattn_serving.cli import main; main()"
    )
    command = [sys.executable, "-c", code]
    with ServerProcess(model_folder / "vector.onnx", command=command) as server:
        assert server.infer("vector", VECTOR)[2]["outputs"][0]["data"] == [1, 2]
        server.signal()
        code, errors = server.wait()
    assert code == 0
    assert "httptools is not installed: headers and connections have no limits" in errors
