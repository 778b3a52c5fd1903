"""What the workers of one server tell each other, over sockets that only their user can open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

PATIENCE = 1.0  # seconds for a sibling's answer; one that is stuck is left out


class Siblings:
    """A worker among others. Each has a socket in `folder`, named by its number.

    Whoever connects gets what `tell` returns, and then the end.
    """

    def __init__(self, folder: Path, number: int, tell: Callable[[], bytes]) -> None:
        self._folder = folder
        self._own = folder / str(number)
        self._tell = tell
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Answer the siblings from now on."""
        self._own.unlink(missing_ok=True)  # of one that died in this place
        self._server = await asyncio.start_unix_server(self._answer, self._own)

    async def ask(self) -> list[bytes]:
        """Return what the others tell, as far as they do."""
        others = sorted(path for path in self._folder.iterdir() if path != self._own)
        answers = await asyncio.gather(*map(_ask, others))
        return [answer for answer in answers if answer]

    async def _answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._tell())
        writer.close()


async def _ask(path: Path) -> bytes:
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):  # it died, or has not started yet
        return b""
