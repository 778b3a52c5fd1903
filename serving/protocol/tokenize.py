"""Text to tokens, and token numbers back to the text of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.failures import InvalidRequestError
from ..engine.model import Array, Model
from ..text.encoding import tokenizer_of
from .json_text import parse_json

MAX_TEXTS = 256
_LARGEST_ID = (1 << 32) - 1


def tokenize(model: Model, body: bytes) -> dict[str, Any]:
    """Return ids, tokens and offsets of each text of a request ``{"text": [...]}``.

    Raises
    ------
    InvalidRequestError
        The model has no tokenizer; the request has another form, or too many texts.
    """
    texts = _texts(parse_json(body))
    encodings = tokenizer_of(model).encodings(texts)
    return {
        "model_name": model.name,
        "model_version": model.version,
        "ids": [encoding.ids for encoding in encodings],
        "tokens": [encoding.tokens for encoding in encodings],
        "offsets": [encoding.offsets for encoding in encodings],
    }


def tokens_of(model: Model, ids: Array) -> list[list[str | None]] | None:
    """Return the text of each of the ids (B, S), None for one that the vocabulary does not have.

    The whole is None where the model has no tokenizer.
    """
    tokenizer = model.tokenizer
    if isinstance(tokenizer, str):
        return None
    known = {
        number: tokenizer.token(number) if 0 <= number <= _LARGEST_ID else None
        for number in np.unique(ids).tolist()
    }
    return [[known[number] for number in row] for row in ids.tolist()]


def ids_input(model: Model) -> str | None:
    """Return the input that takes the numbers of tokens, (B, S): ``input_ids``, if there is one."""
    spec = model.inputs.get("input_ids")
    if spec is None or spec.datatype.kind != "i" or spec.shape is None or len(spec.shape) != 2:
        return None
    return spec.name


def _texts(request: Any) -> Sequence[str]:
    texts = request.get("text") if isinstance(request, dict) else None
    listed = [texts] if isinstance(texts, str) else texts
    if (
        not isinstance(listed, list)
        or not 1 <= len(listed) <= MAX_TEXTS
        or not all(isinstance(text, str) for text in listed)
    ):
        raise InvalidRequestError(f"'text' must be a string or a list of 1 to {MAX_TEXTS} strings")
    return listed
