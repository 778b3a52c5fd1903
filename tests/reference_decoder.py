"""Float64 oracles of what decoders are made of, number by number from the papers.

As in `tests.reference`, nothing here is fast and nothing imports the library under test.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from tests.reference import Array


def scatter_add(x: ArrayLike, indices: ArrayLike, updates: ArrayLike) -> Array:
    """x (B, V) with updates (B, K) added at indices (B, K)."""
    out = np.array(x, np.float64)
    for b, k in np.ndindex(np.shape(indices)):
        out[b, np.asarray(indices)[b, k]] += np.asarray(updates, np.float64)[b, k]
    return out


def repeated(
    start: ArrayLike, weight: ArrayLike, source: ArrayLike, steps: int
) -> tuple[Array, Array, Array, Array]:
    """``h' = tanh(h W + mean_s source)`` from start (B, D), `steps` times; and the steps counted.

    Returns the last state and count, and those that each step began with, (B, steps, ...).
    """
    matrix, rows = np.asarray(weight, np.float64), np.asarray(source, np.float64)
    states = [np.asarray(start, np.float64)]
    for _ in range(steps):
        after = np.zeros(states[-1].shape)
        for b, j in np.ndindex(after.shape):
            product = math.fsum(states[-1][b] * matrix[:, j])
            after[b, j] = math.tanh(product + math.fsum(rows[b, :, j]) / rows.shape[1])
        states.append(after)
    counts = [np.full(len(rows), float(i)) for i in range(steps + 1)]
    return states[-1], counts[-1], np.stack(states[:-1], 1), np.stack(counts[:-1], 1)
