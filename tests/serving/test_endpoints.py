"""Health, metadata and routing."""

from __future__ import annotations

import asyncio

import pytest

from .asgi_client import Client


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_has_both_keys(client, path):
    answer = client.get(path)
    assert answer.status == 200
    assert answer.json == {"live": True, "ready": True}


def test_server_metadata(client):
    answer = client.get("/v2")
    assert answer.status == 200
    assert answer.json["name"] == "pyattn-serve"
    assert {"binary_tensor_data", "logging", "schedule_policy", "trace"} <= set(
        answer.json["extensions"]
    )
    assert answer.json["version"]


@pytest.mark.parametrize("suffix", ["", "/versions/1"])
def test_model_metadata(client, suffix):
    answer = client.get(f"/v2/models/add{suffix}")
    assert answer.status == 200
    assert answer.json == {
        "name": "add",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "b", "datatype": "FP32", "shape": [-1, -1]},
        ],
        "outputs": [
            {"name": "total", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "rows", "datatype": "FP32", "shape": [-1, 1]},
        ],
    }


def test_metadata_tells_a_scalar_from_an_unknown_rank(client):
    assert client.get("/v2/models/scalar").json["inputs"][0]["shape"] == []
    assert client.get("/v2/models/unranked").json["inputs"][0]["shape"] == [-1]


def test_log_settings(client, caplog):
    for level, info, verbose in (("DEBUG", True, 1), ("INFO", True, 0), ("ERROR", False, 0)):
        with caplog.at_level(level, "pyattn_serving"):
            settings = client.get("/v2/logging").json
        assert (settings["log_info"], settings["log_verbose_level"]) == (info, verbose)
        assert settings["log_error"] is True


def test_trace_settings(client):
    settings = client.get("/v2/trace/setting").json
    assert settings["trace_level"] == ["OFF"]
    assert client.get("/v2/models/add/trace/setting").json == settings
    assert client.get("/v2/models/none/trace/setting").status == 404
    assert client.request("POST", "/v2/trace/setting", b"{}").status == 405


@pytest.mark.parametrize("suffix", ["", "/versions/1"])
def test_model_ready(client, suffix):
    answer = client.get(f"/v2/models/add{suffix}/ready")
    assert answer.status == 200
    assert answer.json == {"name": "add", "ready": True}


@pytest.mark.parametrize(
    "path",
    [
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/add",
        "/v2/models/add/ready",
        "/v2/models/add/versions/1",
    ],
)
def test_head_works_where_get_does(client, path):
    answer = client.request("HEAD", path)
    assert answer.status == 200
    assert int(answer.headers["content-length"]) == len(client.get(path).body)


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v2/",
        "//v2",
        "/v2/models",
        "/v2/models/",
        "/v2/models//ready",
        "/v2/models/none",
        "/v2/models/ADD",
        "/v2/models/add/versions/2",
        "/v2/models/add/versions/01",
        "/v2/models/add/versions",
        "/v2/models/add/ready/now",
        "/v2/models/..%2fadd",
        "/v2/models/%2e%2e/models/add",
        "/v2/models/add%00",
        "/v2/models/add%2fready",
        "/v2/models/%ff%fe",
        "/v2/models/" + "a" * 5000,
    ],
)
def test_unknown_paths_and_models(client, path):
    answer = client.get(path)
    assert answer.status == 404
    assert len(answer.error) < 300


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v2", "GET, HEAD"),
        ("DELETE", "/v2/models/add", "GET, HEAD"),
        ("PUT", "/v2/health/live", "GET, HEAD"),
        ("GET", "/v2/models/add/infer", "POST"),
        ("HEAD", "/v2/models/add/infer", "POST"),
        ("OPTIONS", "/v2/models/add/versions/1/infer", "POST"),
        ("PATCH", "/v2/models/none/infer", "POST"),
    ],
)
def test_wrong_method(client, method, path, allow):
    answer = client.request(method, path)
    assert answer.status == 405
    assert answer.headers["allow"] == allow


def test_escaped_names_are_decoded(client):
    assert client.get("/v2/models/%61dd").json["name"] == "add"


def test_mounted_below_a_path(engine, client):
    app = client.app

    async def mounted(scope, receive, send):
        await app({**scope, "root_path": "/api"}, receive, send)

    assert Client(mounted).get("/api/v2/models/add").json["name"] == "add"


def test_without_raw_path(client):
    app = client.app

    async def plain(scope, receive, send):
        await app({key: scope[key] for key in scope if key != "raw_path"}, receive, send)

    assert Client(plain).get("/v2/models/add").json["name"] == "add"


def test_websocket_is_refused(client):
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    asyncio.run(client.app({"type": "websocket", "path": "/v2"}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
