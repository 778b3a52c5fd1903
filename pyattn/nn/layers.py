"""Layers without attention: linear, embedding, normalisation, dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn.nn.module import Module, uniform
from pyattn.ops import dropout, layer_norm, linear, take
from pyattn.tensor import Array, Value


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


class Dropout(Module):
    """Zeroes entries with probability ``p`` when called with a generator (arXiv:1207.0580)."""

    def __init__(self, p: float) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p must lie in [0, 1); got {p}")
        self.p = p

    def __call__(self, x: Value, rng: np.random.Generator | None = None) -> Any:
        """Drop entries of ``x``, or return it unchanged without a generator."""
        return dropout(x, self.p, rng)
