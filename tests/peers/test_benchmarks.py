"""Every contender of the benchmarks is right on a small problem, so that it would be timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from benchmarks import attention, attention_peers, harness, limits, plot
from benchmarks.attention import Problem
from benchmarks.suites import luong, sdpa_backward

FEW = harness.Effort(repeat=2, fewest=2, contender_seconds=0.01, warm_up_seconds=0.0)
PREFILL = Problem(2, 4, 4, 192, 192, 32)
GROUPED = replace(PREFILL, groups=2, causal=True)
DECODE = Problem(2, 4, 2, 1, 192, 32, decode=True)
PROBLEMS = [
    PREFILL,
    GROUPED,
    DECODE,
    replace(PREFILL, mask="blocks"),
    replace(PREFILL, mask="padding"),
    replace(GROUPED, window=(20, 0)),
]
# What each library rules out by itself; everything else has to be right.
ABSENT = {
    "onnxruntime MultiHeadAttention": lambda p: p.groups != p.heads or p.mask,
    "onnxruntime GroupQueryAttention": lambda p: p.mask or not (p.causal or p.decode),
    "onnxruntime Attention": lambda p: p.window,
    "torch": lambda p: p.window,
    "openvino": lambda p: p.window,
    "numpy": lambda p: p.window,
}


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """JAX believes it is held to two threads; a cache is copied twice."""
    monkeypatch.setenv("PJRT_NPROC", "2")
    monkeypatch.setattr(attention, "COLD_BYTES", 2**18)
    attention._inputs.cache_clear()
    yield
    attention._inputs.cache_clear()


def outcome(row: harness.Row) -> tuple[str, str]:
    return row.contender, row.status


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_contenders_are_right(problem: Problem, dtype: str) -> None:
    problem = replace(problem, dtype=dtype)
    contenders = attention_peers.contenders_of(problem, 2)
    del contenders["pyattn"]  # has tests of its own
    case = attention_peers.case("test", problem, 2, limit=None, contenders=contenders)
    rows = list(harness.run([case], FEW))
    for row in rows:
        name = row.contender.removesuffix(" bfloat16").removesuffix(" float16")
        rules_out = ABSENT.get(name.removesuffix(" heads as rows"), lambda _: False)(problem)
        expected = "absent" if rules_out else "ok"
        assert row.status == expected, f"{row.contender}: {row.status} {row.reason}"
    libraries = {row.contender.split()[0] for row in rows}
    assert libraries >= {"torch", "onnxruntime", "openvino", "jax"}


def test_gradients_are_right() -> None:
    problem = Problem(1, 2, 2, 64, 64, 16, causal=True)
    given = np.random.default_rng(0).standard_normal(problem.query_shape, np.float32)
    exact = attention.exact_gradients(problem, given)
    for build in (sdpa_backward._pyattn, sdpa_backward._torch, sdpa_backward._jax):
        found = build(problem, lambda: given, 2).answer()
        assert np.abs(found - exact).max() < 1e-5, build.__name__


def test_luong_s_contenders_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    small = luong.Problem(40, 60, 16), luong.Problem(1, 60, 16), luong.Problem(20, 60, 16, "concat")
    monkeypatch.setattr(luong, "PROBLEMS", small)
    rows = list(harness.run(luong.cases(2), FEW))
    assert [row.status for row in rows] == ["ok"] * len(rows)
    assert len(rows) == 2 * len(small) + 2


def test_limits_of_every_kind_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "READ_BYTES", 2**20)
    monkeypatch.setattr(limits, "MATMUL_SIZE", 64)
    built = limits.build(2)
    for limit in built:
        limit.run()
    assert {(limit.kind, limit.source) for limit in built} >= {
        (limits.FLOAT32, "numpy"),
        (limits.FLOAT32, "torch"),
        (limits.FLOAT32, "onnxruntime"),
        (limits.BFLOAT16, "torch"),
        (limits.READ, "numpy or"),
    }


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "case": f"sdpa-length/float32/1,8,8,{length},{length},64/causal",
            "contender": name,
            "median": 1e-3,
            "operations": speed * 1e6,
            "bytes_read": None,
        }
        for name, speed in (("pyattn", 200.0), ("torch", 100.0), ("jax", 101.0))
        for length in (128, 256)
    ]
    results: dict[str, Any] = {
        "rows": rows, "threads": 2, "machine": {"cpu": "CPU"},
        "limits": {limits.FLOAT32: {"numpy": 250e9}},
    }  # fmt: skip
    assert plot.curves(results, "float32")["torch"] == [(128, 100.0), (256, 100.0)]
    assert plot.write(tmp_path / "speed.png", results)
    picture = matplotlib.image.imread(tmp_path / "speed.png")
    assert min(picture.shape[:2]) > 500
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10
    assert not plot.write(tmp_path / "none.png", {**results, "rows": []})
