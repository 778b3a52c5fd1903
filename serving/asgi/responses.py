"""An HTTP response and how it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from .request_id import HEADER
from .types import Send

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Response:
    """Status, body and headers; ``content-length`` is added when it is sent.

    `tensors` follow the body. They are sent from the memory where they are.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    tensors: Sequence[Buffer] = ()

    @property
    def size(self) -> int:
        """Bytes of the body and the tensors."""
        return len(self.body) + sum(map(len, self.tensors))


@dataclass(frozen=True, slots=True)
class EventStream:
    """Server-sent events: parts of the body that are sent as they come.

    `cancel` is called when no more of them will be sent, whether or not all were.
    """

    events: AsyncIterator[bytes]
    cancel: Callable[[], None]
    status: int = 200


EVENT_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # a proxy may not collect them
}


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with `content` as JSON."""
    return Response(
        status, orjson.dumps(content), {"content-type": "application/json", **(headers or {})}
    )


async def send_start(
    response: Response | EventStream, send: Send, request_id: str, *, close: bool
) -> None:
    """Send status and headers; `close` says that the connection ends with this response."""
    given = EVENT_HEADERS if isinstance(response, EventStream) else response.headers
    headers = [(name.encode(), value.encode()) for name, value in given.items()]
    if isinstance(response, Response):
        headers.append((b"content-length", str(response.size).encode()))
    headers.append((HEADER, request_id.encode()))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})


async def send_body(body: Buffer, send: Send, *, more: bool = False) -> None:
    """Send a part of the body, the last one unless `more`."""
    await send({"type": "http.response.body", "body": body, "more_body": more})
