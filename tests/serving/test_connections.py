"""Clients that are slow, silent, many or hostile, against a process."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import time

import numpy as np
import pytest

from .asgi_client import tensor
from .process import PATIENCE, ServerProcess, is_closed, read_response

pytest.importorskip("httptools", reason="the limits of connections are those of httptools")

GET = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
VECTOR = {"inputs": [tensor("x", "FP32", (2,), [1, 2])]}
MANY = 10_000


@pytest.fixture(scope="module")
def server(model_folder):
    """A server without patience."""
    timeouts = ["--header-timeout", "1", "--idle-timeout", "3", "--send-timeout", "2"]
    with ServerProcess(model_folder / "vector.onnx", *timeouts) as server:
        yield server
        server.signal()
        code, errors = server.wait()
        assert code == 0
        assert "Traceback" not in errors


@pytest.fixture(autouse=True)
def well_afterwards(request):
    """Whatever a client did, the next one is served."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        assert server.infer("vector", VECTOR)[2]["outputs"][0]["data"] == [1, 2]


def refusal(connection):
    """The answer on a connection that the server closes after it."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    assert response.getheader("content-type") == "application/json"
    content = json.loads(response.read())
    assert set(content) == {"error"}
    assert response.getheader("connection") == "close"
    assert is_closed(connection)
    return response.status, content["error"]


def test_headers_that_trickle(server):
    with server.connect() as connection:
        start = time.monotonic()
        connection.settimeout(0.2)
        for byte in b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 1000:
            connection.sendall(bytes([byte]))
            try:
                connection.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            break
        connection.settimeout(PATIENCE)
        assert refusal(connection) == (408, "the headers came too slowly")
        assert 0.9 < time.monotonic() - start < 20


def test_body_that_trickles(model_folder):
    with ServerProcess(model_folder / "vector.onnx", "--body-timeout", "1") as server:
        with server.accepted_request("/v2/models/vector/infer", 1000) as connection:
            connection.settimeout(0.3)
            for _ in range(1000):
                connection.sendall(b" ")
                try:
                    connection.recv(1, socket.MSG_PEEK)
                except TimeoutError:
                    continue
                break
            connection.settimeout(PATIENCE)
            assert refusal(connection)[0] == 408
        assert server.infer("vector", VECTOR)[0] == 200


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"\r\n\r\n\r\n"])
def test_silence_from_the_start(server, sent):
    with server.connect() as connection:
        connection.sendall(sent)
        start = time.monotonic()
        assert is_closed(connection)
        assert time.monotonic() - start < 20


def test_silence_after_an_answer(server):
    with server.connect() as connection:
        for _ in range(3):  # the time counts from the last answer
            connection.sendall(GET)
            assert read_response(connection)[0] == 200
            time.sleep(1.2)
        assert is_closed(connection)


def test_empty_lines_do_not_keep_a_connection(server):
    with server.connect() as connection:
        connection.sendall(GET)
        assert read_response(connection)[0] == 200
        connection.settimeout(0.2)
        start = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError, StopIteration)):  # noqa: PT012
            while time.monotonic() - start < 20:
                connection.sendall(b"\r\n")
                try:
                    if connection.recv(1) == b"":
                        raise StopIteration
                except TimeoutError:
                    pass


@pytest.mark.parametrize("pause", [0, 0.01])
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(9000)), 431),
        (b"GET /v2 HTTP/1.1\r\nX: " + b"y" * 3_000_000, 431),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /" + b"a" * 3_000_000, 414),
    ],
)
def test_large_heads(server, head, status, pause):
    with server.connect() as connection:
        try:
            for start in range(0, len(head), 20_000):
                connection.sendall(head[start : start + 20_000])
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            return  # closed before everything was sent
        try:
            assert refusal(connection)[0] == status
        except ConnectionResetError:
            assert len(head) > 100_000  # what was still on its way resets the connection


def test_heads_within_the_limits(server):
    head = b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100 + b"Y: " + b"z" * 60_000
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(head + b"\r\n\r\n")
            assert read_response(connection)[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GARBAGE\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nNo colon\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nA\0B: x\r\n\r\n",
        b"GET /v2\xff HTTP/1.1\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"CONNECT example.org:80 HTTP/1.1\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_a_request(server, request_):
    with server.connect() as connection:
        connection.sendall(request_)
        assert refusal(connection)[0] in (400, 405)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/%2e%2e",
        "/v2/models/%2e%2e%2fvector",
        "/v2/models/..",
        "/v2/models/../models/vector",
        "/v2/models/vector%2fready",
        "/v2/models/vector%00",
        "/v2/models/vector%00.onnx",
        "/v2/models/%00",
        "/v2/models/%",
        "/v2/models/%zz",
        "/v2/models/%ff%fe%fd",
        "/v2/models/v%C3%A9ctor",
        "/v2/models/%EF%BC%8Evector",
        "/v2/models/vector;x=1",
        "/v2/models/vector%20",
        "/v2/models/vector/versions/%2e%2e",
        "/v2/models/vector/versions/1%2f..",
        "/v2/models/vector/versions/١",
        "/v2//models/vector",
        "//v2/models/vector",
        "/%2e/v2",
        "*",
    ],
)
def test_path_tricks(server, path):
    with server.connect() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        status, content = read_response(connection)
        assert status in (400, 404)
        assert len(content["error"]) < 300


def test_pipelined_requests(server):
    with server.connect() as connection:
        connection.sendall(GET * 3 + b"GET /none HTTP/1.1\r\n\r\n" + GET)
        for expected in (200, 200, 200, 404, 200):
            assert read_one(connection) == expected


def test_trailers_are_bounded_and_dropped(server):
    body = json.dumps(VECTOR).encode()
    head = (
        b"POST /v2/models/vector/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    )
    with server.connect() as connection:
        connection.sendall(head + b"Content-Type: text/plain\r\n\r\n" + GET)
        assert read_response(connection)[0] == 200
    with server.connect() as connection, pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012
        connection.sendall(head + b"X: " + b"y" * 50_000 + b"\r\n")
        connection.sendall(b"X: " + b"y" * 50_000 + b"\r\n")
        for _ in range(1000):
            connection.sendall(b"X: y\r\n")
            time.sleep(0.01)


@pytest.mark.parametrize("flood", [b"0\r\nX: ", b"1;x=", b"0" * 100, b"1 "])
def test_what_lies_between_chunks_is_bounded(server, flood):
    """A trailer or an extension of a chunk without an end does not fill the memory."""
    before = server.resident_memory()
    sent = 0
    with server.connect() as connection, pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012
        connection.sendall(
            b"POST /v2/models/vector/infer HTTP/1.1\r\nHost: x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(flood)
        while sent < 1 << 30:
            connection.sendall(b"0" * (1 << 20))
            sent += 1 << 20
    assert sent < 64 << 20
    assert server.resident_memory() - before < 64 << 20


def test_a_body_in_chunks_of_one_byte(server):
    body = json.dumps(VECTOR).encode().ljust(50_000)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(
            b"POST /v2/models/vector/infer HTTP/1.1\r\nHost: x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for start in range(0, len(chunks), 9999):
            connection.sendall(chunks[start : start + 9999])
        assert read_response(connection)[0] == 200


def test_too_many_pipelined_requests(server):
    with server.connect() as connection:
        connection.sendall(GET * 5000)
        assert read_to_the_end(connection) < 1000 * 100  # closed, with few answers or none
    with server.connect() as connection:
        connection.sendall(GET * 100)
        for _ in range(100):
            assert read_one(connection) == 200


def read_one(connection):
    """Read one of several responses, and nothing of the next; return its status."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    size = int(head.partition(b"content-length: ")[2].split()[0])
    assert json.loads(connection.recv(size, socket.MSG_WAITALL))
    return int(head.split()[1])


def test_upgrades_are_ignored(server):
    with server.connect() as connection:
        connection.sendall(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert read_response(connection)[0] == 200


@pytest.mark.parametrize("seed", range(100))
def test_mutilated_requests(server, seed):
    """Whatever comes, the answer is one of ours, or the connection ends."""
    rng = np.random.default_rng(seed)
    body = json.dumps(VECTOR).encode()
    text = bytearray(
        b"POST /v2/models/vector/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nX-Request-Id: 1\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
        % (len(body), body)
    )
    pieces = [
        b"\r\n",
        b"\0",
        b":",
        b" ",
        b"\n",
        b"chunked",
        b"\xff",
        b"0",
        b"Content-Length: 3\r\n",
    ]
    for _ in range(rng.integers(1, 5)):
        position = int(rng.integers(len(text)))
        removed = int(rng.integers(0, 4))
        text[position : position + removed] = pieces[int(rng.integers(len(pieces)))]
    with server.connect() as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        content = b""
        try:
            while part := connection.recv(1 << 16):
                content += part
        except ConnectionResetError:
            return
    for answer in content.split(b"HTTP/1.1 ")[1:]:
        status, _, rest = answer.partition(b" ")
        assert int(status) in (200, 400, 404, 405, 408, 413, 414, 415, 431)
        assert isinstance(json.loads(rest.partition(b"\r\n\r\n")[2]), dict)


def fill_request(rows):
    inputs = [tensor("shape", "INT64", (2,), [rows, 1 << 18])]
    body = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return (
        b"POST /v2/models/fill/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
        b"Content-Type: application/json\r\n\r\n%s" % (len(body), body)
    )


def test_reader_that_stops(model_folder):
    """An answer that nobody reads does not stay; the drain does not wait for it."""
    with ServerProcess(model_folder / "fill.onnx", "--send-timeout", "1") as server:
        readers = [server.connect() for _ in range(5)]
        for reader in readers:
            reader.sendall(fill_request(40))
            assert reader.recv(12) == b"HTTP/1.1 200"
        before = server.resident_memory()
        assert before > 5 * (40 << 20)
        deadline = time.monotonic() + PATIENCE
        while server.resident_memory() > before - 4 * (40 << 20):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for reader in readers:
            assert read_to_the_end(reader) < 40 << 20
            reader.close()
        server.signal()
        assert server.wait()[0] == 0


def read_to_the_end(connection, pause=0.0):
    """The number of bytes that come until the connection ends, at most 64 KiB for a pause."""
    received = 0
    try:
        while size := len(connection.recv(1 << 16)):
            received += size
            time.sleep(pause)
    except ConnectionResetError:
        pass
    return received


def test_reader_that_is_slow_but_reads(model_folder):
    """Several times the patience with a reader who stops."""
    with ServerProcess(model_folder / "fill.onnx", "--send-timeout", "1") as server:
        with server.connect() as reader:
            reader.sendall(fill_request(20).replace(b"Host", b"Connection: close\r\nHost"))
            assert read_to_the_end(reader, 0.012) > 20 << 20
        server.signal()
        assert server.wait()[0] == 0


def test_more_connections_than_allowed(model_folder):
    with ServerProcess(model_folder / "vector.onnx", "--max-connections", "3") as server:
        held = [server.connect() for _ in range(3)]
        for connection in held:
            connection.sendall(GET)
            assert read_response(connection)[0] == 200
        status, headers, content = server.request("GET", "/v2")
        assert (status, headers["retry-after"]) == (503, "1")
        assert "3 connections" in content["error"]
        with server.connect() as silent:
            assert is_closed(silent)
        held.pop().close()
        while server.request("GET", "/v2")[0] == 503:
            pass
        for connection in held:
            connection.sendall(GET)
            assert read_response(connection)[0] == 200
            connection.close()


def test_ten_thousand_connections(model_folder):
    """Silent ones do not keep the others from being served, and take little memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MANY + 200:
        pytest.skip(f"this machine allows {hard} files to a process")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MANY + 200), hard))
    connections = []
    try:
        with ServerProcess(model_folder / "vector.onnx", "--header-timeout", "300") as server:
            before = server.resident_memory()
            for index in range(MANY - 10):
                connections.append(server.connect())
                if index % 3 == 0:
                    connections[-1].sendall(GET[:20])
            assert server.infer("vector", VECTOR)[0] == 200
            assert server.resident_memory() - before < 400 << 20
            for connection in connections[1::300]:
                connection.sendall(GET)
                assert read_response(connection)[0] == 200
            server.signal()
            assert server.wait()[0] == 0
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
