"""Attention modules: the parameters around the functions of :mod:`pyattn.attention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyattn.attention import additive_attention, scaled_dot_product_attention
from pyattn.nn.layers import Linear
from pyattn.nn.module import Module, uniform
from pyattn.ops import reshape, transpose
from pyattn.tensor import Array, Value, rank_of


class MultiHeadAttention(Module):
    """Multi-head attention: ``concat(head_1, ..., head_H) W_o``, each head attending on its own.

    With fewer ``kv_heads`` than ``heads`` it is grouped-query attention (arXiv:2305.13245), with
    one it is multi-query attention (arXiv:1911.02150).

    Parameters
    ----------
    size:
        The size of queries and of the output, a multiple of ``heads``.
    heads, kv_heads:
        H and G; G defaults to H and divides it.
    key_size, value_size:
        The sizes of the keys and values given to the call; ``size`` by default.
    bias:
        Whether the four projections have a bias.
    rng:
        Draws the initial parameters; None leaves them at zero, to be loaded.

    References
    ----------
    Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        key_size: int | None = None,
        value_size: int | None = None,
        bias: bool = True,
        rng: np.random.Generator | None,
    ) -> None:
        groups = heads if kv_heads is None else kv_heads
        if heads < 1 or size % heads or groups < 1 or heads % groups:
            raise ValueError(
                f"{type(self).__name__}: size must be a multiple of heads, and heads of kv_heads; "
                f"got size {size}, heads {heads}, kv_heads {groups}"
            )
        self.heads, self.kv_heads, self.head_size = heads, groups, size // heads
        self.query = Linear(size, size, bias=bias, rng=rng)
        key_size = size if key_size is None else key_size
        value_size = size if value_size is None else value_size
        self.key = Linear(key_size, groups * self.head_size, bias=bias, rng=rng)
        self.value = Linear(value_size, groups * self.head_size, bias=bias, rng=rng)
        self.output = Linear(size, size, bias=bias, rng=rng)

    def __call__(
        self,
        query: Value,
        key: Value,
        value: Value,
        attn_mask: Value | None = None,
        *,
        is_causal: bool = False,
        kv_lengths: Value | None = None,
        aux: Sequence[str] = (),
    ) -> Any:
        """Attend from ``query (B, T, size)`` to ``key`` and ``value (B, S, ...)``.

        The other arguments, and what ``aux`` returns behind the output ``(B, T, size)``, are those
        of :func:`pyattn.scaled_dot_product_attention`; a mask broadcasts to ``(B, H, T, S)``.
        """
        for name, x in (("query", query), ("key", key), ("value", value)):
            if rank_of(type(self).__name__, x) != 3:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be (B, length, size); got shape {x.shape}"
                )
        result = scaled_dot_product_attention(
            self._split(self.query(query), self.heads),
            self._split(self.key(key), self.kv_heads),
            self._split(self.value(value), self.kv_heads),
            attn_mask,
            is_causal=is_causal,
            kv_lengths=kv_lengths,
            aux=aux,
        )
        heads, *extra = result if isinstance(result, tuple) else (result,)
        joined = reshape(transpose(heads, (0, 2, 1, 3)), (0, 0, self.heads * self.head_size))
        return (self.output(joined), *extra) if extra else self.output(joined)

    def _split(self, x: Value, heads: int) -> Any:
        return transpose(reshape(x, (0, 0, heads, self.head_size)), (0, 2, 1, 3))


class SelfAttention(MultiHeadAttention):
    """Multi-head attention of a sequence to itself: query, key and value are one array.

    Parameters are those of :class:`MultiHeadAttention`.
    """

    def __init__(
        self,
        size: int,
        heads: int = 1,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        rng: np.random.Generator | None,
    ) -> None:
        super().__init__(size, heads, kv_heads=kv_heads, bias=bias, rng=rng)

    def __call__(  # type: ignore[override]
        self,
        x: Value,
        attn_mask: Value | None = None,
        *,
        is_causal: bool = False,
        kv_lengths: Value | None = None,
        aux: Sequence[str] = (),
    ) -> Any:
        """Attend within ``x (B, T, size)``; the rest as for :class:`MultiHeadAttention`."""
        return super().__call__(
            x, x, x, attn_mask, is_causal=is_causal, kv_lengths=kv_lengths, aux=aux
        )


class AdditiveAttention(Module):
    """Bahdanau's attention: ``softmax_s(v . tanh(W s_t + U h_s)) h`` (arXiv:1409.0473).

    Parameters
    ----------
    query_size, key_size:
        The sizes of the decoder states s and of the source states h.
    units:
        A, the size of the alignment model.
    rng:
        Draws the initial parameters; None leaves them at zero, to be loaded.
    """

    def __init__(
        self, query_size: int, key_size: int, units: int, *, rng: np.random.Generator | None
    ) -> None:
        self.query = Linear(query_size, units, bias=False, rng=rng)
        self.key = Linear(key_size, units, bias=False, rng=rng)
        self.v: Array = uniform(rng, (units,), units)

    def __call__(
        self,
        query: Value,
        key: Value,
        value: Value | None = None,
        attn_mask: Value | None = None,
        *,
        kv_lengths: Value | None = None,
        aux: Sequence[str] = (),
    ) -> Any:
        """Return the context ``(B, T, E)`` of states ``query (B, T, query_size)``.

        ``key (B, S, key_size)`` are the source states; ``value`` is the same by default. The other
        arguments are those of :func:`pyattn.additive_attention`.
        """
        return additive_attention(
            self.query(query),
            self.key(key),
            key if value is None else value,
            self.v,
            attn_mask=attn_mask,
            kv_lengths=kv_lengths,
            aux=aux,
        )
