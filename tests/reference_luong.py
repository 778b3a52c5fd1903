"""Float64 oracle of Luong's attention: every score, every alignment, written from the paper.

Luong, Pham and Manning 2015, arXiv:1508.04025, sections 3.1 and 3.2. For each row it picks out the
keys that the row may attend to and evaluates the formulas on those alone, so NaN in a masked key
cannot reach a result. Nothing here imports the library under test.
"""

import math
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

from tests.reference_sdpa import AnyArray, Array, broadcast_mask, float64

LuongScore = Literal["dot", "general", "concat", "location"]


class Alignment(TypedDict, total=False):
    """What a score and an alignment take; what is absent is off."""

    score: LuongScore
    weight: ArrayLike | None
    v: ArrayLike | None
    align: Literal["global", "local-m", "local-p"]
    half_width: int | None
    position_weight: ArrayLike | None
    position_v: ArrayLike | None
    renormalize: bool
    query_start: ArrayLike | None
    attn_mask: ArrayLike | None
    kv_lengths: ArrayLike | None
    # Not the paper's: p_t as it was found, where a rounded one would be in another window.
    position: ArrayLike | None


def score_of(target: Array, source: Array, s: int, options: Alignment) -> float:
    """Section 3.1, equation 8, and below equation 10 for "location", which ignores the source."""
    kind = options.get("score", "dot")
    if kind == "dot":
        return float(target @ source)
    weight = float64(options["weight"])  # type: ignore[arg-type]
    if kind == "general":
        return float(target @ weight @ source)
    if kind == "concat":
        v = float64(options["v"])  # type: ignore[arg-type]
        return float(v @ np.tanh(weight @ np.concatenate([target, source])))
    return float(weight[s] @ target)


def position_of(target: Array, length: int, options: Alignment) -> float:
    """Equation 9: p_t = S sigmoid(v_p . tanh(W_p h_t))."""
    weight = float64(options["position_weight"])  # type: ignore[arg-type]
    v = float64(options["position_v"])  # type: ignore[arg-type]
    x = float(v @ np.tanh(weight @ target))
    return length / (1.0 + math.exp(-x)) if x > -700 else 0.0


def luong(
    query: ArrayLike, key: ArrayLike, value: ArrayLike | None = None, **options: Unpack[Alignment]
) -> dict[str, Array]:
    """The context and all that `aux` may name, by name.

    query (B, T, M) holds h_t, key (B, S, N) the source states h_s, value is the key unless given.
    """
    q, k = float64(query), float64(key)
    values = k if value is None else float64(value)
    (batch, rows, _), size = q.shape, k.shape[1]
    masks = broadcast_mask(options.get("attn_mask"), (batch, rows, size))
    if options.get("score") == "location" and size > len(np.asarray(options["weight"])):
        raise ValueError(f"location has {len(np.asarray(options['weight']))} positions")
    half = options.get("half_width")
    found: dict[str, Array] = {
        "out": np.zeros((batch, rows, values.shape[2])),
        "weights": np.zeros((batch, rows, size)),
        "window_weights": np.zeros((batch, rows, 2 * (half or 0) + 1)),
        "biased_scores": np.full((batch, rows, size), -np.inf),
        **{name: np.full((batch, rows), -np.inf) for name in ("lse", "max")},
        **{name: np.zeros((batch, rows)) for name in ("entropy", "position")},
    }
    for b in range(batch):
        given = options.get("kv_lengths")
        length = size if given is None else int(np.asarray(given)[b])
        for t in range(rows):
            centre = _centre(q[b, t], b, t, length, options)
            found["position"][b, t] = 0.0 if centre is None else centre
            keys, scores = _scores(q[b, t], k[b], b, t, centre, length, masks, options)
            if keys:
                row = _row(keys, scores, values[b], centre, options)
                _put(found, b, t, keys, scores, row, centre, options)
    return found


def _centre(target: Array, b: int, t: int, length: int, options: Alignment) -> float | None:
    align = options.get("align", "global")
    if align == "global":
        return None
    if align == "local-m":
        given = options.get("query_start")
        start = np.asarray(0 if given is None else given)
        return t + float(start[b] if start.ndim else start)
    found = options.get("position")
    return position_of(target, length, options) if found is None else float(float64(found)[b, t])


def _scores(
    target: Array,
    source: Array,
    b: int,
    t: int,
    centre: float | None,
    length: int,
    masks: AnyArray | None,
    options: Alignment,
) -> tuple[list[int], list[float]]:
    """The keys that the row may attend to, and their scores."""
    keys, scores = [], []
    for s in range(length):
        if centre is not None and not abs(s - centre) <= (options["half_width"] or 0):
            continue
        bias = 0.0
        if masks is not None and masks.dtype == np.bool_:
            bias = 0.0 if masks[b, t, s] else -math.inf
        elif masks is not None:
            bias = float(masks[b, t, s])
        if bias > -math.inf:
            keys.append(s)
            scores.append(score_of(target, source[s], s, options) + bias)
    return keys, scores


def _row(
    keys: list[int], scores: list[float], values: Array, centre: float | None, options: Alignment
) -> dict[str, Any]:
    """Equations 7 and 10, and the context."""
    top = max(scores)
    total = sum(math.exp(x - top) for x in scores)
    shares = [math.exp(x - top) / total for x in scores]
    weights = list(shares)
    if options.get("align") == "local-p" and centre is not None:
        sigma = (options["half_width"] or 0) / 2
        for i, s in enumerate(keys):
            weights[i] *= math.exp(-((s - centre) ** 2) / (2 * sigma**2))
        if options.get("renormalize"):
            whole = sum(weights)
            weights = [w / whole for w in weights]
    out = np.zeros(values.shape[1])
    for w, s in zip(weights, keys, strict=True):
        out += w * values[s]
    entropy = -sum(w * math.log(w) for w in weights if w > 0)
    return {"out": out, "w": weights, "max": top, "lse": top + math.log(total), "entropy": entropy}


def _put(
    found: dict[str, Array],
    b: int,
    t: int,
    keys: list[int],
    scores: list[float],
    row: dict[str, Any],
    centre: float | None,
    options: Alignment,
) -> None:
    for name in ("out", "lse", "max", "entropy"):
        found[name][b, t] = row[name]
    for s, score, w in zip(keys, scores, row["w"], strict=True):
        found["biased_scores"][b, t, s] = score
        found["weights"][b, t, s] = w
        if centre is not None:
            first = math.ceil(centre) - (options["half_width"] or 0)
            found["window_weights"][b, t, s - first] = w
