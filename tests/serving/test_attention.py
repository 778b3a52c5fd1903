"""The attention of a run, against the weights that pyattn computes from the same text."""

from __future__ import annotations

import gzip
import itertools
import json

import numpy as np
import pytest
from onnx import TensorProto, helper
from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits
from pyattn_serving.engine.engine import Engine, ModelSource

from . import models
from .asgi_client import Client, tensor

pa = pytest.importorskip("pyattn")
tokenizers = pytest.importorskip("tokenizers")

VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "cat", "sat", "mat", "on", "."]
LAYERS, HEADS, WIDTH = 2, 3, 24
NAME = "attention_weights_0"


def word_tokenizer():
    words = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=VOCABULARY[3]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def encoder():
    from pyattn.models import SentenceEncoder
    from pyattn.models.bert import Bert, BertConfig

    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=32,
        max_position_embeddings=300,
    )
    bert = Bert(config, rng=np.random.default_rng(3))
    return SentenceEncoder(bert, word_tokenizer())


@pytest.fixture(scope="module")
def client(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention")
    inputs = encoder.example_inputs()
    pa.export(encoder, inputs, folder / "maps.onnx", attention_outputs=True, verify=False)
    pa.export(encoder, inputs, folder / "plain.onnx", verify=False)
    (folder / "plain.tokenizer.json").unlink()
    models.save(models.self_attention(), folder / "other.onnx")
    engine = Engine([ModelSource.of(path) for path in sorted(folder.glob("*.onnx"))], threads=1)
    engine.load()
    yield Client(Application(engine, Limits(2 << 20, 30.0)))
    engine.close()


def eager(encoder, ids, mask):
    """The weights (B, H, S, S) of each layer."""
    bert = encoder.bert
    x = bert.word_embeddings.weight[ids] + bert.token_type_embeddings.weight[0]
    x = bert.embeddings_norm(x + bert.position_embeddings.weight[: ids.shape[1]])
    found = []
    for layer in bert.layers:
        x, weights = layer(x, mask[:, None, None, :].astype(bool), aux=("weights",))
        found.append(np.asarray(weights))
    return found


def body(feeds, parameters=None, **more):
    request = {"inputs": [tensor(name, "INT64", x.shape, x) for name, x in feeds.items()], **more}
    if parameters is not None:
        request["parameters"] = parameters
    return request


def ask(client, request, model="maps", headers=()):
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    headers = [("Content-Type", "application/json"), *headers]
    return client.request("POST", f"/v2/models/{model}/attention", text, headers)


def maps(answer):
    return {
        entry["layer"]: np.array(entry["weights"]).reshape(entry["shape"])
        for entry in answer.json["layers"]
    }


@pytest.fixture(scope="module")
def feeds(encoder):
    return encoder.tokenize(["the cat sat on the mat .", "the dog"])


def test_all_layers_are_the_weights_of_the_model(client, encoder, feeds):
    answer = ask(client, body(feeds, {"precision": 9}, id="7"))
    assert answer.status == 200
    assert answer.json["id"] == "7"
    assert (answer.json["model_name"], answer.json["model_version"]) == ("maps", "1")
    assert "outputs" not in answer.json
    words = ["[CLS]", "the", "cat", "sat", "on", "the", "mat", ".", "[SEP]"]
    short = ["[CLS]", "the", "[UNK]", "[SEP]", *["[PAD]"] * 5]
    assert answer.json["tokens"] == [words, short]
    right = eager(encoder, *feeds.values())
    found = maps(answer)
    assert list(found) == list(range(LAYERS))
    for layer, weights in enumerate(right):
        assert weights.shape == (2, HEADS, 9, 9)
        assert np.ptp(weights[0, 0]) > 1e-3
        np.testing.assert_allclose(found[layer], weights, atol=2e-6)
    assert not found[0][1, ..., 4:].any()


def test_chosen_layers_and_heads(client, encoder, feeds):
    right = eager(encoder, *feeds.values())
    parameters = {"layers": [1], "heads": [2, 0], "precision": 9}
    answer = ask(client, body(feeds, parameters))
    (layer,) = answer.json["layers"]
    assert (layer["layer"], layer["heads"], layer["shape"]) == (1, [2, 0], [2, 2, 9, 9])
    np.testing.assert_allclose(maps(answer)[1], right[1][:, [2, 0]], atol=2e-6)


@pytest.mark.parametrize("top_k", [1, 3, 100])
def test_strongest_keys(client, encoder, feeds, top_k):
    right = eager(encoder, *feeds.values())[0]
    answer = ask(client, body(feeds, {"layers": [0], "top_k": top_k, "precision": 9}))
    (layer,) = answer.json["layers"]
    kept = min(top_k, 9)
    assert layer["shape"] == [2, HEADS, 9, kept]
    keys = np.array(layer["keys"]).reshape(layer["shape"])
    weights = maps(answer)[0]
    for row in itertools.product(range(2), range(HEADS), range(9)):
        strongest = sorted(right[row], reverse=True)[:kept]
        np.testing.assert_allclose(weights[row], strongest, atol=2e-6)
        np.testing.assert_allclose(right[row][keys[row]], strongest, atol=2e-6)
        assert len(set(keys[row])) == kept


@pytest.mark.parametrize("digits", [1, 4])
def test_digits(client, encoder, feeds, digits):
    parameters = {} if digits == 4 else {"precision": digits}
    answer = ask(client, body(feeds, parameters))
    for layer, weights in maps(answer).items():
        right = eager(encoder, *feeds.values())[layer]
        np.testing.assert_allclose(weights, right, atol=0.5 * 10**-digits + 2e-6)
    numbers = [w for layer in answer.json["layers"] for w in layer["weights"]]
    assert max(len(repr(number)) for number in numbers) <= digits + 2


def test_outputs_that_are_named_come_along(client, encoder, feeds):
    request = body(feeds, {"layers": [1]}, outputs=[{"name": "sentence_embedding"}])
    answer = ask(client, request)
    (output,) = answer.json["outputs"]
    found = np.array(output["data"]).reshape(output["shape"])
    np.testing.assert_allclose(found, encoder(**feeds)["sentence_embedding"], atol=1e-5)
    both = body(feeds, {"layers": [1]}, outputs=[{"name": "attention_weights_1"}])
    answer = ask(client, both)
    (output,) = answer.json["outputs"]
    found = np.round(np.array(output["data"], np.float64), 4)
    np.testing.assert_allclose(found, maps(answer)[1].reshape(-1), atol=1.01e-4)


def test_an_inference_gives_weights_only_where_they_are_named(client, feeds):
    assert list(client.infer("maps", body(feeds)).tensors()) == ["sentence_embedding"]
    named = body(feeds, outputs=[{"name": "attention_weights_0"}])
    assert list(client.infer("maps", named).tensors()) == ["attention_weights_0"]


def test_binary_inputs_and_compression(client, encoder, feeds):
    inputs = [
        tensor(name, "INT64", x.shape, binary_data_size=x.nbytes) for name, x in feeds.items()
    ]
    header = json.dumps({"inputs": inputs}).encode()
    content = gzip.compress(header + b"".join(x.tobytes() for x in feeds.values()))
    answer = client.request(
        "POST",
        "/v2/models/maps/versions/1/attention",
        content,
        [
            ("Inference-Header-Content-Length", str(len(header))),
            ("Content-Encoding", "gzip"),
            ("Accept-Encoding", "gzip"),
        ],
    )
    assert answer.headers["content-encoding"] == "gzip"
    found = json.loads(gzip.decompress(answer.body))["layers"][0]["weights"]
    right = eager(encoder, *feeds.values())[0].reshape(-1)
    np.testing.assert_allclose(found, right, atol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"layers": [2]}, "the model has no layer 2; it has 0, 1"),
        ({"layers": []}, "'layers' must be a list of different integers"),
        ({"layers": 0}, "'layers' must be a list of different integers"),
        ({"layers": [0, 0]}, "'layers' must be a list of different integers"),
        ({"layers": [True]}, "'layers' must be a list of different integers"),
        ({"layers": [[0]]}, "'layers' must be a list of different integers"),
        ({"layers": {"0": 1}}, "'layers' must be a string, number or boolean"),
        ({"heads": [HEADS]}, f"there is no head {HEADS}; a layer has {HEADS}"),
        ({"heads": [-1]}, "'heads' must be a list of different integers"),
        ({"heads": [1e400]}, "no infinity"),
        ({"heads": ["0"]}, "'heads' must be a list of different integers"),
        ({"top_k": 0}, "'top_k' must be an integer from 1"),
        ({"top_k": [1]}, "'top_k' must be a string, number or boolean"),
        ({"top_k": True}, "'top_k' must be an integer"),
        ({"precision": 10}, "'precision' must be an integer from 1 to 9"),
        ({"precision": 1.5}, "'precision' must be an integer from 1 to 9"),
        ({"binary_data_output": "yes"}, "must be true or false"),
        ({"timeout": -1}, "'timeout' must be an integer of 0 or more"),
    ],
)
def test_wrong_parameters(client, feeds, parameters, reason):
    answer = ask(client, body(feeds, parameters))
    assert answer.status == 400
    assert reason in answer.error


def test_binary_outputs_are_refused(client, feeds):
    request = body(feeds, {"binary_data_output": True}, outputs=[{"name": "sentence_embedding"}])
    answer = ask(client, request)
    assert (answer.status, answer.error) == (
        400,
        "output 'sentence_embedding': this answer is JSON, not binary",
    )


def test_an_answer_has_a_limit_that_is_checked_before_the_run(client, feeds, monkeypatch):
    rows = np.ones((4000, 40), np.int64)  # 4000 * 2 * 3 * 40 * 40 weights
    request = body({"input_ids": rows, "attention_mask": rows})
    executions = client.app.engine.model("maps").statistics.executions
    answer = ask(client, request)
    assert answer.status == 400
    assert "38400000 weights, more than 4194304" in answer.error
    assert client.app.engine.model("maps").statistics.executions == executions
    small = body(feeds, {"layers": [0], "heads": [0], "top_k": 1})
    assert ask(client, small).status == 200


@pytest.mark.parametrize("model", ["plain", "other"])
def test_models_without_attention_outputs(client, feeds, model):
    x = np.ones((1, 2, 8), np.float32)
    request = body(feeds)
    if model == "other":
        inputs = [tensor("x", "FP32", x.shape, x), tensor("mask", "FP32", (1, 2), [1, 1])]
        request = {"inputs": inputs}
    answer = ask(client, request, model)
    assert answer.status == 400
    assert "export it with attention_outputs=True" in answer.error


@pytest.mark.parametrize(
    ("shape", "value", "reason"),
    [
        ([1, 1, 2, 2], np.nan, "layer 0 holds NaN or infinity"),
        ([1, 2, 2], 0.5, "must have 4 dimensions; got 3"),
    ],
)
def test_weights_that_are_none(tmp_path, shape, value, reason):
    weights = helper.make_tensor("w", TensorProto.FLOAT, shape, [value] * int(np.prod(shape)))
    proto = models.model(
        [models.node("Constant", [], ["c"], value=weights), models.node("Add", ["x", "c"], [NAME])],
        [models.value("x", TensorProto.FLOAT, None)],
        [models.value(NAME, TensorProto.FLOAT, ["B", "H", "T", "S"])],
    )
    engine = Engine([ModelSource.of(models.save(proto, tmp_path / "m.onnx"))], threads=1)
    engine.load()
    client = Client(Application(engine, Limits(1 << 20, 30.0)))
    answer = ask(client, {"inputs": [tensor("x", "FP32", (1,), [0])]}, "m")
    assert (answer.status, reason in answer.error) == (400, True)
    engine.close()


def test_what_is_refused_of_an_inference_is_refused_here(client, feeds):
    assert ask(client, b"{").status == 400
    assert ask(client, body(feeds), "none").status == 404
    assert client.get("/v2/models/maps/attention").status == 405
    answer = client.request("POST", "/v2/models/maps/attention", b"{}", [("Content-Type", "a/b")])
    assert answer.status == 415
    beyond = {**feeds, "input_ids": feeds["input_ids"] + 10**6}
    assert ask(client, body(beyond)).status in (400, 500)
    client.app.lifecycle.drain()
    assert ask(client, body(feeds)).status == 503
    client.app.lifecycle.draining = False


def test_the_configuration_tells_what_a_model_has(client):
    def parameters(model):
        return client.get(f"/v2/models/{model}/config").json["parameters"]

    assert parameters("maps")["pyattn.attention_layers"] == {"string_value": "0,1"}
    assert parameters("maps")["pyattn.tokenizer"] == {"string_value": "maps.tokenizer.json"}
    assert not {"pyattn.attention_layers", "pyattn.tokenizer"} & set(parameters("plain"))
