"""One connection to a server over HTTP/1.1, for one request at a time.

It works on the event loop's transport and httptools' parser, so that the load generator takes
little of the processor that it shares with the server.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

_KEPT = 64 << 10  # of the body of an error


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is.

    Attributes
    ----------
    host, port : str, int
    path : str
        What goes before the paths of the protocol, without a slash at its end.
    tls : ssl.SSLContext or None
    """

    host: str
    port: int
    path: str = ""
    tls: ssl.SSLContext | None = None

    @classmethod
    def of(cls, url: str, tls_ca: str | None = None) -> Address:
        """Read a URL; raises `ValueError` for one that is not of HTTP, or a wrong `tls_ca`."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is not a URL such as http://127.0.0.1:8000")
        tls = None
        if parts.scheme == "https":
            try:
                tls = ssl.create_default_context(cafile=tls_ca)
            except OSError as error:
                raise ValueError(f"cannot use {tls_ca}: {error.strerror or error}") from error
        port = parts.port or (80 if tls is None else 443)
        return cls(parts.hostname, port, parts.path.rstrip("/"), tls)

    @property
    def authority(self) -> str:
        """The value of the header ``Host``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; the content of one with status 200 is only kept when asked for."""

    status: int
    size: int
    content: bytes


class Connection(asyncio.Protocol):
    """A connection that opens itself again when the server has closed it."""

    def __init__(self, address: Address, *, keep_content: bool = False) -> None:
        self._address = address
        self._keep_content = keep_content
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Answer] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._size = 0

    async def exchange(self, message: bytes) -> Answer:
        """Send a request and return its answer; raises `OSError` when the connection fails."""
        if self._transport is None or self._transport.is_closing():
            await self._open()
        self._parts, self._size = [], 0
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            cast("asyncio.Transport", self._transport).write(message)
            return await self._waiter
        except asyncio.CancelledError:
            self.close()  # the answer may still come, and would be taken for the next one's
            raise
        finally:
            self._waiter = None

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    async def _open(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        await asyncio.get_running_loop().create_connection(
            lambda: self, self._address.host, self._address.port, ssl=self._address.tls
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail(ConnectionError("the answer is not HTTP"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that waits."""
        self._transport = None
        self._fail(exc if isinstance(exc, OSError) else ConnectionResetError("closed"))

    def on_body(self, body: bytes) -> None:
        """Take a part of the content."""
        self._size += len(body)
        wanted = self._keep_content or self._parser.get_status_code() != 200
        if wanted and (self._keep_content or self._size <= _KEPT):
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Hand over the answer."""
        if self._waiter is None or self._waiter.done():
            return  # a server that says why it closes an idle connection
        status = self._parser.get_status_code()
        self._waiter.set_result(Answer(status, self._size, b"".join(self._parts)))
        if not self._parser.should_keep_alive():
            self.close()

    def _fail(self, error: OSError) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
