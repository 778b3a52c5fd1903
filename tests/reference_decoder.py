"""Float64 oracles of what decoders are made of, number by number from the papers.

As in `tests.reference`, nothing here is fast and nothing imports the library under test.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from tests.reference import Array, additive
from tests.reference_sdpa import Result


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


def adam(
    parameters: list[float],
    gradients: list[list[float]],
    rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
) -> list[float]:
    """Algorithm 1 of Kingma and Ba 2014 (arXiv:1412.6980) on a list of numbers.

    `gradients` has one list per step. Weight decay as in Loshchilov and Hutter 2017
    (arXiv:1711.05101, algorithm 2); the gradient is first made no longer than `max_norm`.
    """
    theta = list(parameters)
    m, v = [0.0] * len(theta), [0.0] * len(theta)
    for t, given in enumerate(gradients, 1):
        norm = math.sqrt(math.fsum(g * g for g in given))
        shrink = 1.0 if max_norm is None or norm <= max_norm else max_norm / norm
        for i, number in enumerate(given):
            g = number * shrink
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g
            unbiased = m[i] / (1 - betas[0] ** t), v[i] / (1 - betas[1] ** t)
            step = unbiased[0] / (math.sqrt(unbiased[1]) + eps)
            theta[i] -= rate * (step + weight_decay * theta[i])
    return theta


def additive_head(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    v: ArrayLike,
    *,
    g: float | None = None,
    bias: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    is_causal: bool = False,
) -> Result:
    """One head of additive attention; with `g` its v has that length (arXiv:1602.07868)."""
    vector = np.asarray(v, np.float64)
    if g is not None:
        length = math.sqrt(math.fsum(number * number for number in vector))
        vector = np.array([g * number / length for number in vector])
    return additive(
        query, key, value, vector, bias=bias, kv_lengths=kv_lengths, is_causal=is_causal
    )
