"""The shapes of the suite `sdpa` in bfloat16, against every peer in a dtype that is not wider."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks import attention_peers, limits
from benchmarks.harness import Case
from benchmarks.suites.sdpa import DECODE, PREFILL


def cases(threads: int) -> Iterator[Case]:
    """One case per shape; inputs are rounded to bfloat16 before the exact answer is taken."""
    for problem in (*PREFILL, *DECODE):
        narrow = replace(problem, dtype="bfloat16")
        limit = limits.READ if problem.decode else limits.BFLOAT16
        yield attention_peers.case("sdpa-bf16", narrow, threads, limit=limit)
