"""Problems in scaled dot-product attention: their inputs, their cost, their exact answer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

Array = NDArray[Any]
Inputs = tuple[Array, Array, Array]

DTYPES: dict[str, DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
BLOCK = 64  # side of the random blocks of a mask
EXACT_ROWS = 1024  # query rows whose float64 scores are in memory at once
COLD_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Problem:
    """Sizes and options of one call; value heads have the size of key heads.

    `window` counts the keys that a query sees to its left and to its right, -1 for all of them.
    `mask` is "blocks" for random blocks of which half are allowed, (T, S), or "padding" for keys
    that are missing at the end of each sequence, (B, 1, 1, S). Where `decode` is set, the keys and
    values are a cache that is read once, and are not in the processor's caches when it is.
    """

    batch: int
    heads: int
    groups: int
    rows: int
    size: int
    depth: int
    causal: bool = False
    dtype: str = "float32"
    window: tuple[int, int] | None = None
    mask: str = ""
    decode: bool = False

    @property
    def name(self) -> str:
        """The sizes in the order B, H, G, T, S, D, and the options."""
        sizes = (self.batch, self.heads, self.groups, self.rows, self.size, self.depth)
        parts = [",".join(map(str, sizes)), *(["causal"] if self.causal else [])]
        if self.window is not None:
            parts.append("window {},{}".format(*self.window))
        return "/".join([*parts, *([self.mask] if self.mask else [])])

    @property
    def query_shape(self) -> tuple[int, int, int, int]:
        """(B, H, T, D), which is also the shape of the output."""
        return self.batch, self.heads, self.rows, self.depth

    @property
    def key_shape(self) -> tuple[int, int, int, int]:
        """(B, G, S, D)."""
        return self.batch, self.groups, self.size, self.depth

    @property
    def key_bytes(self) -> float:
        """What the keys and the values take, which decoding has to read."""
        return 2.0 * math.prod(self.key_shape) * np.dtype(DTYPES[self.dtype]).itemsize

    @property
    def score_bytes(self) -> float:
        """What the scores would take in the dtype of the problem."""
        scores = float(self.batch) * self.heads * self.rows * self.size
        return scores * np.dtype(DTYPES[self.dtype]).itemsize

    def key_range(self, first: int, last: int) -> tuple[int, int]:
        """The keys that causality and the window leave to the rows `first` to `last` - 1."""
        left, right = self.window or (-1, -1)
        start = max(0, first - left) if left >= 0 else 0
        stop = min(self.size, last + right) if right >= 0 else self.size
        return start, min(stop, last) if self.causal else stop

    def allowed(self, first: int, last: int) -> NDArray[np.bool_]:
        """What the rows `first` to `last` - 1 may see of their `key_range`; broadcasts to B."""
        start, stop = self.key_range(first, last)
        distance = np.arange(start, stop) - np.arange(first, last)[:, None]
        left, right = self.window or (-1, -1)
        seen = np.ones(distance.shape, dtype=np.bool_)
        if self.causal:
            seen &= distance <= 0
        if left >= 0:
            seen &= distance >= -left
        if right >= 0:
            seen &= distance <= right
        mask = mask_of(self)
        if mask is None:
            return seen[None]
        if self.mask == "padding":
            return seen & mask[:, 0, :, start:stop]
        return (seen & mask[first:last, start:stop])[None]


def row_blocks(problem: Problem) -> Iterator[tuple[int, int]]:
    """Ranges of query rows small enough for their scores to be held in float64."""
    for first in range(0, problem.rows, EXACT_ROWS):
        yield first, min(problem.rows, first + EXACT_ROWS)


@lru_cache(maxsize=32)
def operations(problem: Problem) -> float:
    """Two matrix products of 2*D each for every pair of a query and a key that it may see."""
    pairs = 0.0
    for first, last in row_blocks(problem):
        allowed = problem.allowed(first, last)
        pairs += float(allowed.sum()) * problem.batch / len(allowed)
    return 4.0 * problem.heads * problem.depth * pairs


def inputs(problem: Problem, dtype: str = "") -> list[Inputs]:
    """Query, key and value, normally distributed and rounded to the problem's dtype.

    With `dtype` the same numbers in another one. Decoding gets as many copies as it takes for their
    keys and values to exceed the caches: in use, each layer of a model reads its own.
    The arrays are shared by the contenders, which must not write to them.
    """
    return _inputs(problem, dtype or problem.dtype)


@lru_cache(maxsize=4)
def _inputs(problem: Problem, dtype: str) -> list[Inputs]:
    rng = np.random.default_rng(problem.size)
    shapes = (problem.query_shape, problem.key_shape, problem.key_shape)
    rounded = [
        rng.standard_normal(shape, np.float32).astype(DTYPES[problem.dtype]) for shape in shapes
    ]
    query, key, value = (array.astype(DTYPES[dtype], copy=False) for array in rounded)
    copies = math.ceil(COLD_BYTES / problem.key_bytes) if problem.decode else 1
    return [(query, key, value), *((query, key.copy(), value.copy()) for _ in range(1, copies))]


@lru_cache(maxsize=2)
def mask_of(problem: Problem) -> NDArray[np.bool_] | None:
    """The boolean mask, True where a key may be seen, or None."""
    if not problem.mask:
        return None
    rng = np.random.default_rng(problem.size)
    if problem.mask == "padding":
        lengths = rng.integers(problem.size // 2, problem.size + 1, problem.batch)
        return (np.arange(problem.size) < lengths[:, None])[:, None, None, :]
    rows, columns = problem.rows // BLOCK, problem.size // BLOCK
    order = np.argsort(rng.random((rows, columns)), axis=1)
    return np.kron(order < columns // 2, np.ones((BLOCK, BLOCK), dtype=np.bool_))


def exact(problem: Problem) -> Array:
    """The float64 answer, a block of query rows of one head at a time."""
    query, key, value = inputs(problem)[0]
    out = np.empty(problem.query_shape)
    for b in range(problem.batch):
        for h in range(problem.heads):
            g = h * problem.groups // problem.heads
            q, k, v = (x.astype(np.float64) for x in (query[b, h], key[b, g], value[b, g]))
            for first, last in row_blocks(problem):
                start, stop = problem.key_range(first, last)
                weights = _weights(problem, b, q, k, first, last)
                out[b, h, first:last] = weights @ v[start:stop]
    return out


def exact_gradients(problem: Problem, cotangent: Array) -> Array:
    """The float64 output and gradients of query, key and value, one after another in one row.

    With P the weights and dO the cotangent: dV = P^T dO, and with dS = P * (dO V^T - rowsum(dO*O))
    dQ = scale * dS K and dK = scale * dS^T Q.
    """
    query, key, value = inputs(problem)[0]
    out, d_query = np.empty(query.shape), np.empty(query.shape)
    d_key, d_value = np.zeros(key.shape), np.zeros(value.shape)
    scale = 1.0 / math.sqrt(problem.depth)
    for b in range(problem.batch):
        for h in range(problem.heads):
            g = h * problem.groups // problem.heads
            q, k, v = (x.astype(np.float64) for x in (query[b, h], key[b, g], value[b, g]))
            for first, last in row_blocks(problem):
                rows, keys = slice(first, last), slice(*problem.key_range(first, last))
                weights = _weights(problem, b, q, k, first, last)
                given = cotangent[b, h, rows].astype(np.float64)
                out[b, h, rows] = weights @ v[keys]
                d_value[b, g, keys] += weights.T @ given
                inner = (given * out[b, h, rows]).sum(axis=1, keepdims=True)
                d_scores = weights * (given @ v[keys].T - inner) * scale
                d_query[b, h, rows] = d_scores @ k[keys]
                d_key[b, g, keys] += d_scores.T @ q[rows]
    return np.concatenate([x.ravel() for x in (out, d_query, d_key, d_value)])


def _weights(problem: Problem, b: int, query: Array, key: Array, first: int, last: int) -> Array:
    """The softmax of the rows `first` to `last` - 1 over their `key_range`, in float64."""
    start, stop = problem.key_range(first, last)
    scores = (query[first:last] / math.sqrt(problem.depth)) @ key[start:stop].T
    if problem.causal or problem.window or problem.mask:
        allowed = problem.allowed(first, last)
        scores[~allowed[b % len(allowed)]] = -np.inf
    scores -= scores.max(axis=1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1, keepdims=True)
    return scores
