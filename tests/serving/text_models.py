"""Small models and tokenizers for the tests of text, made on the spot."""

from __future__ import annotations

import json

import numpy as np
import onnx
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as kinds

import pyattn as pa
from pyattn.models import GPT2, CachedStep, GPT2Config

from . import models

END = "<|endoftext|>"
WORDS = [" the", " attention", "th", "in", " Ж", " ж", "日"]


def byte_tokenizer():
    """A token for each byte, some for longer pieces, and the end: text of any language."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {letter: i for i, letter in enumerate(sorted(letters))}
    merges = []
    encoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for word in WORDS:
        ((spelled, _),) = encoder.pre_tokenize_str(word)
        so_far = spelled[0]
        for letter in spelled[1:]:
            if (so_far, letter) not in merges:
                merges.append((so_far, letter))
            so_far += letter
            vocabulary.setdefault(so_far, len(vocabulary))
    tokenizer = Tokenizer(kinds.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = encoder
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def sentence_tokenizer(max_length=None):
    """Words of one letter, with a beginning and an end."""
    letters = "abcdefghij"
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", *letters, "[UNK]"])}
    tokenizer = Tokenizer(kinds.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    if max_length is not None:
        tokenizer.enable_truncation(max_length)
    return tokenizer


def named(path, tokenizer):
    """Lay a tokenizer beside a model and name it in the model's metadata."""
    beside = path.with_name(f"{path.stem}.tokenizer.json")
    beside.write_text(tokenizer.to_str(), encoding="utf-8")
    proto = onnx.load(path)
    proto.metadata_props.add(key="pyattn.tokenizer", value=beside.name)
    onnx.save(proto, path)
    return path


def gpt2(path, seed=0, positions=96, width=32, layers=2, heads=4, tokenizer=None):
    """A random decoder, exported to `path`."""
    tokenizer = tokenizer or byte_tokenizer()
    rng = np.random.default_rng(seed)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        eos_token_id=tokenizer.token_to_id(END),
    )
    model = GPT2(config, rng=rng)
    drawn = {
        name: _drawn(rng, name, np.shape(array)) if np.ndim(array) == 2 else array
        for name, array in model.parameters().items()
    }
    model = model.replace(drawn)
    step = CachedStep(model)
    pa.export(step, step.example_inputs(), path)
    named(path, tokenizer)
    return model, tokenizer


def _drawn(rng, name, shape):
    """Small words and large layers: the next word is not the last one again."""
    scale = 0.2 if name.startswith("words") else 1.0 if name.startswith("positions") else 2.0
    return (rng.standard_normal(shape) * scale / np.sqrt(shape[-1])).astype(np.float32)


def alone(model, prompt, steps, ends=()):
    """The likeliest tokens, the whole text computed anew for each."""
    tokens = list(prompt)
    for _ in range(steps):
        logits = np.asarray(model(np.array([tokens])))[0, -1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


def embedder(path, packed=False, max_length=6):
    """The sum of the squares of the tokens of a text, as a vector of one number."""
    proto = models.packed_sum(None) if packed else models.table_sum(None, rows=20)
    names = {"ids": "input_ids", "mask": "attention_mask", "offsets": "cu_seqlens"}
    _rename(proto.graph, names)
    _as_vector(proto.graph)
    text = json.dumps(models.PACKED if packed else models.PADDED)
    for old, new in {**names, "total": "sentence_embedding"}.items():
        text = text.replace(f': "{old}"', f': "{new}"').replace(f'"{old}": {{', f'"{new}": {{')
    models.batching(proto, text)
    onnx.checker.check_model(proto)
    models.save(proto, path)
    return named(path, sentence_tokenizer(max_length))


def _rename(graph, names):
    for info in (*graph.input, *graph.output):
        info.name = names.get(info.name, info.name)
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]


def _as_vector(graph):
    """Turn `total (N,)` into `sentence_embedding (N, 1)` of float32."""
    (total,) = [info for info in graph.output if info.name == "total"]
    graph.output.remove(total)
    kind = models.TensorProto.FLOAT
    graph.initializer.append(
        models.helper.make_tensor("last_axis", models.TensorProto.INT64, [1], [1])
    )
    graph.node.extend(
        [
            models.node("Cast", ["total"], ["real"], to=kind),
            models.node("Unsqueeze", ["real", "last_axis"], ["sentence_embedding"]),
        ]
    )
    graph.output.append(models.value("sentence_embedding", kind, ["N", 1]))
