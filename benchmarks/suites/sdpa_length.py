"""Causal attention over the length of the sequence, for the plot."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks import attention_peers, limits
from benchmarks.attention import Problem
from benchmarks.harness import Case

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
SHAPE = Problem(1, 8, 8, 128, 128, 64, causal=True)


def cases(threads: int) -> Iterator[Case]:
    """Each length in float32, then in the narrow dtypes."""
    for dtype, limit in (("float32", limits.FLOAT32), ("bfloat16", limits.BFLOAT16)):
        for length in LENGTHS:
            problem = replace(SHAPE, rows=length, size=length, dtype=dtype)
            yield attention_peers.case(f"sdpa-length/{dtype}", problem, threads, limit=limit)
