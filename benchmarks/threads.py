"""What holds libraries to a number of threads; imports nothing that starts any."""

import os
from pathlib import Path

# Read once, when a library is loaded; torch, ONNX Runtime and OpenVINO are told in the process.
# XLA's pool has no other setting: NPROC in older releases, PJRT_NPROC in newer ones.
VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC", "PJRT_NPROC",
)  # fmt: skip
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def hold(threads: int) -> None:
    """Set the variables, and bind the process to as many CPUs, each a core of its own if possible.

    Bound, a library that counts its threads differently (JAX computes in the calling thread and in
    those of its pool) cannot use more processors than the others.
    """
    os.environ.update(dict.fromkeys(VARIABLES, str(threads)))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, choose(sorted(os.sched_getaffinity(0)), threads, SIBLINGS))


def choose(cpus: list[int], count: int, siblings: str) -> set[int]:
    """`count` of the CPUs, the first of every core before the second of any."""
    seen: dict[str, int] = {}
    turns: list[tuple[int, int]] = []
    for cpu in cpus:
        path = Path(siblings.format(cpu))
        core = path.read_text(encoding="utf-8") if path.exists() else str(cpu)
        turns.append((seen.setdefault(core, 0), cpu))
        seen[core] += 1
    return {cpu for _, cpu in sorted(turns)[:count]}
