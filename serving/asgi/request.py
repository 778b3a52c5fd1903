"""An HTTP request as the endpoints see it."""

from __future__ import annotations

from urllib.parse import unquote

from .errors import ClientGoneError, HttpError
from .types import Message, Receive, Scope

# An extension of ASGI, whose bodies are bytes: this server sends any buffer without copying it.
BUFFERS = "pyattn.buffers"


class Request:
    """Method, path and headers of a request, and the messages of its body.

    Attributes
    ----------
    id : str
        Name of the request, in its answer and in the logs.
    method : str
    path : str
        As sent, with its percent escapes, in ASCII; for messages and logs.
    segments : list of str
        The path split at slashes and decoded afterwards, so that an escaped slash stays inside
        its segment.
    body_read : bool
        Whether the body has arrived to its end.
    """

    def __init__(self, scope: Scope, receive: Receive, name: str = "") -> None:
        self.id = name
        self.method: str = scope["method"]
        raw = _raw_path(scope)
        self.path = raw.decode("ascii", errors="backslashreplace")
        self.segments = [unquote(part, errors="replace") for part in self.path.split("/")[1:]]
        self._headers: dict[bytes, list[bytes]] = {}
        for key, value in scope["headers"]:
            self._headers.setdefault(key.lower(), []).append(value)
        self._receive = receive
        self._buffers = BUFFERS in (scope.get("extensions") or {})
        self.body_read = not (
            self.header("content-length") not in (None, "0")
            or self.header("transfer-encoding") is not None
        )

    def header(self, name: str) -> str | None:
        """Return a header's value; a header that comes twice is refused with 400."""
        values = self._headers.get(name.encode(), ())
        if len(values) > 1:
            raise HttpError(400, f"the header {name} is given {len(values)} times")
        return values[0].decode("latin-1") if values else None

    def listed(self, name: str) -> str | None:
        """Return the value of a header that is a list, which may come in several parts."""
        values = self._headers.get(name.encode(), ())
        return b", ".join(values).decode("latin-1") if values else None

    def sendable(self, part: bytes | memoryview) -> bytes | memoryview:
        """Return `part` as the server takes it: as bytes, unless it says that it takes views."""
        return part if self._buffers else bytes(part)

    async def next_message(self) -> Message:
        """Return the next part of the body; raises `ClientGoneError` when there will be none."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        if not message.get("more_body", False):
            self.body_read = True
        return message

    async def disconnected(self) -> None:
        """Wait, after the body was read, until the client closes the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _raw_path(scope: Scope) -> bytes:
    """Return the path below the place where the application is mounted, undecoded."""
    raw = scope.get("raw_path")
    path: bytes = raw if raw is not None else scope["path"].encode()
    root = scope.get("root_path", "").encode()
    return path.removeprefix(root) if root else path
