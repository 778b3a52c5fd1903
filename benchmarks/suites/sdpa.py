"""Scaled dot-product attention, forward, float32: prefill, and decoding against a long cache."""

from collections.abc import Iterator

from benchmarks import attention_peers, limits
from benchmarks.attention import Problem
from benchmarks.harness import Case

PREFILL = (
    Problem(8, 12, 12, 128, 128, 64),
    Problem(1, 12, 12, 512, 512, 64),
    Problem(8, 12, 12, 197, 197, 64),
    Problem(1, 8, 8, 4096, 4096, 64),
    Problem(1, 8, 8, 4096, 4096, 64, causal=True),
    Problem(1, 32, 8, 2048, 2048, 128, causal=True),
)
DECODE = (
    Problem(1, 32, 8, 1, 4096, 128, decode=True),
    Problem(8, 32, 8, 1, 4096, 128, decode=True),
)


def cases(threads: int) -> Iterator[Case]:
    """One case per shape, with normally distributed inputs."""
    for problem in PREFILL:
        yield attention_peers.case("sdpa", problem, threads, limit=limits.FLOAT32)
    for problem in DECODE:
        yield attention_peers.case("sdpa", problem, threads, limit=limits.READ)
