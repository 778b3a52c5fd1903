"""All servers with the same models and the same load, in turns, several times over."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from pyattn_serving.bench.client import Address
from pyattn_serving.bench.requests import Message

from benchmarks import machine
from benchmarks.serving import contenders, load, models, questions
from benchmarks.serving.contenders import CONTENDERS, KINDS
from benchmarks.serving.mix import Question
from benchmarks.serving.process import Server

BARE = "ONNX Runtime, no server"
_WARMUP = 0.3  # seconds, before the first round
_BARE_CALLS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is compared, how often and how long: seconds are those of one measurement."""

    rounds: int = 3
    seconds: float = 2.0
    clients: tuple[int, ...] = (1, 16)
    threads: int = 2
    cores: int = 2
    only: str = ""


@dataclass(slots=True)
class Row:
    """One contender with one workload, form and number of clients."""

    workload: str
    form: str
    clients: int
    contender: str
    status: str = "ok"
    reason: str = ""
    rounds: list[dict[str, Any]] = field(default_factory=list)
    messages: Sequence[Message] = ()

    def as_json(self) -> dict[str, Any]:
        """The row with the medians over its rounds."""
        names = self.rounds[0] if self.rounds else {}
        return {
            "case": f"{self.workload}/{self.form}/{self.clients}",
            **{key: value for key, value in asdict(self).items() if key != "messages"},
            **{name: median(one[name] for one in self.rounds) for name in names},
        }


def run(options: Options, peers: Path) -> dict[str, Any]:
    """Start everybody, check their answers, measure; return the results."""
    processors = contenders.hold_to(options.cores)
    with tempfile.TemporaryDirectory(prefix="pyattn-serving-") as name, ExitStack() as stack:
        folder = Path(name)
        files = models.write(folder / "models")
        _say("models and answers are ready; starting the servers")
        servers, absent = _start(options, peers, folder, stack)
        asked = _questions(files, options.threads)
        rows = _rows(options, absent)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_prepare(rows, asked, servers))
            sessions = {one: questions.session(files[one], options.threads) for one in asked}
            bare = _measure(options, rows, sessions, asked, servers, runner)
    return {
        **machine.describe(options.threads),
        "options": {**asdict(options), "processors": processors},
        "servers": {kind: contenders.versions(kind, peers) for kind in servers},
        "absent": absent,
        "bare": bare,
        "rows": [row.as_json() for row in rows],
    }


def _start(
    options: Options, peers: Path, folder: Path, stack: ExitStack
) -> tuple[dict[str, Server], dict[str, str]]:
    servers: dict[str, Server] = {}
    absent: dict[str, str] = {}
    for kind in KINDS:
        try:
            server = contenders.start(
                kind, peers, folder / "models", folder / "servers", options.threads
            )
            stack.callback(server.stop)
            server.wait()
        except (OSError, RuntimeError) as error:
            absent[kind] = str(error)
            _say(f"{kind} is left out: {error}")
        else:
            servers[kind] = server
            _say(f"{kind} is ready")
    return servers, absent


def _questions(files: Mapping[str, Path], threads: int) -> dict[str, list[Question]]:
    """Questions by model, answered by ONNX Runtime itself."""
    sentences = questions.sentences()
    inputs = {
        "small": questions.small(),
        "image": questions.images(),
        "minilm": sentences,
        "minilm-packed": questions.packed(sentences),
    }
    return {
        name: questions.answered(questions.session(files[name], threads), asked)
        for name, asked in inputs.items()
    }


def _rows(
    options: Options,
    absent: Mapping[str, str],
) -> list[Row]:
    rows = []
    for workload in contenders.MODELS:
        for form in contenders.PROTOCOL:
            for clients in options.clients:
                for name, contender in CONTENDERS.items():
                    if workload in contender.models and form in contender.forms:
                        row = Row(workload, form, clients, name)
                        if contender.kind in absent:
                            row.status, row.reason = "absent", absent[contender.kind]
                        if options.only in f"{workload}/{form}/{clients}":
                            rows.append(row)
    return rows


def _address(row: Row, servers: Mapping[str, Server]) -> Address:
    return Address("127.0.0.1", servers[CONTENDERS[row.contender].kind].port)


async def _prepare(
    rows: Sequence[Row], asked: Mapping[str, Sequence[Question]], servers: Mapping[str, Server]
) -> None:
    """Check the answers of each row, make its requests and warm its server up."""
    made: dict[tuple[str, str, str], list[Message]] = {}
    for row in rows:
        if row.status != "ok":
            continue
        contender = CONTENDERS[row.contender]
        model, form = contender.models[row.workload], contender.forms[row.form]
        address = _address(row, servers)
        key = (row.contender, model, row.form)
        try:
            if key not in made:
                await load.check(address, model, form, asked[model])
                made[key] = [
                    Message(form.write(address, model, one.inputs), _tokens(one))
                    for one in asked[model]
                ]
            row.messages = made[key]
            await load.measure(address, row.messages, row.clients, _WARMUP)
        except (load.WrongAnswerError, OSError, TimeoutError) as error:
            row.status, row.reason = "wrong", f"{type(error).__name__}: {error}"
            _say(f"{row.contender}, {row.workload} {row.form}: {row.reason}")


def _tokens(question: Question) -> int:
    ids = question.inputs.get("input_ids")
    return 0 if ids is None else int(ids.size)


def _measure(
    options: Options,
    rows: Sequence[Row],
    sessions: Mapping[str, Any],
    asked: Mapping[str, Sequence[Question]],
    servers: Mapping[str, Server],
    runner: asyncio.Runner,
) -> dict[str, float]:
    """All rows in turn, then again; return the median milliseconds of a call without a server."""
    bare: dict[str, list[float]] = {name: [] for name in asked}
    good = [row for row in rows if row.status == "ok"]
    for turn in range(options.rounds):
        for name, session in sessions.items():
            bare[name].append(_bare(session, asked[name]))
        for i, row in enumerate(good):
            try:
                result = runner.run(
                    load.measure(_address(row, servers), row.messages, row.clients, options.seconds)
                )
            except load.WrongAnswerError as error:
                row.status, row.reason = "wrong", str(error)
                continue
            row.rounds.append(result)
            _say(
                f"round {turn + 1} of {options.rounds}, {i + 1} of {len(good)}: {row.workload} "
                f"{row.form}, {row.clients} clients, {row.contender}: "
                f"{result['requests_per_second']:.1f} a second"
            )
    return {name: median(times) for name, times in bare.items()}


def _bare(session: Any, asked: Sequence[Question]) -> float:
    """Median milliseconds of a call, in this process."""
    times = []
    for i in range(_BARE_CALLS):
        inputs = dict(asked[i % len(asked)].inputs)
        begin = time.perf_counter()
        session.run(None, inputs)
        times.append(time.perf_counter() - begin)
    return 1e3 * median(times)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
