"""Float64 oracles of what decoders are made of, number by number from the papers.

As in `tests.reference`, nothing here is fast and nothing imports the library under test.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tests.reference import Array, additive
from tests.reference_recurrent import gru, lstm
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


Weights = Mapping[str, ArrayLike]  # the parameters of a cell by their names


def _times(matrix: Any, vector: Sequence[float]) -> list[float]:
    rows = np.asarray(matrix, np.float64)
    return [math.fsum(a * b for a, b in zip(row, vector, strict=True)) for row in rows]


def _plus(*vectors: Sequence[float]) -> list[float]:
    return [math.fsum(numbers) for numbers in zip(*vectors, strict=True)]


def _align(scores: list[float], rows: Array) -> tuple[list[float], list[float]]:
    """The softmax of the scores, and the sum of the rows that it weighs."""
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    weights = [power / math.fsum(powers) for power in powers]
    weighed = [a * row for a, row in zip(weights, rows, strict=True)]
    return weights, [math.fsum(column) for column in zip(*weighed, strict=True)]


def maxout(w: Weights, prefix: str, s: Any, y: Any, c: Any) -> list[float]:
    """Bahdanau et al. 2014, appendix A.2.2; U_o, V_o and C_o are columns of one matrix."""
    both = _plus(_times(w[f"{prefix}.weight"], [*s, *y, *c]), np.asarray(w[f"{prefix}.bias"]))
    return [max(both[j], both[j + 1]) for j in range(0, len(both), 2)]


def bahdanau_start(states: ArrayLike, w: Weights) -> Array:
    """``s_0 = tanh(W_s h_1)`` of the backward half of the first source state."""
    half = np.shape(w["first.weight"])[1]
    first = np.asarray(states, np.float64)[:, 0, -half:]
    return np.array([
        [math.tanh(x) for x in _plus(_times(w["first.weight"], h), np.asarray(w["first.bias"]))]
        for h in first
    ])  # fmt: skip


@dataclass
class Decoded:
    """What a decoder gave at each step, (B, T, ...)."""

    states: Array
    outputs: Array
    weights: Array
    coverage_loss: Array


def bahdanau(
    words: ArrayLike, states: ArrayLike, lengths: Sequence[int], w: Weights, *, reset_after: bool
) -> Decoded:
    """Bahdanau et al. 2014 (arXiv:1409.0473), section 3.1 and appendix A.1.2, A.2.2.

    Coverage, where the cell has it, as in See et al. 2017 (arXiv:1704.04368), equations 10 to 12.
    """
    ys, hs = np.asarray(words, np.float64), np.asarray(states, np.float64)
    first = bahdanau_start(states, w)
    found: list[list[tuple[Any, ...]]] = []
    for b, length in enumerate(lengths):
        s, rows, steps = list(first[b]), hs[b, :length], []
        covered = [0.0] * length
        projected = [_times(w["attention.key.weight"], h) for h in rows]
        for y in ys[b]:
            query = _times(w["attention.query.weight"], s)
            scores = []
            for j in range(length):
                inner = _plus(query, projected[j])
                if "coverage" in w:
                    inner = _plus(inner, [covered[j] * x for (x,) in np.asarray(w["coverage"])])
                scores.append(math.fsum(np.asarray(w["attention.v"]) * np.tanh(inner)))
            a, c = _align(scores, rows)
            loss = math.fsum(min(pair) for pair in zip(a, covered, strict=True))
            covered = _plus(covered, a)
            _, after = gru(
                np.array([[[*y, *c]]]), w["cell.weight_ih"], w["cell.weight_hh"],
                w["cell.bias_ih"], w["cell.bias_hh"], h0=[s], reset_after=reset_after,
            )  # fmt: skip
            deep = "output.linear.weight" in w
            output = maxout(w, "output.linear", s, y, c) if deep else [*after[0], *c]
            s = list(after[0])
            steps.append((s, output, a + [0.0] * (hs.shape[1] - length), loss))
        found.append(steps)
    return _collected(found)


def luong(
    words: ArrayLike,
    states: ArrayLike,
    lengths: Sequence[int],
    w: Weights,
    start: Any,
    score: str,
    half_width: int | None = None,
) -> Decoded:
    """Luong et al. 2015 (arXiv:1508.04025), equations 5 to 8, with input feeding (section 3.3).

    `start` is h of the first step, or (h, c); `score` is "dot" or "general". With `half_width` the
    alignment is local-m: step t sees the source states within that distance of t.
    """
    ys, hs = np.asarray(words, np.float64), np.asarray(states, np.float64)
    found: list[list[tuple[Any, ...]]] = []
    names = ("cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh")
    for b, length in enumerate(lengths):
        before = [np.asarray(x)[b] for x in (start if isinstance(start, tuple) else (start,))]
        rows, steps = hs[b, :length], []
        vector = [0.0] * len(before[0])
        for t, y in enumerate(ys[b]):
            step = gru if len(before) == 1 else lstm
            firsts = [[x] for x in before]
            _, *after = step(np.array([[[*y, *vector]]]), *(w[name] for name in names), *firsts)
            before = [x[0] for x in after]
            h = before[0]
            target = h if score == "dot" else _times(np.asarray(w["attention.weight"]).T, h)
            seen = [j for j in range(length) if half_width is None or abs(j - t) <= half_width]
            a, c = [0.0] * length, [0.0] * rows.shape[1]
            if seen:
                among, c = _align([math.fsum(target * rows[j]) for j in seen], rows[seen])
                for j, weight in zip(seen, among, strict=True):
                    a[j] = weight
            vector = [math.tanh(x) for x in _times(w["attention.output.weight"], [*c, *h])]
            steps.append((h, vector, a + [0.0] * (hs.shape[1] - length), 0.0))
        found.append(steps)
    return _collected(found)


def _collected(found: list[list[tuple[Any, ...]]]) -> Decoded:
    return Decoded(*(np.array([[step[i] for step in steps] for steps in found]) for i in range(4)))


def pointer(
    vocabulary: ArrayLike, weights: ArrayLike, source_ids: ArrayLike, p: Sequence[float], extra: int
) -> Array:
    """``P(w) = p P_vocab(w) + (1 - p) sum_{i: w_i = w} a_i`` (See et al. 2017, equation 9)."""
    known, a = np.asarray(vocabulary, np.float64), np.asarray(weights, np.float64)
    ids = np.asarray(source_ids)
    out = np.zeros((len(known), known.shape[1] + extra))
    for b, word in np.ndindex(out.shape):
        copied = math.fsum(a[b, i] for i in range(a.shape[1]) if ids[b, i] == word)
        generated = known[b, word] if word < known.shape[1] else 0.0
        out[b, word] = p[b] * generated + (1 - p[b]) * copied
    return out
