"""Luong's predictive local alignment (local-p) against the global one, which take turns; float32.

The position network is part of the call. PyTorch has no such function: its contender is the full
matrix, masked outside of the windows and multiplied by the Gaussians.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.harness import Build, Case, Run
from tests.naive_luong import naive_luong

TOLERANCE = 2e-5
# A position of some thousands is rounded by 5e-4 in float32, and the Gaussian falls by up to 0.12
# times that: the answer moves by a few 1e-4, whoever computes it.
POSITION_TOLERANCE = 1e-3
HALF_WIDTH = 10
POSITION_UNITS = 64
CHUNK = 256  # rows of the exact answer at a time


@dataclass(frozen=True)
class Problem:
    """Sizes of one call; keys and values have the size of the queries, B is 1."""

    rows: int
    keys: int
    depth: int
    score: str = "dot"
    align: str = "global"

    @property
    def name(self) -> str:
        """The score and the sizes in the order T, S, D, behind them the alignment if local."""
        local = "" if self.align == "global" else f"/{self.align} {HALF_WIDTH}"
        return f"luong/{self.score} {self.rows},{self.keys},{self.depth}{local}"


PROBLEMS = (
    Problem(8192, 8192, 64),
    Problem(8192, 8192, 128),
    Problem(8192, 8192, 256),
    Problem(1, 8192, 256),
    Problem(2048, 8192, 64, "concat"),
)


def operations(problem: Problem) -> float:
    """Both products, or a tanh for each unit, of the pairs that the alignment looks at."""
    seen = problem.keys if problem.align == "global" else 2 * HALF_WIDTH + 1
    each = 1 if problem.score == "concat" else 4
    return float(each) * problem.rows * seen * problem.depth


def cases(threads: int) -> Iterator[Case]:
    """The two alignments of each problem as neighbours."""
    for plain in PROBLEMS:
        for problem in (plain, replace(plain, align="local-p")):
            contenders: dict[str, Build] = {"pyattn": partial(_pyattn, problem, threads)}
            if problem.score == "dot" and problem.align == "local-p":
                contenders["torch"] = partial(_torch, problem, threads)
            yield Case(
                name=problem.name,
                operations=operations(problem),
                unit="tanh" if problem.score == "concat" else "FLOP",
                exact=partial(_exact, problem),
                contenders=contenders,
                tolerance=TOLERANCE if problem.align == "global" else POSITION_TOLERANCE,
                group=plain.name,
            )


@cache
def _arrays(problem: Problem) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(problem.keys + problem.depth)
    depth = problem.depth
    shapes = {
        "query": (1, problem.rows, depth),
        "key": (1, problem.keys, depth),
        "value": (1, problem.keys, depth),
        "position_weight": (POSITION_UNITS, depth),
        "position_v": (POSITION_UNITS,),
    }
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    scale = np.float32(depth**-0.25 if problem.score == "dot" else 1.0)
    arrays["query"], arrays["key"] = arrays["query"] * scale, arrays["key"] * scale
    arrays["position_weight"] *= np.float32(depth**-0.5)
    arrays["position_v"] *= np.float32(0.5)
    _keep_off_edges(arrays, problem, rng)
    if problem.score == "concat":
        arrays["weight"] = rng.standard_normal((depth, 2 * depth), np.float32)
        arrays["weight"] *= np.float32((2 * depth) ** -0.5)
        arrays["v"] = rng.standard_normal(depth, np.float32) * np.float32(depth**-0.5)
    return arrays


def _keep_off_edges(
    arrays: dict[str, NDArray[np.float32]], problem: Problem, rng: np.random.Generator
) -> None:
    """Draw queries again whose position, rounded otherwise, has another window."""
    query, weight = arrays["query"][0], arrays["position_weight"].astype(np.float64)
    while True:
        hidden = np.tanh(query.astype(np.float64) @ weight.T) @ arrays["position_v"]
        position = problem.keys / (1 + np.exp(-hidden))
        bad = np.abs(position - np.round(position)) < 0.02
        if not bad.any():
            return
        query[bad] = rng.permuted(query[bad], axis=1)


def _options(problem: Problem) -> dict[str, Any]:
    """The arrays and options of a call with this score and alignment."""
    arrays: dict[str, Any] = dict(_arrays(replace(problem, align="global")))
    if problem.align == "global":
        del arrays["position_weight"], arrays["position_v"]
        return arrays | {"score": problem.score}
    return arrays | {"score": problem.score, "align": "local-p", "half_width": HALF_WIDTH}


def _exact(problem: Problem) -> NDArray[Any]:
    """The float64 answer, some rows at a time."""
    options = _options(problem)
    wide: dict[str, Any] = {
        name: x.astype(np.float64) if isinstance(x, np.ndarray) else x
        for name, x in options.items()
    }
    query = wide.pop("query")
    rows = CHUNK if problem.score == "dot" else 8
    parts = [
        naive_luong(query[:, first : first + rows], **wide)["out"]
        for first in range(0, problem.rows, rows)
    ]
    return np.concatenate(parts, axis=1)


def _pyattn(problem: Problem, threads: int) -> Run:
    return partial(peers.pyattn(threads).luong_attention, **_options(problem))


def _torch(problem: Problem, threads: int) -> Run:
    torch = peers.torch(threads)
    arrays = _arrays(replace(problem, align="global"))
    x = {name: torch.from_numpy(array) for name, array in arrays.items()}
    column = torch.arange(problem.keys, dtype=torch.float32)

    def attend() -> Any:
        hidden = torch.tanh(x["query"] @ x["position_weight"].T) @ x["position_v"]
        away = column - (problem.keys * torch.sigmoid(hidden))[..., None]
        scores = x["query"] @ x["key"].mT
        scores = scores.masked_fill(away.abs() > HALF_WIDTH, -torch.inf)
        gaussian = torch.exp(away**2 * (-2 / HALF_WIDTH**2))
        return (torch.softmax(scores, -1) * gaussian) @ x["value"]

    return peers.torch_run(threads, attend)
