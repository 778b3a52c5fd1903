"""From the texts of a request to the tokens of a model."""

from __future__ import annotations

from ..engine.failures import InvalidRequestError
from ..engine.model import Model
from ..engine.tokenizer import Tokenizer


def tokenizer_of(model: Model) -> Tokenizer:
    """Return the tokenizer of a model; raises `InvalidRequestError` where it has none."""
    if isinstance(model.tokenizer, str):
        raise InvalidRequestError(f"model {model.name!r} takes no text: {model.tokenizer}")
    return model.tokenizer


def encode(model: Model, texts: list[str] | list[list[int]], name: str) -> list[list[int]]:
    """Return the tokens of each text, cut to the model's length.

    Raises `InvalidRequestError` for a text without a token, and tokens that the model does not
    have; `name` is the field that they stand in.
    """
    tokenizer = tokenizer_of(model)
    if isinstance(texts[0], str):
        listed = tokenizer.encode([str(text) for text in texts])
    else:
        listed = [list(map(int, tokens)) for tokens in texts]
        listed = [tokens[: tokenizer.max_length] for tokens in listed]
    for tokens in listed:
        if not tokens:
            raise InvalidRequestError(f"{name!r} has a text without a token", name)
        if not (min(tokens) >= 0 and max(tokens) < tokenizer.size):
            raise InvalidRequestError(f"{name!r} has a token outside 0..{tokenizer.size - 1}", name)
    return listed
