"""Text to tokens, with the tokenizer that a model's file names."""

from __future__ import annotations

import json
import os
import sys

import pytest
from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.failures import ModelError

from . import models
from .asgi_client import Client
from .test_attention import word_tokenizer

pytest.importorskip("tokenizers")


def named(proto, location):
    entry = proto.metadata_props.add()
    entry.key, entry.value = "pyattn.tokenizer", location
    return proto


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    tokenizer = word_tokenizer()
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(folder / "words.json"))
    models.save(named(models.add(), "words.json"), folder / "words.onnx")
    models.save(named(models.add(), "gone.json"), folder / "gone.onnx")
    models.save(models.add(), folder / "none.onnx")
    engine = Engine([ModelSource.of(path) for path in sorted(folder.glob("*.onnx"))], threads=1)
    engine.load()
    yield Client(Application(engine, Limits(4 << 20, 30.0)))
    engine.close()


def ask(client, request, model="words", headers=()):
    content = request if isinstance(request, bytes) else json.dumps(request).encode()
    headers = [("Content-Type", "application/json"), *headers]
    return client.request("POST", f"/v2/models/{model}/tokenize", content, headers)


def test_ids_tokens_and_offsets(client):
    answer = ask(client, {"text": ["the cat", "on  naïve mat", ""]})
    assert answer.status == 200
    assert answer.json == {
        "model_name": "words",
        "model_version": "1",
        "ids": [[1, 4, 5, 2], [1, 8, 3, 7, 2], [1, 2]],
        "tokens": [
            ["[CLS]", "the", "cat", "[SEP]"],
            ["[CLS]", "on", "[UNK]", "mat", "[SEP]"],
            ["[CLS]", "[SEP]"],
        ],
        "offsets": [
            [[0, 0], [0, 3], [4, 7], [0, 0]],
            [[0, 0], [0, 2], [4, 9], [10, 13], [0, 0]],
            [[0, 0], [0, 0]],
        ],
    }
    assert ask(client, {"text": "the cat"}).json["ids"] == [[1, 4, 5, 2]]


def test_texts_are_cut_as_the_file_says_and_not_padded(client):
    assert ask(client, {"text": "the " * 50}).json["ids"] == [[1, 4, 4, 4, 4, 2]]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (b"", "no JSON body"),
        (b"[" * 200, "100 deep"),
        (b'{"text": "\\ud800"}', "malformed JSON"),
        ({}, "'text' must be a string or a list of 1 to 256 strings"),
        ({"text": []}, "'text' must be"),
        ({"text": [1]}, "'text' must be"),
        ({"text": [["a"]]}, "'text' must be"),
        ({"text": ["a"] * 257}, "'text' must be"),
        (["text"], "'text' must be"),
    ],
)
def test_wrong_requests(client, request_, reason):
    answer = ask(client, request_)
    assert answer.status == 400
    assert reason in answer.error


def test_other_refusals(client):
    assert ask(client, {"text": "x" * (1 << 20)}).status == 413
    assert ask(client, {"text": "x"}, "unknown").status == 404
    assert ask(client, {"text": "x"}, headers=[("Content-Encoding", "br")]).status == 415
    assert client.get("/v2/models/words/tokenize").status == 405
    for model, why in (
        ("none", "no tokenizer lies beside it"),
        ("gone", "its tokenizer is missing"),
    ):
        answer = ask(client, {"text": "x"}, model)
        assert (answer.status, answer.error) == (400, f"model {model!r} takes no text: {why}")


def test_what_is_no_tokenizer_is_refused_at_load(tmp_path):
    (tmp_path / "wrong.json").write_text("{}")
    path = models.save(named(models.add(), "wrong.json"), tmp_path / "wrong.onnx")
    with pytest.raises(ModelError, match=r"tokenizer 'wrong\.json'"):
        Engine([ModelSource.of(path)]).load()


def test_the_library_is_named_where_it_is_missing(tmp_path, monkeypatch):
    word_tokenizer().save(str(tmp_path / "words.json"))
    path = models.save(named(models.add(), "words.json"), tmp_path / "words.onnx")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    engine = Engine([ModelSource.of(path)], threads=1)
    engine.load()
    answer = ask(Client(Application(engine, Limits(4 << 20, 30.0))), {"text": "x"})
    assert answer.status == 400
    assert "the library tokenizers, which the extra pyattn[serve] brings" in answer.error
    engine.close()


@pytest.mark.parametrize("location", ["/etc/passwd", "../words.json", "a\\b", "", "link", "twice"])
def test_files_outside_are_refused(tmp_path, location):
    folder = tmp_path / "inside"
    folder.mkdir()
    (tmp_path / "words.json").write_text("{}")
    (folder / "link").symlink_to(tmp_path / "words.json")
    (folder / "first").write_text("{}")
    os.link(folder / "first", folder / "twice")
    path = models.save(named(models.add(), location), folder / "model.onnx")
    engine = Engine([ModelSource.of(path)], threads=1)
    if (folder / location).is_file():
        with pytest.raises(ModelError, match="tokenizer"):
            engine.load()
    else:
        engine.load()
        assert engine.model("model").tokenizer == "its tokenizer is missing"
        engine.close()
