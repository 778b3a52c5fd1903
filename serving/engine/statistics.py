"""What was counted and how long it took, for one version of a model."""

from __future__ import annotations

import bisect
import threading
import time
from dataclasses import dataclass, field

STAGES = ("queue", "assemble", "run", "split")
_MILLISECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000)
SECONDS = tuple(ms / 1000 for ms in _MILLISECONDS)
MOST_ROWS = 1024  # larger runs are counted as such, or clients could fill the memory with sizes
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(slots=True)
class Tally:
    """How many, and how long in all, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count `count` more that took `ns` together."""
        self.count += count
        self.ns += ns


class Histogram:
    """How many values lie at or below each bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Count `value` `count` times."""
        self.counts[bisect.bisect_left(self.bounds, value)] += count
        self.sum += value * count

    def cumulative(self) -> list[tuple[float, int]]:
        """Return each bound, and infinity, with the number of values up to it."""
        total, pairs = 0, []
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            total += count
            pairs.append((bound, total))
        return pairs


@dataclass(slots=True)
class Timing:
    """One run: nanoseconds of the stages after the queue, rows, and tokens."""

    assemble: int
    run: int
    split: int
    rows: int
    real: int
    padded: int


@dataclass(slots=True)
class Statistics:
    """Counters of one version, which only ever grow; `lock` guards them.

    Attributes
    ----------
    success, fail : Tally
        Requests that were answered or failed, from their arrival on.
    rejected, expired, cancelled : int
        Requests that found the queue full, ran out of time, or were given up by the client.
    stages : dict of str to Tally
        ``queue``, ``assemble``, ``run``, ``split``. The time of a run counts for each of its
        requests, as each waits for all of it.
    durations : dict of str to Histogram
        The same in seconds, and ``total``.
    batches : dict of int to dict of str to Tally
        Runs by their number of rows, for the stages after the queue.
    sizes : Histogram
        Rows of the runs.
    inferences, executions : int
        Rows that were answered, and runs.
    real, padded : int
        Tokens of requests, and positions that were computed for them.
    last_ms : int
        Time of the last answer, in milliseconds of the epoch.
    """

    success: Tally = field(default_factory=Tally)
    fail: Tally = field(default_factory=Tally)
    rejected: int = 0
    expired: int = 0
    cancelled: int = 0
    stages: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in STAGES})
    durations: dict[str, Histogram] = field(
        default_factory=lambda: {name: Histogram(SECONDS) for name in (*STAGES, "total")}
    )
    batches: dict[int, dict[str, Tally]] = field(default_factory=dict)
    sizes: Histogram = field(default_factory=lambda: Histogram(SIZES))
    inferences: int = 0
    executions: int = 0
    real: int = 0
    padded: int = 0
    last_ms: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ran(self, timing: Timing, waits: list[int], totals: list[int]) -> None:
        """Count a run whose requests waited `waits` and took `totals` nanoseconds each."""
        count = len(waits)
        with self.lock:
            self.executions += 1
            self.inferences += timing.rows
            self.real += timing.real
            self.padded += timing.padded
            self.last_ms = time.time_ns() // 1_000_000
            self.sizes.add(timing.rows)
            batch = self.batches.setdefault(
                min(timing.rows, MOST_ROWS), {name: Tally() for name in STAGES if name != "queue"}
            )
            for name in STAGES[1:]:
                ns = getattr(timing, name)
                batch[name].add(ns)
                self.stages[name].add(ns * count, count)
                self.durations[name].add(ns / 1e9, count)
            for wait in waits:
                self.stages["queue"].add(wait)
                self.durations["queue"].add(wait / 1e9)
            for total in totals:
                self.success.add(total)
                self.durations["total"].add(total / 1e9)

    def failed(self, ns: int) -> None:
        """Count a request that failed `ns` after its arrival."""
        with self.lock:
            self.fail.add(ns)

    def left(self, reason: str) -> None:
        """Count a request that got no run: ``rejected``, ``expired`` or ``cancelled``."""
        with self.lock:
            setattr(self, reason, getattr(self, reason) + 1)
