"""What a decoder writes on its own: greedy search and beam search, each one loop when traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyattn.ops import (
    add,
    all,
    arange_like,
    argmax,
    astype,
    concat,
    equal,
    expand_dims,
    log_softmax,
    logical_not,
    logical_or,
    loop,
    minimum,
    power,
    reshape,
    take,
    take_along,
    top_k,
    where,
)
from pyattn.ops import sum as reduce_sum
from pyattn.ops.loop import filled, leaves
from pyattn.tensor import Value, rank_of

Step = Callable[[Any, Any], tuple[Any, Any]]


def greedy_search(
    step: Step, state: Any, logits: Value, *, end: int, steps: int, dim: str | None = None
) -> Any:
    """Return the tokens ``(B, at most steps)`` that are likeliest one after the other.

    Parameters
    ----------
    step:
        ``step(tokens, state)`` takes the tokens ``(B,)`` just written and returns the logits
        ``(B, V)`` of what comes next, and the next state.
    state:
        Of the decoder before it writes: arrays or Tensors, or tuples of these.
    logits:
        ``(B, V)``, of the first token.
    end:
        The token that ends a sequence; behind it stands nothing else.
    steps:
        How many tokens are written at most; fewer where all sequences have ended before.
    dim:
        Names that number in an exported file.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> follow = np.array([[0, 9, 1, 0], [0, 0, 9, 1], [0, 1, 0, 9], [9, 0, 0, 0]], np.float32)
    >>> def step(tokens, state):
    ...     return pa.ops.take(follow, tokens), state
    >>> pa.nn.greedy_search(step, (), follow[:1], end=3, steps=8)
    array([[1, 2, 3]])
    """
    _require("greedy_search", logits, end, steps)
    first = argmax(logits)
    if steps == 1:
        return expand_dims(first, 1)

    def write(before: Any) -> Any:
        inner, token, ended = before
        logits, inner = step(token, inner)
        token = where(ended, end, argmax(logits))
        ended = logical_or(ended, equal(token, end))
        return (inner, token, ended), token, all(ended)

    _, rest = loop(write, (state, first, equal(first, end)), steps - 1, dim=dim)
    return concat([expand_dims(first, 1), rest], 1)


def beam_search(
    step: Step,
    state: Any,
    logits: Value,
    *,
    end: int,
    steps: int,
    beams: int,
    length_penalty: float = 0.0,
) -> tuple[Any, Any]:
    """Return the ``beams`` likeliest sequences of tokens found, the best first, and their scores.

    Of all continuations of the K sequences of an entry, the K with the largest sum of log
    probabilities go on. A sequence that has ended keeps its sum and takes part as it is. The
    sequences are ordered by ``sum / ((5 + length) / 6)^length_penalty``.

    Parameters
    ----------
    step:
        As for :func:`greedy_search`, with B * K rows: those of an entry behind each other.
    state:
        With the axis of entries, B, first in all its arrays; it is repeated K times, and rows go
        with their sequence. What a step reads and does not change can be closed over:
        :func:`repeat_entries` repeats it.
    logits:
        ``(B, V)``, of the first token. K is at most V.
    end, steps:
        As for :func:`greedy_search`.
    beams:
        K.
    length_penalty:
        alpha of Wu et al.; 0 orders by the sums.

    Returns
    -------
    Tokens ``(B, K, steps)``, int64, ``end`` behind the end, and scores ``(B, K)``.

    References
    ----------
    Wu et al. 2016, "Google's Neural Machine Translation System", arXiv:1609.08144, section 7.
    """
    _require("beam_search", logits, end, steps)
    if beams < 1:
        raise ValueError(f"beam_search: beams must be positive; got {beams}")
    columns = np.arange(steps)
    scores, token = top_k(log_softmax(logits), beams)  # (B, K)
    token = reshape(token, (-1,))
    written = where(equal(columns, 0), expand_dims(token, 1), np.full(steps, end))
    ended = equal(token, end)
    one = np.array(1)  # the place of the next token
    first = (repeat_entries(state, beams), token, written, ended, scores, one)

    def write(before: Any) -> Any:
        inner, token, written, ended, scores, place = before
        logits, inner = step(token, inner)
        scores, rows, token = _best(logits, scores, ended, end, beams)
        inner = _rows(inner, rows)
        written = where(equal(columns, place), expand_dims(token, 1), take(written, rows))
        ended = logical_or(take(ended, rows), equal(token, end))
        return (inner, token, written, ended, scores, add(place, one)), (), all(ended)

    if steps > 1:
        (_, _, written, _, scores, _), _ = loop(write, first, steps - 1)
    return _ordered(written, scores, end, beams, length_penalty)


def repeat_entries(value: Any, beams: int) -> Any:
    """Return every array ``(B, ...)`` of a structure with each entry repeated: ``(B * K, ...)``."""
    arrays = leaves(value)
    if not arrays:
        return value
    entries = expand_dims(arange_like(arrays[0], 0), 1) + np.zeros((1, beams), np.int64)
    return _rows(value, reshape(entries, (-1,)))


def _require(name: str, logits: Value, end: int, steps: int) -> None:
    if rank_of(name, logits) != 2:
        raise ValueError(f"{name}: logits must be (B, V); got shape {logits.shape}")
    words = logits.shape[1]
    if isinstance(words, int) and not 0 <= end < words:
        raise ValueError(f"{name}: end must lie in 0..{words - 1}; got {end}")
    if steps < 1:
        raise ValueError(f"{name}: steps must be positive; got {steps}")


def _rows(value: Any, rows: Value) -> Any:
    """Return the rows of every array in a structure of tuples."""
    return filled(value, (take(x, rows) for x in leaves(value)))


def _best(logits: Value, scores: Value, ended: Value, end: int, beams: int) -> tuple[Any, Any, Any]:
    """Return the best sums ``(B, K)``, and the row each comes from and its token, ``(B * K,)``."""
    # The K best of all continuations are among the K best of each sequence.
    gains, tokens = top_k(log_softmax(logits), beams)
    only = np.arange(beams) == 0
    gains = where(expand_dims(ended, 1), np.where(only, 0, -np.inf).astype(np.float32), gains)
    tokens = where(expand_dims(ended, 1), end, tokens)
    sums = reshape(scores, (-1, 1)) + gains  # (B * K, K)
    scores, places = top_k(reshape(sums, (-1, beams * beams)), beams)
    token = take_along(reshape(tokens, (-1, beams * beams)), places)
    parents = take(np.repeat(np.arange(beams), beams), places)
    rows = expand_dims(arange_like(scores, 0), 1) * beams + parents
    return scores, reshape(rows, (-1,)), reshape(token, (-1,))


def _ordered(written: Any, scores: Any, end: int, beams: int, penalty: float) -> tuple[Any, Any]:
    """Return tokens ``(B, K, steps)`` and scores ``(B, K)``, the best first."""
    steps = written.shape[1]
    before = astype(logical_not(equal(written, end)), np.float32)
    # The end is a token too, where there is one.
    length = reshape(minimum(reduce_sum(before, 1) + 1.0, float(steps)), (-1, beams))
    scores, order = top_k(scores / power((length + 5.0) * (1 / 6), penalty), beams)
    rows = expand_dims(arange_like(scores, 0), 1) * beams + order
    ordered = take(written, reshape(rows, (-1,)))
    return reshape(ordered, (-1, beams, steps)), scores
