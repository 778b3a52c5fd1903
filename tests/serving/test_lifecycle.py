"""Start and end of an application: loading, draining, cancellation."""

from __future__ import annotations

import asyncio
import json

import pytest
from pyattn_serving import ModelError, Settings, create_app

from .asgi_client import Client, Exchange, tensor

JSON = [("Content-Type", "application/json")]
EYE = [float(i == j) for i in range(64) for j in range(64)]


def slow_request(count):
    inputs = [tensor("x", "FP32", (64, 64), EYE), tensor("count", "INT64", (), [count])]
    return json.dumps({"inputs": inputs}).encode()


async def start(app, exchange):
    """Start a request and return its task once the application has read its body."""
    task = asyncio.create_task(app(exchange.scope, exchange.receive, exchange.send))
    while exchange.received < len(exchange.chunks):
        await asyncio.sleep(0)
    return task


async def lifespan(app, work=None):
    """Run the application's start, `work`, and its end; return what it said."""
    inbox, said = asyncio.Queue(), []

    async def send(message):
        said.append(message)
        if message["type"] == "lifespan.startup.complete":
            if work is not None:
                await work()
            await inbox.put({"type": "lifespan.shutdown"})

    await inbox.put({"type": "lifespan.startup"})
    await app({"type": "lifespan"}, inbox.get, send)
    return said


def test_not_ready_before_the_model_is_loaded(make_app):
    app = make_app("vector")
    client = Client(app)
    assert client.get("/v2/health/live").json == {"live": True, "ready": False}
    answer = client.get("/v2/health/ready")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json["ready"] is False
    assert "loaded" in answer.json["error"]
    answer = client.infer("vector", {"inputs": [tensor("x", "FP32", (1,), [1])]})
    assert answer.status == 503
    assert "loaded" in answer.error


def test_lifespan_loads_and_closes(make_app):
    app = make_app("vector")
    ready = []

    async def work():
        ready.append(app.engine.loaded)

    said = asyncio.run(lifespan(app, work))
    kinds = [message["type"] for message in said]
    assert kinds == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert ready == [True]
    assert app.lifecycle.draining


def test_lifespan_reports_a_bad_model(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    app = create_app(Settings(model=tmp_path / "bad.onnx"))
    (message,) = asyncio.run(lifespan(app))
    assert message["type"] == "lifespan.startup.failed"
    assert "bad.onnx" in message["message"]
    app.engine.close()


def test_bad_name_is_found_at_once(tmp_path):
    with pytest.raises(ModelError, match="--name"):
        create_app(Settings(model=tmp_path / "a b.onnx"))


def test_name_of_the_settings(make_app):
    app = make_app("vector", name="other")
    app.engine.load()
    assert Client(app).get("/v2/models/other").json["name"] == "other"
    assert Client(app).get("/v2/models/vector").status == 404


def test_draining_finishes_what_is_in_flight(make_app):
    app = make_app("slow")
    app.engine.load()

    async def run():
        body = slow_request(2000)
        exchange = Exchange("POST", "/v2/models/slow/infer", headers=JSON, chunks=[body])
        task = await start(app, exchange)
        app.lifecycle.drain()
        others = {}
        for method, path in (
            ("GET", "/v2/health/live"),
            ("GET", "/v2/health/ready"),
            ("GET", "/v2/models/slow/ready"),
            ("POST", "/v2/models/slow/infer"),
        ):
            other = Exchange(method, path, body if method == "POST" else b"", JSON)
            await app(other.scope, other.receive, other.send)
            others[path] = other.answer()
        await app.lifecycle.idle()
        await task
        return exchange.answer(), others

    answer, others = asyncio.run(run())
    assert answer.status == 200
    assert answer.headers["connection"] == "close"
    assert others["/v2/health/live"].json == {"live": True, "ready": False}
    assert others["/v2/health/ready"].status == 503
    assert others["/v2/models/slow/ready"].status == 503
    assert others["/v2/models/slow/infer"].status == 503
    assert "shutting down" in others["/v2/models/slow/infer"].error


def test_client_that_hangs_up_frees_the_thread(make_app):
    app = make_app("slow", concurrency=1)
    app.engine.load()

    async def run():
        path = "/v2/models/slow/infer"
        exchange = Exchange("POST", path, slow_request(10**12), JSON)
        task = await start(app, exchange)
        exchange.gone.set()
        await task
        assert exchange.sent == []
        other = Exchange("POST", path, slow_request(2), JSON)
        await app(other.scope, other.receive, other.send)
        return other.answer()

    assert asyncio.run(run()).status == 200
    assert app.lifecycle.in_flight == 0


def test_server_that_cancels_gets_an_answer(make_app):
    app = make_app("slow")
    app.engine.load()

    async def run():
        exchange = Exchange("POST", "/v2/models/slow/infer", slow_request(10**12), JSON)
        task = await start(app, exchange)
        task.cancel()
        await task
        return exchange.answer()

    answer = asyncio.run(run())
    assert answer.status == 503
    assert "shutting down" in answer.error


def test_concurrent_requests_get_their_own_answers(make_app):
    app = make_app("vector")
    app.engine.load()

    async def run():
        exchanges = []
        for i in range(50):
            text = json.dumps({"id": str(i), "inputs": [tensor("x", "FP32", (1,), [i])]}).encode()
            exchanges.append(Exchange("POST", "/v2/models/vector/infer", text, JSON))
        await asyncio.gather(*(app(e.scope, e.receive, e.send) for e in exchanges))
        return [e.answer().json for e in exchanges]

    for i, answer in enumerate(asyncio.run(run())):
        assert (answer["id"], answer["outputs"][0]["data"]) == (str(i), [i])
