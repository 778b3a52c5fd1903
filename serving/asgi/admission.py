"""How much work the server takes on: requests that wait or run, and the bytes of their bodies."""

from __future__ import annotations

from types import TracebackType

from .errors import HttpError


class Admission:
    """Counts what the requests that are not answered yet hold.

    Parameters
    ----------
    max_pending : int
        Requests whose bodies have arrived and that are decoded, wait, run or are encoded.
    max_bytes : int
        Bytes of all bodies together, counted as they arrive: a client that announces a large body
        and sends little takes little from the others.
    """

    def __init__(self, max_pending: int, max_bytes: int) -> None:
        self.pending = 0
        self.bytes = 0
        self._max_pending = max_pending
        self._max_bytes = max_bytes

    def hold(self) -> Hold:
        """Return a share for one request; raises 429 when the server is full."""
        if self.pending >= self._max_pending:
            raise self._full()
        return Hold(self)

    def _add(self, pending: int, size: int) -> None:
        if self.pending + pending > self._max_pending or self.bytes + size > self._max_bytes:
            raise self._full()
        self.pending += pending
        self.bytes += size

    def _full(self) -> HttpError:
        return HttpError(
            429,
            f"the server is full: {self.pending} requests are pending, their bodies have "
            f"{self.bytes} bytes",
            {"retry-after": "1"},
        )


class Hold:
    """What one request holds, given back at the end of a ``with`` block."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._pending = 0
        self._bytes = 0

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._admission.pending -= self._pending
        self._admission.bytes -= self._bytes

    def add_bytes(self, size: int) -> None:
        """Count bytes of the body; raises 429 when all bodies together are too large."""
        self._admission._add(0, size)
        self._bytes += size

    def begin(self) -> None:
        """Count the request as pending, once its body is there; raises 429."""
        self._admission._add(1, 0)
        self._pending = 1
