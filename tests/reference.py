"""Float64 oracles, written from the papers.

Every oracle loops over batch, head and query row, picks out the keys that the row may attend to,
and evaluates the paper's formula on those keys alone. A masked key or value is therefore never
read, so NaN stored there cannot reach a result. A row with no allowed key has output 0, weights 0
and log-sum-exp -inf. Nothing here is fast, and nothing here imports the library under test.
Scaled dot-product and Luong's attention have files of their own, ``reference_*.py``.

Dimension letters: B batch, H query heads, G key/value heads, T query length, S key length,
D head size, E value head size, A additive size, M model size.

`tolerance` turns the error of a straightforward evaluation in some dtype (``tests/naive.py``) into
the bound that a kernel in that dtype has to keep.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tests.reference_sdpa import (
    AnyArray,
    Array,
    Causal,
    Result,
    broadcast_mask,
    float64,
    sdpa,
    softmax_row,
)


def causal_offset(is_causal: Causal, length: int, rows: int) -> int | None:
    """Row i may attend to key j when ``j <= i + offset``; None means every key.

    `length` is the number of valid keys of the batch entry, so that "bottom_right" lets the last
    query row see the last valid key, which is what decoding with a cache needs.
    """
    if is_causal is False:
        return None
    return length - rows if is_causal == "bottom_right" else 0


def _row_keys(
    mask_row: AnyArray | None, size: int, length: int, row: int, offset: int | None
) -> tuple[NDArray[np.intp], Array]:
    """Indices of the keys that a row may attend to, and the bias added to their scores."""
    keys: list[int] = []
    bias: list[float] = []
    for j in range(min(size, length)):
        added = 0.0
        if mask_row is not None and mask_row.dtype == np.bool_:
            added = 0.0 if mask_row[j] else -math.inf
        elif mask_row is not None:
            added = float(mask_row[j])
        if added == -math.inf or (offset is not None and j > row + offset):
            continue
        keys.append(j)
        bias.append(added)
    return np.asarray(keys, dtype=np.intp), np.asarray(bias, dtype=np.float64)


def _length(kv_lengths: ArrayLike | None, b: int, size: int) -> int:
    return size if kv_lengths is None else int(np.asarray(kv_lengths)[b])


def additive(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    v: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    is_causal: Causal = False,
) -> Result:
    """``e_ij = v^T tanh(q_i + k_j + bias)``, softmax over j (Bahdanau 2014, arXiv:1409.0473).

    query (B, T, A) holds ``W s_i`` and key (B, S, A) holds ``U h_j``, both projected already;
    v (A,), value (B, S, E), bias (A,) as in the normalised variant. A mask has rank 1 to 3 and
    broadcasts to (B, T, S). Returns out (B, T, E), weights (B, T, S), lse (B, T).
    """
    q, k, values, vector = float64(query), float64(key), float64(value), float64(v)
    inner = np.zeros(vector.shape) if bias is None else float64(bias)

    def score(b: int, i: int, keys: NDArray[np.intp]) -> Array:
        return np.asarray([vector @ np.tanh(q[b, i] + k[b, j] + inner) for j in keys])

    return _attend_by_row(score, q.shape[:2], values, mask, kv_lengths, is_causal)


def _attend_by_row(
    score: Callable[[int, int, NDArray[np.intp]], Array],
    rows: tuple[int, ...],
    values: Array,
    mask: ArrayLike | None,
    kv_lengths: ArrayLike | None,
    is_causal: Causal,
) -> Result:
    """Softmax and weighted sum for scores given row by row: ``score(b, i, keys) -> (keys,)``."""
    (batch, length_t), size = rows, values.shape[1]
    masks = broadcast_mask(mask, (batch, length_t, size))
    out = np.zeros((batch, length_t, values.shape[2]))
    weights = np.zeros((batch, length_t, size))
    lse = np.full((batch, length_t), -np.inf)
    for b in range(batch):
        length = _length(kv_lengths, b, size)
        offset = causal_offset(is_causal, length, length_t)
        for i in range(length_t):
            mask_row = None if masks is None else masks[b, i]
            keys, bias = _row_keys(mask_row, size, length, i, offset)
            if keys.size == 0:
                continue
            weights[b, i, keys], lse[b, i] = softmax_row(score(b, i, keys) + bias)
            out[b, i] = weights[b, i, keys] @ values[b, keys]
    return Result(out, weights, lse)


def max_error(found: ArrayLike, exact: ArrayLike) -> float:
    """Largest absolute difference; equal infinities differ by 0, a NaN differs by infinity."""
    a, b = np.broadcast_arrays(float64(found), float64(exact))
    differing = a != b
    gaps = np.abs(a[differing] - b[differing])
    return float(np.where(np.isnan(gaps), np.inf, gaps).max(initial=0.0))


def tolerance(
    naive: AnyArray,
    exact: ArrayLike,
    eps: float | None = None,
    *,
    score: float = 0.0,
    spread: float = 0.0,
) -> float:
    """The bound on a kernel's error, ``2 * error(naive) + eps``, naive in the kernel's dtype.

    `eps`, unless given, allows for a plain evaluation that happens to be (nearly) exact:

    - sixteen units in the last place of float32 (float64 for float64) at the largest finite exact
      value, or at 1; and four more for each unit of `score`, the size of the largest score, since
      a score of size z is off by some units of z, which the exponential makes relative to 1;
    - for float16 and bfloat16, which are accumulated in float32, also the roundings to the dtype
      that no kernel can avoid: one unit at the largest value, twice what rounding the result
      costs, and two at `spread`. That is the root of the sum of the squares of the terms
      ``p_j v_j`` of an output. A kernel that multiplies in the dtype rounds each p_j, by up to half
      a unit and independently, so their errors add up in squares: sqrt(1/12) units at `spread` is
      the standard deviation. The output itself may be far smaller, where terms cancel.
    """
    if eps is None:
        values = np.abs(float64(exact))
        largest = float(values[np.isfinite(values)].max(initial=0.0))
        unit = float(cast(Any, ml_dtypes).finfo(naive.dtype).eps)
        wide = min(unit, float(np.finfo(np.float32).eps))
        eps = (16.0 + 4.0 * score) * wide * max(largest, 1.0)
        if unit > wide:
            eps += unit * (largest + 2.0 * spread)
    return 2.0 * max_error(naive, exact) + eps


def erf(x: ArrayLike) -> Array:
    """Error function, element by element with `math.erf`."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(float64(x)))


def gelu(x: ArrayLike) -> Array:
    """``x * Phi(x)``, Phi the normal distribution (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    array = float64(x)
    return array * 0.5 * (1.0 + erf(array / math.sqrt(2.0)))


def softmax(x: ArrayLike, axis: int = -1) -> Array:
    """``exp(x) / sum(exp(x))`` along an axis; a slice that is -inf throughout gives zeros."""
    array = np.moveaxis(float64(x), axis, -1)
    out = np.zeros(array.shape)
    for index in np.ndindex(array.shape[:-1]):
        if np.any(array[index] != -np.inf):
            out[index] = softmax_row(array[index])[0]
    return np.asarray(np.moveaxis(out, -1, axis))


def layer_norm(x: ArrayLike, weight: ArrayLike, bias: ArrayLike, eps: float = 1e-12) -> Array:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis.

    The variance is the biased one (Ba et al. 2016, arXiv:1607.06450); eps is BERT's.
    """
    array = float64(x)
    centred: Array = array - array.mean(axis=-1, keepdims=True)
    variance: Array = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * float64(weight) + float64(bias)


def linear(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """``y = x W^T + b`` with weight (out, in) and bias (out,)."""
    product = float64(x) @ float64(weight).T
    return product if bias is None else product + float64(bias)


@dataclass(frozen=True)
class MultiHeadWeights:
    """Projections of multi-head attention, each (out, in) with an optional bias (out,)."""

    query: ArrayLike
    key: ArrayLike
    value: ArrayLike
    out: ArrayLike
    query_bias: ArrayLike | None = None
    key_bias: ArrayLike | None = None
    value_bias: ArrayLike | None = None
    out_bias: ArrayLike | None = None


def split_heads(x: Array, heads: int) -> Array:
    """(B, T, heads * D) to (B, heads, T, D); head h owns columns h*D to (h+1)*D."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def multi_head(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    weights: MultiHeadWeights,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    mask: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    is_causal: Causal = False,
    scale: float | None = None,
) -> Result:
    """``Concat(head_1, ..., head_H) W^O`` (Vaswani et al. 2017, arXiv:1706.03762, 3.2.2).

    query (B, T, M), key (B, S, M), value (B, S, M). Returns out (B, T, M), and weights
    (B, H, T, S) and lse (B, H, T) of the heads.
    """
    groups = num_heads if num_kv_heads is None else num_kv_heads
    heads = sdpa(
        split_heads(linear(query, weights.query, weights.query_bias), num_heads),
        split_heads(linear(key, weights.key, weights.key_bias), groups),
        split_heads(linear(value, weights.value, weights.value_bias), groups),
        mask=mask,
        kv_lengths=kv_lengths,
        is_causal=is_causal,
        scale=scale,
    )
    batch, _, rows, _ = heads.out.shape
    joined = heads.out.transpose(0, 2, 1, 3).reshape(batch, rows, -1)
    return Result(linear(joined, weights.out, weights.out_bias), heads.weights, heads.lse)


@dataclass(frozen=True)
class EncoderLayerWeights:
    """Parameters of a post-norm Transformer encoder layer, matrices (out, in)."""

    attention: MultiHeadWeights
    attention_norm_weight: ArrayLike
    attention_norm_bias: ArrayLike
    up: ArrayLike
    up_bias: ArrayLike
    down: ArrayLike
    down_bias: ArrayLike
    output_norm_weight: ArrayLike
    output_norm_bias: ArrayLike


def transformer_encoder_layer(
    x: ArrayLike,
    weights: EncoderLayerWeights,
    *,
    num_heads: int,
    mask: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    eps: float = 1e-12,
) -> Array:
    """The layer of BERT (Devlin et al. 2018, arXiv:1810.04805), x (B, T, M).

    ``y = norm(x + attention(x))``, then ``norm(y + down(gelu(up(y))))``.
    """
    attended = multi_head(
        x, x, x, weights.attention, num_heads=num_heads, mask=mask, kv_lengths=kv_lengths
    ).out
    w, residual = weights, float64(x) + attended
    y = layer_norm(residual, w.attention_norm_weight, w.attention_norm_bias, eps)
    fed = linear(gelu(linear(y, w.up, w.up_bias)), w.down, w.down_bias)
    return layer_norm(y + fed, w.output_norm_weight, w.output_norm_bias, eps)


def mean_pool(hidden: ArrayLike, attention_mask: ArrayLike) -> Array:
    """Mean of the unmasked rows: hidden (B, T, M), attention_mask (B, T) to (B, M)."""
    states, keep = float64(hidden), np.asarray(attention_mask).astype(bool)
    out = np.zeros((states.shape[0], states.shape[2]))
    for b in range(states.shape[0]):
        if keep[b].any():
            out[b] = states[b, keep[b]].mean(axis=0)
    return out


def l2_normalize(x: ArrayLike, eps: float = 1e-12) -> Array:
    """``x / max(||x||, eps)`` over the last axis."""
    array = float64(x)
    norm: Array = np.sqrt((array**2).sum(axis=-1, keepdims=True))
    return array / np.maximum(norm, eps)
