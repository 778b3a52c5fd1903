"""The benchmarks' own arithmetic: exact answers, counts, shares, and what the harness lets pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyattn
from benchmarks import attention, attention_peers, harness, limits, plot, report, targets, threads
from benchmarks.__main__ import SUITES
from benchmarks.attention import Problem
from benchmarks.cores import Cores
from tests import reference

ROOT = Path(__file__).parent.parent
FEW = harness.Effort(repeat=2, fewest=2, contender_seconds=0.01, warm_up_seconds=0.0)
SMALL = Problem(2, 4, 2, 192, 192, 8)
PROBLEMS = [
    SMALL,
    replace(SMALL, causal=True),
    replace(SMALL, window=(5, 3)),
    replace(SMALL, causal=True, window=(70, 0)),
    replace(SMALL, mask="blocks"),
    replace(SMALL, mask="padding", causal=True),
    Problem(2, 4, 2, 1, 160, 8, decode=True),
]


def allowed(problem: Problem) -> Any:
    """The pairs that a problem allows, (B, T, S), from its description and not from its code."""
    i, j = np.arange(problem.rows)[:, None], np.arange(problem.size)
    seen = np.ones((problem.batch, problem.rows, problem.size), dtype=bool)
    if problem.causal:
        seen &= j <= i
    if problem.window is not None:
        seen &= (i - problem.window[0] <= j) & (j <= i + problem.window[1])
    mask = attention.mask_of(problem)
    return seen if mask is None else seen & (mask if mask.ndim == 2 else mask[:, 0])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in blocks, and copies of a cache, as in problems that are too large for a test."""
    monkeypatch.setattr(attention, "EXACT_ROWS", 50)
    monkeypatch.setattr(attention, "COLD_BYTES", 2**17)
    attention.operations.cache_clear()
    attention._inputs.cache_clear()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_exact_answers_are_those_of_the_oracle(problem: Problem) -> None:
    query, key, value = attention.inputs(problem)[0]
    oracle = reference.sdpa(query, key, value, mask=allowed(problem)[:, None])
    np.testing.assert_allclose(attention.exact(problem), oracle.out, atol=1e-13)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_operations_count_the_pairs_allowed(problem: Problem) -> None:
    pairs = problem.heads * allowed(problem).sum()
    assert attention.operations(problem) == 4 * problem.depth * pairs


@pytest.mark.usefixtures("small_blocks")
def test_exact_gradients_are_those_of_differences(rng: np.random.Generator) -> None:
    problem = replace(SMALL, causal=True, rows=60, size=60)
    given = rng.standard_normal(problem.query_shape)
    arrays = [x.astype(np.float64) for x in attention.inputs(problem)[0]]

    def loss(*moved: Any) -> Any:
        out = pyattn.scaled_dot_product_attention(*moved, is_causal=True)
        return pyattn.ops.sum(out * given), out

    both = pyattn.value_and_grad(loss, (0, 1, 2), has_aux=True)
    (_, out), gradients = both(*arrays)
    expected = np.concatenate([x.ravel() for x in (out, *gradients)])
    np.testing.assert_allclose(attention.exact_gradients(problem, given), expected, atol=1e-11)


@pytest.mark.usefixtures("small_blocks")
def test_a_cache_is_copied_until_it_exceeds_the_caches() -> None:
    copies = attention.inputs(PROBLEMS[-1])
    keys = {array.__array_interface__["data"][0] for _, *shared in copies for array in shared}
    assert len(keys) == 2 * len(copies)
    assert len(copies) * PROBLEMS[-1].key_bytes >= attention.COLD_BYTES
    assert all(np.array_equal(x, y) for x, y in zip(copies[0], copies[-1], strict=True))


def test_half_of_the_blocks_are_allowed_and_no_row_is_empty() -> None:
    mask = attention.mask_of(replace(SMALL, rows=512, size=512, mask="blocks"))
    assert mask is not None
    assert (mask.sum(axis=1) == 256).all()
    assert len(np.unique(mask, axis=0)) > 1


@pytest.mark.parametrize("problem", PROBLEMS[:2] + PROBLEMS[4:], ids=lambda p: p.name)
def test_pyattn_and_numpy_are_right(problem: Problem) -> None:
    rows = run_case(problem, ("pyattn", "numpy"))
    assert [row.status for row in rows] == ["ok", "ok"]


def run_case(problem: Problem, names: tuple[str, ...]) -> list[harness.Row]:
    built = attention_peers.contenders_of(problem, 2)
    case = attention_peers.case(
        "test", problem, 2, limit=None, contenders={name: built[name] for name in names}
    )
    return list(harness.run([case], FEW))


def a_case(name: str, contenders: dict[str, Any], **options: Any) -> harness.Case:
    return harness.Case(name, 8.0, "FLOP", lambda: np.ones(3), contenders, 0.01, **options)


def missing() -> harness.Run:
    raise harness.UnavailableError("no such dtype (/some/file)")


def broken() -> harness.Run:
    raise RuntimeError("first line\nsecond line")


def test_the_harness_times_only_right_answers() -> None:
    contenders = {
        "right": lambda: lambda: np.ones(3),
        "near": lambda: harness.Prepared(lambda: [1.0, 1.005, 1.0], np.array),
        "wrong": lambda: lambda: np.full(3, 1.02),
        "nan": lambda: lambda: np.array([1.0, np.nan, 1.0]),
        "shape": lambda: lambda: np.ones(1),
        "absent": missing,
        "failed": broken,
    }
    rows = {row.contender: row for row in harness.run([a_case("a", contenders)], FEW)}
    assert {name for name, row in rows.items() if row.status == "ok"} == {"right", "near"}
    assert all((row.median is not None) == (row.status == "ok") for row in rows.values())
    assert rows["wrong"].status == rows["nan"].status == rows["shape"].status == "wrong"
    assert (rows["absent"].status, rows["absent"].reason) == ("absent", "no such dtype")
    assert (rows["failed"].status, rows["failed"].reason) == ("failed", "RuntimeError: first line")
    json.dumps([row.as_json() for row in rows.values()], allow_nan=False)


def test_an_answer_that_changes_while_it_is_timed_is_wrong() -> None:
    calls = iter(range(10**9))
    drifting = {"drifting": lambda: lambda: np.full(3, 1.0 + (next(calls) > 0))}
    (row,) = harness.run([a_case("a", drifting)], FEW)
    assert (row.status, row.median) == ("wrong", None)


def test_the_tolerance_grows_with_the_answer() -> None:
    contenders = {"off": lambda: lambda: np.full(3, 1.02)}
    (row,) = harness.run([a_case("a", contenders, relative=0.02)], FEW)
    assert row.status == "ok"
    assert row.tolerance == pytest.approx(0.03)


def test_groups_and_limits_take_turns() -> None:
    turns: list[str] = []

    def contender(name: str) -> Any:
        def run() -> Any:
            turns.append(name)
            return np.ones(3)

        return {name: lambda: run}

    cases = [a_case(n, contender(n), limit="x", group="g") for n in ("first", "second")]
    limit = limits.Limit("x", "library", 100.0, lambda: turns.append("limit"))
    other = limits.Limit("y", "library", 100.0, lambda: turns.append("other"))
    rows = list(harness.run(cases, FEW, limits=[limit, other]))
    order = [name for i, name in enumerate(turns) if i == 0 or turns[i - 1] != name]
    assert order[-5:-2] == ["first", "second", "limit"]
    assert "other" not in turns
    assert [list(row.limit_rates) for row in rows] == [["library"], ["library"]]


def test_a_case_that_takes_too_long_keeps_the_fewest_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contenders = {"quick": lambda: lambda: np.ones(3)}
    effort = replace(FEW, repeat=9, fewest=3, contender_seconds=1.0)
    (row,) = harness.run([a_case("a", contenders)], effort)
    monkeypatch.setattr(harness, "PATIENCE", 0)
    (late,) = harness.run([a_case("a", contenders)], effort)
    assert (row.samples, late.samples) == (9, 3)


def row(case: str, contender: str, seconds: float, **options: Any) -> dict[str, Any]:
    made = harness.Row(case, contender, "ok", 1e9, "FLOP", None, 1e-5)
    return {
        **made.as_json(), "median": seconds, "quartiles": (seconds, seconds), **options,
    }  # fmt: skip


def results_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"cpu": "CPU", "isa": ["avx2"], "cores": 2, "load_average": 0.0}
    return {
        "date": "2026-01-01", "commit": "abc", "threads": 2, "machine": machine, "rows": rows,
        "versions": {"numpy": "2"}, "limits": {limits.READ: {"numpy": 5e9}},
    }  # fmt: skip


def test_targets_are_ratios_of_medians_and_of_limits() -> None:
    shape, rates = "8,12,12,512,512,64", {"numpy": 2e12, "torch": 4e12}
    decode = {"bytes_read": 1e9, "limit_rates": {"numpy": 2e12}}
    rows = [
        row(f"sdpa/{shape}", "pyattn", 1e-3, limit_rates=rates),
        row(f"sdpa/{shape}", "torch", 3e-3),
        row(f"sdpa/{shape}", "jax", 2e-3),
        row("sdpa/1,32,8,1,4096,128", "pyattn", 1e-3, **decode),
        row("sdpa/1,32,8,1,4096,128", "torch", 4e-3, **decode),
        row("sdpa/1,32,8,1,4096,128", "torch heads as rows", 2e-3, **decode),
        row("sdpa-tiny/1,4,4,16,16,32", "pyattn", 1e-6),
        row("sdpa-tiny/1,4,4,16,16,32", "onnxruntime Attention", 1e-6),
        row("sdpa-tiny/1,4,4,16,16,32", "torch", 5e-6),
        row("sdpa-window/a", "pyattn", 30e-3),
        row("sdpa-window/a/window 256,256", "pyattn", 1e-3),
        row("sdpa-mask/b", "pyattn", 2e-3),
        row("sdpa-mask/b/blocks", "pyattn", 2e-3, operations=5e8),
        row("additive/a", "pyattn", 1e-3),
        row("additive/a", "torch eager", 70e-3),
        row("additive/a", "torch.compile", 13e-3),
        row("additive-backward/a", "pyattn", 1e-3),
        row("additive-backward/a", "torch eager", 16e-3),
        row("luong/dot 9,9,9", "pyattn", 60e-3),
        row("luong/dot 9,9,9/local-p 10", "pyattn", 1e-3),
        row("recurrent/gru-9,9", "pyattn", 1e-3),
        row("recurrent/gru-9,9", "torch", 2e-3),
        row("recurrent/gru-9,9", "onnxruntime", 1e-3),
    ]
    found = {(t.work, t.case): t for t in targets.found(results_of(rows))}
    measured = [round(t.measured, 6) for t in found.values()]
    assert measured == [2.0, 2.0, 0.5, 0.5, 2.0, 5.0, 30.0, 0.5, 13.0, 70.0, 16.0, 60.0, 2.0]
    rate = found["float32 prefill, of the matrix rate", shape]
    assert (rate.wanted, rate.note) == (0.85, "0.25 of the fastest library's")
    cache = found["float32 decode, times the best peer", "1,32,8,1,4096,128"]
    assert cache.note == "torch heads as rows; 4.00 times torch"
    lines = targets.table(results_of(rows)).splitlines()
    assert [line.endswith("| yes |") for line in lines[2:]] == [
        True, True, False, False, False, True, True, False, True, True, True, True, True,
    ]  # fmt: skip


def test_tables_lead_with_the_fastest_and_name_what_is_missing() -> None:
    rows = [
        row("sdpa/a", "pyattn", 2e-3, limit_rates={"numpy": 1e12}),
        row("sdpa/a", "torch", 1e-3),
        {**row("sdpa/a", "jax", 1.0), "status": "absent", "reason": "no jax", "median": None},
    ]
    lines = report.table(results_of(rows)).splitlines()[4:]
    assert [line.split(" | ")[1].strip() for line in lines] == ["torch", "pyattn", "jax"]
    assert "| 500 GFLOP/s | 50 % | 0.50 |" in lines[1]
    assert "absent: no jax" in lines[2]
    assert report.summary(results_of(rows)).endswith("| sdpa/a | 2 | 50 % | torch 0.50 |")


def test_results_are_written_with_their_page(tmp_path: Path) -> None:
    results = results_of([row("additive/a", "pyattn", 2e-3)])
    written = report.write(tmp_path / "run.json", results)
    assert sorted(path.name for path in written) == ["run.json", "run.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "run.md"]
    assert report.table(report.read(written[0]), head=False) in written[1].read_text("utf-8")
    assert report.newest(tmp_path, {"additive"}) == written[0]
    with pytest.raises(FileNotFoundError, match="minilm"):
        report.newest(tmp_path, {"additive", "minilm"})


def test_every_suite_has_a_module_and_every_module_is_a_suite() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks" / "suites").glob("[a-z]*.py")}
    assert modules == {name.replace("-", "_") for name in SUITES}


def test_threads_get_a_core_each_before_they_share_one(tmp_path: Path) -> None:
    for cpu, core in enumerate(("0-1", "0-1", "2-3", "2-3")):
        (tmp_path / f"cpu{cpu}").write_text(core)
    siblings = str(tmp_path / "cpu{}")
    assert threads.choose([0, 1, 2, 3], 2, siblings) == {0, 2}
    assert threads.choose([0, 1, 2, 3], 3, siblings) == {0, 1, 2}
    assert threads.choose([1, 2, 7], 2, siblings) == {1, 2}
    assert threads.choose([5], 2, siblings) == {5}


def test_labels_move_apart_and_no_further() -> None:
    assert plot.spread([1.0, 5.0], 2.0) == [1.0, 5.0]
    assert plot.spread([1.0, 1.0, 9.0], 2.0) == [0.0, 2.0, 9.0]
    moved = plot.spread([0.0, 0.1, 1.0, 1.2, 7.0], 1.0)
    assert np.diff(moved).min() == pytest.approx(1.0)
    assert np.mean(moved[:4]) == pytest.approx(0.575)


def test_cores_waits_for_a_speed_up_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = Cores(2, sample_patience=1e9)
    answers = iter([1.2, 1.9, 0.9, 1.8, 1.9, 2.0, 1.7])
    monkeypatch.setattr(Cores, "speed_up", lambda _: next(answers))
    assert cores.wait()
    assert list(answers) == [1.7]  # it asked until three in a row were enough
    monkeypatch.setattr(Cores, "speed_up", lambda _: 1.2)
    cores = Cores(2, sample_patience=0.01, run_patience=0.03)
    while cores.waited < cores.run_patience:
        assert not cores.wait()
    monkeypatch.delattr(Cores, "speed_up")  # with no patience left, it does not ask
    assert not cores.wait()
    assert Cores(1).wait()


def test_cores_measures_threads_against_one() -> None:
    cores = Cores(2)
    assert min(cores.speed_up() for _ in range(3)) > 0
