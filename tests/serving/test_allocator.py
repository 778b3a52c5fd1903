"""The memory of requests is used again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

# The pages that blocks of 1 MiB need anew, in the main thread and in another.
CODE = """
import resource, threading
import numpy as np
from pyattn_serving.allocator import keep_freed_memory

def count():
    for repetition in range(60):
        if repetition == 20:
            start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [np.ones(1 << 20, np.uint8) for _ in range(4)]
        del blocks
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)

print(int(keep_freed_memory()))
count()
thread = threading.Thread(target=count)
thread.start()
thread.join()
"""


def run(**more):
    known = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    known.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**known, **more},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in done.stdout.split()]


def test_no_new_pages():
    kept, *faults = run()
    assert kept
    assert max(faults) < 500  # of 40 960


def test_the_environment_goes_first():
    assert run(MALLOC_ARENA_MAX="4")[0] == 0
    assert run(GLIBC_TUNABLES="glibc.malloc.arena_max=4")[0] == 0
