"""Float64 oracle of scaled dot-product attention: every variant, every auxiliary output.

For each batch entry, head and query row it picks out the keys that the row may attend to and
evaluates the papers' formulas on those alone, so NaN in a masked key or value cannot reach a
result. The gradients are in ``tests/reference_sdpa_grad.py``. Nothing here imports the library.

Dimension letters: B batch, H query heads, G key/value heads, T query length, S key length (the
past included), D head size, E value head size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tests.philox import dropout_factors

Array = NDArray[np.float64]
AnyArray = NDArray[Any]
Indices = NDArray[np.intp]
Causal = bool | Literal["top_left", "bottom_right"]


class Result(NamedTuple):
    """Output, attention weights and log-sum-exp of the scores, one row per query."""

    out: AnyArray
    weights: AnyArray
    lse: AnyArray


class Options(TypedDict, total=False):
    """The variants of scaled dot-product attention; what is absent is off.

    The position of query i of batch entry b is ``p = query_start[b] + i``.
    """

    mask: ArrayLike | None  # True = attend, or a bias; right-aligned broadcast to (B, H, T, S)
    is_causal: Causal  # j <= p
    scale: float | None  # 1 / sqrt(D)
    softcap: float  # c > 0: c * tanh(s / c), Gemma Team 2024, arXiv:2408.00118
    window: int | tuple[int, int] | None  # p - left <= j <= p + right; -1 is unbounded
    query_start: ArrayLike | None  # an int or (B,)
    alibi_slopes: ArrayLike | None  # (H,): -slope * |p - j|, Press et al. 2021, arXiv:2108.12409
    sinks: ArrayLike | None  # (H,): one more score without a value, Xiao et al., arXiv:2309.17453
    kv_lengths: ArrayLike | None  # (B,): the first keys only
    past_key: ArrayLike | None  # (B, G, P, D), in front of key
    past_value: ArrayLike | None  # (B, G, P, E)
    dropout_p: float
    rng: int | None  # the seed of dropout
    # (H, A): scores v . tanh(q + k) instead, without a scale; Bahdanau 2014, arXiv:1409.0473
    v: ArrayLike | None


@dataclass(frozen=True)
class Problem:
    """The inputs in float64, the past in front, and every option in the one form it has here."""

    query: Array
    key: Array
    value: Array
    masks: AnyArray | None
    scale: float
    softcap: float
    first: float  # keys from p + first to p + last; infinite where unbounded
    last: float
    starts: Indices  # (B,)
    lengths: Indices  # (B,)
    slopes: Array  # (H,)
    sinks: Array | None
    dropout_p: float
    seed: int
    v: Array | None

    @property
    def repeats(self) -> int:
        """Query heads for each key/value head (Ainslie et al. 2023, arXiv:2305.13245)."""
        return int(self.query.shape[1] // self.key.shape[1])


class Row(NamedTuple):
    """One query row: its allowed keys, their scores before and after each step, the weights."""

    b: int
    h: int
    i: int
    keys: Indices
    raw: Array
    capped: Array
    biased: Array
    weights: Array
    lse: float
    factors: Array  # of dropout, 0 or 1 / (1 - p)


def float64(array: ArrayLike) -> Array:
    """The array in float64."""
    return np.asarray(array, dtype=np.float64)


def broadcast_mask(mask: ArrayLike | None, shape: tuple[int, ...]) -> AnyArray | None:
    """Right-aligned broadcast of a mask to `shape`, whose last dimension is S.

    A last dimension between 2 and S - 1 is first padded with "masked" (False, or -inf).
    """
    if mask is None:
        return None
    array = np.asarray(mask)
    missing = shape[-1] - array.shape[-1]
    if missing > 0 and array.shape[-1] != 1:
        masked = False if array.dtype == np.bool_ else -np.inf
        padding = np.full((*array.shape[:-1], missing), masked, dtype=array.dtype)
        array = np.concatenate([array, padding], axis=-1)
    return np.broadcast_to(array, shape)


def with_past(past: ArrayLike | None, array: ArrayLike) -> AnyArray:
    """The keys or values seen: those of the past, then the new ones, along axis 2."""
    return (
        np.asarray(array)
        if past is None
        else np.concatenate([np.asarray(past), np.asarray(array)], axis=2)
    )


def bounds(is_causal: Causal, window: int | tuple[int, int] | None) -> tuple[float, float]:
    """Offsets from the query's position to its first and last key; the causal one cuts at 0."""
    left, right = (window, window) if isinstance(window, int) else window or (-1, -1)
    first = -math.inf if left < 0 else -left
    last = math.inf if right < 0 else right
    return first, last if is_causal is False else min(last, 0)


def positions(
    options: Options, batch: int, rows: int, size: int, past: int
) -> tuple[Indices, Indices]:
    """Position of each entry's first query, and number of valid keys, both (B,)."""
    given = options.get("kv_lengths")
    lengths = np.full(batch, size) if given is None else np.asarray(given, dtype=np.intp)
    start = options.get("query_start")
    if start is None and options.get("is_causal") == "bottom_right":
        return lengths - rows, lengths
    starts = np.broadcast_to(np.asarray(past if start is None else start, dtype=np.intp), batch)
    return starts, lengths


def problem_of(query: ArrayLike, key: ArrayLike, value: ArrayLike, options: Options) -> Problem:
    """Bring the arguments into the form that the loops below read."""
    past = options.get("past_key")
    q, k = float64(query), float64(with_past(past, key))
    (batch, heads, rows, depth), size = q.shape, k.shape[2]
    starts, lengths = positions(options, batch, rows, size, size - np.shape(key)[2])
    first, last = bounds(options.get("is_causal", False), options.get("window"))
    scale, sinks = options.get("scale"), options.get("sinks")
    slopes = options.get("alibi_slopes")
    return Problem(
        query=q,
        key=k,
        value=float64(with_past(options.get("past_value"), value)),
        masks=broadcast_mask(options.get("mask"), (batch, heads, rows, size)),
        scale=1.0 / math.sqrt(depth) if scale is None else scale,
        softcap=options.get("softcap", 0.0),
        first=first,
        last=last,
        starts=starts,
        lengths=lengths,
        slopes=np.zeros(heads) if slopes is None else float64(slopes),
        sinks=None if sinks is None else float64(sinks),
        dropout_p=options.get("dropout_p", 0.0),
        seed=options.get("rng") or 0,
        v=None if options.get("v") is None else float64(options["v"]),  # type: ignore[arg-type]
    )


def _allowed(problem: Problem, b: int, h: int, i: int) -> tuple[Indices, Array]:
    """The keys that a query may attend to, and the bias added to each one's score."""
    j, position = np.arange(problem.key.shape[2]), problem.starts[b] + i
    allowed = (j < problem.lengths[b]) & (j >= position + problem.first)
    allowed &= j <= position + problem.last
    bias = -problem.slopes[h] * np.abs(position - j)
    if problem.masks is not None and problem.masks.dtype == np.bool_:
        allowed &= problem.masks[b, h, i]
    elif problem.masks is not None:
        added = float64(problem.masks[b, h, i])
        allowed &= added != -np.inf
        bias = bias + added
    keys = np.flatnonzero(allowed)
    return keys, bias[keys]


def cap(scores: Array, softcap: float) -> Array:
    """``c * tanh(s / c)``, or the scores themselves where the cap is 0."""
    return softcap * np.tanh(scores / softcap) if softcap > 0 else scores


def softmax_row(scores: Array, sink: float = -math.inf) -> tuple[Array, float]:
    """Softmax over scores and sink without the sink's weight, and the log of its denominator.

    With neither a score nor a sink the logarithm is -inf.
    """
    largest = max(float(scores.max(initial=-np.inf)), sink)
    if largest == -math.inf:
        return np.zeros(scores.shape), -math.inf
    numerators = np.exp(scores - largest)
    total = float(numerators.sum()) + math.exp(sink - largest)
    return numerators / total, largest + math.log(total)


def score(problem: Problem, h: int, query: Array, keys: Array) -> Array:
    """The scores of one query of head h: by the dot product, or the additive ones."""
    if problem.v is None:
        return np.asarray(problem.scale * (keys @ query))
    return np.asarray([problem.v[h] @ np.tanh(query + key) for key in keys])


def rows_of(problem: Problem) -> Iterator[Row]:
    """Evaluate the formula row by row; a row without an allowed key has empty arrays."""
    for b, h, i in np.ndindex(problem.query.shape[:3]):
        keys, bias = _allowed(problem, b, h, i)
        seen = problem.key[b, h // problem.repeats, keys]
        raw = score(problem, h, problem.query[b, h, i], seen)
        capped = cap(raw, problem.softcap)
        sink = -math.inf if problem.sinks is None else float(problem.sinks[h])
        weights, lse = softmax_row(capped + bias, sink)
        factors = np.ones(keys.size)
        if problem.dropout_p > 0:
            size = problem.key.shape[2]
            factors = dropout_factors(problem.dropout_p, problem.seed, b, h, i, size)[keys]
        yield Row(b, h, i, keys, raw, capped, capped + bias, weights, lse, factors)


def sdpa(query: ArrayLike, key: ArrayLike, value: ArrayLike, **options: Unpack[Options]) -> Result:
    """``softmax(cap(scale * Q K^T) + bias) V`` (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    query (B, H, T, D), key (B, G, S, D), value (B, G, S, E); query head h reads key/value head
    ``h // (H / G)``. Returns out (B, H, T, E), weights (B, H, T, S) before dropout, lse (B, H, T).
    A row with no allowed key has output 0, weights 0 and lse -inf, or its sink.
    """
    found = sdpa_outputs(query, key, value, **options)
    return Result(found["out"], found["weights"], found["lse"])


def sdpa_outputs(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    top_k: int = 0,
    **options: Unpack[Options],
) -> dict[str, AnyArray]:
    """The output as "out", and every auxiliary output under its name.

    "scores" and "capped_scores" are those of all pairs, masked or not, as ONNX has them;
    "biased_scores" is what the softmax sees, -inf where masked. "spread" is no output of attention:
    ``sqrt(sum_j (p_j v_j)^2)``, by which `tests.tolerances` scales the rounding of weights.
    """
    problem = problem_of(query, key, value, options)
    found = _blank(problem)
    with np.errstate(invalid="ignore"):  # inf or NaN stored in masked keys
        keys = np.repeat(problem.key, problem.repeats, axis=1)
        if problem.v is None:
            found["scores"] = problem.scale * (problem.query @ keys.swapaxes(-1, -2))
        else:
            terms = np.tanh(problem.query[:, :, :, None] + keys[:, :, None])
            found["scores"] = np.einsum("bhtsa,ha->bhts", terms, problem.v)
        found["capped_scores"] = cap(found["scores"], problem.softcap)
    for row in rows_of(problem):
        at, values = (row.b, row.h, row.i), problem.value[row.b, row.h // problem.repeats, row.keys]
        applied = row.weights * row.factors
        found["out"][at] = applied @ values
        found["spread"][at] = np.sqrt(applied**2 @ values**2)
        found["weights"][at][row.keys] = row.weights
        found["biased_scores"][at][row.keys] = row.biased
        found["lse"][at] = row.lse
        found["max"][at] = row.biased.max(initial=-np.inf)
        positive = row.weights[row.weights > 0]
        found["entropy"][at] = -(positive * np.log(positive)).sum()
    found["column_mass"] = found["weights"].sum(axis=2)
    found["top_weights"], found["top_indices"] = _largest(found, top_k)
    found["present_key"] = with_past(options.get("past_key"), key)
    found["present_value"] = with_past(options.get("past_value"), value)
    return found


def _blank(problem: Problem) -> dict[str, AnyArray]:
    """The outputs of rows that have no key: zeros and minus infinities."""
    rows = problem.query.shape[:3]
    out, scores = (*rows, problem.value.shape[3]), (*rows, problem.key.shape[2])
    zeros = {"out": out, "spread": out, "weights": scores, "entropy": rows}
    lowest = {"biased_scores": scores, "lse": rows, "max": rows}
    return {name: np.zeros(shape) for name, shape in zeros.items()} | {
        name: np.full(shape, -np.inf) for name, shape in lowest.items()
    }


def _largest(found: dict[str, AnyArray], top_k: int) -> tuple[Array, Indices]:
    """The `top_k` largest weights of each row, descending, with their keys.

    Equal weights go by the lower key; where fewer keys are allowed, weight 0 and index -1.
    """
    weights, allowed = found["weights"], found["biased_scores"] > -np.inf
    top = np.zeros((*weights.shape[:3], top_k))
    indices = np.full(top.shape, -1, dtype=np.intp)
    for at in np.ndindex(weights.shape[:3]):
        keys = np.flatnonzero(allowed[at])
        order = keys[np.argsort(-weights[at][keys], kind="stable")][:top_k]
        top[at][: order.size], indices[at][: order.size] = weights[at][order], order
    return top, indices
