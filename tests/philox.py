"""Philox4x32-10, the generator behind dropout, and the weights that dropout keeps.

Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3",
DOI 10.1145/2063384.2063405, section 3.3. A block of four words depends on nothing but a counter
and a key, so the mask of any row can be made again, in any order, without storing it.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint32]

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # of counter words 0 and 2
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round: golden ratio, sqrt(3) - 1
WORD = 0xFFFFFFFF


def philox4x32(counter: ArrayLike, key: tuple[int, int]) -> Words:
    """Return the four random words ``(..., 4)`` of each counter ``(..., 4)``, all uint32.

    A round multiplies words 0 and 2 to 64 bits, exchanges the halves, and mixes the high ones with
    words 1 and 3 and with the key.
    """
    # uint64 throughout: a product of two words fits, and what lies above a word is cut off.
    x0, x1, x2, x3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    low, high = key
    for _ in range(ROUNDS):
        first, second = x0 * np.uint64(MULTIPLIERS[0]), x2 * np.uint64(MULTIPLIERS[1])
        x0 = (second >> np.uint64(32)) ^ x1 ^ np.uint64(low)
        x2 = (first >> np.uint64(32)) ^ x3 ^ np.uint64(high)
        x1, x3 = second & np.uint64(WORD), first & np.uint64(WORD)
        low, high = (low + WEYL[0]) & WORD, (high + WEYL[1]) & WORD
    return np.stack([x0, x1, x2, x3], axis=-1).astype(np.uint32)


def dropout_words(seed: int, b: ArrayLike, h: ArrayLike, i: ArrayLike, size: int) -> Words:
    """Return the word of each key 0..size-1 of query row i in head h of batch entry b.

    Key j takes word ``j % 4`` of the counter ``(j // 4, i, h, b)``, under the key (low, high half
    of the seed). `b`, `h` and `i` broadcast; the result has one more axis, `size` long.
    """
    blocks = np.arange((size + 3) // 4)
    axes = [np.asarray(index)[..., None] for index in (i, h, b)]
    counter = np.stack(np.broadcast_arrays(blocks, *axes), axis=-1)
    words = philox4x32(counter, (seed & WORD, seed >> 32))
    return words.reshape(*words.shape[:-2], 4 * blocks.size)[..., :size]


def dropout_factors(
    dropout_p: float, seed: int, b: ArrayLike, h: ArrayLike, i: ArrayLike, size: int
) -> NDArray[Any]:
    """Return what each weight is multiplied by: 0, or ``1 / (1 - dropout_p)`` where it is kept.

    A weight is kept when its word is at least ``floor(dropout_p * 2^32)``.
    """
    threshold = int(dropout_p * 2.0**32)  # exact: a multiplication by a power of two
    kept = dropout_words(seed, b, h, i, size) >= threshold
    return np.where(kept, 1.0 / (1.0 - dropout_p), 0.0)
