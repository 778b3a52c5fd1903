"""What the file of a decoder says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .failures import ModelError
from .model_file import ModelFile

DECODER = "pyattn.decoder"


@dataclass(frozen=True, slots=True)
class DecoderFacts:
    """What the metadata tells, None for what it does not.

    Attributes
    ----------
    positions : int or None
        Most tokens of a text, prompt included.
    end : int or None
        The token that ends a text.
    """

    positions: int | None = None
    end: int | None = None


def decoder_facts(file: ModelFile) -> DecoderFacts:
    """Return what a file says; raises `ModelError` for an entry of another form."""
    text = file.metadata.get(DECODER)
    if text is None:
        return DecoderFacts()
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise ModelError(f"model file {file.path}: {DECODER!r} is no JSON object")
    return DecoderFacts(_number(file, table, "positions", 1), _number(file, table, "end", 0))


def _number(file: ModelFile, table: dict[str, Any], key: str, least: int) -> int | None:
    value = table.get(key)
    if value is not None and (type(value) is not int or not least <= value < 1 << 31):
        raise ModelError(
            f"model file {file.path}: {DECODER!r}: {key!r} must be a whole number of {least} or "
            f"more; got {str(value)[:50]}"
        )
    return value
