"""The gradients of scaled dot-product attention on whole arrays, in the dtype of the inputs.

The yardstick for a backward kernel, as ``tests/naive_sdpa.py`` is for a forward one.
"""

from typing import Any, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray

from tests.naive_sdpa import Step, dropout_of, inputs_of, naive_outputs, rounding
from tests.reference_sdpa import AnyArray, Options
from tests.reference_sdpa_grad import sum_to


class Gradients(NamedTuple):
    """The gradients in the query's dtype, and the size of the terms added up for each of them.

    A size is the root of the sum of the terms' squares, the largest of the array: what half types
    round, before terms cancel (`tests.reference.tolerance`).
    """

    found: dict[str, AnyArray]
    spread: dict[str, float]


def naive_gradients(
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    *,
    out_cotangent: AnyArray,
    lse_cotangent: AnyArray,
    **options: Unpack[Options],
) -> Gradients:
    """The formulas of `tests.reference_sdpa_grad.sdpa_gradients`, a step at a time."""
    compute = np.float64 if query.dtype == np.float64 else np.float32
    rounded = rounding(query.dtype)
    q, k, v = inputs_of(query, key, value, options, compute)
    found = naive_outputs(query, key, value, **options)
    p, lse = found["weights"].astype(compute), found["lse"]
    factors = dropout_of(options, p.shape, compute)
    g, l = out_cotangent.astype(compute), lse_cotangent[..., None]  # noqa: E741
    d_weights = rounded(factors * rounded(g @ v.swapaxes(-1, -2)))
    mean = (p * d_weights).sum(axis=-1, keepdims=True)
    d_scores = rounded(p * (d_weights - mean + l))
    # The mean is also g . out, and may come from the rounded output.
    terms_of_mean = g * found["out"].astype(compute)
    loose = np.sqrt((terms_of_mean**2).sum(axis=-1, keepdims=True))
    loose = loose + np.abs(mean) + np.abs(l)
    size = p * (np.abs(d_weights) + loose)
    slope = _slope(query.shape[-1], found["capped_scores"].astype(compute), options)
    applied = rounded(p * factors)
    terms: dict[str, tuple[Any, Any, Any]] = {
        "value": (applied.swapaxes(-1, -2), applied.swapaxes(-1, -2), g),
    }
    if options.get("v") is None:
        terms |= {
            "query": (rounded(d_scores * slope), size * slope, k),
            "key": (rounded(d_scores * slope).swapaxes(-1, -2), (size * slope).swapaxes(-1, -2), q),
        }
    gradients = {name: left @ right for name, (left, _, right) in terms.items()}
    squares = {name: left**2 @ right**2 for name, (_, left, right) in terms.items()}
    if options.get("v") is not None:
        vectors = np.asarray(options["v"]).astype(compute)
        for part, more in zip(
            (gradients, squares), _through_tanh(q, k, vectors, d_scores, size, rounded), strict=True
        ):
            part |= more
    if options.get("sinks") is not None:
        shift = np.where(lse > -np.inf, lse, 0.0)  # never -inf where there is a sink
        sink = np.exp(np.asarray(options["sinks"], compute)[:, None] - shift)[..., None]
        gradients["sinks"] = (sink * (l - mean)).sum(axis=(0, 2, 3))
        squares["sinks"] = ((sink * loose) ** 2).sum(axis=(0, 2, 3))
    mask = options.get("mask")
    if mask is not None and np.asarray(mask).dtype != np.bool_:
        gradients["mask"] = sum_to(d_scores, np.shape(mask))
        squares["mask"] = sum_to(size**2, np.shape(mask))
    past, groups = k.shape[2] - key.shape[2], key.shape[1]
    both = [_by_argument(arrays, past, groups) for arrays in (gradients, squares)]
    narrow = {n: a.astype(query.dtype) for n, a in both[0].items()}
    return Gradients(narrow, {n: float(np.sqrt(a.max(initial=0.0))) for n, a in both[1].items()})


def _through_tanh(
    q: AnyArray, k: AnyArray, v: AnyArray, d_scores: AnyArray, size: AnyArray, rounded: Step
) -> tuple[dict[str, AnyArray], dict[str, AnyArray]]:
    """The gradients of query, key and v from those of the scores, and the sums of squared terms."""
    t = rounded(np.tanh(rounded(q[:, :, :, None] + k[:, :, None])))
    inner = rounded(v[:, None, None] * (1 - t**2))
    gradients = {
        "query": (d_scores[..., None] * inner).sum(axis=3),
        "key": (d_scores[..., None] * inner).sum(axis=2),
        "v": np.einsum("bhts,bhtsa->ha", d_scores, t),
    }
    # A half type rounds t, so that 1 - t^2 is off by as much as if its terms were of size 1.
    squares = {
        "query": (size[..., None] ** 2 * v[:, None, None] ** 2).sum(axis=3),
        "key": (size[..., None] ** 2 * v[:, None, None] ** 2).sum(axis=2),
        "v": np.broadcast_to((size**2).sum(axis=(0, 2, 3))[:, None], v.shape),
    }
    return gradients, squares


def _slope(depth: int, capped: AnyArray, options: Options) -> AnyArray:
    """Derivative of a capped score by the product of query and key."""
    scale, softcap = options.get("scale"), options.get("softcap", 0.0)
    factor = capped.dtype.type(depth**-0.5 if scale is None else scale)
    if softcap <= 0:
        return np.full_like(capped, factor)
    one: NDArray[Any] = factor * (1 - (capped / capped.dtype.type(softcap)) ** 2)
    return one


def _by_argument(arrays: dict[str, AnyArray], past: int, groups: int) -> dict[str, AnyArray]:
    """Add up over the query heads that share a key head, and cut off the past."""
    arrays = dict(arrays)
    for name in ("key", "value"):
        batch, heads, size, width = arrays[name].shape
        array = arrays[name].reshape(batch, groups, heads // groups, size, width).sum(axis=2)
        arrays[name] = array[:, :, past:]
        if past:
            arrays[f"past_{name}"] = array[:, :, :past]
    return arrays
