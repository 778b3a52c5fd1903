"""Collection of request bodies: limits, slowness, disconnection."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc

import numpy as np
import pytest
from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits, collect
from pyattn_serving.asgi.errors import HttpError
from pyattn_serving.asgi.request import Request

from .asgi_client import Client, Exchange, tensor
from .conftest import MAX_BODY

PATH = "/v2/models/vector/infer"
JSON = [("Content-Type", "application/json")]
TEXT = json.dumps({"inputs": [tensor("x", "FP32", (2,), [1, 2])]}).encode()


@pytest.mark.parametrize("announce", [True, False])
@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_body_in_chunks(client, announce, size):
    text = TEXT + b" " * 200_000 if size > 7 else TEXT
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    answer = client.request("POST", PATH, headers=JSON, chunks=chunks, announce=announce)
    assert answer.tensors() == {"y": [1, 2]}


@pytest.mark.parametrize("announce", [True, False])
def test_empty_chunks(client, announce):
    chunks = [b"", TEXT[:10], b"", TEXT[10:], b""]
    answer = client.request("POST", PATH, headers=JSON, chunks=chunks, announce=announce)
    assert answer.tensors() == {"y": [1, 2]}


@pytest.mark.parametrize("announce", [True, False])
def test_body_of_exactly_the_limit(client, announce):
    text = TEXT.ljust(MAX_BODY)
    assert client.infer("vector", text, announce=announce).status == 200


def test_announced_body_over_the_limit_is_refused_unread(client):
    exchange = Exchange("POST", PATH, TEXT.ljust(MAX_BODY + 1), JSON)
    received_at_start = []
    send = exchange.send

    async def watched(message):
        if message["type"] == "http.response.start":
            received_at_start.append(exchange.received)
        await send(message)

    asyncio.run(client.app(exchange.scope, exchange.receive, watched))
    answer = exchange.answer()
    assert (answer.status, received_at_start) == (413, [0])
    assert str(MAX_BODY) in answer.error
    assert answer.headers["connection"] == "close"
    # What the client had on its way is read before the connection is closed.
    assert exchange.received == 1


def test_the_body_of_a_refused_request_is_freed_at_once(client):
    text = json.dumps({"inputs": [tensor("x", "FP32", (3,), [1, 2])]}).encode().ljust(MAX_BODY)

    def refused():
        assert client.infer("vector", text).status == 400

    refused()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(10):
            refused()
        assert tracemalloc.get_traced_memory()[0] < 2 * MAX_BODY
    finally:
        tracemalloc.stop()
        gc.enable()


def test_streamed_body_over_the_limit(client):
    chunks = [bytes(1000)] * (3 * MAX_BODY // 1000)
    exchange = Exchange("POST", PATH, headers=JSON, chunks=chunks, announce=False)
    asyncio.run(client.app(exchange.scope, exchange.receive, exchange.send))
    assert exchange.answer().status == 413
    # Not more than the limit once again is read and dropped.
    assert exchange.received <= 2 * MAX_BODY // 1000 + 2


@pytest.mark.parametrize(("announced", "status"), [(len(TEXT) + 1, 400), (len(TEXT) - 1, 400)])
def test_body_of_another_length_than_announced(client, announced, status):
    answer = client.infer("vector", TEXT, headers=[("Content-Length", str(announced))])
    assert answer.status == status
    assert str(announced) in answer.error


class Stalled(Exchange):
    """Sends its chunks, then nothing, and does not hang up."""

    async def receive(self):
        if self.received < len(self.chunks):
            message = await super().receive()
            return {**message, "more_body": True}
        await asyncio.Event().wait()
        return None


@pytest.mark.parametrize("chunks", [[b""], [TEXT[:10]], [TEXT[:10], TEXT[10:20]]])
def test_stalled_body(engine, chunks):
    app = Application(engine, Limits(MAX_BODY, 0.05))
    exchange = Stalled("POST", PATH, headers=JSON, chunks=chunks, announce=False)
    asyncio.run(app(exchange.scope, exchange.receive, exchange.send))
    answer = exchange.answer()
    assert answer.status == 408
    assert f"{sum(map(len, chunks))} bytes" in answer.error
    assert answer.headers["connection"] == "close"


def test_trickling_body(engine):
    """Bytes that keep coming, but far below the least rate, do not keep a request alive."""

    class Trickle(Exchange):
        async def receive(self):
            await asyncio.sleep(0.01)
            self.received += 1
            return {"type": "http.request", "body": b" ", "more_body": True}

    app = Application(engine, Limits(MAX_BODY, 0.1))
    exchange = Trickle("POST", PATH, headers=JSON, chunks=[b" "], announce=False)
    asyncio.run(app(exchange.scope, exchange.receive, exchange.send))
    assert exchange.answer().status == 408


def test_client_that_hangs_up_within_the_body(client):
    class HangsUp(Exchange):
        async def receive(self):
            if self.received:
                return {"type": "http.disconnect"}
            self.received += 1
            return {"type": "http.request", "body": TEXT[:10], "more_body": True}

    exchange = HangsUp("POST", PATH, TEXT, JSON)
    asyncio.run(client.app(exchange.scope, exchange.receive, exchange.send))
    assert exchange.sent == []
    assert client.app.lifecycle.in_flight == 0


def test_client_that_is_gone_when_the_answer_is_sent(client):
    exchange = Exchange("POST", PATH, TEXT, JSON)

    async def send(message):
        raise OSError("connection lost")

    asyncio.run(client.app(exchange.scope, exchange.receive, send))
    assert client.app.lifecycle.in_flight == 0


def test_answer_without_reading_a_body_closes_the_connection(client):
    answer = client.request("POST", "/v2/models/none/infer", TEXT, JSON)
    assert (answer.status, answer.headers["connection"]) == (404, "close")
    assert "connection" not in client.infer("vector", TEXT).headers


@pytest.mark.parametrize("offset", [0, 1, 5, 63, 64, 100])
@pytest.mark.parametrize("announce", [True, False])
def test_body_is_placed_so_that_the_tensor_is_aligned(offset, announce):
    content = bytes(range(256)) * 1000

    async def run():
        chunks = [content[i : i + 999] for i in range(0, len(content), 999)]
        exchange = Exchange("POST", "/", chunks=chunks, announce=announce)
        request = Request(exchange.scope, exchange.receive)
        return await collect(request, Limits(len(content), 30.0), offset)

    body = asyncio.run(run())
    assert body == content
    assert np.frombuffer(body[offset:], np.uint8).ctypes.data % 64 == 0


def test_limit_is_checked_before_memory_is_taken(engine):
    async def run():
        headers = [("Content-Length", str(2**40))]
        exchange = Exchange("POST", "/", headers=headers)
        await collect(Request(exchange.scope, exchange.receive), Limits(1000, 30.0))

    with pytest.raises(HttpError, match="limit of 1000 bytes"):
        asyncio.run(run())


def test_zero_body_limits_do_not_matter_to_get(engine):
    assert Client(Application(engine, Limits(1, 0.01))).get("/v2").status == 200
