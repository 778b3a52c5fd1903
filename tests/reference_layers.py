"""Float64 oracles of rotary embedding and RMS normalisation, number by number from the papers.

As in `tests.reference`, nothing here is fast and nothing imports the library under test.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from tests.reference import Array


def rotary_embedding(
    x: ArrayLike,
    cos_cache: ArrayLike,
    sin_cache: ArrayLike,
    position_ids: ArrayLike | None = None,
    *,
    interleaved: bool = False,
    rotary_embedding_dim: int = 0,
    num_heads: int = 0,
) -> Array:
    """Rotation of pairs (Su et al. 2021, arXiv:2104.09864, equation 34).

    x (B, H, T, D), or (B, T, H*D) with `num_heads`. Pair k of row t is the complex number
    ``u + i v``, multiplied by ``cos + i sin``. The paper's pairs are (2k, 2k + 1), which is
    `interleaved`; otherwise they are (k, k + R/2), R = `rotary_embedding_dim` or D.
    """
    given = np.asarray(x, np.float64)
    batch = given.shape[0]
    heads = num_heads if given.ndim == 3 else given.shape[1]
    length = given.shape[-2]
    size = given.shape[-1] // heads if given.ndim == 3 else given.shape[-1]
    pairs = (rotary_embedding_dim or size) // 2
    out = given.copy()
    for b, h, t, k in np.ndindex(batch, heads, length, pairs):
        entry = (b, t, k) if position_ids is None else (np.asarray(position_ids)[b, t], k)
        angle = complex(np.asarray(cos_cache)[entry], np.asarray(sin_cache)[entry])
        first, second = (2 * k, 2 * k + 1) if interleaved else (k, k + pairs)
        at = [(b, t, h * size + d) if given.ndim == 3 else (b, h, t, d) for d in (first, second)]
        turned = complex(given[at[0]], given[at[1]]) * angle
        out[at[0]], out[at[1]] = turned.real, turned.imag
    return out


def rms_norm(x: ArrayLike, scale: ArrayLike, axis: int = -1, epsilon: float = 1e-5) -> Array:
    """``a_i / RMS(a) * g_i`` (Zhang and Sennrich 2019, arXiv:1910.07467, equation 4).

    ``RMS(a) = sqrt(mean(a^2) + epsilon)`` over the axes of x from `axis` on.
    """
    array = np.asarray(x, np.float64)
    axis %= array.ndim
    out = np.zeros(array.shape)
    gain = np.broadcast_to(np.asarray(scale, np.float64), array.shape[axis:])
    for index in np.ndindex(array.shape[:axis]):
        row = array[index]
        mean_square = math.fsum(float(a) ** 2 for a in row.flat) / row.size
        out[index] = row / math.sqrt(mean_square + epsilon) * gain
    return out
