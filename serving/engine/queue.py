"""The requests that wait for one version of a model."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import onnxruntime as ort

from .failures import QueueFullError
from .layout import Array, Extent
from .model_settings import ModelSettings

if TYPE_CHECKING:
    from .model import Model

DEFAULT_PRIORITY = 100  # of a request that does not say; 1 is the highest
_numbers = itertools.count()


class Work:
    """A request on its way through the scheduler.

    Attributes
    ----------
    order : tuple
        Place in the queue: priority, then number of arrival.
    arrival : int
        `time.perf_counter_ns` when it came.
    taken : int
        The same when it left the queue.
    cancelled : bool
        Nobody waits for the answer any more.
    """

    __slots__ = (
        "arrival",
        "cancelled",
        "extent",
        "feeds",
        "future",
        "loop",
        "model",
        "order",
        "outputs",
        "size",
        "taken",
    )

    def __init__(
        self, model: Model, feeds: Mapping[str, Array], outputs: Sequence[str], priority: int = 0
    ) -> None:
        self.model = model
        self.feeds = feeds
        self.outputs = outputs
        self.order = (priority or DEFAULT_PRIORITY, next(_numbers))
        self.arrival = self.taken = time.perf_counter_ns()
        self.cancelled = False
        self.extent: Extent | None = model.measure(feeds, outputs)
        self.size = sum(map(_size, feeds.values()))
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Array]] = self.loop.create_future()

    @property
    def rows(self) -> int:
        """Rows of a run that it stands for."""
        return self.extent.rows if self.extent else 1

    def succeed(self, arrays: list[Array]) -> None:
        """Give the answer, from any thread."""
        self._settle(arrays)

    def fail(self, error: Exception) -> None:
        """Give a failure, from any thread."""
        self._settle(error)

    def _settle(self, result: list[Array] | Exception) -> None:
        try:
            self.loop.call_soon_threadsafe(_settle, self.future, result)
        except RuntimeError:  # the loop is closed: nobody waits
            self.cancelled = True


def _settle(future: asyncio.Future[list[Array]], result: list[Array] | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _size(array: Array) -> int:
    if not array.dtype.hasobject or array.size == 0:
        return array.nbytes
    # Strings: a thousand of them tell about all, and looking at millions would hold the event loop.
    sample = array.flat[:: max(1, array.size // 1000)]
    return array.nbytes + sum(map(sys.getsizeof, sample)) * array.size // sample.size


class Run:
    """Requests that run together, and the options that end the run."""

    __slots__ = ("options", "works")

    def __init__(self, works: list[Work], options: ort.RunOptions) -> None:
        self.works = works
        self.options = options

    def end_if_unwanted(self) -> None:
        """End the run at its next operator when nobody waits for it."""
        if all(work.cancelled for work in self.works):
            self.options.terminate = True


class Queue:
    """Requests in the order of priority and arrival. The scheduler's lock guards it.

    Attributes
    ----------
    rows, bytes : int
        What the waiting requests are together.
    running : int
        Runs that are under way.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._works: list[Work] = []
        self.rows = 0
        self.bytes = 0
        self.running = 0

    def __len__(self) -> int:
        return len(self._works)

    @property
    def head(self) -> Work:
        """The request that is next."""
        return self._works[0]

    def push(self, work: Work) -> None:
        """Let a request wait; raises `QueueFullError` at once when there is no room.

        A request that is larger than the bound on bytes is taken when nothing else waits.
        """
        settings = self._settings
        if len(self._works) >= settings.max_queue:
            raise QueueFullError(f"{len(self._works)} requests wait for the model already")
        if self._works and self.bytes + work.size > settings.max_queue_bytes:
            raise QueueFullError(f"{self.bytes} bytes of requests wait for the model already")
        bisect.insort(self._works, work, key=_order)
        self.rows += work.rows
        self.bytes += work.size

    def remove(self, work: Work) -> bool:
        """Take a request out; return False when it is not there any more."""
        index = bisect.bisect_left(self._works, work.order, key=_order)
        if index == len(self._works) or self._works[index] is not work:
            return False
        del self._works[index]
        self._forget(work)
        return True

    def clear(self) -> list[Work]:
        """Take all out."""
        works, self._works = self._works, []
        self.rows = self.bytes = 0
        return works

    def due(self) -> float:
        """Return when the next run may start, as `time.perf_counter` tells the time.

        That is 0 unless the model is busy and too few rows wait; infinity when no more runs may.
        """
        settings = self._settings
        if settings.concurrency is not None and self.running >= settings.concurrency:
            return math.inf
        head = self.head
        if self.running == 0 or not settings.max_delay or head.extent is None:
            return 0.0
        if self.rows >= min(settings.preferred_batch, settings.max_batch):
            return 0.0
        return head.arrival / 1e9 + settings.max_delay

    def take(self) -> list[Work]:
        """Take the head out, and the requests that may run with it.

        Higher priorities come first, then the nearest lengths. Each may come along unless the
        limits on rows, positions and the share of padding are passed.
        """
        head = self.head
        taken = [head]
        if head.extent is not None and len(self._works) > 1 and self._settings.max_batch > 1:
            taken += self._companions(head.extent)
        if len(taken) == 1:
            del self._works[0]
        else:
            chosen = set(map(id, taken))
            self._works = [work for work in self._works if id(work) not in chosen]
        now = time.perf_counter_ns()
        for work in taken:
            work.taken = now
            self._forget(work)
        return taken

    def _companions(self, head: Extent) -> list[Work]:
        candidates = [
            (work.order[0], abs(work.extent.length - head.length), work.order[1], work.extent, work)
            for work in self._works[1:]
            if work.extent is not None and work.extent.key == head.key
        ]
        candidates.sort(key=lambda candidate: candidate[:3])
        settings = self._settings
        rows, length, tokens = head.rows, head.length, head.tokens
        found = []
        for *_, extent, work in candidates:
            more = rows + extent.rows
            longest, real = max(length, extent.length), tokens + extent.tokens
            padded = head.padded(more, longest, real)
            if more > settings.max_batch or padded > settings.max_tokens:
                continue
            if padded - real > settings.max_padding * padded:
                continue
            rows, length, tokens = more, longest, real
            found.append(work)
            if rows == settings.max_batch:
                break
        return found

    def _forget(self, work: Work) -> None:
        self.rows -= work.rows
        self.bytes -= work.size


def _order(work: Work) -> tuple[int, int]:
    return work.order
