"""Configuration, statistics, index, load and unload, and metrics, over HTTP."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pyattn_serving import Settings, create_app
from pyattn_serving.asgi.metrics import resident_bytes

from . import models
from .asgi_client import Client, tensor
from .test_store import put, spoil

JSON = [("Content-Type", "application/json")]
ONE = {"inputs": [tensor("ids", "INT64", (1, 2), [1, 2])]}


@pytest.fixture
def client(tmp_path):
    """A client of a server in the mode explicit, of two versions of `m`."""
    put(tmp_path / "m" / "1", 1)
    put(tmp_path / "m" / "2", 2)
    put(tmp_path / "other")
    (tmp_path / "m" / "model.serving.toml").write_text('versions = "all"')
    app = create_app(Settings(model=tmp_path, mode="explicit", load=("m",), threads=1))
    app.engine.load()
    yield Client(app)
    app.engine.close()


def post(client, path, content=None):
    body = b"" if content is None else json.dumps(content).encode()
    return client.request("POST", path, body, JSON)


def index(client, **content):
    answer = post(client, "/v2/repository/index", content)
    assert answer.status == 200
    return [(e["name"], e["version"], e["state"], e["reason"]) for e in answer.json]


def test_metadata_lists_the_versions(client):
    assert client.get("/v2/models/m").json["versions"] == ["1", "2"]
    assert client.get("/v2/models/m/versions/1").json["versions"] == ["1", "2"]
    assert client.get("/v2/models/m/versions/1/ready").status == 200
    assert client.get("/v2/models/m/versions/3/ready").status == 404
    assert client.get("/v2/models/other/ready").status == 404
    extensions = client.get("/v2").json["extensions"]
    assert {"model_configuration", "model_repository", "statistics"} <= set(extensions)


def test_config(client):
    config = client.get("/v2/models/m/config").json
    assert config["name"] == "m"
    assert config["platform"] == "onnxruntime_onnx"
    assert config["max_batch_size"] == 0
    assert config["version_policy"] == {"all": {}}
    assert config["input"][0] == {"name": "ids", "data_type": "TYPE_INT64", "dims": [-1, -1]}
    assert json.loads(config["parameters"]["pyattn.batching"]["string_value"]) == models.PADDED
    assert config["parameters"]["max_batch"] == {"string_value": "32"}
    assert "timeout" not in config["parameters"]
    assert client.get("/v2/models/m/versions/1/config").status == 200
    assert client.get("/v2/models/none/config").status == 404


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("{latest = 3}", {"latest": {"num_versions": 3}}),
        ("{specific = [2]}", {"specific": {"versions": [2]}}),
    ],
)
def test_config_of_a_policy(tmp_path, text, policy):
    put(tmp_path / "m" / "2", proto=models.identity("BYTES"))
    (tmp_path / "m" / "model.serving.toml").write_text(f"versions = {text}")
    app = create_app(Settings(model=tmp_path))
    app.engine.load()
    config = Client(app).get("/v2/models/m/config").json
    assert config["version_policy"] == policy
    assert config["input"][0]["data_type"] == "TYPE_STRING"
    assert "pyattn.batching" not in config["parameters"]
    app.engine.close()


def test_statistics(client):
    for _ in range(3):
        assert client.infer("m", ONE).tensors()["total"] == [10]
    bad = {"inputs": [tensor("ids", "INT64", (1, 1), [99])]}
    assert client.infer("m", bad).status == 400
    (found,) = client.get("/v2/models/m/versions/2/stats").json["model_stats"]
    assert (found["name"], found["version"]) == ("m", "2")
    assert (found["inference_count"], found["execution_count"]) == (3, 3)
    stages = found["inference_stats"]
    assert set(stages) == {
        *("success", "fail", "queue", "cache_hit", "cache_miss"),
        *("compute_input", "compute_infer", "compute_output"),
    }
    assert stages["success"]["count"] == 3
    assert stages["fail"]["count"] == 1
    assert stages["success"]["ns"] >= stages["compute_infer"]["ns"] > 0
    assert [batch["batch_size"] for batch in found["batch_stats"]] == [1]
    assert found["batch_stats"][0]["compute_infer"]["count"] == 3
    assert (found["token_count"], found["padded_token_count"]) == (6, 6)
    assert found["last_inference"] > 1.6e12
    assert len(client.get("/v2/models/m/stats").json["model_stats"]) == 2
    assert len(client.get("/v2/models/stats").json["model_stats"]) == 2
    assert client.get("/v2/models/none/stats").status == 404


def test_index_load_and_unload(client, tmp_path):
    ready = [("m", "1", "READY", ""), ("m", "2", "READY", "")]
    assert index(client) == [*ready, ("other", "1", "UNAVAILABLE", "not loaded")]
    assert index(client, ready=True) == ready
    assert post(client, "/v2/repository/index").status == 200
    assert post(client, "/v2/repository/models/other/load", {}).status == 200
    assert client.infer("other", ONE).tensors()["total"] == [5]
    answer = post(
        client, "/v2/repository/models/m/unload", {"parameters": {"unload_dependents": False}}
    )
    assert (answer.status, answer.json) == (200, {})
    answer = client.infer("m", ONE)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "not ready: unloaded" in answer.error
    assert client.get("/v2/models/m/ready").status == 503
    assert index(client, ready=True) == [("other", "1", "READY", "")]
    spoil(tmp_path / "m" / "2")
    answer = post(client, "/v2/repository/models/m/load")
    assert answer.status == 400
    assert "not an ONNX model" in answer.error
    assert str(tmp_path) not in answer.error
    assert index(client)[0] == ("m", "1", "READY", "")
    assert index(client)[1][2] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("path", "content", "status", "message"),
    [
        ("models/none/load", None, 404, "no model 'none' to load"),
        ("models/none/unload", None, 404, "no model 'none' to unload"),
        ("models/..%2fm/load", None, 404, "no model '../m' to load"),
        ("models/m/load", {"parameters": {"config": "{}"}}, 400, "'config' is not supported"),
        ("models/m/load", {"parameters": []}, 400, "'parameters' must be an object"),
        ("models/m/unload", {"parameters": {"x": 1}}, 400, "'x' is not supported"),
        ("models/m/load", [], 400, "must be a JSON object"),
        ("index", {"ready": 1}, 400, "'ready' must be true or false"),
    ],
)
def test_wrong_requests(client, path, content, status, message):
    answer = post(client, f"/v2/repository/{path}", content)
    assert (answer.status, message in answer.error) == (status, True)


def test_load_is_off_by_default(tmp_path):
    put(tmp_path / "m")
    app = create_app(Settings(model=tmp_path))
    app.engine.load()
    client = Client(app)
    for action in ("load", "unload"):
        answer = post(client, f"/v2/repository/models/m/{action}")
        assert answer.status == 403
        assert "this server has the mode fixed" in answer.error
    app.engine.close()


def test_load_and_unload_ask_for_the_admin_token(tmp_path):
    put(tmp_path / "m")
    tokens = {"token": "user-token", "admin_token": "admin-token"}
    app = create_app(Settings(model=tmp_path, mode="explicit", **tokens))
    app.engine.load()
    client = Client(app)
    for action in ("load", "unload"):
        path = f"/v2/repository/models/m/{action}"
        for token, status in ((None, 401), ("user-token", 403), ("admin-token", 200)):
            headers = [] if token is None else [("Authorization", f"Bearer {token}")]
            assert client.request("POST", path, b"", [*JSON, *headers]).status == status
    assert client.get("/metrics").status == 401
    app.engine.close()


def test_nothing_is_loaded_while_the_server_drains(client):
    client.app.lifecycle.drain()
    assert post(client, "/v2/repository/models/m/load").status == 503
    assert post(client, "/v2/repository/models/m/unload").status == 503


def test_a_full_queue_is_429_and_a_time_out_504(tmp_path, caplog):
    put(tmp_path / "m", proto=models.slow())
    app = create_app(Settings(model=tmp_path, timeout=0.02, max_queue=1, concurrency=1))
    app.engine.load()
    app.engine.model("m").queue.running += 1  # nothing more may run
    object.__setattr__(app.engine.model("m").settings, "concurrency", 1)
    body = {
        "inputs": [
            tensor("x", "FP32", (64, 64), [0.0] * 4096),
            tensor("count", "INT64", (), [3]),
        ]
    }
    answer = Client(app).infer("m", body)
    assert (answer.status, answer.error) == (504, "the timeout of 0.02 seconds is over")
    assert "failed" not in caplog.text  # nothing is wrong with the server
    app.engine.model("m").queue._works = [None]
    answer = Client(app).infer("m", body)
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert answer.error == "1 requests wait for the model already"
    app.engine.model("m").queue._works = []
    app.engine.close()


def metrics(client):
    answer = client.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def test_metrics(client):
    for _ in range(2):
        client.infer("m", ONE)
    client.infer("m", {"inputs": [tensor("ids", "INT64", (1, 1), [99])]})
    client.get("/none")
    found = metrics(client)
    labels = (("model", "m"), ("version", "2"))

    def of(name, *more):
        return found[name, tuple(sorted((*labels, *more)))]

    assert of("nv_inference_request_success") == 2
    assert of("nv_inference_request_failure") == of("pyattn_requests_failed_total") == 1
    assert of("nv_inference_count") == of("nv_inference_exec_count") == 2
    assert of("nv_inference_request_duration_us") >= of("nv_inference_compute_infer_duration_us")
    assert of("pyattn_tokens_total") == of("pyattn_padded_tokens_total") == 4
    assert of("pyattn_queue_requests") == of("pyattn_queue_bytes") == 0
    for stage in ("queue", "assemble", "run", "split", "total"):
        assert of("pyattn_duration_seconds_count", ("stage", stage)) == 2
        assert of("pyattn_duration_seconds_bucket", ("stage", stage), ("le", "+Inf")) == 2
    assert of("pyattn_batch_rows_sum") == 2
    assert of("pyattn_batch_rows_bucket", ("le", "1")) == 2
    assert found["pyattn_http_requests_total", (("status", "200"),)] == 2
    assert found["pyattn_http_requests_total", (("status", "404"),)] == 1
    assert found["pyattn_http_in_flight", ()] == 1  # this one
    assert found["pyattn_resident_memory_bytes", ()] > 1 << 20
    assert metrics(client)["pyattn_http_requests_total", (("status", "200"),)] == 3


def test_resident_memory_where_the_system_does_not_tell(tmp_path):
    assert resident_bytes(tmp_path / "none") == 0
