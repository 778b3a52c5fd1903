"""The keys and values that a decoder has computed already."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pyattn.attention import update_cache
from pyattn.ops import astype, expand_dims, pad, zeros_like
from pyattn.tensor import Tensor, Value


class LayerCache(NamedTuple):
    """Keys and values of one layer, with room for more than are there."""

    key: Any
    """``(B, G, C, D)``, C being the capacity."""
    value: Any
    """``(B, G, C, D)``."""

    def append(self, key: Value, value: Value, query_start: Value) -> LayerCache:
        """Return the cache with ``key`` and ``value (B, G, T, D)`` behind what it holds.

        They are written from position ``query_start (B,)`` on; in place where all are arrays.
        """
        pairs = ((self.key, key), (self.value, value))
        traced = any(isinstance(x, Tensor) for x in (*self, key, value, query_start))
        return LayerCache(
            *(
                update_cache(cache, rows, query_start, out=None if traced else cache)
                for cache, rows in pairs
            )
        )


class KeyValueCache(NamedTuple):
    """Keys and values of all layers for the tokens so far."""

    layers: tuple[LayerCache, ...]
    lengths: Any
    """``(B,)`` int64: how many tokens of each entry it holds."""

    @classmethod
    def empty(
        cls, input_ids: Value, *, layers: int, kv_heads: int, head_size: int, room: int
    ) -> KeyValueCache:
        """Return a cache of zeros for the tokens ``input_ids (B, T)`` and ``room`` more."""
        positions = pad(zeros_like(input_ids, np.float32), room)
        zeros = expand_dims(expand_dims(positions, 1), 3) + np.zeros(
            (1, kv_heads, 1, head_size), np.float32
        )

        def fresh() -> Any:
            return zeros if isinstance(zeros, Tensor) else zeros.copy()

        lengths = astype(zeros_like(input_ids[:, 0]), np.int64)
        return cls(tuple(LayerCache(fresh(), fresh()) for _ in range(layers)), lengths)
