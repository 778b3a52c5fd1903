"""Additive (Bahdanau) attention, forward, float32, query and key projected already."""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.harness import Case, Run, UnavailableError
from tests.naive import naive_additive

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of one call; values have the additive size."""

    batch: int
    rows: int
    size: int
    units: int

    @property
    def name(self) -> str:
        """The sizes in the order B, T, S, A."""
        return f"additive/{self.batch},{self.rows},{self.size},{self.units}"


SHAPES = (
    Shape(16, 50, 50, 256),
    Shape(64, 1, 50, 512),
    Shape(1, 512, 512, 128),
    Shape(4, 256, 256, 256),
)


def operations(shape: Shape) -> float:
    """One tanh per batch entry, row, key and unit; the rest is small beside it."""
    return float(shape.batch) * shape.rows * shape.size * shape.units


def cases(threads: int) -> Iterator[Case]:
    """One case per shape; v is drawn so that the scores have about unit variance."""
    for shape in SHAPES:
        arrays = partial(_arrays, shape)
        contenders: dict[str, Callable[[], Run]] = {
            "pyattn": partial(_pyattn, arrays, threads),
            "torch eager": partial(_torch, arrays, threads),
            "torch.compile": partial(_torch_compiled, arrays, threads),
            "onnxruntime": partial(_onnxruntime, arrays, threads),
            "numpy": partial(_numpy, arrays),
        }
        yield Case(
            name=shape.name,
            operations=operations(shape),
            unit="tanh",
            exact=partial(_exact, arrays),
            contenders=contenders,
            tolerance=TOLERANCE,
        )


Arrays = Callable[[], list[NDArray[np.float32]]]


def _arrays(shape: Shape) -> list[NDArray[np.float32]]:
    """Query, key, value and v."""
    rng = np.random.default_rng(shape.rows + shape.size)
    query = rng.standard_normal((shape.batch, shape.rows, shape.units), np.float32)
    key = rng.standard_normal((shape.batch, shape.size, shape.units), np.float32)
    value = rng.standard_normal((shape.batch, shape.size, shape.units), np.float32)
    v = rng.standard_normal(shape.units, np.float32) / np.float32(math.sqrt(shape.units))
    return [query, key, value, v]


def _exact(arrays: Arrays) -> NDArray[Any]:
    """The float64 answer, one batch entry at a time."""
    query, key, value, v = (array.astype(np.float64) for array in arrays())
    parts = [
        naive_additive(query[b : b + 1], key[b : b + 1], value[b : b + 1], v).out
        for b in range(len(query))
    ]
    return np.concatenate(parts)


def _pyattn(arrays: Arrays, threads: int) -> Run:
    return partial(peers.pyattn(threads).additive_attention, *arrays())


def _numpy(arrays: Arrays) -> Run:
    query, key, value, v = arrays()
    return lambda: naive_additive(query, key, value, v).out


def _torch_call(torch: Any) -> Callable[..., Any]:
    """The formula as PyTorch code usually writes it, with the sums (B, T, S, A) in memory."""

    def attend(query: Any, key: Any, value: Any, v: Any) -> Any:
        scores = torch.tanh(query.unsqueeze(2) + key.unsqueeze(1)) @ v
        return torch.softmax(scores, dim=-1) @ value

    return attend


def _torch(arrays: Arrays, threads: int) -> Run:
    torch = peers.torch(threads)
    tensors = [torch.from_numpy(array) for array in arrays()]
    return peers.torch_run(threads, partial(_torch_call(torch), *tensors))


def _torch_compiled(arrays: Arrays, threads: int) -> Run:
    """The same function fused by Inductor, which needs a C++ compiler on the machine."""
    torch = peers.torch(threads)
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise UnavailableError("torch.compile needs a C++ compiler")
    tensors = [torch.from_numpy(array) for array in arrays()]
    call = partial(torch.compile(_torch_call(torch), dynamic=False), *tensors)
    run = peers.torch_run(threads, call)
    try:
        run()
    except Exception as failure:
        reason = str(failure).strip().splitlines()[0]
        raise UnavailableError(f"torch.compile failed: {reason}") from failure
    return run


def _onnxruntime(arrays: Arrays, threads: int) -> Run:
    """The formula in primitive operators."""
    query, key, value, v = arrays()
    feeds = {"query": query, "key": key, "value": value}
    node = import_module("onnx.helper").make_node
    nodes = [
        node("Unsqueeze", ["query", "two"], ["rows"]),
        node("Unsqueeze", ["key", "one"], ["columns"]),
        node("Add", ["rows", "columns"], ["sums"]),
        node("Tanh", ["sums"], ["activated"]),
        node("MatMul", ["activated", "v"], ["scores"]),
        node("Softmax", ["scores"], ["weights"], axis=-1),
        node("MatMul", ["weights", "value"], ["out"]),
    ]
    constants: peers.Feeds = {"v": v, "one": np.array([1]), "two": np.array([2])}
    model = peers.onnx_model(nodes, feeds, "out", constants)
    return peers.onnx_run(threads, model, feeds, query.shape)
