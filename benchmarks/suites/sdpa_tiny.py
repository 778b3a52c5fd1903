"""The cost of a call: a problem so small that its arithmetic takes a few microseconds."""

from collections.abc import Iterator

from benchmarks import attention_peers
from benchmarks.attention import Problem
from benchmarks.harness import Case

TINY = Problem(1, 4, 4, 16, 16, 32)


def cases(threads: int) -> Iterator[Case]:
    """One case, in float32."""
    yield attention_peers.case("sdpa-tiny", TINY, threads, limit=None)
