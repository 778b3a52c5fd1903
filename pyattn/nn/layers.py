"""Layers without attention: linear, embeddings, normalisations, dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from pyattn.nn.module import Module, uniform
from pyattn.ops import (
    add,
    arange_like,
    dropout,
    expand_dims,
    layer_norm,
    linear,
    multiply,
    rms_norm,
    rotary_embedding,
    take,
)
from pyattn.tensor import Array, Value, rank_of


class Linear(Module):
    """``y = x W^T + b`` with ``weight (out, in)`` and ``bias (out,)`` or None.

    Both start uniform in ``+-1 / sqrt(in)``, or at zero when ``rng`` is None.
    """

    def __init__(
        self, size_in: int, size_out: int, *, bias: bool = True, rng: np.random.Generator | None
    ) -> None:
        self.weight = uniform(rng, (size_out, size_in), size_in)
        self.bias: Array | None = uniform(rng, (size_out,), size_in) if bias else None

    def __call__(self, x: Value) -> Any:
        """Map ``x (..., in)`` to ``(..., out)``."""
        return linear(x, self.weight, self.bias)


class Embedding(Module):
    """A table ``weight (rows, size)`` looked up by integers."""

    def __init__(self, rows: int, size: int, *, rng: np.random.Generator | None) -> None:
        self.weight = uniform(rng, (rows, size), 1)

    def __call__(self, indices: Value) -> Any:
        """Map integers ``(...)`` to rows ``(..., size)``; ValueError outside the table."""
        return take(self.weight, indices)


class LayerNorm(Module):
    """Layer normalisation over the last axis (arXiv:1607.06450), with weight and bias."""

    def __init__(self, size: int, *, eps: float = 1e-5) -> None:
        if not eps > 0:
            raise ValueError(f"LayerNorm: eps must be positive; got {eps}")
        self.weight = np.ones(size, np.float32)
        self.bias = np.zeros(size, np.float32)
        self.eps = eps

    def __call__(self, x: Value) -> Any:
        """Normalise ``x (..., size)``."""
        return layer_norm(x, self.weight, self.bias, eps=self.eps)


class RMSNorm(Module):
    """Root-mean-square normalisation over the last axis (arXiv:1910.07467), with a weight."""

    def __init__(self, size: int, *, eps: float = 1e-5) -> None:
        if not eps > 0:
            raise ValueError(f"RMSNorm: eps must be positive; got {eps}")
        self.weight = np.ones(size, np.float32)
        self.eps = eps

    def __call__(self, x: Value) -> Any:
        """Normalise ``x (..., size)``."""
        return rms_norm(x, self.weight, epsilon=self.eps)


class RotaryEmbedding(Module):
    """Rotary position embedding (arXiv:2104.09864): pair k at position p turned by p * theta_k.

    ``theta_k = base ** (-2 k / dim)`` for the ``dim / 2`` pairs of the first ``dim`` numbers of
    each head. The tables of cosines and sines ``(max_positions, dim / 2)`` are computed in float64
    and kept in ``dtype``, which is that of the inputs; they are not parameters.
    """

    def __init__(
        self,
        dim: int,
        max_positions: int,
        base: float = 10000.0,
        *,
        interleaved: bool = False,
        dtype: DTypeLike = np.float32,
    ) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"RotaryEmbedding: dim must be even and above 0; got {dim}")
        if max_positions < 1:
            raise ValueError(
                f"RotaryEmbedding: max_positions must be positive; got {max_positions}"
            )
        if not 0 < base < np.inf:
            raise ValueError(f"RotaryEmbedding: base must be positive and finite; got {base}")
        self.dim, self.interleaved = dim, interleaved
        theta = float(base) ** (-np.arange(0, dim, 2) / dim)
        angles = np.arange(max_positions)[:, None] * theta
        self._cosine: Array = np.cos(angles).astype(dtype)
        self._sine: Array = np.sin(angles).astype(dtype)

    def __call__(self, x: Value, position_ids: Value | None = None, *, num_heads: int = 0) -> Any:
        """Turn ``x (B, H, T, D)``, or ``(B, T, H*D)`` with ``num_heads``.

        ``position_ids (B, T)`` are 0, 1, ... in every row unless given. ValueError for a position
        that is not below ``max_positions``.
        """
        if rank_of("RotaryEmbedding", x) in (3, 4) and position_ids is None:
            rows = expand_dims(multiply(arange_like(x, 0), 0), 1)
            position_ids = add(rows, expand_dims(arange_like(x, -2), 0))
        return rotary_embedding(
            x,
            self._cosine,
            self._sine,
            position_ids,
            interleaved=self.interleaved,
            rotary_embedding_dim=self.dim,
            num_heads=num_heads,
        )


class Dropout(Module):
    """Zeroes entries with probability ``p`` when called with a generator (arXiv:1207.0580)."""

    def __init__(self, p: float) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must lie in [0, 1); got {p}")
        self.p = p

    def __call__(self, x: Value, rng: np.random.Generator | None = None) -> Any:
        """Drop entries of ``x``, or return it unchanged without a generator."""
        return dropout(x, self.p, rng)
