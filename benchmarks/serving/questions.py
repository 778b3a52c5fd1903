"""Inputs for the models, with the answers that ONNX Runtime itself gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.serving.mix import Arrays, Question
from benchmarks.serving.models import IMAGE, WIDTH
from benchmarks.suites import minilm

_SENTENCES = 200
_IMAGES = 4
_VOCABULARY = 30522


def session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session as every server makes it: so many threads, which do not spin while they wait."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def answered(runtime: onnxruntime.InferenceSession, inputs: Sequence[Arrays]) -> list[Question]:
    """Questions with the answers of a session."""
    names = [output.name for output in runtime.get_outputs()]
    return [
        Question(one, dict(zip(names, runtime.run(names, dict(one)), strict=True)))
        for one in inputs
    ]


def small() -> list[Arrays]:
    """Random rows."""
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, WIDTH), np.float32)} for _ in range(64)]


def images() -> list[Arrays]:
    """Random images, one in each request."""
    rng = np.random.default_rng(2)
    return [{"x": rng.random((1, *IMAGE), np.float32)} for _ in range(_IMAGES)]


def sentences() -> list[Arrays]:
    """Tokens of real sentences of many lengths, one in each request, in an order at random."""
    ids, mask = minilm.sentences(_SENTENCES)
    order = np.random.default_rng(3).permutation(len(ids))
    return [_padded(ids[i][mask[i] > 0][None]) for i in order]


def packed(requests: Sequence[Arrays]) -> list[Arrays]:
    """The same for the packed model."""
    return [
        {"input_ids": row, "cu_seqlens": np.array([0, row.size], np.int64)}
        for row in (one["input_ids"].reshape(-1) for one in requests)
    ]


def random_lengths(count: int, longest: int, rows: int) -> list[Arrays]:
    """Random tokens of any length up to `longest`, in up to so many `rows`."""
    rng = np.random.default_rng(4)
    shapes = zip(rng.integers(1, rows + 1, count), rng.integers(1, longest + 1, count), strict=True)
    return [_padded(rng.integers(1000, _VOCABULARY, shape)) for shape in shapes]


def wrong_tokens() -> list[Question]:
    """Tokens that are not in the vocabulary, and a mask of another length."""
    beyond = np.full((1, 9), _VOCABULARY + 7, np.int64)
    ids = np.full((1, 12), 1000, np.int64)
    other = {"input_ids": ids, "attention_mask": np.ones((1, 11), np.int64)}
    return [Question(_padded(beyond), None), Question(other, None)]


def _padded(ids: NDArray[np.int64]) -> Mapping[str, NDArray[Any]]:
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
