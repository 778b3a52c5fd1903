"""The load and the reports of ``benchmarks.serving``: a wrong answer must not pass."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from pyattn_serving.bench.client import Address

from benchmarks.serving import load, report, soak
from benchmarks.serving.contenders import PROTOCOL
from benchmarks.serving.mix import SHARES, Failure, Mix, Question

from . import models
from .process import ServerProcess


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = models.save(models.table_sum(), tmp_path_factory.mktemp("mix") / "m.onnx")
    with ServerProcess(path, "--log-level", "error") as server:
        yield server


def question(generator):
    ids = generator.integers(0, 10, (int(generator.integers(1, 4)), int(generator.integers(1, 50))))
    squares = ids**2
    total = squares.sum(axis=1)
    outputs = {"tokens": squares + total[:, None], "total": total}
    return Question({"ids": ids, "mask": np.ones_like(ids)}, outputs)


def mix(server, good):
    beyond = np.full((1, 3), 99)
    wrong = Question({"ids": beyond, "mask": np.ones_like(beyond)}, None)
    return Mix(address=Address("127.0.0.1", server.port), model="m", good=good, wrong=[wrong])


def send(mix, requests):
    left = iter(range(requests))
    asyncio.run(mix.run(4, lambda: next(left, None) is not None))
    return mix


def test_every_kind_is_sent_and_right_answers_pass(server):
    generator = np.random.default_rng(0)
    sent = send(mix(server, [question(generator) for _ in range(20)]), 600)
    assert (sent.failures, sent.failed) == ([], 0)
    assert sent.counts.total() == 600
    assert set(sent.counts) == set(SHARES)


def test_wrong_answers_fail(server):
    """Every question expects one more than the model answers."""
    right = question(np.random.default_rng(1))
    other = replace(right, outputs={**right.outputs, "total": right.outputs["total"] + 1})
    sent = send(mix(server, [other]), 100)
    assert sent.failed == sent.counts["json"] + sent.counts["binary"] > 0
    assert {failure.what for failure in sent.failures} == {"wrong answer: total"}


@pytest.mark.parametrize("form", PROTOCOL.values(), ids=PROTOCOL)
def test_a_contender_is_checked_before_it_is_measured(server, form):
    right = question(np.random.default_rng(2))
    address = Address("127.0.0.1", server.port)
    asyncio.run(load.check(address, "m", form, [right]))
    other = replace(right, outputs={"total": right.outputs["total"] + 1})
    with pytest.raises(load.WrongAnswerError, match="total differ"):
        asyncio.run(load.check(address, "m", form, [other]))
    with pytest.raises(load.WrongAnswerError, match="status 404"):
        asyncio.run(load.check(address, "none", form, [right]))


def test_growth_compares_the_last_third_with_the_first_after_the_warm_up():
    seconds = [float(i) for i in range(1, 61)]
    assert soak.growth(seconds, [5] * 9 + [100] * 51) == 1.0
    assert soak.growth(seconds, [100] * 40 + [106] * 20) == pytest.approx(1.06)
    assert soak.growth([], []) is None


def test_failures_while_nobody_ran_are_told_apart():
    course = soak.Course(stopped=[(10.0, 30.0)])
    assert soak._interrupted(Failure("json", "closed", 9.0, 31.0), course)
    assert soak._interrupted(Failure("json", "closed", 31.0, 31.1), course)
    assert not soak._interrupted(Failure("json", "closed", 36.0, 37.0), course)


def test_the_table_has_our_multiple_of_the_best():
    def row(contender, rate, status="ok"):
        figures = {"requests_per_second": rate, "p50_ms": 1.5, "p99_ms": 2.0}
        return {
            **{"case": "small/json/1", "workload": "small", "form": "json", "clients": 1},
            **{"contender": contender, "status": status},
            **({"rounds": [figures], **figures} if status == "ok" else {"rounds": []}),
        }

    rows = [row("pyattn-serve", 300.0), row("MLServer", 100.0), row("LitServe", 60.0)]
    rows += [row("Triton", 200.0), row("BentoML", 0.0, "absent")]
    results = {
        **{"machine": {"cpu": "x", "load_average": 0.0}, "threads": 2, "commit": "c", "date": "d"},
        **{"options": {"cores": 2, "rounds": 1, "seconds": 1.0}, "servers": {}, "rows": rows},
        "bare": {"small": 1.0},
    }
    text = report.table(results)
    assert "| small | json | 1 | 3.00 | 1.50 | 0.500 |" in text
    assert "| small | json | 1 | LitServe | 60.0 | 1.50 | 2.00 | 5.00 |" in text
    assert "| small | json | 1 | BentoML | absent | | | |" in text
