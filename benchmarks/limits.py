"""What the machine can do at most, measured in turn with the contenders that it limits.

A limit is sampled in the same rounds as the case it belongs to, so that a machine that slows down
for a while slows both. No single library is the limit: on some processors NumPy's OpenBLAS reaches
little more than half of what ONNX Runtime does, so each library installed is tried.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks import peers

FLOAT32 = "matmul_float32_flops"
BFLOAT16 = "matmul_bfloat16_flops"
READ = "read_bytes_per_second"

MATMUL_SIZE = 2048
READ_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Limit:
    """One way to reach a limit: each call of `run` does `work` operations, or reads that much."""

    kind: str
    source: str
    work: float
    run: Callable[[], Any]


def build(threads: int) -> list[Limit]:
    """Every limit that the libraries of this environment can measure."""
    work = 2.0 * MATMUL_SIZE**3
    products = [(FLOAT32, _products(threads)), (BFLOAT16, _narrow_products(threads))]
    found = [Limit(kind, name, work, run) for kind, runs in products for name, run in runs]
    return found + [Limit(READ, name, float(READ_BYTES), run) for name, run in _reads(threads)]


Named = Iterator[tuple[str, Callable[[], Any]]]


def _products(threads: int) -> Named:
    """Matrix products in float32; NumPy's threads are those of its BLAS (OMP_NUM_THREADS)."""
    size = MATMUL_SIZE
    a = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    yield "numpy", partial(np.matmul, a, a, np.empty_like(a))
    with suppress(ImportError):
        tensor = peers.torch(threads).from_numpy(a)
        yield "torch", partial(tensor.matmul, tensor)
    with suppress(ImportError):
        node = import_module("onnx.helper").make_node("MatMul", ["a", "b"], ["c"])
        feeds: peers.Feeds = {"a": a, "b": a.copy()}
        model = peers.onnx_model([node], feeds, "c", {})
        yield "onnxruntime", peers.onnx_run(threads, model, feeds, a.shape)


def _narrow_products(threads: int) -> Named:
    """Matrix products in bfloat16 by oneDNN, which uses the instructions that the CPU has."""
    with suppress(ImportError):
        torch = peers.torch(threads)
        tensor = torch.randn(MATMUL_SIZE, MATMUL_SIZE).to(torch.bfloat16)
        yield "torch", partial(tensor.matmul, tensor)


def _reads(threads: int) -> Named:
    """Reductions over far more than the caches hold, with next to no work for each word.

    Each thread reduces a part of its own, and NumPy lets go of the interpreter meanwhile.
    """
    array = np.ones(READ_BYTES // 4, dtype=np.float32)
    parts = np.array_split(array, threads)
    words = np.array_split(array.view(np.int64), threads)
    pool = ThreadPoolExecutor(threads)
    yield "numpy or", lambda: [*pool.map(np.bitwise_or.reduce, words)]
    yield "numpy dot", lambda: [*pool.map(np.dot, parts, parts)]
    with suppress(ImportError):
        yield "torch max", peers.torch(threads).from_numpy(array).max


def medians(samples: Iterable[tuple[str | None, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The median rate of the whole run by kind and library, from those of its rows."""
    gathered: dict[str, dict[str, list[float]]] = {}
    for kind, rates in samples:
        for source, rate in rates.items():
            gathered.setdefault(kind or "", {}).setdefault(source, []).append(rate)
    return {
        kind: {source: float(np.median(rates)) for source, rates in by_source.items()}
        for kind, by_source in gathered.items()
    }
