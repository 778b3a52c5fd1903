"""A connection that bounds what a client may send before its request is known, and its patience.

uvicorn reads heads of any size, waits for them for ever, and for a reader of an answer too. This is
its protocol on httptools with these limits; bodies have theirs in ``asgi/body.py``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .asgi.body import MIN_RATE
from .asgi.request import BUFFERS
from .network import ConnectionLimits

FRAMING = 16  # bytes of a body in chunks that may come for each byte in them
REFUSED_SECONDS = 1.0  # for a client over the limit to send something, so that it reads the answer


class _RefusedError(Exception):
    """Ends the parser's call."""


class Connection(HttpToolsProtocol):
    """One connection. `sweep` is called once in a while; there are no timers."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._refusal: tuple[int, str] | None = None
        self._waiting_since = 0.0  # for a request
        self._head_since: float | None = None
        self._head_bytes = 0
        self._first = True
        self._in_head = True
        self._body_bytes = 0
        self._other_bytes = 0
        self._unread: tuple[float, int] | None = None

    def connection_made(self, transport: Any) -> None:
        """Take a connection, or mark it as one too many."""
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        if len(self.connections) > self.limits.connections:
            self._refusal = (503, f"the server has {self.limits.connections} connections already")

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._refusal is not None:
            self._send_refusal()
            return
        in_body = not self._in_head
        super().data_received(data)
        if in_body:
            self._other_bytes += len(data)
            large = self._other_bytes > self.limits.header_bytes + FRAMING * self._body_bytes
        elif self._in_head and self._head_since is not None:
            self._head_bytes += len(data)
            large = self._head_bytes > self.limits.header_bytes
        else:
            return
        if large and not self.transport.is_closing():
            self._refusal = (431, self._too_large())
            self._send_refusal()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.scope["extensions"] = {BUFFERS: {}}
        self._head_since = self.loop.time()
        self._head_bytes = 0
        self._first = False

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        super().on_url(url)
        if len(self.url) > self.limits.url_bytes:
            self._refuse(414, f"the target is larger than {self.limits.url_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header. Those that follow a body in chunks are bounded too, and dropped."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self.limits.header_bytes:
            self._refuse(431, self._too_large())
        if self._in_head:
            super().on_header(name, value)
            if len(self.headers) > self.limits.headers:
                self._refuse(431, f"the request has more than {self.limits.headers} headers")

    def on_headers_complete(self) -> None:
        """Start the application."""
        if len(self.pipeline) >= self.limits.pipelined:
            self._refuse(429, f"more than {self.limits.pipelined} requests wait on this connection")
        self._in_head = False
        self._head_bytes = self._body_bytes = self._other_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request; the next begins with the next byte."""
        super().on_message_complete()
        self._in_head = True
        self._head_since = None

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._waiting_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Refuse what cannot become a request: uvicorn calls this for what its parser refuses."""
        self._send_refusal()

    def _send_refusal(self) -> None:
        """Say why there will be no answer, and close the connection."""
        if self.transport.is_closing():
            return
        status, message = self._refusal or (400, "this is not a request of HTTP/1.1")
        body = orjson.dumps({"error": message})
        head = (
            b"%scontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n"
        )
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        if not self._is_answering():
            self.transport.write(head % (STATUS_LINE[status], len(body), retry) + body)
        self.transport.close()

    def sweep(self, now: float) -> None:
        """Close the connection if the client has taken too long."""
        if self._reads_too_slowly(now):
            self.transport.abort()
        elif self.transport.is_closing() or not self._is_waiting():
            return
        elif self._head_since is not None:
            if now - self._head_since > self.limits.header_timeout:
                self._refusal = (408, "the headers came too slowly")
                self._send_refusal()
        elif now - self._waiting_since > self._patience():
            self.transport.close()

    def _patience(self) -> float:
        if self._refusal is not None:
            return REFUSED_SECONDS
        return self.limits.header_timeout if self._first else self.limits.idle_timeout

    def _is_answering(self) -> bool:
        """Whether an answer is under way. A request whose body is no body gets none."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        if not self.pipeline and not self.cycle.response_started:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        return not self.cycle.disconnected

    def _is_waiting(self) -> bool:
        """Whether no request is being handled."""
        return self._in_head and (self.cycle is None or self.cycle.response_complete)

    def _reads_too_slowly(self, now: float) -> bool:
        size = self.transport.get_write_buffer_size()
        if size == 0:
            self._unread = None
        elif self._unread is None or size > self._unread[1]:
            self._unread = (now, size)
        elif now - self._unread[0] >= self.limits.send_timeout:
            read = self._unread[1] - size
            self._unread = (now, size)
            return read < MIN_RATE * self.limits.send_timeout
        return False

    def _refuse(self, status: int, message: str) -> None:
        self._refusal = (status, message)
        raise _RefusedError(message)

    def _too_large(self) -> str:
        return f"the headers are larger than {self.limits.header_bytes} bytes"


def connection_class(limits: ConnectionLimits) -> type[Connection]:
    """Return the class of connections with these limits; uvicorn makes its instances."""
    return type("Connection", (Connection,), {"limits": limits})
