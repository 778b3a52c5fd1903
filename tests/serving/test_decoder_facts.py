"""What a decoder's file says of itself: its positions and the token that ends a text."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.failures import ModelError
from pyattn_serving.engine.model import Model
from pyattn_serving.engine.model_settings import ModelSettings
from pyattn_serving.engine.session import SessionSettings
from pyattn_serving.text.cache import is_decoder, positions

pytest.importorskip("tokenizers")

from . import models, text_models
from .asgi_client import Client

POSITIONS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("facts")


@pytest.fixture(scope="module")
def decoder(folder):
    """A decoder whose tokenizer spells the end in its own way."""
    return text_models.gpt2(folder / "gpt2.onnx", positions=POSITIONS)


def told(folder, name, facts):
    """Write a copy of the file that says something else, or nothing."""
    proto = onnx.load(folder / "gpt2.onnx")
    for entry in [p for p in proto.metadata_props if p.key == "pyattn.decoder"]:
        proto.metadata_props.remove(entry)
    if facts is not None:
        text = facts if isinstance(facts, str) else json.dumps(facts)
        proto.metadata_props.add(key="pyattn.decoder", value=text)
    path = folder / f"{name}.onnx"
    onnx.save(proto, path)
    return path


def complete(path, request, **settings):
    engine = Engine([ModelSource.of(path)], threads=1, settings=ModelSettings(**settings))
    engine.load()
    try:
        client = Client(Application(engine, Limits(1 << 20, 30.0)))
        body = json.dumps({"model": path.stem, "temperature": 0, **request}).encode()
        headers = [("Content-Type", "application/json")]
        return client.request("POST", "/v1/completions", body, headers)
    finally:
        engine.close()


def test_a_file_tells_positions_and_end(folder, decoder):
    _, tokenizer = decoder
    engine = Engine([ModelSource.of(folder / "gpt2.onnx")], threads=1)
    engine.load()
    try:
        model = engine.model("gpt2")
        end = tokenizer.token_to_id(text_models.END)
        assert (model.decoder.positions, model.decoder.end) == (POSITIONS, end)
        assert model.tokenizer.ends == {end}
    finally:
        engine.close()


def test_a_text_stops_at_the_token_of_the_file(folder, decoder):
    model, _ = decoder
    prompt = [5, 9, 13]
    free = text_models.alone(model, prompt, 8)
    end = free[-1]
    count = free.index(end) + 1
    path = told(folder, "ending", {"positions": POSITIONS, "end": end})
    answer = complete(path, {"prompt": prompt, "max_tokens": 20})
    assert answer.status == 200, answer.error
    assert answer.json["choices"][0]["finish_reason"] == "stop"
    assert answer.json["usage"]["completion_tokens"] == count
    # The settings go first.
    answer = complete(path, {"prompt": prompt, "max_tokens": 20}, end_tokens=())
    assert answer.json["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("says", [True, False])
def test_positions_are_told_or_found_by_trial(folder, decoder, says):
    path = told(folder, f"trial_{says}", {"positions": POSITIONS} if says else None)
    model = Model("gpt2", path, SessionSettings(threads=1))
    assert is_decoder(model)
    assert model.decoder.positions == (POSITIONS if says else None)
    for most in (1024, POSITIONS, 17):
        assert positions(model, most) == min(most, POSITIONS)


def test_other_models_are_no_decoders(tmp_path):
    models.save(models.add(), tmp_path / "add.onnx")
    assert not is_decoder(Model("add", tmp_path / "add.onnx", SessionSettings(threads=1)))


@pytest.mark.parametrize("says", [True, False])
def test_what_exceeds_the_positions(folder, decoder, says):
    path = told(folder, f"limit_{says}", {"positions": POSITIONS} if says else None)
    prompt = np.arange(1, POSITIONS + 2).tolist()
    answer = complete(path, {"prompt": prompt}, end_tokens=())
    assert answer.status == 400
    assert answer.json["error"]["param"] == "prompt"
    message = f"'prompt' has {POSITIONS + 1} tokens; the model takes {POSITIONS}"
    assert answer.json["error"]["message"] == message
    answer = complete(path, {"prompt": prompt[:-5], "max_tokens": 50}, end_tokens=())
    assert answer.json["choices"][0]["finish_reason"] == "length"
    assert answer.json["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("{", "no JSON object"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
        ({"positions": 0}, "'positions' must be a whole number of 1 or more; got 0"),
        ({"positions": "many"}, "got many"),
        ({"positions": True}, "got True"),
        ({"end": -1}, "'end' must be a whole number of 0 or more; got -1"),
        ({"end": 1 << 40}, "'end' must be"),
    ],
    ids=range(8),
)
def test_wrong_facts(folder, decoder, facts, message):
    with pytest.raises(ModelError, match=message):
        Engine([ModelSource.of(told(folder, "wrong", facts))], threads=1).load()
