"""Collect a request body into one buffer, with limits on its size and on the client's slowness."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass

import numpy as np

from .admission import Hold
from .compression import Inflater
from .errors import ClientGoneError, HttpError
from .request import Request

ALIGNMENT = 64
FIRST_CAPACITY = 1 << 16
MIN_RATE = 8 << 10  # bytes a second that a client must reach after `Limits.timeout` seconds
LINGER_SECONDS = 5.0

_DIGITS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_body` in bytes; `timeout` in seconds, see `collect`. `Admission` tells of the others."""

    max_body: int
    timeout: float
    max_pending: int = 512
    max_pending_bytes: int = 512 << 20


async def collect(
    request: Request,
    limits: Limits,
    aligned_at: int | None = None,
    encoding: str | None = None,
    hold: Hold | None = None,
) -> memoryview:
    """Return the whole body, uncompressed.

    Parameters
    ----------
    request : Request
    limits : Limits
        A body of more than ``max_body`` bytes is refused with 413, before a byte of it is read if
        its length is announced. 408 is the answer when no byte comes for ``timeout`` seconds, and
        when after that time the average is below 8 KiB a second.
    aligned_at : int, optional
        Offset in the body that shall lie on a multiple of 64 bytes, so that the first tensor after
        the JSON can be used where it is.
    encoding : str, optional
        ``"gzip"`` or ``"deflate"``. The limit holds before and after.
    hold : Hold, optional
        Counts the bytes.

    Raises
    ------
    HttpError
        400 for a body that is longer or shorter than announced or not of its encoding, 408, 413,
        429.
    ClientGoneError
        The connection closed before the end.
    """
    announced = _content_length(request)
    if announced is not None and announced > limits.max_body:
        raise _too_large(limits.max_body)
    inflater = None if encoding is None else Inflater(encoding)
    known = announced if inflater is None else None
    buffer = _Buffer(FIRST_CAPACITY if known is None else known, aligned_at)
    start = asyncio.get_running_loop().time()
    received = 0
    while not request.body_read:
        chunk = await _next_chunk(request, limits, start, received)
        received += len(chunk)
        if announced is not None and received > announced:
            raise HttpError(400, f"the body is longer than its announced {announced} bytes")
        for piece in (chunk,) if inflater is None else inflater.feed(chunk):
            if buffer.size + len(piece) > limits.max_body:
                raise _too_large(limits.max_body)
            if hold is not None:
                hold.add_bytes(len(piece))
            buffer.append(piece, limits.max_body)
            if inflater is not None:
                await asyncio.sleep(0)  # others may go on: a small chunk can hold a large body
    if announced is not None and received < announced:
        raise HttpError(400, f"the body has {received} of its announced {announced} bytes")
    if inflater is not None:
        inflater.finish()
    return buffer.view()


async def _next_chunk(request: Request, limits: Limits, start: float, received: int) -> bytes:
    """Return the next chunk of a body; raises 408 when it does not come in time."""
    now = asyncio.get_running_loop().time()
    slow = start + limits.timeout + received / MIN_RATE
    try:
        async with asyncio.timeout_at(min(now + limits.timeout, slow)):
            message = await request.next_message()
    except TimeoutError:
        raise HttpError(408, f"the body came too slowly; got {received} bytes") from None
    chunk: bytes = message.get("body", b"")
    return chunk


async def discard(request: Request, limits: Limits) -> None:
    """Read what the client still sends, within limits, and drop it.

    A connection that closes while data arrives is reset, and the client may then never see the
    answer that says why. So after an early answer the rest is read for a moment.
    """
    left = limits.max_body
    with contextlib.suppress(TimeoutError, ClientGoneError):
        async with asyncio.timeout(min(LINGER_SECONDS, limits.timeout)):
            while not request.body_read and left > 0:
                left -= len((await request.next_message()).get("body", b""))


class _Buffer:
    """One growing block of bytes, left unwritten until data comes.

    A body in one chunk stays what it is, if it may lie anywhere.
    """

    def __init__(self, capacity: int, aligned_at: int | None) -> None:
        self._capacity = capacity
        self._aligned_at = aligned_at
        self.size = 0
        self._bytes = memoryview(b"")

    def append(self, chunk: bytes, most: int) -> None:
        if not chunk:
            return
        if self.size == 0 and self._aligned_at is None:
            self._bytes, self.size = memoryview(chunk), len(chunk)
            return
        needed = self.size + len(chunk)
        if needed > len(self._bytes):
            old = self._bytes
            self._bytes = self._allocate(min(most, max(needed, self._capacity, 2 * len(old))))
            self._bytes[: self.size] = old[: self.size]
        self._bytes[self.size : needed] = chunk
        self.size = needed

    def view(self) -> memoryview:
        return self._bytes[: self.size]

    def _allocate(self, capacity: int) -> memoryview:
        block = np.empty(capacity + ALIGNMENT, np.uint8)
        offset = -(block.ctypes.data + (self._aligned_at or 0)) % ALIGNMENT
        return block.data[offset : offset + capacity]


def _content_length(request: Request) -> int | None:
    text = request.header("content-length")
    if text is None:
        return None
    if not _DIGITS.fullmatch(text):
        raise HttpError(400, f"Content-Length must be digits; got {text[:50]!r}")
    return int(text)


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"the body is larger than the limit of {limit} bytes")
