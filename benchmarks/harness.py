"""Check every contender's answer, then time the right ones in turn.

The contenders of a group of cases share one process and take turns (A B A B ...), and so do the
limits of the machine that they are measured against, so that a machine that slows down slows all
of them. Idle thread pools spin before they sleep (ONNX Runtime's for 40 ms, OpenMP's for 10 ms)
and would halve the speed of the next contender; so before each timed sample the harness waits
until the process uses no processor time, then until the processors are there (cores.py), and makes
one untimed call. No time is ever asserted.
"""

import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.cores import Cores
from benchmarks.limits import Limit
from tests.reference import max_error

Run = Callable[[], Any]
Status = Literal["ok", "wrong", "absent", "failed"]

SAMPLE_SECONDS = 0.005
SLOW_SECONDS = 0.2
PATIENCE = 1.5  # times the seconds of all contenders, until a case is cut short on a busy machine
SETTLE_SECONDS = 0.3
SETTLE_STEP_SECONDS = 0.004


class UnavailableError(Exception):
    """Raised by the builder of a contender that this machine or this shape rules out."""


@dataclass(frozen=True)
class Prepared:
    """A call to be timed, and what makes an array of its answer, which is not."""

    run: Run
    finish: Callable[[Any], NDArray[Any]] = np.asarray

    def answer(self) -> NDArray[Any]:
        """The answer of one call, as an array."""
        return self.finish(self.run())


Build = Callable[[], Run | Prepared]


@dataclass(frozen=True)
class Case:
    """One problem. A builder prepares a contender and returns the call to be timed.

    `operations` counts `unit` per call; `bytes_read` is set where the memory sets the limit, and
    `limit` names the kind of `benchmarks.limits.Limit` to compare with. An answer is right when its
    largest absolute difference from `exact()` is at most `tolerance` plus `relative` times the
    largest absolute value of `exact()`. Neighbouring cases of the same `group` take turns.
    """

    name: str
    operations: float
    unit: str
    exact: Callable[[], NDArray[Any]]
    contenders: Mapping[str, Build]
    tolerance: float
    relative: float = 0.0
    bytes_read: float | None = None
    limit: str | None = None
    group: str = ""


@dataclass(frozen=True)
class Effort:
    """How long to measure: `repeat` samples of a contender, fewer if they take too long."""

    repeat: int = 30
    fewest: int = 5
    contender_seconds: float = 1.2
    warm_up_seconds: float = 0.1


QUICK = Effort(repeat=7, fewest=3, contender_seconds=0.3, warm_up_seconds=0.02)


@dataclass
class Row:
    """What is kept of one contender in one case; times are in seconds per call."""

    case: str
    contender: str
    status: Status
    operations: float
    unit: str
    bytes_read: float | None
    tolerance: float
    limit: str | None = None
    limit_rates: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    error: float | None = None
    median: float | None = None
    quartiles: tuple[float, float] | None = None
    best: float | None = None
    samples: int = 0
    crowded_samples: int = 0  # that began although the processors were not there
    calls_per_sample: int = 0

    def as_json(self) -> dict[str, Any]:
        """The row as a plain dictionary; an error that is not finite, JSON cannot hold."""
        finite = self.error is None or math.isfinite(self.error)
        return {**asdict(self), "error": self.error if finite else None}


@dataclass
class _Entrant:
    """Something to be timed, with the number of calls that make one sample."""

    run: Run
    calls: int = 1
    every: int = 1
    fewest: int = 1
    slow: bool = False
    crowded: int = 0
    times: list[float] = field(default_factory=list)

    def seconds(self) -> float:
        """Seconds per call of one sample."""
        start = time.perf_counter()
        for _ in range(self.calls):
            self.run()
        return (time.perf_counter() - start) / self.calls

    def warm_up(self, effort: Effort, samples: int) -> None:
        """Run for a while, then choose the length of a sample and how many rounds to sit out."""
        _settle()
        estimate = self.seconds()
        start = time.perf_counter()
        while time.perf_counter() - start < effort.warm_up_seconds:
            estimate = min(estimate, self.seconds())
        self.calls = max(1, math.ceil(SAMPLE_SECONDS / estimate))
        self.slow = estimate > SLOW_SECONDS
        sample = estimate * (self.calls + (not self.slow))
        self.fewest = min(effort.fewest, 3) if self.slow else effort.fewest
        wanted = min(samples, max(self.fewest, int(effort.contender_seconds / sample)))
        self.every = max(1, effort.repeat // wanted)

    def is_short(self) -> bool:
        """Whether it needs more samples even when the time for them is over."""
        return len(self.times) < self.fewest

    def take_turn(self, cores: Cores) -> None:
        """One sample, once the others are asleep; a slow call does not notice how it began."""
        _settle()
        self.crowded += not cores.wait()
        if not self.slow:
            self.run()
        self.times.append(self.seconds())


@dataclass
class _Contender:
    """A contender whose answer is right."""

    row: Row
    prepared: Prepared
    exact: NDArray[Any]
    entrant: _Entrant


def run(
    cases: Iterable[Case],
    effort: Effort,
    only: str = "",
    limits: Sequence[Limit] = (),
    threads: int = 1,
) -> Iterator[Row]:
    """Run every case whose name contains `only` and yield its rows, one per contender."""
    cores = Cores(threads)
    chosen = [case for case in cases if only in case.name]
    groups = [list(g) for _, g in groupby(chosen, key=lambda case: case.group or case.name)]
    for group in tqdm(groups, desc="cases", leave=False):
        wanted = {case.limit for case in group}
        yield from _run_group(group, effort, [x for x in limits if x.kind in wanted], cores)
        gc.collect()


def _run_group(group: list[Case], effort: Effort, limits: list[Limit], cores: Cores) -> list[Row]:
    rows: list[Row] = []
    contenders: list[_Contender] = []
    for case in group:
        exact = case.exact()
        for name, build in case.contenders.items():
            row, prepared = _check(case, name, build, exact)
            rows.append(row)
            if prepared is not None:
                contenders.append(_Contender(row, prepared, exact, _Entrant(prepared.run)))
    measured = [(limit, _Entrant(limit.run)) for limit in limits] if contenders else []
    entrants = [contender.entrant for contender in contenders]
    _take_turns(entrants, [entrant for _, entrant in measured], effort, cores, group[0].name)
    rates = _rates(measured)
    for contender in contenders:
        _summarise(contender.row, contender.entrant)
        _judge(contender.row, contender.prepared.answer(), contender.exact)
    for row in rows:
        row.limit_rates = rates.get(row.limit or "", {})
    return rows


def _take_turns(
    entrants: list[_Entrant], limits: list[_Entrant], effort: Effort, cores: Cores, label: str
) -> None:
    for entrant in entrants:
        entrant.warm_up(effort, effort.repeat)
    for entrant in limits:
        entrant.warm_up(effort, effort.fewest)
    everyone = [*entrants, *limits]
    waited = cores.waited
    deadline = time.perf_counter() + PATIENCE * effort.contender_seconds * len(everyone)
    for turn in tqdm(range(effort.repeat), desc=label, leave=False):
        late = time.perf_counter() > deadline + cores.waited - waited
        for entrant in everyone:
            if (late and entrant.is_short()) or (not late and turn % entrant.every == 0):
                entrant.take_turn(cores)
        if late and not any(entrant.is_short() for entrant in everyone):
            return


def _rates(measured: list[tuple[Limit, _Entrant]]) -> dict[str, dict[str, float]]:
    """Work per second by kind of limit and library, from the median time."""
    rates: dict[str, dict[str, float]] = {}
    for limit, entrant in measured:
        by_source = rates.setdefault(limit.kind, {})
        by_source[limit.source] = limit.work / float(np.median(entrant.times))
    return rates


def _settle() -> None:
    """Sleep until the threads of the process sleep too, or for `SETTLE_SECONDS` at most."""
    for _ in range(round(SETTLE_SECONDS / SETTLE_STEP_SECONDS)):
        used = time.process_time()
        time.sleep(SETTLE_STEP_SECONDS)
        if time.process_time() - used < SETTLE_STEP_SECONDS / 4:
            return


def _check(case: Case, name: str, build: Build, exact: NDArray[Any]) -> tuple[Row, Prepared | None]:
    """Build one contender and judge its answer; the call comes back only if it is right."""
    tolerance = case.tolerance
    if case.relative:
        tolerance += case.relative * float(np.abs(exact).max(initial=0.0))
    row = Row(
        case.name, name, "ok", case.operations, case.unit, case.bytes_read, tolerance, case.limit
    )
    try:
        built = build()
        prepared = built if isinstance(built, Prepared) else Prepared(built)
        answer = prepared.answer()
    except (ImportError, UnavailableError) as missing:
        row.status, row.reason = "absent", _first_line(missing)
        return row, None
    except Exception as failure:  # noqa: BLE001  (a peer may raise anything; the row says what)
        row.status, row.reason = "failed", f"{type(failure).__name__}: {_first_line(failure)}"
        return row, None
    _judge(row, answer, exact)
    return row, prepared if row.status == "ok" else None


def _judge(row: Row, answer: NDArray[Any], exact: NDArray[Any]) -> None:
    """Mark the row as wrong, and drop its times, if the answer is not near enough."""
    if answer.shape != exact.shape:
        row.status, row.reason = "wrong", f"shape {answer.shape} instead of {exact.shape}"
        row.median, row.quartiles, row.best = None, None, None
        return
    row.error = max(row.error or 0.0, max_error(answer, exact))
    if row.error > row.tolerance:
        row.status, row.reason = "wrong", f"differs from float64 by {row.error:.1e}"
        row.median, row.quartiles, row.best = None, None, None


def _first_line(error: BaseException) -> str:
    """What went wrong, without the file that some messages add in parentheses."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].split(" (/")[0][:200]


def _summarise(row: Row, entrant: _Entrant) -> None:
    times = np.asarray(entrant.times)
    low, middle, high = (float(q) for q in np.percentile(times, [25, 50, 75]))
    row.median, row.quartiles, row.best = middle, (low, high), float(times.min())
    row.samples, row.calls_per_sample = len(times), entrant.calls
    row.crowded_samples = entrant.crowded
