"""Clients that are slow, silent or many, against a process."""

from __future__ import annotations

import json
import resource
import socket
import time

import pytest

from .asgi_client import tensor
from .process import GET, PATIENCE, ServerProcess, is_closed, read_response, refusal
from .test_process import VECTOR

pytest.importorskip("httptools", reason="the limits of connections are those of httptools")

MANY = 10_000


def test_headers_that_trickle(impatient):
    with impatient.connect() as connection:
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
def test_silence_from_the_start(impatient, sent):
    with impatient.connect() as connection:
        connection.sendall(sent)
        start = time.monotonic()
        assert is_closed(connection)
        assert time.monotonic() - start < 20


def test_silence_after_an_answer(impatient):
    with impatient.connect() as connection:
        for _ in range(3):  # the time counts from the last answer
            connection.sendall(GET)
            assert read_response(connection)[0] == 200
            time.sleep(1.2)
        assert is_closed(connection)


def test_empty_lines_do_not_keep_a_connection(impatient):
    with impatient.connect() as connection:
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
        server.signal()
        assert server.wait()[0] == 0


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
