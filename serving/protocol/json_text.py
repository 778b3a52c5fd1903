"""JSON as text: parsed, bounded in depth, and the arrays of a request left where they are.

As Python objects an array takes some 30 times the size of its text. The extension module ``_json``
checks a request and finds its arrays, and later reads each into the memory of its tensor. Where the
module was not built, requests are parsed as a whole: slower and with that memory, otherwise alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from ..engine.failures import InvalidRequestError
from ..engine.model import Array

try:
    from .. import _json
except ImportError:
    _json = None  # type: ignore[assignment]

MAX_DEPTH = 100
MAX_ENVELOPE = 1 << 20  # bytes of a request besides its arrays

# Every string literal, also one that the text ends in, so that the scan is linear in any text.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_SCAN = 1 << 16  # brackets looked at in one step
_NON_FINITE = re.compile(r"(?:NaN|Inf(?:inity)?)\b", re.IGNORECASE)
_EMPTY = "the request has no JSON body"
_TOO_DEEP = f"the JSON is nested more than {MAX_DEPTH} deep"
NOT_JSON = (
    "JSON has no NaN, no infinity and no number beyond double precision; send the tensor in binary"
)


@dataclass(frozen=True, slots=True)
class JsonArray:
    """The value of ``data``, valid JSON, as the bytes from `begin` to `end` of `text`."""

    text: memoryview
    begin: int
    end: int

    def parse(self) -> Any:
        """Return the value as Python objects."""
        return _loads(self.text[self.begin : self.end])

    def read(
        self, shape: Sequence[int], out: Array | None
    ) -> tuple[str, int, int, tuple[int, int]]:
        """Read the elements into `out`, or count them; see ``csrc/json/read.h``."""
        return _json.read(self.text, self.begin, self.end, shape, out)


def parse_request(text: memoryview) -> Any:
    """Parse the JSON of an infer request; raises `InvalidRequestError`.

    In place of each ``data`` of an element of ``inputs`` stands a `JsonArray`.
    """
    if _json is None:
        return parse_json(bytes(text))
    reason, where, envelope, spans = _json.split(text, MAX_DEPTH, MAX_ENVELOPE)
    if reason:
        raise InvalidRequestError(_problem(text, reason, where))
    request = _loads(envelope)
    inputs = request.get("inputs") if isinstance(request, dict) else None
    for entry in inputs if isinstance(inputs, list) else ():
        if isinstance(entry, dict) and "data" in entry:
            entry["data"] = JsonArray(text, *spans[entry["data"]])
    return request


def parse_json(text: bytes) -> Any:
    """Parse JSON that is at most 100 deep; raises `InvalidRequestError`."""
    _check_depth(text)
    return _loads(text)


def _loads(text: bytes | memoryview) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        # The position counts characters of the decoded text.
        if _NON_FINITE.match(error.doc, error.pos) or "infinity" in error.msg:
            problem = NOT_JSON
        elif not text:
            problem = _EMPTY
        else:
            problem = f"malformed JSON at character {error.pos}: {error.msg}"
        raise InvalidRequestError(problem) from None


def _problem(text: memoryview, reason: str, where: tuple[int, int]) -> str:
    byte, character = where
    if _NON_FINITE.match(str(text[byte : byte + 10], "latin-1")):
        return NOT_JSON
    return {
        "the text is empty": _EMPTY,
        "nested too deep": _TOO_DEEP,
        "too much besides 'data'": f"the JSON besides 'data' is larger than {MAX_ENVELOPE} bytes",
    }.get(reason, f"malformed JSON at character {character}: {reason}")


def _check_depth(text: bytes) -> None:
    """Refuse text deeper than `MAX_DEPTH` before anything recursive sees it."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    brackets = np.frombuffer(_STRING.sub(b"", text).translate(None, _NOT_BRACKETS), np.uint8)
    depth = 0
    for start in range(0, brackets.size, _SCAN):
        part = brackets[start : start + _SCAN]
        opening = (part == ord("[")) | (part == ord("{"))
        depths = depth + np.cumsum(np.where(opening, 1, -1))
        if depths.max() > MAX_DEPTH:
            raise InvalidRequestError(_TOO_DEEP)
        depth = int(depths[-1])
