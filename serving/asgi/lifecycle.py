"""Is the server draining, and what is still in flight?"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator


class Lifecycle:
    """Counts the requests in flight and remembers that the server is on its way out.

    Draining has one direction. From then on the server says that it is not ready and takes no new
    inference, while the requests that it has taken are finished and answered.
    """

    def __init__(self) -> None:
        self.draining = False
        self.in_flight = 0
        self.answered: Counter[str] = Counter()  # by status; "gone" where the client went away
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count one request as in flight for the time of the ``with`` block."""
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    def drain(self) -> None:
        """Start to drain; a second call does nothing."""
        self.draining = True

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()
