"""Float64 oracles of recurrent layers, number by number from the papers.

As in `tests.reference`, nothing here is fast and nothing imports the library under test.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tests.reference import Array


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


class _Gates:
    """The sums inside the gates: row `gate` of W x + b and of U h + b, for unit `j`."""

    def __init__(self, w: Any, u: Any, b_w: Any, b_u: Any) -> None:
        self.w, self.u = (np.asarray(a, np.float64).tolist() for a in (w, u))
        self.size = len(self.u[0])
        zeros = [0.0] * len(self.u)
        self.b_w, self.b_u = (zeros if b is None else np.asarray(b).tolist() for b in (b_w, b_u))

    def of_input(self, gate: int, j: int, x: Sequence[float]) -> float:
        row = gate * self.size + j
        return _dot(self.w[row], x) + self.b_w[row]

    def of_state(self, gate: int, j: int, h: Sequence[float]) -> float:
        row = gate * self.size + j
        return _dot(self.u[row], h) + self.b_u[row]

    def both(self, gate: int, j: int, x: Sequence[float], h: Sequence[float]) -> float:
        return self.of_input(gate, j, x) + self.of_state(gate, j, h)


def gru_step(
    gates: _Gates, x: Sequence[float], h: Sequence[float], *, reset_after: bool
) -> list[float]:
    """Cho et al. 2014 (arXiv:1406.1078), equations 5 to 8; Bahdanau et al. 2014, A.1.1.

    With `reset_after` the reset gate multiplies U h + b, as cuDNN has it.
    """
    units = range(gates.size)
    r = [_sigmoid(gates.both(0, j, x, h)) for j in units]
    z = [_sigmoid(gates.both(1, j, x, h)) for j in units]
    reset = [r[j] * h[j] for j in units]
    result = []
    for j in units:
        if reset_after:
            inner = gates.of_input(2, j, x) + r[j] * gates.of_state(2, j, h)
        else:
            inner = gates.both(2, j, x, reset)
        result.append((1 - z[j]) * math.tanh(inner) + z[j] * h[j])
    return result


def lstm_step(
    gates: _Gates, x: Sequence[float], h: Sequence[float], c: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Gers et al. 2000 without peepholes: i, f, g, o."""
    new_h, new_c = [], []
    for j in range(gates.size):
        i, f, o = (_sigmoid(gates.both(gate, j, x, h)) for gate in (0, 1, 3))
        new_c.append(f * c[j] + i * math.tanh(gates.both(2, j, x, h)))
        new_h.append(o * math.tanh(new_c[j]))
    return new_h, new_c


def _order(b: int, length: int, lengths: Any, reverse: bool) -> list[int]:
    steps = list(range(length if lengths is None else int(lengths[b])))
    return steps[::-1] if reverse else steps


def _state(given: ArrayLike | None, b: int, size: int) -> list[float]:
    return [0.0] * size if given is None else np.asarray(given, np.float64)[b].tolist()


def gru(
    x: ArrayLike,
    weight_input: ArrayLike,
    weight_hidden: ArrayLike,
    bias_input: ArrayLike | None = None,
    bias_hidden: ArrayLike | None = None,
    h0: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    *,
    reverse: bool = False,
    reset_after: bool = True,
) -> tuple[Array, Array]:
    """The states after all steps, (B, T, H), 0 where a sequence has ended, and the last ones."""
    sequences = np.asarray(x, np.float64)
    gates = _Gates(weight_input, weight_hidden, bias_input, bias_hidden)
    output = np.zeros((*sequences.shape[:2], gates.size))
    last = np.zeros((len(sequences), gates.size))
    for b in range(len(sequences)):
        h = _state(h0, b, gates.size)
        for t in _order(b, sequences.shape[1], lengths, reverse):
            h = gru_step(gates, sequences[b, t].tolist(), h, reset_after=reset_after)
            output[b, t] = h
        last[b] = h
    return output, last


def lstm(
    x: ArrayLike,
    weight_input: ArrayLike,
    weight_hidden: ArrayLike,
    bias_input: ArrayLike | None = None,
    bias_hidden: ArrayLike | None = None,
    h0: ArrayLike | None = None,
    c0: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    *,
    reverse: bool = False,
) -> tuple[Array, Array, Array]:
    """As `gru`, with the last cells behind the last states."""
    sequences = np.asarray(x, np.float64)
    gates = _Gates(weight_input, weight_hidden, bias_input, bias_hidden)
    output = np.zeros((*sequences.shape[:2], gates.size))
    last, cells = (np.zeros((len(sequences), gates.size)) for _ in range(2))
    for b in range(len(sequences)):
        h, c = _state(h0, b, gates.size), _state(c0, b, gates.size)
        for t in _order(b, sequences.shape[1], lengths, reverse):
            h, c = lstm_step(gates, sequences[b, t].tolist(), h, c)
            output[b, t] = h
        last[b], cells[b] = h, c
    return output, last, cells
