"""From texts to vectors: each text is a request of its own, which the scheduler joins."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from ..engine.engine import Engine
from ..engine.failures import InferenceError, InvalidRequestError
from ..engine.layout import Array, Feeds, Packed
from ..engine.model import Model

EMBEDDING = "sentence_embedding"
_TOGETHER = 128  # texts of one request that wait for the model at the same time
_FILLERS = {"attention_mask": 1, "token_type_ids": 0}


async def embed(engine: Engine, model: Model, texts: Sequence[Sequence[int]]) -> list[Array]:
    """Return the vector of each text, given its tokens.

    Raises
    ------
    InvalidRequestError
        The model does not take tokens, or gives no vector for a text.
    InferenceError, QueueFullError, DeadlineError, UnavailableError
        As `Engine.infer`.
    """
    output = _vector_output(model)
    _check_inputs(model)
    turns = asyncio.Semaphore(max(1, min(_TOGETHER, model.settings.max_queue // 4)))

    async def one(tokens: Sequence[int]) -> Array:
        async with turns:
            (vector,) = await engine.infer(model, _feeds(model, tokens), [output])
        if vector.shape[:1] != (1,) or vector.ndim != 2:
            raise InferenceError(f"output {output!r} has shape {list(vector.shape)} for one text")
        if not np.isfinite(vector).all():
            raise InferenceError("the model gave a vector with a number that is not finite")
        return np.asarray(vector[0])

    tasks = [asyncio.create_task(one(tokens)) for tokens in texts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _vector_output(model: Model) -> str:
    if EMBEDDING in model.outputs:
        return EMBEDDING
    flat = [s.name for s in model.outputs.values() if s.shape is not None and len(s.shape) == 2]
    if len(flat) != 1:
        raise InvalidRequestError(
            f"model {model.name!r} gives no embeddings: it has no output {EMBEDDING!r} and "
            f"{len(flat)} others with two dimensions",
            "model",
        )
    return flat[0]


def _check_inputs(model: Model) -> None:
    names = set(model.inputs) - {"input_ids"}
    packed = isinstance(model.layout, Packed) and names == {model.layout.offsets}
    if "input_ids" not in model.inputs or not (packed or names <= set(_FILLERS)):
        raise InvalidRequestError(
            f"model {model.name!r} gives no embeddings of text: its inputs are "
            f"{', '.join(model.inputs)}",
            "model",
        )


def _feeds(model: Model, tokens: Sequence[int]) -> Feeds:
    ids = np.array(tokens, model.inputs["input_ids"].datatype.dtype)
    if isinstance(model.layout, Packed):
        offsets = model.layout.offsets
        dtype = model.inputs[offsets].datatype.dtype
        return {"input_ids": ids, offsets: np.array([0, len(tokens)], dtype)}
    feeds = {"input_ids": ids[None]}
    for name, value in _FILLERS.items():
        if name in model.inputs:
            feeds[name] = np.full((1, len(tokens)), value, model.inputs[name].datatype.dtype)
    return feeds
