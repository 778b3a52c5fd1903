"""gzip and deflate: bodies of requests, within limits, and bodies of answers."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

from .errors import HttpError

ENCODINGS = ("gzip", "deflate")  # in the order of preference
MAX_RATIO = 100
FREE_BYTES = 1 << 20  # a body that becomes no larger may have any ratio
LEVEL = 1  # the fastest: what travels on one machine or in one rack is seldom worth more
MIN_SIZE = 1 << 10  # smaller answers would not gain a packet

_PIECE = 1 << 18  # bytes that one step gives at most
_SAMPLE = 1 << 14
_WORTHWHILE = 0.9
_GZIP, _ZLIB, _RAW = 31, 15, -15  # values of wbits
_QUALITY = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


class Inflater:
    """Takes a compressed body in any chunks and gives what it holds in pieces of bounded size.

    ``deflate`` is the zlib format (RFC 9110); the bare deflate stream that some clients send is
    told from it by its first two bytes.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._head = b""
        self._stream = zlib.decompressobj(_GZIP) if encoding == "gzip" else None
        self._received = 0
        self._given = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what `chunk` adds, a piece at a time.

        Raises `HttpError`: 400 for what is not of this format, 413 for a body that grows more than
        a hundredfold.
        """
        self._received += len(chunk)
        if self._stream is None:
            self._head += chunk
            if len(self._head) < 2:
                return
            chunk = self._head
            self._stream = zlib.decompressobj(_ZLIB if _is_zlib(chunk) else _RAW)
        full = False
        while chunk or full:
            piece = self._step(self._stream, chunk)
            chunk = self._stream.unconsumed_tail
            full = len(piece) == _PIECE  # the stream may hold more, with all input taken
            self._given += len(piece)
            if self._given > FREE_BYTES and self._given > MAX_RATIO * self._received:
                raise HttpError(
                    413, f"the body grows more than {MAX_RATIO} times when it is uncompressed"
                )
            yield piece

    def finish(self) -> None:
        """Raise 400 if the body ended before its compressed stream did."""
        if self._stream is None or not self._stream.eof:
            raise HttpError(400, f"the {self._encoding} body ends too early")

    def _step(self, stream: zlib._Decompress, chunk: bytes) -> bytes:
        try:
            piece = stream.decompress(chunk, _PIECE)
        except zlib.error:
            raise HttpError(400, f"the body is not valid {self._encoding}") from None
        if stream.unused_data:
            raise HttpError(400, f"bytes follow the end of the {self._encoding} body")
        return piece


def accepted_encoding(header: str | None) -> str | None:
    """Return the encoding for an answer, from ``Accept-Encoding``; None for none.

    >>> accepted_encoding("deflate, gzip;q=0.5"), accepted_encoding("br, *;q=0.1")
    ('deflate', 'gzip')
    """
    if header is None:
        return None
    qualities: dict[str, float] = {}
    for entry in header.lower().split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        found = [_QUALITY.fullmatch(parameter) for parameter in parameters]
        qualities[name] = min((float(match[1]) for match in found if match), default=1.0)
    rest = qualities.get("*", 0.0)
    best = max(ENCODINGS, key=lambda name: qualities.get(name, rest))
    return best if qualities.get(best, rest) > 0 else None


def compress(parts: Sequence[bytes | memoryview], encoding: str) -> list[bytes] | None:
    """Return `parts` as one compressed body; None when that gains little.

    A sample decides: the numbers of a binary tensor are mostly noise.
    """
    if sum(map(len, parts)) < MIN_SIZE:
        return None
    sample = max(parts, key=len)[:_SAMPLE]
    if len(zlib.compress(sample, LEVEL)) > _WORTHWHILE * len(sample):
        return None
    stream = zlib.compressobj(LEVEL, wbits=_GZIP if encoding == "gzip" else _ZLIB)
    return [*(stream.compress(part) for part in parts), stream.flush()]


def _is_zlib(head: bytes) -> bool:
    return head[0] & 0x0F == 8 and (head[0] << 8 | head[1]) % 31 == 0
