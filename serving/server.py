"""uvicorn, with a shutdown that drops nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import uvicorn

from .asgi.app import Application
from .network import ConnectionLimits

logger = logging.getLogger("pyattn_serving")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SWEEP = 10  # of uvicorn's ticks, of a tenth of a second
_LAST_WORDS = 1.0  # seconds for the answers to requests that were cut off


class Server(uvicorn.Server):
    """Runs the application on a listening socket until a signal comes.

    The first SIGINT or SIGTERM starts the drain: the server says that it is not ready and refuses
    new inferences, but keeps listening until the requests in flight are answered. Then it ends.
    After `drain_timeout` seconds, or at a second signal, what still runs is cut off.

    Attributes
    ----------
    cut_off : int
        Requests that the end of the drain cut off.
    """

    def __init__(
        self,
        application: Application,
        drain_timeout: float,
        on_start: Callable[[], None],
        limits: ConnectionLimits,
        tls: Mapping[str, Any],
    ) -> None:
        config = uvicorn.Config(
            application,
            http=_protocol(limits),
            timeout_keep_alive=math.ceil(limits.idle_timeout),
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # else a client could write the address in the log
            **tls,
        )
        super().__init__(config)
        self.cut_off = 0
        self._application = application
        self._drain_timeout = drain_timeout
        self._on_start = on_start
        self._drain: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, wait until clients have their answers, and close the rest."""
        await super().shutdown(sockets)
        # What is open now belongs to clients that did not read their answers in time.
        self.cut_off += len(self.server_state.connections)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections and say so."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    async def on_tick(self, counter: int) -> bool:
        """Look after the connections once a second."""
        if counter % _SWEEP == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                sweep = getattr(connection, "sweep", None)
                if sweep is not None:
                    sweep(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let the signals start the drain for the time of the ``with`` block.

        uvicorn's own version raises the signal again at the end, so that the process would end by
        it instead of with exit code 0.
        """
        loop = asyncio.get_running_loop()

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._stop)

        before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        if self._drain is None:
            self._application.lifecycle.drain()
            self._drain = asyncio.create_task(self._finish())
        else:
            self._hurry.set()
            self.force_exit = self.should_exit

    async def _finish(self) -> None:
        lifecycle = self._application.lifecycle
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_timeout
        idle = asyncio.create_task(lifecycle.idle())
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait(
            {idle, hurry}, timeout=self._drain_timeout, return_when=asyncio.FIRST_COMPLETED
        )
        left = deadline - loop.time()
        if not idle.done():
            self.cut_off = lifecycle.in_flight
            self._application.engine.terminate()
            await asyncio.wait({idle}, timeout=_LAST_WORDS)
            left = _LAST_WORDS
        idle.cancel()
        hurry.cancel()
        # The answers are written, but a slow client may not have read all of them.
        self.config.timeout_graceful_shutdown = max(1, math.ceil(left))
        self.should_exit = True


def _protocol(limits: ConnectionLimits) -> Any:
    """Return uvicorn's option for a connection with `limits`."""
    try:
        from .connection import connection_class
    except ModuleNotFoundError as error:
        if error.name != "httptools":
            raise
        logger.warning("httptools is not installed: headers and connections have no limits")
        return "auto"
    return connection_class(limits)
