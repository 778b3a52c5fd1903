"""Attention modules: the parameters around the functions of :mod:`pyattn.attention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from pyattn.attention import (
    additive_attention,
    scaled_dot_product_attention,
    varlen_attention,
)
from pyattn.nn.cache import LayerCache
from pyattn.nn.layers import Linear
from pyattn.nn.module import Module, uniform
from pyattn.ops import expand_dims, multiply, reshape, sqrt, sum, transpose
from pyattn.tensor import Array, Value, rank_of

SelfScore = Literal["scaled-dot", "additive", "general"]


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
        self._add_scoring(size, size if key_size is None else key_size, bias, rng)
        value_size = size if value_size is None else value_size
        self.value = Linear(value_size, groups * self.head_size, bias=bias, rng=rng)
        self.output = Linear(size, size, bias=bias, rng=rng)

    def _add_scoring(self, size: int, key_size: int, bias: bool, rng: Any) -> None:
        """Draw what the scores are made of."""
        self.query = Linear(size, size, bias=bias, rng=rng)
        self.key = Linear(key_size, self.kv_heads * self.head_size, bias=bias, rng=rng)

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
        self._require_sequences(query=query, key=key, value=value)
        result = scaled_dot_product_attention(
            self._split(self.query(query), self.heads),
            self._split(self.key(key), self.kv_heads),
            self._split(self.value(value), self.kv_heads),
            attn_mask,
            is_causal=is_causal,
            kv_lengths=kv_lengths,
            aux=aux,
        )
        return self._joined(result)

    def _require_sequences(self, **given: Value) -> None:
        for name, x in given.items():
            if rank_of(type(self).__name__, x) != 3:
                raise ValueError(
                    f"{type(self).__name__}: {name} must be (B, length, size); got shape {x.shape}"
                )

    def _joined(self, result: Any) -> Any:
        """Return the output of the heads ``(B, H, T, D)``, and what comes behind it as it is."""
        heads, *extra = result if isinstance(result, tuple) else (result,)
        joined = reshape(transpose(heads, (0, 2, 1, 3)), (0, 0, self.heads * self.head_size))
        return (self.output(joined), *extra) if extra else self.output(joined)

    def _split(self, x: Value, heads: int) -> Any:
        return transpose(reshape(x, (0, 0, heads, self.head_size)), (0, 2, 1, 3))


class SelfAttention(MultiHeadAttention):
    """Attention of a sequence to itself, with any of the scores.

    With the head's parts ``q_t = (W_q x_t)_h``, ``k_s = (W_k x_s)_h``, value ``(W_v x_s)_h`` and
    ``x_s`` cut in the same way, the score of row s for row t is

    =============  ===========================  ===========================================
    ``score``      formula                      paper
    =============  ===========================  ===========================================
    "scaled-dot"   ``q_t . k_s / sqrt(D)``      Vaswani et al. 2017, arXiv:1706.03762
    "additive"     ``v_h . tanh(q_t + k_s)``    Bahdanau et al. 2014, arXiv:1409.0473
    "general"      ``q_t . (x_s)_h``            Luong et al. 2015, arXiv:1508.04025: ``x_t W x_s``
    =============  ===========================  ===========================================

    Parameters
    ----------
    size, heads, kv_heads, bias, rng:
        As for :class:`MultiHeadAttention`; fewer ``kv_heads`` than ``heads`` for "scaled-dot" only.
        For "general", whose query stands for W, it has no bias, and there is no key.
    score:
        See the table.
    """

    def __init__(
        self,
        size: int,
        heads: int = 1,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        score: SelfScore = "scaled-dot",
        rng: np.random.Generator | None,
    ) -> None:
        if score not in get_args(SelfScore):
            raise ValueError(
                f"SelfAttention: score must be one of {get_args(SelfScore)}; got {score!r}"
            )
        if score != "scaled-dot" and kv_heads not in (None, heads):
            raise ValueError(
                f"SelfAttention: kv_heads must be heads for score {score!r}; got {kv_heads} for "
                f"{heads}"
            )
        self.score: SelfScore = score
        super().__init__(size, heads, kv_heads=kv_heads, bias=bias, rng=rng)
        if score == "additive":
            self.v: Array = uniform(rng, (size,), self.head_size)

    def _add_scoring(self, size: int, key_size: int, bias: bool, rng: Any) -> None:
        if self.score == "general":
            self.query = Linear(size, size, bias=False, rng=rng)
        else:
            super()._add_scoring(size, key_size, bias, rng)

    def __call__(  # type: ignore[override]
        self,
        x: Value,
        attn_mask: Value | None = None,
        *,
        is_causal: bool = False,
        kv_lengths: Value | None = None,
        cu_seqlens: Value | None = None,
        cache: LayerCache | None = None,
        query_start: Value | None = None,
        aux: Sequence[str] = (),
    ) -> Any:
        """Attend within ``x (B, T, size)``; the rest as for :class:`MultiHeadAttention`.

        ``aux=("weights",)`` returns the map ``(B, H, T, T)`` too, for one head as for several.

        With a ``cache`` of the tokens before, ``x`` are those from ``query_start (B,)`` on; they
        attend causally to the tokens before and to each other, and the cache with them in it comes
        behind the output.

        With ``cu_seqlens`` ``(B + 1,)`` the sequences are packed one behind the other, ``x (N,
        size)``, as in :func:`pyattn.varlen_attention`: no padding, hence no masks and lengths.
        """
        if cu_seqlens is not None:
            if attn_mask is not None or kv_lengths is not None:
                raise ValueError("SelfAttention: cu_seqlens excludes attn_mask and kv_lengths")
            return self._packed(x, cu_seqlens, is_causal, aux)
        if cache is not None:
            return self._cached(x, cache, query_start, attn_mask, kv_lengths, aux)
        if self.score == "scaled-dot":
            return super().__call__(
                x, x, x, attn_mask, is_causal=is_causal, kv_lengths=kv_lengths, aux=aux
            )
        self._require_sequences(x=x)
        if self.score == "general":
            query, key, value = (
                self._split(part, self.heads) for part in (self.query(x), x, self.value(x))
            )
            return self._joined(
                scaled_dot_product_attention(
                    query, key, value, attn_mask, scale=1.0, is_causal=is_causal,
                    kv_lengths=kv_lengths, aux=aux,
                )
            )  # fmt: skip
        result = additive_attention(
            self.query(x),
            self.key(x),
            self.value(x),
            self.v,
            num_heads=self.heads,
            attn_mask=attn_mask,
            is_causal=is_causal,
            kv_lengths=kv_lengths,
            aux=aux,
        )
        joined, *extra = result if isinstance(result, tuple) else (result,)
        return (self.output(joined), *extra) if extra else self.output(joined)

    def _cached(
        self,
        x: Value,
        cache: LayerCache,
        query_start: Value | None,
        attn_mask: Value | None,
        kv_lengths: Value | None,
        aux: Sequence[str],
    ) -> Any:
        if self.score != "scaled-dot":
            raise ValueError(f"SelfAttention: cache is not for score {self.score!r}")
        if query_start is None or attn_mask is not None or kv_lengths is not None:
            raise ValueError(
                "SelfAttention: cache needs query_start, and excludes attn_mask and kv_lengths"
            )
        self._require_sequences(x=x)
        key, value = (self._split(part(x), self.kv_heads) for part in (self.key, self.value))
        cache = cache.append(key, value, query_start)
        result = scaled_dot_product_attention(
            self._split(self.query(x), self.heads), cache.key, cache.value, is_causal=True,
            query_start=query_start, aux=aux,
        )  # fmt: skip
        output, *extra = joined if isinstance(joined := self._joined(result), tuple) else (joined,)
        return (output, cache, *extra)

    def _packed(self, x: Value, cu_seqlens: Value, is_causal: bool, aux: Sequence[str]) -> Any:
        if self.score == "additive":
            raise ValueError('SelfAttention: cu_seqlens is not for score "additive"')
        if rank_of("SelfAttention", x) != 2:
            raise ValueError(f"SelfAttention: x must be (N, size); got shape {x.shape}")
        general = self.score == "general"
        key = x if general else self.key(x)
        query, key, value = (
            reshape(part, (0, heads, self.head_size))
            for part, heads in (
                (self.query(x), self.heads),
                (key, self.kv_heads),
                (self.value(x), self.kv_heads),
            )
        )
        result = varlen_attention(
            query, key, value, cu_seqlens, cu_seqlens, is_causal=is_causal,
            scale=1.0 if general else None, aux=aux,
        )  # fmt: skip
        heads, *extra = result if isinstance(result, tuple) else (result,)
        joined = self.output(reshape(heads, (0, self.heads * self.head_size)))
        return (joined, *extra) if extra else joined


class AdditiveAttention(Module):
    """Bahdanau's attention: ``softmax_s(v . tanh(W s_t + U h_s)) h``.

    With ``normalize`` the scores are ``g v / |v| . tanh(W s_t + U h_s + b)``: the length of v is a
    parameter of its own, g, which starts at ``sqrt(1 / units)`` (of a head), and b at zero.

    Parameters
    ----------
    query_size, key_size:
        The sizes of the decoder states s and of the source states h.
    units:
        A, the size of the alignment model.
    num_heads:
        H heads, each with its part of ``units`` and of the values, which H divides; their outputs
        lie side by side. None is one head, and no axis H in what ``aux`` names.
    normalize:
        Whether v is normalised, in each head on its own.
    rng:
        Draws the initial parameters; None leaves them at zero, to be loaded.

    References
    ----------
    Bahdanau, Cho and Bengio 2014, arXiv:1409.0473, section 3.1; Salimans and Kingma 2016,
    arXiv:1602.07868, for ``normalize``.
    """

    def __init__(
        self,
        query_size: int,
        key_size: int,
        units: int,
        *,
        num_heads: int | None = None,
        normalize: bool = False,
        rng: np.random.Generator | None,
    ) -> None:
        heads = 1 if num_heads is None else num_heads
        if heads < 1 or units % heads:
            raise ValueError(
                f"AdditiveAttention: units must be a multiple of num_heads; got units {units}, "
                f"num_heads {num_heads}"
            )
        self.num_heads = num_heads
        self.query = Linear(query_size, units, bias=False, rng=rng)
        self.key = Linear(key_size, units, bias=False, rng=rng)
        self.v: Array = uniform(rng, (units,), units // heads)
        self.g: Array | None = None
        self.bias: Array | None = None
        if normalize:
            self.g = np.full(heads, np.sqrt(heads / units), np.float32)
            self.bias = np.zeros(units, np.float32)

    def project_key(self, key: Value) -> Any:
        """Return ``U h_s`` for every source state: ``(B, S, units)``.

        It is the same at every decoding step, so it is computed once for a source and handed to
        the calls.
        """
        return self.key(key)

    def __call__(
        self,
        query: Value,
        key: Value,
        value: Value | None = None,
        attn_mask: Value | None = None,
        *,
        projected_key: Value | None = None,
        kv_lengths: Value | None = None,
        is_causal: bool | Literal["top_left", "bottom_right"] = False,
        window: int | tuple[int, int] | None = None,
        query_start: int | Value | None = None,
        dropout_p: float = 0.0,
        rng: int | np.random.Generator | None = None,
        top_k: int = 0,
        aux: Sequence[str] = (),
    ) -> Any:
        """Return the context ``(B, T, E)`` of states ``query (B, T, query_size)``.

        ``key (B, S, key_size)`` are the source states; ``value`` is the same by default. With
        ``projected_key``, what :meth:`project_key` made of ``key``, it is not made again. The other
        arguments are those of :func:`pyattn.additive_attention`.
        """
        return additive_attention(
            self.query(query),
            self.project_key(key) if projected_key is None else projected_key,
            key if value is None else value,
            self.scoring_vector(),
            attn_mask=attn_mask,
            bias=self.bias,
            kv_lengths=kv_lengths,
            is_causal=is_causal,
            window=window,
            query_start=query_start,
            num_heads=self.num_heads,
            dropout_p=dropout_p,
            rng=rng,
            top_k=top_k,
            aux=aux,
        )

    def scoring_vector(self) -> Any:
        """Return v ``(units,)`` as it enters the scores: ``g v / |v|`` where it is normalised."""
        if self.g is None:
            return self.v
        rows = reshape(self.v, (self.g.shape[0], -1))
        lengths = sqrt(sum(multiply(rows, rows), -1, keepdims=True))
        return reshape(rows * expand_dims(self.g, 1) / lengths, (-1,))
