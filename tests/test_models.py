"""Checkpoints: the real MiniLM, small made ones, and damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pyattn as pa
from pyattn.models import Bert, BertConfig, SentenceEncoder
from tests import reference

SENTENCES = [
    "A man is eating food.",
    "Someone has a meal.",
    "The stock market fell by three percent on Tuesday.",
    "",
    "naïve café, 東京, 🙂!",
    "word " * 300,
]


@pytest.fixture(scope="module")
def encoder(minilm: Path) -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(minilm)


def test_embeddings_are_unit_vectors_that_know_what_is_similar(encoder: SentenceEncoder) -> None:
    vectors = encoder.encode(SENTENCES)
    assert vectors.shape == (len(SENTENCES), 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.6 > 0.2 > similar[0, 2]


def test_batching_does_not_change_an_embedding(encoder: SentenceEncoder) -> None:
    together = encoder.encode(SENTENCES)
    for batch_size in (1, 2):
        other = encoder.encode(SENTENCES, batch_size=batch_size, progress=batch_size == 2)
        np.testing.assert_allclose(other, together, atol=2e-6)
    assert encoder.encode([]).shape == (0, 384)


def test_any_iterable_of_strings_is_encoded(encoder: SentenceEncoder) -> None:
    expected = encoder.encode(SENTENCES[:2])
    found = encoder.encode(s for s in SENTENCES[:2])  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, expected)


def test_sentences_are_cut_to_the_length_of_the_checkpoint(encoder: SentenceEncoder) -> None:
    assert encoder.max_length == 256
    assert encoder.tokenize(SENTENCES)["input_ids"].shape == (len(SENTENCES), 256)


@pytest.mark.parametrize("options", [{}, {"target": "primitive"}, {"opset": 18}])
def test_the_exported_file_computes_the_same(
    encoder: SentenceEncoder, options: dict[str, Any], tmp_path: Path, session: Any
) -> None:
    path = tmp_path / "minilm.onnx"
    proto = pa.export(encoder, encoder.example_inputs(), path, **options)
    assert [v.name for v in proto.graph.input] == ["input_ids", "attention_mask"]
    assert len(proto.functions) == (0 if "target" in options else 1)
    run = session(path)
    for rows in ([0], [1, 2, 3], [5, 0, 4, 1]):
        sentences = [SENTENCES[row] for row in rows]
        (found,) = run.run(None, encoder.tokenize(sentences))
        np.testing.assert_allclose(found, encoder.encode(sentences), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_sentences_are_the_padded_ones(
    encoder: SentenceEncoder, pooling: Any, session: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(encoder, "pooling", pooling)
    run = session(pa.export(encoder, encoder.example_inputs(packed=True), opset=18))
    for rows in ([0], [1, 2, 3], [5, 0, 4, 1]):
        sentences = [SENTENCES[row] for row in rows]
        packed, padded = encoder.pack(sentences), encoder.tokenize(sentences)
        assert packed["input_ids"].size == padded["attention_mask"].sum()
        expected = encoder(**padded)["sentence_embedding"]
        np.testing.assert_allclose(encoder(**packed)["sentence_embedding"], expected, atol=2e-6)
        (found,) = run.run(None, packed)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_empty_sequence_has_the_embedding_0(encoder: SentenceEncoder) -> None:
    packed = encoder.pack(SENTENCES[:1])
    ends = np.append(packed["cu_seqlens"], packed["cu_seqlens"][-1])
    vectors = encoder(packed["input_ids"], cu_seqlens=ends)["sentence_embedding"]
    assert vectors.shape == (2, 384)
    assert not vectors[1].any()


def test_the_tokenizer_travels_with_the_file(encoder: SentenceEncoder, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    path = tmp_path / "minilm.onnx"
    pa.export(encoder, encoder.example_inputs(), path, verify=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["minilm.onnx", "minilm.tokenizer.json"]
    metadata = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert metadata["pyattn.tokenizer"] == "minilm.tokenizer.json"
    tokenizer = Tokenizer.from_file(str(tmp_path / metadata["pyattn.tokenizer"]))
    assert (
        tokenizer.encode(SENTENCES[0]).ids
        == encoder.tokenize(SENTENCES[:1])["input_ids"][0].tolist()
    )


def test_attention_outputs_of_every_layer(encoder: SentenceEncoder, session: Any) -> None:
    proto = pa.export(encoder, encoder.example_inputs(), attention_outputs=True, verify=False)
    feed = encoder.tokenize(SENTENCES[:2])
    _, *maps = session(proto).run(None, feed)
    assert len(maps) == 6
    real = feed["attention_mask"].astype(bool)[:, None, None, :]
    for weights in maps:
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
        assert not weights[~np.broadcast_to(real, weights.shape)].any()


def test_wrong_input(encoder: SentenceEncoder) -> None:
    with pytest.raises(TypeError, match="sequence of strings"):
        encoder.encode("one string")
    with pytest.raises(TypeError, match="sequence of strings"):
        encoder.encode([b"bytes"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="batch_size must be positive"):
        encoder.encode(["a"], batch_size=0)
    ids = np.zeros((1, 513), np.int64)
    with pytest.raises(ValueError, match="513 positions; the model has 512"):
        encoder.bert(ids)
    with pytest.raises(ValueError, match=r"input_ids must be \(B, S\); got shape \(3,\)"):
        encoder.bert(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"attention_mask must be \(1, 2\); got shape \(1, 3\)"):
        encoder.bert(np.zeros((1, 2), np.int64), np.ones((1, 3), np.int64))
    with pytest.raises(ValueError, match=r"input_ids must be \(N,\); got shape \(1, 2\)"):
        encoder.bert(np.zeros((1, 2), np.int64), cu_seqlens=np.array([0, 2]))
    with pytest.raises(ValueError, match="cu_seqlens excludes attention_mask"):
        encoder.bert(np.zeros(2, np.int64), np.ones(2, np.int64), cu_seqlens=np.array([0, 2]))
    with pytest.raises(ValueError, match="a sequence of input_ids has 513 positions"):
        encoder.bert(np.zeros(513, np.int64), cu_seqlens=np.array([0, 513]))
    with pytest.raises(ValueError, match="expected one of attention_mask and cu_seqlens"):
        encoder(np.zeros((1, 2), np.int64))
    with pytest.raises(ValueError, match=r"indices must lie in 0\.\.30521; got 30522"):
        encoder.bert(np.full((1, 2), 30522))


CONFIG = BertConfig(
    vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=16, max_position_embeddings=12,
)  # fmt: skip


@pytest.fixture
def folder(rng: Any, tmp_path: Path) -> Path:
    """A small checkpoint as Hugging Face's libraries write it."""
    from pyattn.models.bert import _checkpoint_name

    bert = Bert(CONFIG, rng=rng)
    config = {"model_type": "bert", **vars(CONFIG), "architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = {_checkpoint_name(name): array for name, array in bert.parameters().items()}
    pa.save(weights, tmp_path / "model.safetensors")
    return tmp_path


def rename(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    pa.save(change(pa.load(path)), path)


def test_token_types_pooler_and_training_mode(folder: Path, rng: Any) -> None:
    bert = Bert.from_pretrained(folder)
    ids = rng.integers(0, 11, (2, 6))
    states = bert(ids)
    np.testing.assert_array_equal(states, bert(ids, token_type_ids=np.zeros_like(ids)))
    assert (states != bert(ids, token_type_ids=np.ones_like(ids))).any()
    assert bert.pool(states).shape == (2, 8)
    assert (states != bert(ids, rng=rng)).any()
    mask = np.array([[1] * 6, [1] * 3 + [0] * 3])
    masked = bert(ids, mask)
    np.testing.assert_allclose(masked[1, :3], bert(ids[1:, :3])[0], atol=1e-6)


def test_bert_is_the_oracle_s_bert(rng: Any) -> None:
    from tests.test_nn import heads_of

    config = BertConfig(**{**vars(CONFIG), "layer_norm_eps": 0.3})
    bert = Bert(config, rng=rng)
    ids, types = rng.integers(0, 11, (2, 6)), rng.integers(0, 2, (2, 6))
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2])
    x = (
        bert.word_embeddings.weight[ids]
        + bert.position_embeddings.weight[:6]
        + bert.token_type_embeddings.weight[types]
    )
    norm = bert.embeddings_norm
    x = reference.layer_norm(x, norm.weight, norm.bias, 0.3)
    for layer in bert.layers:
        weights = reference.EncoderLayerWeights(
            heads_of(layer.attention), layer.attention_norm.weight, layer.attention_norm.bias,
            layer.hidden.weight, layer.hidden.bias, layer.output.weight, layer.output.bias,
            layer.output_norm.weight, layer.output_norm.bias,
        )  # fmt: skip
        x = reference.transformer_encoder_layer(
            x, weights, num_heads=2, kv_lengths=mask.sum(1), eps=0.3
        )
    np.testing.assert_allclose(bert(ids, mask, types), x, atol=1e-5)


def test_pooling_and_normalisation_follow_the_checkpoint(folder: Path, minilm: Path) -> None:
    shutil.copy(minilm / "tokenizer.json", folder)
    tokens = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.array([[1, 1, 0]])}
    states = Bert.from_pretrained(folder)(**tokens)

    def embed() -> Any:
        return SentenceEncoder.from_pretrained(folder)(**tokens)["sentence_embedding"]

    (folder / "modules.json").write_text(json.dumps([{"type": "models.Transformer"}, 3]))
    np.testing.assert_allclose(embed(), states[:, :2].mean(1), atol=1e-6)
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True}))
    np.testing.assert_allclose(embed(), states[:, 0], atol=1e-6)
    (folder / "modules.json").unlink()
    assert np.linalg.norm(embed()) == pytest.approx(1)
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="expected one of"):
        embed()
    pooling.unlink()
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": "256"}))
    with pytest.raises(ValueError, match="max_length must lie in"):
        embed()


def test_a_sentence_without_tokens_does_not_poison_the_gradient(folder: Path, minilm: Path) -> None:
    shutil.copy(minilm / "tokenizer.json", folder)
    encoder = SentenceEncoder.from_pretrained(folder)
    ids, mask = np.array([[1, 2], [3, 4]]), np.array([[1, 1], [0, 0]])

    def total(encoder: Any) -> Any:
        return pa.ops.sum(encoder(ids, mask)["sentence_embedding"] ** 3)

    gradients = pa.grad(total)(encoder)
    assert all(np.isfinite(g).all() for g in gradients.values())


def test_old_names_prefixes_and_half_precision(folder: Path, rng: Any) -> None:
    ids = rng.integers(0, 11, (2, 6))
    before = Bert.from_pretrained(folder)(ids)

    def old(weights: dict[str, Any]) -> dict[str, Any]:
        named = {
            "bert." + k.replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta"): v
            for k, v in weights.items() if not k.startswith("pooler")
        }  # fmt: skip
        return named | {"bert.embeddings.position_ids": np.arange(12)[None]}

    rename(folder, old)
    bert = Bert.from_pretrained(folder)
    np.testing.assert_array_equal(bert(ids), before)
    with pytest.raises(ValueError, match="has no pooler"):
        bert.pool(before)
    rename(folder, lambda weights: {k: v.astype(np.float16) for k, v in weights.items()})
    half = Bert.from_pretrained(folder)(ids)
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, before, atol=0.02)


def test_sharded_checkpoints(folder: Path, rng: Any) -> None:
    ids = rng.integers(0, 11, (2, 6))
    before = Bert.from_pretrained(folder)(ids)
    weights = pa.load(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(weights)}
    for part in set(names.values()):
        pa.save({n: weights[n] for n, p in names.items() if p == part}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    np.testing.assert_array_equal(Bert.from_pretrained(folder)(ids), before)
    index.write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(ValueError, match="not a file name"):
        Bert.from_pretrained(folder)


def test_missing_and_unexpected_names_are_listed(folder: Path) -> None:
    def change(weights: dict[str, Any]) -> dict[str, Any]:
        del weights["encoder.layer.1.output.dense.bias"]
        return weights | {"cls.predictions.bias": np.zeros(3, np.float32)}

    rename(folder, change)
    with pytest.raises(
        ValueError,
        match=r"missing \['encoder\.layer\.1\.output\.dense\.bias'\], "
        r"unexpected \['cls\.predictions\.bias'\]",
    ):
        Bert.from_pretrained(folder)


def test_unexpected_names_may_be_let_through(folder: Path) -> None:
    rename(folder, lambda weights: weights | {"classifier.weight": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="unexpected"):
        Bert.from_pretrained(folder)
    with pytest.warns(UserWarning, match="classifier.weight"):
        Bert.from_pretrained(folder, strict=False)


def test_a_wrong_shape_is_reported(folder: Path) -> None:
    rename(folder, lambda weights: weights | {"pooler.dense.bias": np.zeros(9, np.float32)})
    with pytest.raises(ValueError, match=r"pooler.bias must be float32 \(8,\); got float32 \(9,\)"):
        Bert.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type must be 'bert'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder must be False"),
        ({"hidden_act": "gelu_new"}, "activation must be one of"),
        ({"num_attention_heads": 3}, "size must be a multiple of heads"),
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_size": "8"}, "hidden_size must be int; got '8'"),
        ({"hidden_act": ["gelu"]}, "hidden_act must be str"),
    ],
)
def test_other_architectures_are_refused(folder: Path, change: Any, message: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        Bert.from_pretrained(folder)


def test_damaged_folders(folder: Path, minilm: Path, tmp_path_factory: Any) -> None:
    with pytest.raises(FileNotFoundError):
        Bert.from_pretrained(folder / "none")
    (folder / "config.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        Bert.from_pretrained(folder)
    (folder / "config.json").write_bytes(b"[]")
    with pytest.raises(ValueError, match="must hold a dict; got list"):
        Bert.from_pretrained(folder)
    copy = tmp_path_factory.mktemp("copy")
    for path in minilm.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, copy)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        SentenceEncoder.from_pretrained(copy)
    whole = (minilm / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        SentenceEncoder.from_pretrained(copy)
    (copy / "model.safetensors").write_bytes(whole)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        SentenceEncoder.from_pretrained(copy)
