"""What a figure depends on: the machine, the versions, the commit, and the machine's limits."""

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers

LIBRARIES = (
    "pyattn", "numpy", "torch", "transformers", "onnx", "onnxruntime", "onnxscript", "tokenizers",
)  # fmt: skip
ISA_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "asimdhp", "bf16", "sve",
)  # fmt: skip
MATMUL_SIZE = 2048
READ_BYTES = 256 * 2**20


def describe(threads: int) -> dict[str, Any]:
    """Machine, versions, commit and limits, as kept at the head of a results file."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "threads": threads,
        "machine": {
            "cpu": _cpu_field("model name") or platform.processor() or "unknown",
            "architecture": platform.machine(),
            "isa": _isa(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "limits": limits(threads),
    }


def _cpu_field(name: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def _isa() -> list[str]:
    present = set((_cpu_field("flags") or _cpu_field("Features")).split())
    return [flag for flag in ISA_FLAGS if flag in present]


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The commit of the working tree, with "+" after it if files under version control differ."""
    root = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if changed else "")


def limits(threads: int) -> dict[str, Any]:
    """Best rates of this machine now: float32 matrix product by library, and reading memory."""
    return {
        "matmul_float32_flops": matmul_rates(threads),
        "read_bytes_per_second": read_rate(threads),
    }


def best_limits(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The better of two measurements, rate by rate: a busy machine only ever lowers them."""
    ours, theirs = first["matmul_float32_flops"], second["matmul_float32_flops"]
    return {
        "matmul_float32_flops": {name: max(rate, theirs[name]) for name, rate in ours.items()},
        "read_bytes_per_second": max(
            first["read_bytes_per_second"], second["read_bytes_per_second"]
        ),
    }


def matmul_rates(threads: int) -> dict[str, float]:
    """Operations per second of a 2048 x 2048 x 2048 product in every library installed.

    No single library is the limit: on some processors NumPy's OpenBLAS reaches little more than
    half of what ONNX Runtime does. NumPy's threads are those of its BLAS, which reads
    OMP_NUM_THREADS when it is loaded.
    """
    size = MATMUL_SIZE
    a = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    calls: dict[str, Callable[[], object]] = {"numpy": partial(np.matmul, a, a, np.empty_like(a))}
    with suppress(ImportError):
        tensor = peers.torch(threads).from_numpy(a)
        calls["torch"] = partial(tensor.matmul, tensor)
    with suppress(ImportError):
        node = import_module("onnx.helper").make_node("MatMul", ["a", "b"], ["c"])
        feeds: peers.Feeds = {"a": a, "b": a.copy()}
        model = peers.onnx_model([node], feeds, "c", {})
        calls["onnxruntime"] = peers.onnx_run(threads, model, feeds, a.shape)
    return {name: 2.0 * size**3 / _best(call) for name, call in calls.items()}


def read_rate(threads: int) -> float:
    """Bytes per second of reading 256 MiB, each thread taking the inner product of its part."""
    parts = np.array_split(np.ones(READ_BYTES // 4, dtype=np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return READ_BYTES / _best(lambda: [*pool.map(np.dot, parts, parts)])


def _best(call: Callable[[], object], runs: int = 8) -> float:
    call()
    times: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
