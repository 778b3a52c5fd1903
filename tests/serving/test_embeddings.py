"""Texts to vectors, in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import base64
import json
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.failures import ModelError
from pyattn_serving.engine.model_settings import ModelSettings

pytest.importorskip("tokenizers")

from . import models, text_models
from .asgi_client import Client, Exchange


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    text_models.embedder(folder / "padded.onnx")
    text_models.embedder(folder / "packed.onnx", packed=True)
    models.save(models.add(), folder / "add.onnx")
    models.save(models.table_sum(), folder / "bare.onnx")
    text_models.named(
        models.save(models.add(), folder / "other.onnx"), text_models.byte_tokenizer()
    )
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    engine = Engine([ModelSource.of(path) for path in sorted(folder.glob("*.onnx"))], threads=1)
    engine.load()
    yield engine
    engine.close()


@pytest.fixture
def client(engine):
    return Client(Application(engine, Limits(1 << 20, 30.0)))


def post(client, request, path="/v1/embeddings"):
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    return client.request("POST", path, body, [("Content-Type", "application/json")])


def expected(letters):
    """[CLS] is 1, [SEP] is 2, "a" is 3; a text has at most 6 tokens."""
    inner = [3 + "abcdefghij".index(letter) for letter in letters.split()][:4]
    return float(sum(i * i for i in [1, *inner, 2]))


@pytest.mark.parametrize("model", ["padded", "packed"])
def test_texts_in_all_forms(client, model):
    texts = ["a b c", "j", "a b c d e f g h"]
    answer = post(client, {"model": model, "input": texts})
    assert answer.status == 200
    assert answer.json == {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": i, "embedding": [expected(text)]}
            for i, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": 14, "total_tokens": 14},
    }
    one = post(client, {"model": model, "input": "a b c"}).json
    assert one["data"] == answer.json["data"][:1]
    tokens = post(client, {"model": model, "input": [1, 3, 4, 5, 2]}).json
    assert tokens["data"] == one["data"]
    lists = post(client, {"model": model, "input": [[1, 3, 4, 5, 2], [7] * 9]}).json
    assert [entry["embedding"] for entry in lists["data"]] == [[expected("a b c")], [6.0 * 49]]


def test_base64_is_little_endian_single_precision(client):
    request = {"model": "padded", "input": ["a", "b"], "encoding_format": "base64"}
    data = post(client, request).json["data"]
    vectors = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in data]
    assert [v.tolist() for v in vectors] == [[expected("a")], [expected("b")]]


def test_texts_of_a_request_run_together(engine, client):
    before = dict(engine.model("packed").statistics.batches)
    post(client, {"model": "packed", "input": ["a b"] * 40})
    after = engine.model("packed").statistics.batches
    assert max(rows for rows in after if after[rows] != before.get(rows)) > 1


@pytest.mark.parametrize(
    ("request_", "status", "param", "message"),
    [
        ({"input": "a"}, 400, "model", "'model' must be a string; it is missing"),
        ({"model": "none", "input": "a"}, 404, "model", "no model 'none' is served here"),
        ({"model": "add", "input": "a"}, 400, None, "takes no text: no tokenizer lies beside it"),
        ({"model": "other", "input": "a"}, 400, "model", "gives no embeddings"),
        ({"model": "padded"}, 400, "input", "'input' must be a string, a list"),
        ({"model": "padded", "input": []}, 400, "input", "not empty; got '[]'"),
        ({"model": "padded", "input": [[]]}, 400, "input", "not empty; got '[]'"),
        ({"model": "padded", "input": ["a", 1]}, 400, "input", "got 'a'"),
        ({"model": "padded", "input": [[1, "a"]]}, 400, "input", "must be a string, a list"),
        ({"model": "padded", "input": [1.5]}, 400, "input", "got '1.5'"),
        ({"model": "padded", "input": ["a"] * 2049}, 400, "input", "2049 texts, more than 2048"),
        ({"model": "padded", "input": [14]}, 400, "input", "a token outside 0..13"),
        ({"model": "padded", "input": [-1]}, 400, "input", "a token outside 0..13"),
        ({"model": "padded", "input": "a", "dimensions": 3}, 400, "dimensions", "not supported"),
        (
            {"model": "padded", "input": "a", "encoding_format": "hex"},
            400,
            "encoding_format",
            "not supported",
        ),
        (b"[1]", 400, None, "the request must be a JSON object"),
        (b"{", 400, None, "malformed JSON"),
    ],
)
def test_errors_have_openai_s_form(client, request_, status, param, message):
    answer = post(client, request_)
    assert answer.status == status
    (error,) = answer.json.values()
    assert message in error["message"]
    assert error["param"] == param
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert error["code"] == ("model_not_found" if status == 404 else None)


def embedder(kind, shape, nodes, initializers=()):
    """A model of ids and mask whose embeddings are what `nodes` make of the ids."""
    ids = [models.value(n, TensorProto.INT64, ["N", "S"]) for n in ("input_ids", "attention_mask")]
    return models.model(nodes, ids, [models.value("v", kind, shape)], initializers)


@pytest.mark.parametrize(
    ("proto", "status", "message"),
    [
        (
            embedder(
                TensorProto.FLOAT,
                ["N", "S"],
                [
                    models.node("Cast", ["input_ids"], ["x"], to=TensorProto.FLOAT),
                    models.node("Neg", ["x"], ["n"]),
                    models.node("Log", ["n"], ["v"]),
                ],
            ),
            500,
            "a number that is not finite",
        ),
        (
            embedder(
                TensorProto.INT64,
                ["M", "L"],
                [models.node("Concat", ["input_ids", "attention_mask"], ["v"], axis=0)],
            ),
            500,
            "output 'v' has shape [2, 3] for one text",
        ),
        (
            embedder(
                TensorProto.INT64,
                ["N"],
                [models.node("ReduceSum", ["input_ids", "axis"], ["v"], keepdims=0)],
                [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
            ),
            400,
            "it has no output 'sentence_embedding' and 0 others with two dimensions",
        ),
    ],
    ids=["not finite", "two rows", "one dimension"],
)
def test_models_whose_vectors_are_none(tmp_path, proto, status, message):
    path = models.save(proto, tmp_path / "m.onnx")
    text_models.named(path, text_models.sentence_tokenizer())
    engine = Engine([ModelSource.of(path)], threads=1)
    engine.load()
    try:
        answer = post(
            Client(Application(engine, Limits(1 << 20, 30.0))), {"model": "m", "input": "a"}
        )
    finally:
        engine.close()
    assert (answer.status, message in answer.json["error"]["message"]) == (status, True)


def test_a_long_text_is_read_beside_the_event_loop(client):
    text = "a b " * 100_000
    answer = post(client, {"model": "padded", "input": text})
    assert answer.json["data"][0]["embedding"] == [expected("a b a b")]


def test_other_errors_under_v1_have_it_too(client):
    assert client.get("/v1/embeddings").json["error"]["type"] == "invalid_request_error"
    assert client.get("/v1/embeddings").status == 405
    assert client.get("/v1/none").json["error"]["type"] == "not_found_error"
    binary = [("Inference-Header-Content-Length", "2")]
    answer = client.request("POST", "/v1/embeddings", b"{}", binary)
    assert answer.status == 400
    client.app.lifecycle.drain()
    answer = post(client, {"model": "padded", "input": "a"})
    assert (answer.status, answer.json["error"]["type"]) == (503, "server_error")


def test_requests_at_the_same_time_get_their_own_answers(client):
    texts = ["a", "b c", "d e f", "g", "h i"]
    headers = [("Content-Type", "application/json")]

    async def run():
        bodies = [json.dumps({"model": "padded", "input": text}).encode() for text in texts]
        exchanges = [Exchange("POST", "/v1/embeddings", body, headers) for body in bodies]
        await asyncio.gather(*(client.app(e.scope, e.receive, e.send) for e in exchanges))
        return [exchange.answer().json["data"][0]["embedding"] for exchange in exchanges]

    assert asyncio.run(run()) == [[expected(text)] for text in texts]


def test_the_tokenizer_s_file_has_the_rules_of_external_data(tmp_path):
    path = text_models.embedder(tmp_path / "m.onnx")

    def load(**settings):
        engine = Engine([ModelSource.of(path)], settings=ModelSettings(**settings))
        try:
            engine.load()
            return engine.model("m").tokenizer
        finally:
            engine.close()

    assert load().max_length == 6
    assert load(max_length=4).encode(["a b c d"]) == [[1, 3, 4, 2]]
    (tmp_path / "outside").mkdir()
    text_models.sentence_tokenizer().save(str(tmp_path / "other.json"))
    assert load(tokenizer="other.json").max_length is None
    for name, message in [
        ("../x.json", "not a path inside"),
        ("/etc/passwd", "not a path inside"),
        ("none.json", "does not exist"),
        ("outside", "not a regular file"),
        ("m.onnx", "tokenizer 'm.onnx'"),
    ]:
        with pytest.raises(ModelError, match=message):
            load(tokenizer=name)
    with pytest.raises(ModelError, match="a text of 1 tokens"):
        load(max_length=1)
    with pytest.raises(ModelError, match="lacks one of"):
        load(end_tokens=("[END]",))
    (tmp_path / "m.tokenizer.json").unlink()
    assert load() == "its tokenizer is missing"
    proto = onnx.load(path)
    proto.metadata_props[-1].value = "../m.onnx"
    onnx.save(proto, path)
    (tmp_path.parent / "m.onnx").write_text("{}")
    with pytest.raises(ModelError, match="not a path inside"):
        load()


def test_without_the_library_models_are_served_and_texts_refused(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    engine = Engine([ModelSource.of(folder / "padded.onnx")])
    engine.load()
    try:
        answer = post(
            Client(Application(engine, Limits(1 << 20, 30.0))), {"model": "padded", "input": "a"}
        )
    finally:
        engine.close()
    assert answer.status == 400
    assert "the extra pyattn[serve] brings" in answer.json["error"]["message"]
