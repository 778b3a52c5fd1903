"""Check every contender's answer, then time the right ones in turn.

The contenders of a case share one process and take turns (A B A B ...), so that a machine that
slows down slows all of them. Idle thread pools spin before they sleep (ONNX Runtime's for 40 ms,
OpenMP's for 10 ms) and would halve the speed of the next contender; so before each timed sample
the harness waits until the process uses no processor time, then makes one untimed call. No time
is ever asserted.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tests.reference import max_error

Run = Callable[[], NDArray[Any]]
Status = Literal["ok", "wrong", "absent", "failed"]

WARM_UP_SECONDS = 0.2
SAMPLE_SECONDS = 0.005
CONTENDER_SECONDS = 8.0
SETTLE_SECONDS = 0.3
SETTLE_STEP_SECONDS = 0.004
FEWEST_SAMPLES = 5


class UnavailableError(Exception):
    """Raised by the builder of a contender that this machine or this shape rules out."""


@dataclass(frozen=True)
class Case:
    """One problem. A builder prepares a contender and returns the call to be timed.

    `operations` counts `unit` per call; `bytes_read` is set where the memory sets the limit. An
    answer is right when its largest absolute difference from `exact()` is at most `tolerance`.
    """

    name: str
    operations: float
    unit: str
    exact: Run
    contenders: dict[str, Callable[[], Run]]
    tolerance: float
    bytes_read: float | None = None


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
    reason: str = ""
    error: float | None = None
    median: float | None = None
    quartiles: tuple[float, float] | None = None
    best: float | None = None
    samples: int = 0
    calls_per_sample: int = 0

    def as_json(self) -> dict[str, Any]:
        """The row as a plain dictionary; an error that is not finite, JSON cannot hold."""
        finite = self.error is None or math.isfinite(self.error)
        return {**asdict(self), "error": self.error if finite else None}


@dataclass
class _Entrant:
    """A contender whose answer is right, with the number of calls that make one sample."""

    row: Row
    run: Run
    calls: int = 1
    every: int = 1
    times: list[float] = field(default_factory=list)

    def seconds(self) -> float:
        """Seconds per call of one sample."""
        start = time.perf_counter()
        for _ in range(self.calls):
            self.run()
        return (time.perf_counter() - start) / self.calls

    def warm_up(self, repeat: int) -> None:
        """Run for a while, then choose the length of a sample and how many rounds to sit out."""
        _settle()
        estimate = self.seconds()
        start = time.perf_counter()
        while time.perf_counter() - start < WARM_UP_SECONDS:
            estimate = min(estimate, self.seconds())
        self.calls = max(1, math.ceil(SAMPLE_SECONDS / estimate))
        affordable = max(FEWEST_SAMPLES, int(CONTENDER_SECONDS / (estimate * (self.calls + 1))))
        self.every = math.ceil(repeat / min(repeat, affordable))


def run(cases: Iterable[Case], repeat: int, only: str = "") -> Iterator[Row]:
    """Run every case whose name contains `only` and yield its rows, one per contender."""
    for case in tqdm([case for case in cases if only in case.name], desc="cases", leave=False):
        yield from _run_case(case, repeat)


def _run_case(case: Case, repeat: int) -> list[Row]:
    exact = case.exact()
    rows: list[Row] = []
    entrants: list[_Entrant] = []
    for name, build in case.contenders.items():
        row, answer = _check(case, name, build, exact)
        rows.append(row)
        if answer is not None:
            entrants.append(_Entrant(row, answer))
    for entrant in entrants:
        entrant.warm_up(repeat)
    for turn in tqdm(range(repeat), desc=case.name, leave=False):
        for entrant in entrants:
            if turn % entrant.every == 0:
                _settle()
                entrant.run()
                entrant.times.append(entrant.seconds())
    for entrant in entrants:
        _summarise(entrant)
        _judge(entrant.row, entrant.run(), exact)
    return rows


def _settle() -> None:
    """Sleep until the threads of the process sleep too, or for `SETTLE_SECONDS` at most."""
    for _ in range(round(SETTLE_SECONDS / SETTLE_STEP_SECONDS)):
        used = time.process_time()
        time.sleep(SETTLE_STEP_SECONDS)
        if time.process_time() - used < SETTLE_STEP_SECONDS / 4:
            return


def _check(
    case: Case, name: str, build: Callable[[], Run], exact: NDArray[Any]
) -> tuple[Row, Run | None]:
    """Build one contender and judge its answer; the call comes back only if it is right."""
    row = Row(case.name, name, "ok", case.operations, case.unit, case.bytes_read, case.tolerance)
    try:
        run = build()
        answer = np.asarray(run())
    except (ImportError, UnavailableError) as missing:
        row.status, row.reason = "absent", _first_line(missing)
        return row, None
    except Exception as failure:  # noqa: BLE001  (a peer may raise anything; the row says what)
        row.status, row.reason = "failed", f"{type(failure).__name__}: {_first_line(failure)}"
        return row, None
    _judge(row, answer, exact)
    return row, run if row.status == "ok" else None


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


def _summarise(entrant: _Entrant) -> None:
    times, row = np.asarray(entrant.times), entrant.row
    low, middle, high = (float(q) for q in np.percentile(times, [25, 50, 75]))
    row.median, row.quartiles, row.best = middle, (low, high), float(times.min())
    row.samples, row.calls_per_sample = len(times), entrant.calls
