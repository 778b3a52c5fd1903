"""Scaled dot-product attention, forward, float32."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.harness import Case, Run, UnavailableError
from tests.naive import naive_sdpa

TOLERANCE = 1e-5
NAIVE_BYTES = 2**28


@dataclass(frozen=True)
class Shape:
    """Sizes of one call; value heads have the size of key heads."""

    batch: int
    heads: int
    groups: int
    rows: int
    size: int
    depth: int
    causal: bool = False

    @property
    def name(self) -> str:
        """The sizes in the order B, H, G, T, S, D."""
        sizes = (self.batch, self.heads, self.groups, self.rows, self.size, self.depth)
        return "sdpa/" + ",".join(map(str, sizes)) + ("/causal" if self.causal else "")


SHAPES = (
    Shape(1, 4, 4, 16, 16, 32),
    Shape(8, 12, 12, 128, 128, 64),
    Shape(1, 12, 12, 512, 512, 64),
    Shape(8, 12, 12, 197, 197, 64),
    Shape(1, 8, 8, 4096, 4096, 64),
    Shape(1, 8, 8, 4096, 4096, 64, causal=True),
    Shape(1, 32, 8, 2048, 2048, 128, causal=True),
    Shape(1, 32, 8, 1, 4096, 128),
)


def operations(shape: Shape) -> float:
    """Two matrix products of 2*T*S*D each per head, of which causal needs (nearly) half."""
    pairs = shape.rows * shape.size
    if shape.causal:
        pairs = shape.rows * (shape.rows + 1) // 2
    return 4.0 * shape.batch * shape.heads * pairs * shape.depth


def cases(threads: int) -> Iterator[Case]:
    """One case per shape, with normally distributed inputs."""
    for shape in SHAPES:
        arrays = partial(_arrays, shape)
        contenders: dict[str, Callable[[], Run]] = {
            "pyattn": partial(_pyattn, shape, arrays, threads),
            "torch": partial(_torch, shape, arrays, threads),
            "onnxruntime": partial(_onnxruntime, shape, arrays, threads),
            "numpy": partial(_numpy, shape, arrays),
        }
        key_bytes = 8.0 * shape.batch * shape.groups * shape.size * shape.depth
        yield Case(
            name=shape.name,
            operations=operations(shape),
            unit="FLOP",
            exact=partial(_exact, shape, arrays),
            contenders=contenders,
            tolerance=TOLERANCE,
            bytes_read=key_bytes if shape.rows == 1 else None,
        )


Arrays = Callable[[], tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]


def _arrays(shape: Shape) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(shape.rows + shape.size)
    keys = (shape.batch, shape.groups, shape.size, shape.depth)
    query = rng.standard_normal((shape.batch, shape.heads, shape.rows, shape.depth), np.float32)
    return query, rng.standard_normal(keys, np.float32), rng.standard_normal(keys, np.float32)


def _exact(shape: Shape, arrays: Arrays) -> NDArray[Any]:
    """The float64 answer, one query head at a time so that the scores fit in memory."""
    query, key, value = (array.astype(np.float64) for array in arrays())
    out = np.empty(query.shape)
    for h in range(shape.heads):
        one, shared = slice(h, h + 1), h // (shape.heads // shape.groups)
        kv = slice(shared, shared + 1)
        out[:, one] = naive_sdpa(
            query[:, one], key[:, kv], value[:, kv], is_causal=shape.causal
        ).out
    return out


def _pyattn(shape: Shape, arrays: Arrays, threads: int) -> Run:
    library = peers.pyattn(threads)
    query, key, value = arrays()
    attention = library.scaled_dot_product_attention
    return partial(attention, query, key, value, is_causal=shape.causal)


def _torch(shape: Shape, arrays: Arrays, threads: int) -> Run:
    torch = peers.torch(threads)
    query, key, value = (torch.from_numpy(array) for array in arrays())
    attention = torch.nn.functional.scaled_dot_product_attention
    grouped = shape.heads != shape.groups
    call = partial(attention, query, key, value, is_causal=shape.causal, enable_gqa=grouped)
    return peers.torch_run(threads, call)


def _onnxruntime(shape: Shape, arrays: Arrays, threads: int) -> Run:
    """The ``Attention`` operator of opset 24 on 4-D inputs."""
    feeds = dict(zip(("query", "key", "value"), arrays(), strict=True))
    make_node = import_module("onnx.helper").make_node
    node = make_node("Attention", list(feeds), ["out"], is_causal=int(shape.causal))
    model = peers.onnx_model([node], feeds, "out", {})
    return peers.onnx_run(threads, model, feeds, feeds["query"].shape)


def _numpy(shape: Shape, arrays: Arrays) -> Run:
    needed = 4 * shape.batch * shape.heads * shape.rows * shape.size
    if needed > NAIVE_BYTES:
        raise UnavailableError(f"the scores alone would take {needed / 2**20:.0f} MiB")
    query, key, value = arrays()
    return lambda: naive_sdpa(query, key, value, is_causal=shape.causal).out
