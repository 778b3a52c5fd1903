"""A sliding window against the full computation, which take turns."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from benchmarks import attention_peers, limits
from benchmarks.attention import Problem
from benchmarks.harness import Build, Case

WINDOW = 256
FULL = Problem(1, 2, 2, 16384, 16384, 64)
CAUSAL = replace(FULL, causal=True)


def cases(threads: int) -> Iterator[Case]:
    """Full and windowed to both sides; causal and windowed to the left."""
    pairs = (
        (FULL, replace(FULL, window=(WINDOW, WINDOW))),
        (CAUSAL, replace(CAUSAL, window=(WINDOW, 0))),
    )
    for pair in pairs:
        for problem in pair:
            contenders: dict[str, Build] = {
                "pyattn": partial(attention_peers.pyattn, problem, threads)
            }
            if problem.causal and problem.window is not None:
                contenders["onnxruntime GroupQueryAttention"] = partial(
                    attention_peers.onnx_grouped, problem, threads, "float32"
                )
            yield attention_peers.case(
                "sdpa-window",
                problem,
                threads,
                limit=limits.FLOAT32,
                contenders=contenders,
                group=f"sdpa-window/{pair[0].name}",
            )
