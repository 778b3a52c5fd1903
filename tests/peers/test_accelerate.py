"""All attention of models that PyTorch's two exporters write is found, and the outputs stay."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers as tf

import pyattn as pa
from pyattn.ort import session

BOUND = 1e-4
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
WORDS, TARGET = torch.arange(10).reshape(2, 5) % 7, torch.arange(6).reshape(2, 3)
TOKENS = {0: "batch", 1: "time"}


@dataclass
class Peer:
    """A model of transformers, its inputs, and how many attentions it has."""

    build: Callable[..., Any]
    inputs: dict[str, Any]
    axes: dict[str, Any]
    count: int


def bert(**how: Any) -> Any:
    return tf.BertModel._from_config(
        tf.BertConfig(vocab_size=50, intermediate_size=37, **SMALL), **how
    )


def distilbert(**how: Any) -> Any:
    config = tf.DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=37)
    return tf.DistilBertModel._from_config(config, **how)


def gpt2(**how: Any) -> Any:
    config = tf.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return tf.GPT2LMHeadModel._from_config(config, **how)


def vit(**how: Any) -> Any:
    config = tf.ViTConfig(image_size=16, patch_size=4, intermediate_size=37, **SMALL)
    return tf.ViTModel._from_config(config, **how)


def t5(**how: Any) -> Any:
    config = tf.T5Config(
        vocab_size=50, d_model=32, d_kv=8, num_layers=2, num_heads=4, d_ff=37,
        decoder_start_token_id=0,
    )  # fmt: skip
    return tf.T5Model._from_config(config, **how)


def whisper(**how: Any) -> Any:
    config = tf.WhisperConfig(
        vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=37, decoder_ffn_dim=37, num_mel_bins=8,
        max_source_positions=20, max_target_positions=30, pad_token_id=1, bos_token_id=1,
        eos_token_id=1, decoder_start_token_id=2,
    )  # fmt: skip
    return tf.WhisperModel._from_config(config, **how)


def llama(**how: Any) -> Any:
    config = tf.LlamaConfig(
        vocab_size=50, intermediate_size=37, num_key_value_heads=2, max_position_embeddings=64,
        **SMALL,
    )  # fmt: skip
    return tf.LlamaForCausalLM._from_config(config, **how)


ENCODER = {"input_ids": WORDS, "attention_mask": MASK}
BOTH = dict.fromkeys(ENCODER, TOKENS)
SOUND = {"input_features": torch.linspace(-1, 1, 640).reshape(2, 8, 40)}
DECODED = {"decoder_input_ids": TARGET}
LATER = {0: "batch", 1: "later"}
PEERS = {
    "bert": Peer(bert, ENCODER, BOTH, 2),
    "distilbert": Peer(distilbert, ENCODER, BOTH, 2),
    "gpt2": Peer(gpt2, ENCODER, BOTH, 2),
    "vit": Peer(vit, {"pixel_values": torch.linspace(-1, 1, 1536).reshape(2, 3, 16, 16)},
                {"pixel_values": {0: "batch"}}, 2),
    "t5": Peer(t5, ENCODER | DECODED, BOTH | {"decoder_input_ids": LATER}, 6),
    "whisper": Peer(whisper, SOUND | DECODED | {"decoder_attention_mask": torch.ones_like(TARGET)},
                    {"input_features": {0: "batch"}, "decoder_input_ids": LATER,
                     "decoder_attention_mask": LATER}, 6),
    "llama": Peer(llama, ENCODER, BOTH, 2),
}  # fmt: skip


class First(torch.nn.Module):
    """The model, with its inputs in order and its first output only."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Any) -> Any:
        given = dict(zip(self.names, inputs, strict=True))
        cache = {} if "pixel_values" in given else {"use_cache": False}
        if isinstance(self.model, (tf.BertModel, tf.DistilBertModel)):
            cache = {}
        return self.model(**given, **cache)[0]


def exported(peer: Peer, module: Any, path: Path, *, dynamo: bool) -> None:
    """Write the file as a user of PyTorch would; the module takes its inputs in a tuple."""
    names, inputs = list(peer.inputs), tuple(peer.inputs.values())
    more: dict[str, Any]
    if dynamo:
        dynamic = torch.export.Dim.DYNAMIC
        shapes = tuple(dict.fromkeys(peer.axes[name], dynamic) for name in names)
        more = {"dynamic_shapes": (shapes,), "verbose": False}
    else:
        more = {"dynamic_axes": peer.axes}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # theirs
        torch.onnx.export(module, inputs, str(path), dynamo=dynamo, input_names=names, **more)


def strong(model: Any) -> Any:
    """Give a model weights so large that attention matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed_positions" not in name:
                parameter.normal_(0, 0.3)
    return model.eval()


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "legacy"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PEERS)
def test_models_of_transformers(name: str, attention: str, dynamo: bool, tmp_path: Path) -> None:
    peer = PEERS[name]
    model = strong(peer.build(attn_implementation=attention))
    path, fast = tmp_path / "model.onnx", tmp_path / "fast.onnx"
    exported(peer, First(model, list(peer.inputs)), path, dynamo=dynamo)
    result = pa.accelerate(path, fast)
    assert not result.left, str(result)
    assert len(result.matched) == peer.count
    assert "Softmax" not in {node.op_type for node in result.model.graph.node}
    assert {found.heads for found in result.matched} == {4}
    assert {found.head_size for found in result.matched} == {8}
    if name == "llama":
        assert {found.key_heads for found in result.matched} == {2}
    feed = {key: value.numpy() for key, value in peer.inputs.items()}
    before, after = (session(file).run(None, feed)[0] for file in (path, fast))
    assert np.abs(after - before).max() <= BOUND
    assert changed(result.model, tmp_path, feed, before) > 100 * BOUND


def changed(model: onnx.ModelProto, folder: Path, feed: Any, before: Any) -> float:
    """Return how much another scale would change: what the comparison can see."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    for node in wrong.graph.node:
        if node.domain == "pyattn":
            node.attribute[0].f *= 2
    return float(np.abs(session(wrong, folder=folder).run(None, feed)[0] - before).max())


def test_standard_attention_of_the_exporter(tmp_path: Path) -> None:
    """At opset 23 the exporter writes the operator Attention."""

    class Layer(torch.nn.Module):
        def forward(self, query: Any, key: Any, value: Any) -> Any:
            return torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )

    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Layer(), (query, key, value), dynamo=True, opset_version=23, verbose=False
        )
    file = io.BytesIO()
    program.save(file)
    result = pa.accelerate(file.getvalue())
    assert [(x.kind, x.causal, x.key_heads) for x in result.matched] == [("Attention", True, 2)]
    names = [value.name for value in result.model.graph.input]
    feed = dict(zip(names, (query.numpy(), key.numpy(), value.numpy()), strict=True))
    found = session(result.model).run(None, feed)[0]
    np.testing.assert_allclose(found, Layer()(query, key, value).numpy(), atol=1e-5)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "legacy"])
def test_causal_attention_of_pytorch(dynamo: bool, tmp_path: Path) -> None:
    """``is_causal=True`` is a triangle in the file, and found as what it is."""

    class Layer(torch.nn.Module):
        def forward(self, *arrays: Any) -> Any:
            return torch.nn.functional.scaled_dot_product_attention(*arrays, is_causal=True)

    names = ["query", "key", "value"]
    arrays = {name: torch.randn(2, 4, 5, 8) for name in names}
    axes = {name: {0: "batch", 2: "time"} for name in names}
    peer, path = Peer(Layer, arrays, axes, 1), tmp_path / "model.onnx"
    exported(peer, Layer(), path, dynamo=dynamo)
    result = pa.accelerate(path)
    assert [(x.causal, x.mask) for x in result.matched] == [(True, "none")]
    feed = {name: array.numpy() for name, array in arrays.items()}
    found = session(result.model, folder=tmp_path).run(None, feed)[0]
    np.testing.assert_allclose(found, Layer()(*arrays.values()).numpy(), atol=1e-5)
