"""Who sends when, and what came of it."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .client import Address, Connection
from .requests import Message

TIME_OUT = "timeout"
_TICK = 1.0  # seconds between two calls of the progress
_PAUSE = 0.01  # seconds before a connection that failed is opened again
_TIMER = 2e-3  # seconds that a timer of the event loop may be late


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much is sent.

    Attributes
    ----------
    clients : int
        Connections; in an open loop the most requests that are under way.
    rate : float or None
        Requests a second that come at random (Poisson) in an open loop; None is a closed one.
    warmup : float
        Seconds of load before anything counts.
    duration : float
        Seconds that count.
    count : int or None
        Requests that count, in place of the duration.
    timeout : float
        Seconds after which an answer is given up.
    seed : int
    """

    clients: int = 1
    rate: float | None = None
    warmup: float = 1.0
    duration: float = 10.0
    count: int | None = None
    timeout: float = 60.0
    seed: int = 0


@dataclass(slots=True)
class Measurement:
    """What was measured of the requests that were due after the warm-up.

    Attributes
    ----------
    latencies : array of float
        Seconds of those that were answered with 200.
    errors : Counter
        Others by status or by the failure of the connection.
    messages : dict
        The first content of each error.
    tokens, sent, received : int
        Tokens and bytes of the ones that were answered with 200.
    begin, end : float
        When the first was due, and the last answer came.
    processor : float
        Seconds of processor time that the generator itself took in that time.
    """

    latencies: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    sent: int = 0
    received: int = 0
    begin: float = 0.0
    end: float = 0.0
    processor: float = 0.0

    @property
    def count(self) -> int:
        """Requests that count, with or without success."""
        return len(self.latencies) + self.errors.total()


class Generator:
    """Sends requests to one server, once."""

    def __init__(self, load: Load, address: Address, messages: Sequence[Message]) -> None:
        self._load = load
        self._address = address
        self._messages = itertools.cycle(messages)
        self._clock = time.perf_counter  # uvloop's own clock counts whole milliseconds
        now = self._clock()
        self._due = _at_once(self._clock) if load.rate is None else _poisson(load, now)
        self._over = math.inf if load.count is not None else now + load.warmup + load.duration
        self._left = math.inf if load.count is None else load.count
        self.result = Measurement(begin=now + load.warmup)

    async def run(self, progress: Callable[[Measurement], None]) -> Measurement:
        """Send everything; `progress` is called once a second."""
        ticker = asyncio.create_task(self._tick(progress))
        loop = asyncio.get_running_loop()
        mark = loop.call_later(self._load.warmup, self._start_processor_time)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._load.clients):
                    group.create_task(self._client())
        finally:
            ticker.cancel()
            mark.cancel()
        self.result.end = max(self.result.end, self.result.begin)
        self.result.processor += time.process_time()
        return self.result

    async def _client(self) -> None:
        connection = Connection(self._address)
        try:
            for due in self._due:
                if due >= self._over or self._left <= 0:
                    return
                if due >= self.result.begin:
                    self._left -= 1
                await self._send(connection, due)
        finally:
            connection.close()

    async def _send(self, connection: Connection, due: float) -> None:
        """Send the next request when it is due, and count what came back."""
        start = due
        if (early := due - self._clock()) > 0:
            await asyncio.sleep(early)
            # The lateness of a timer is not the server's, but that of a busy client is.
            if (now := self._clock()) - due < _TIMER:
                start = now
        message = next(self._messages)
        error, content = "", ""
        try:
            async with asyncio.timeout(start + self._load.timeout - self._clock()):
                answer = await connection.exchange(message.data)
            if answer.status != 200:
                error, content = str(answer.status), answer.content.decode(errors="replace")[:500]
        except TimeoutError:
            error, content = TIME_OUT, f"no answer within {self._load.timeout:g} s"
        except OSError as failure:
            error, content = type(failure).__name__, str(failure)
            await asyncio.sleep(_PAUSE)
        if due < self.result.begin:
            return
        result = self.result
        result.end = self._clock()
        if error:
            result.errors[error] += 1
            result.messages.setdefault(error, content)
        else:
            result.latencies.append(result.end - start)
            result.tokens += message.tokens
            result.sent += len(message.data)
            result.received += answer.size

    async def _tick(self, progress: Callable[[Measurement], None]) -> None:
        while True:
            await asyncio.sleep(_TICK)
            progress(self.result)

    def _start_processor_time(self) -> None:
        self.result.processor = -time.process_time()


def _at_once(clock: Callable[[], float]) -> Iterator[float]:
    while True:
        yield clock()


def _poisson(load: Load, start: float) -> Iterator[float]:
    generator = np.random.default_rng(load.seed)
    due = start
    while True:
        for gap in generator.exponential(1 / (load.rate or 1.0), 1024).tolist():
            due += gap
            yield due
