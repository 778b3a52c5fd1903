"""Heads, paths and framing that are no request, or one that means harm, against a process."""

from __future__ import annotations

import json
import socket
import time

import numpy as np
import pytest

from .process import GET, read_response, refusal
from .test_connections import read_to_the_end
from .test_process import VECTOR

pytest.importorskip("httptools", reason="the limits of connections are those of httptools")


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
def test_large_heads(impatient, head, status, pause):
    with impatient.connect() as connection:
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


def test_heads_within_the_limits(impatient):
    head = b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100 + b"Y: " + b"z" * 60_000
    with impatient.connect() as connection:
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
def test_what_is_not_a_request(impatient, request_):
    with impatient.connect() as connection:
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
def test_path_tricks(impatient, path):
    with impatient.connect() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        status, content = read_response(connection)
        assert status in (400, 404)
        assert len(content["error"]) < 300


def test_pipelined_requests(impatient):
    with impatient.connect() as connection:
        connection.sendall(GET * 3 + b"GET /none HTTP/1.1\r\n\r\n" + GET)
        for expected in (200, 200, 200, 404, 200):
            assert read_one(connection) == expected


def test_trailers_are_bounded_and_dropped(impatient):
    body = json.dumps(VECTOR).encode()
    head = (
        b"POST /v2/models/vector/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    )
    with impatient.connect() as connection:
        connection.sendall(head + b"Content-Type: text/plain\r\n\r\n" + GET)
        assert read_response(connection)[0] == 200
    with impatient.connect() as connection, pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012
        connection.sendall(head + b"X: " + b"y" * 50_000 + b"\r\n")
        connection.sendall(b"X: " + b"y" * 50_000 + b"\r\n")
        for _ in range(1000):
            connection.sendall(b"X: y\r\n")
            time.sleep(0.01)


@pytest.mark.parametrize("flood", [b"0\r\nX: ", b"1;x=", b"0" * 100, b"1 "])
def test_what_lies_between_chunks_is_bounded(impatient, flood):
    """A trailer or an extension of a chunk without an end does not fill the memory."""
    before = impatient.resident_memory()
    sent = 0
    with impatient.connect() as connection, pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012
        connection.sendall(
            b"POST /v2/models/vector/infer HTTP/1.1\r\nHost: x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(flood)
        while sent < 1 << 30:
            connection.sendall(b"0" * (1 << 20))
            sent += 1 << 20
    assert sent < 64 << 20
    assert impatient.resident_memory() - before < 64 << 20


def test_a_body_in_chunks_of_one_byte(impatient):
    body = json.dumps(VECTOR).encode().ljust(50_000)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with impatient.connect() as connection:
        connection.sendall(
            b"POST /v2/models/vector/infer HTTP/1.1\r\nHost: x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for start in range(0, len(chunks), 9999):
            connection.sendall(chunks[start : start + 9999])
        assert read_response(connection)[0] == 200


def test_too_many_pipelined_requests(impatient):
    with impatient.connect() as connection:
        connection.sendall(GET * 5000)
        assert read_to_the_end(connection) < 1000 * 100  # closed, with few answers or none
    with impatient.connect() as connection:
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


def test_upgrades_are_ignored(impatient):
    with impatient.connect() as connection:
        connection.sendall(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert read_response(connection)[0] == 200


@pytest.mark.parametrize("seed", range(100))
def test_mutilated_requests(impatient, seed):
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
    with impatient.connect() as connection:
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
