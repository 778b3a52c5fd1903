"""Whether the processors are there: a virtual machine may not always have them all.

A host may run two processors of a virtual machine on the two threads of one core, above all just
after they were idle, until it has spread them. Each then does vector arithmetic at half the speed
while the other one does too, which would pass for a library that does not scale. So before a sample
the harness keeps as many threads busy as are measured until their speed-up is what it should be, or
its patience ends. Every contender and every limit begins like this.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

NUMBERS = 1 << 15
CALLS = 40
ENOUGH = 0.85  # of a speed-up by the number of threads
IN_A_ROW = 3


def _work() -> float:
    """Seconds for some vector arithmetic on one thread; NumPy holds no lock while it calculates."""
    numbers = np.linspace(-1.0, 1.0, NUMBERS, dtype=np.float32)
    result = np.empty_like(numbers)
    np.exp(numbers, out=result)
    start = time.perf_counter()
    for _ in range(CALLS):
        np.exp(numbers, out=result)
    return time.perf_counter() - start


@dataclass
class Cores:
    """Waits until each of `threads` threads is as fast as one alone, or its patience is used up."""

    threads: int
    sample_patience: float = 0.1
    run_patience: float = 240.0
    waited: float = field(default=0.0, init=False)
    _alone: float = field(default=np.inf, init=False)
    _pool: ThreadPoolExecutor | None = field(default=None, init=False)

    def speed_up(self) -> float:
        """The speed-up of the threads over one of them."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads)
        self._alone = min(self._alone, _work())
        slowest = max(self._pool.map(lambda _: _work(), range(self.threads)))
        return self.threads * self._alone / slowest

    def wait(self) -> bool:
        """Whether the threads have cores of their own, at once or after waiting for it."""
        if self.threads < 2:
            return True
        start = time.perf_counter()
        patience = min(self.sample_patience, self.run_patience - self.waited)
        good = 0
        while good < IN_A_ROW and time.perf_counter() - start < patience:
            good = good + 1 if self.speed_up() >= ENOUGH * self.threads else 0
        self.waited += time.perf_counter() - start
        return good == IN_A_ROW
