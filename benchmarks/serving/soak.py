"""One server under a mix of requests for a long time: are its answers right, its memory flat?

Time in which this process did not run, because the machine slept or somebody stopped it, is left
out and told in the report, and so are failures of requests that were under way meanwhile.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from pyattn_serving.bench.client import Address
from pyattn_serving.bench.report import write_json

from benchmarks import machine
from benchmarks.serving import models, questions
from benchmarks.serving.mix import SHARES, Failure, Mix
from benchmarks.serving.process import Server, free_port

TOLERANCE = 0.05  # of resident memory
ANSWER_TOLERANCE = 1e-4  # batches of other sizes are added up in another order
_WARMUP = 1 / 6  # of the time
_TICK = 1.0  # seconds
_STOPPED = 10.0  # seconds between two ticks that say that nobody ran
_AFTER = 5.0  # seconds after that in which a failure is blamed on it
_SAMPLE = 5  # ticks between two looks at the memory
_WRITE = 60  # ticks between two reports
_QUESTIONS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How long, and how much: minutes, requests a second, clients, threads of ONNX Runtime."""

    minutes: float = 60.0
    rate: float | None = 20.0
    clients: int = 8
    threads: int = 2
    longest: int = 200


@dataclass(slots=True)
class Course:
    """What was seen over time: seconds, resident bytes and requests, and when nobody ran."""

    seconds: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    stopped: list[tuple[float, float]] = field(default_factory=list)
    active: float = 0.0


def run(options: Options, file: Path) -> dict[str, Any]:
    """Serve MiniLM and load it; write the report once a minute, and return the last."""
    with tempfile.TemporaryDirectory(prefix="pyattn-soak-") as name:
        folder = Path(name)
        model = models.write(folder / "models")["minilm"]
        right = questions.random_lengths(_QUESTIONS, options.longest, 3)
        good = questions.answered(questions.session(model, options.threads), right)
        port = free_port()
        command = [sys.executable, "-m", "pyattn_serving", str(model), "--name", "minilm"]
        command += ["--port", str(port), "--threads", str(options.threads)]
        server = Server(
            [*command, "--log-level", "error"], port, "/v2/health/ready", folder / "log"
        )
        try:
            server.wait()
            mix = Mix(
                address=Address("127.0.0.1", port),
                model="minilm",
                good=good,
                wrong=questions.wrong_tokens(),
                tolerance=ANSWER_TOLERANCE,
            )
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                course = runner.run(_load(options, mix, server, file))
        finally:
            code = server.stop()
    report = _report(options, mix, course) | {"exit_code": code, "finished": True}
    write_json(report, file)
    return report


async def _load(options: Options, mix: Mix, server: Server, file: Path) -> Course:
    course = Course()
    over = options.minutes * 60
    watch = asyncio.create_task(_watch(options, mix, server, file, course))
    await mix.run(options.clients, lambda: course.active < over, options.rate)
    watch.cancel()
    return course


async def _watch(options: Options, mix: Mix, server: Server, file: Path, course: Course) -> None:
    last, ticks = time.monotonic(), 0
    while True:
        await asyncio.sleep(_TICK)
        now = time.monotonic()
        if now - last > _STOPPED:
            course.stopped.append((last, now))
        else:
            course.active += now - last
        last = now
        ticks += 1
        if ticks % _SAMPLE == 0:
            course.seconds.append(round(course.active, 1))
            course.resident.append(server.resident_memory())
            course.requests.append(mix.counts.total())
        if ticks % _WRITE == 0:
            write_json(_report(options, mix, course) | {"finished": False}, file)
            sys.stderr.write(
                f"{course.active / 60:.0f} of {options.minutes:g} minutes: {mix.counts.total()} "
                f"requests, {mix.failed} failed, {course.resident[-1] / 1e6:.0f} MB\n"
            )


def growth(seconds: Sequence[float], resident: Sequence[int]) -> float | None:
    """The most of the last third after the warm-up, as a multiple of the most of the first."""
    begin = seconds[-1] * _WARMUP if seconds else 0.0
    counted = [size for when, size in zip(seconds, resident, strict=True) if when >= begin]
    third = len(counted) // 3
    return max(counted[-third:]) / max(counted[:third]) if third else None


def _report(options: Options, mix: Mix, course: Course) -> dict[str, Any]:
    grown = growth(course.seconds, course.resident)
    interrupted = [one for one in mix.failures if _interrupted(one, course)]
    return {
        **machine.describe(options.threads),
        "options": asdict(options),
        "shares": SHARES,
        "requests": dict(mix.counts),
        "failed": mix.failed - len(interrupted),
        "failures": [asdict(one) for one in mix.failures if one not in interrupted],
        "failed_while_stopped": [asdict(one) for one in interrupted],
        "stopped_seconds": [end - begin for begin, end in course.stopped],
        "growth": grown,
        "flat": grown is not None and grown <= 1 + TOLERANCE,
        "memory": {
            "seconds": course.seconds,
            "resident_bytes": course.resident,
            "requests": course.requests,
        },
    }


def _interrupted(failure: Failure, course: Course) -> bool:
    """Whether a request was under way while nobody ran, or just after that."""
    return any(
        failure.begin < end + _AFTER and failure.end > begin for begin, end in course.stopped
    )
