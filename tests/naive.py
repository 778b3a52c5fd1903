"""Straightforward whole-array attention in NumPy, in the dtype of its inputs.

This is what a user without a library would write. It serves twice: its error against the float64
oracle is the yardstick for a kernel of the same dtype (`tests.reference.tolerance`), and it is a
contender in the benchmarks. It reads masked entries, so it is given arrays without poison.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tests.naive_sdpa import naive_sdpa as naive_sdpa
from tests.reference_sdpa import AnyArray, Causal, Result, broadcast_mask


def naive_additive(
    query: AnyArray,
    key: AnyArray,
    value: AnyArray,
    v: AnyArray,
    *,
    mask: ArrayLike | None = None,
    bias: AnyArray | None = None,
    kv_lengths: ArrayLike | None = None,
    is_causal: Causal = False,
) -> Result:
    """Additive attention with the (B, T, S, A) sums in memory."""
    shifted = query if bias is None else query + bias
    scores = np.tanh(shifted[:, :, None, :] + key[:, None, :, :]) @ v
    allowed = _allowed(scores.shape, kv_lengths, is_causal)
    return _softmax_sum(scores, value, mask, allowed)


def _allowed(
    shape: tuple[int, ...], kv_lengths: ArrayLike | None, is_causal: Causal
) -> NDArray[np.bool_] | None:
    """Boolean array that broadcasts to the scores, or None when every key is allowed."""
    if kv_lengths is None and is_causal is False:
        return None
    batch, rows, size = shape[0], shape[-2], shape[-1]
    lengths = np.full(batch, size) if kv_lengths is None else np.asarray(kv_lengths)
    lengths = lengths.reshape(batch, *[1] * (len(shape) - 1))
    column = np.arange(size)
    allowed = column < lengths
    if is_causal is not False:
        offset = lengths - rows if is_causal == "bottom_right" else 0
        allowed = allowed & (column <= np.arange(rows)[:, None] + offset)
    return allowed


def _softmax_sum(
    scores: AnyArray,
    value: AnyArray,
    mask: ArrayLike | None,
    allowed: NDArray[np.bool_] | None,
) -> Result:
    bias = broadcast_mask(mask, scores.shape)
    if bias is not None and bias.dtype != np.bool_:
        scores = scores + bias.astype(scores.dtype)
    elif bias is not None:
        allowed = bias if allowed is None else bias & allowed
    if allowed is not None:
        scores = np.where(allowed, scores, scores.dtype.type(-np.inf))
    largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    largest = np.where(np.isfinite(largest), largest, scores.dtype.type(0))
    numerators = np.exp(scores - largest)
    total = numerators.sum(axis=-1, keepdims=True)
    empty = total == 0
    weights = numerators / np.where(empty, scores.dtype.type(1), total)
    with np.errstate(divide="ignore"):
        lse = largest + np.log(total)
    return Result(weights @ value, weights, lse[..., 0])
