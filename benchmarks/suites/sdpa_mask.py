"""Boolean masks against no mask, which take turns; operations count allowed pairs only."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks import attention_peers, limits
from benchmarks.attention import Problem
from benchmarks.harness import Case

BLOCKS = Problem(1, 8, 8, 4096, 4096, 64)
PADDED = Problem(8, 12, 12, 512, 512, 64)


def cases(threads: int) -> Iterator[Case]:
    """Random blocks of 64 x 64, half of them allowed; keys missing at the end of sequences."""
    for plain, mask in ((BLOCKS, "blocks"), (PADDED, "padding")):
        for problem in (plain, replace(plain, mask=mask)):
            yield attention_peers.case(
                "sdpa-mask",
                problem,
                threads,
                limit=limits.FLOAT32,
                group=f"sdpa-mask/{mask}",
            )
