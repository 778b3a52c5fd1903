"""Parameters that say how a request is to be run, and what the server takes on at a time."""

from __future__ import annotations

import asyncio
import json
import time

import numpy as np
import pytest
from pyattn_serving.asgi.admission import Admission
from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits
from pyattn_serving.asgi.errors import HttpError
from pyattn_serving.engine.failures import InvalidRequestError
from pyattn_serving.protocol.options import RequestOptions, parse_options

from .asgi_client import Client, Exchange, tensor
from .conftest import MAX_BODY


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, RequestOptions(None, 0)),
        ({"timeout": 0, "priority": 0}, RequestOptions(None, 0)),
        ({"timeout": 1500, "priority": 2}, RequestOptions(0.0015, 2)),
        ({"timeout": 2**64 - 1}, RequestOptions(18446744073709.551615, 0)),
    ],
)
def test_options(parameters, expected):
    assert parse_options(parameters) == expected


@pytest.mark.parametrize("key", ["timeout", "priority"])
@pytest.mark.parametrize("value", [-1, True, "1", 1.0, 2**64])
def test_wrong_options(client, key, value):
    with pytest.raises(InvalidRequestError, match=f"'{key}' must be an integer"):
        parse_options({key: value})
    request = {"inputs": [tensor("x", "FP32", (1,), [1])], "parameters": {key: value}}
    assert client.infer("vector", request).status == 400


def slow(count, **parameters):
    return {
        "parameters": parameters,
        "inputs": [
            tensor("x", "FP32", (64, 64), np.zeros((64, 64))),
            tensor("count", "INT64", (), [count]),
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }


LONG = slow(10**7, timeout=2_000_000)  # two seconds of what would take minutes


def test_time_that_is_over(client):
    start = time.perf_counter()
    answer = client.infer("slow", slow(10**7, timeout=50_000))
    assert answer.status == 504
    assert "0.05 seconds" in answer.error
    assert time.perf_counter() - start < 20  # it would take minutes
    assert client.infer("slow", slow(2, timeout=60_000_000)).status == 200


def test_a_moment_is_too_short(client):
    assert client.infer("slow", slow(10**6, timeout=1)).status == 504


def bounded(engine, **limits):
    return Application(engine, Limits(MAX_BODY, 30.0, **limits))


def post(model, request):
    body = json.dumps(request).encode()
    return Exchange("POST", f"/v2/models/{model}/infer", body)


async def serve(app, *exchanges):
    async with asyncio.TaskGroup() as group:
        for exchange in exchanges:
            group.create_task(app(exchange.scope, exchange.receive, exchange.send))
    return [exchange.answer() for exchange in exchanges]


def test_more_requests_than_the_server_takes_on(engine):
    app = bounded(engine, max_pending=2)
    exchanges = [post("slow", LONG) for _ in range(5)]
    answers = asyncio.run(serve(app, *exchanges))
    assert [answer.status for answer in answers] == [504, 504, 429, 429, 429]
    assert "2 requests are pending" in answers[-1].error
    assert answers[-1].headers["retry-after"] == "1"
    # What was held is given back.
    assert Client(app).infer("slow", slow(1)).status == 200


def test_a_full_server_refuses_before_it_reads_the_body(engine):
    app = bounded(engine, max_pending=1)

    first, second = post("slow", slow(10**7)), post("slow", slow(1))

    async def run():
        running = asyncio.create_task(app(first.scope, first.receive, first.send))
        while app.admission.pending == 0:
            await asyncio.sleep(0)
        start = time.perf_counter()
        await app(second.scope, second.receive, second.send)
        waited = time.perf_counter() - start
        first.gone.set()
        await running
        return waited

    assert asyncio.run(run()) < 5  # the first would take minutes
    answer = second.answer()
    assert (answer.status, answer.headers["connection"]) == (429, "close")
    assert app.admission.pending == app.admission.bytes == 0


def test_more_bytes_than_the_server_holds(engine):
    app = bounded(engine, max_pending_bytes=100_000)
    answers = asyncio.run(serve(app, *(post("slow", LONG) for _ in range(12))))
    statuses = [answer.status for answer in answers]
    assert statuses.count(504) == 100_000 // len(json.dumps(LONG))
    assert set(statuses) == {504, 429}
    assert Client(app).infer("slow", slow(1)).status == 200


def test_counts_return_to_zero():
    admission = Admission(2, 10)
    with admission.hold() as first, admission.hold() as second:
        first.add_bytes(4)
        first.begin()
        second.add_bytes(6)
        second.begin()
        with pytest.raises(HttpError):
            second.add_bytes(1)
        with pytest.raises(HttpError):
            admission.hold()
        assert (admission.pending, admission.bytes) == (2, 10)
    assert (admission.pending, admission.bytes) == (0, 0)
