"""A real model behind the batcher, padded and packed, with sentences of many lengths."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import onnx
import pytest
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.model_settings import ModelSettings

import pyattn as pa
from benchmarks.suites.minilm import _exact
from benchmarks.suites.serving import TABLES
from pyattn.models import SentenceEncoder

from . import models
from .test_batching import alone, together

SENTENCES = [
    "No.",
    "A man is eating.",
    "Someone has a meal, quickly.",
    "The server pads what is short, hides the padding, and cuts the answers back.",
    "Yes, of course.",
    "Attention compares each word with every other one, so a long sentence costs more than two "
    "short ones of half its length, and padding costs as much as words do.",
    "It rains.",
    "Nobody waits for the longest sentence here.",
]


@pytest.fixture(scope="module")
def encoder(minilm):
    return SentenceEncoder.from_pretrained(minilm)


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    for kind, table in TABLES.items():
        inputs = encoder.example_inputs(packed=kind == "packed")
        proto = pa.export(encoder, inputs)
        del proto.metadata_props[:]
        onnx.save(models.batching(proto, json.dumps(table)), folder / f"{kind}.onnx")
    models.save(models.slow(), folder / "slow.onnx")
    return folder


@pytest.mark.parametrize(
    ("kind", "operators"), [("padded", True), ("padded", False), ("packed", True)]
)
def test_embeddings_are_as_good_as_those_of_lone_runs(folder, encoder, kind, operators):
    """Another length is added up in another order: the error may double, not more."""
    engine = Engine(
        [ModelSource.of(path) for path in sorted(folder.glob("*.onnx"))],
        threads=1,
        concurrency=1,
        operators=operators,
        settings=ModelSettings(max_padding=0.3),
    )
    engine.load()
    assert bool(engine.model(kind).operators) == operators
    prepare = encoder.pack if kind == "packed" else encoder.tokenize
    requests = [prepare([sentence]) for sentence in SENTENCES]
    outputs = ("sentence_embedding",)
    lone = [alone(engine, kind, request, outputs)[0] for request in requests]
    joint = [answer[0] for answer in together(engine, kind, requests, outputs)]
    batches = engine.model(kind).statistics.batches
    assert max(batches) == len(SENTENCES) if kind == "packed" else max(batches) > 1
    for sentence, one, other in zip(SENTENCES, lone, joint, strict=True):
        tokens = encoder.tokenize([sentence])
        right = _exact(tokens["input_ids"], tokens["attention_mask"])
        assert other.shape == right.shape
        slack = np.finfo(np.float32).eps * np.abs(right).max()
        assert np.abs(other - right).max() <= 2 * np.abs(one - right).max() + slack
    asyncio.run(engine.offload(engine.close))
