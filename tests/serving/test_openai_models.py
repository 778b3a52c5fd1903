"""The list of models in the form of OpenAI's API."""

from __future__ import annotations

import http.client
import json
import time

from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits
from pyattn_serving.engine.engine import Engine, ModelSource

from . import models
from .asgi_client import Client
from .process import PATIENCE, ServerProcess


def test_models_are_listed_as_openai_does(tmp_path):
    begin = time.time() - 3600
    paths = [models.save(models.add(), tmp_path / f"{name}.onnx") for name in ("b", "a")]
    engine = Engine([ModelSource.of(path) for path in paths])
    engine.load()
    client = Client(Application(engine, Limits(1 << 20, 30.0)))
    answer = client.get("/v1/models")
    assert answer.status == 200
    assert answer.json["object"] == "list"
    listed = answer.json["data"]
    assert [each["id"] for each in listed] == ["a", "b"]
    for each in listed:
        assert set(each) == {"id", "object", "created", "owned_by"}
        assert each["object"] == "model"
        assert begin < each["created"] <= time.time()
        assert client.get(f"/v1/models/{each['id']}").json == each
    missing = client.get("/v1/models/none")
    assert missing.status == 404
    assert "no model 'none'" in missing.json["error"]["message"]
    engine.close()


def test_the_list_has_each_model_once_and_asks_for_the_token(tmp_path):
    for version in (2, 10):
        (tmp_path / "add" / str(version)).mkdir(parents=True)
        models.save(models.add(), tmp_path / "add" / str(version) / "model.onnx")
    (tmp_path / "token").write_text("a-long-token")
    options = ["--token-file", str(tmp_path / "token"), "--log-level", "error"]
    bearer = {"Authorization": "Bearer a-long-token"}
    (tmp_path / "add" / "model.serving.toml").write_text('versions = "all"\n')
    with ServerProcess(tmp_path, *options) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        for path in ("/v1/models", "/v1/models/add"):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["error"]["code"]) == (401, None)
        connection.request("GET", "/v1/models", headers=bearer)
        listed = json.loads(connection.getresponse().read())["data"]
        assert [each["id"] for each in listed] == ["add"]
        connection.request(
            "GET", "/v2/models/add", headers={"Authorization": "Bearer a-long-token"}
        )
        assert json.loads(connection.getresponse().read())["versions"] == ["2", "10"]
        connection.close()
