"""Luong's attention as a module: the parameters around :func:`pyattn.luong_attention`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from pyattn.attention import luong_attention
from pyattn.attention.luong import Alignment, Score, project_key
from pyattn.nn.layers import Linear
from pyattn.nn.module import Module, uniform
from pyattn.ops import concat, tanh
from pyattn.tensor import Array, Value


class LuongAttention(Module):
    """Luong's attention and attentional vector: ``tanh(W_c [c_t; h_t])``.

    Parameters
    ----------
    query_size, key_size:
        The sizes of the decoder states h_t and of the source states h_s; equal for score "dot".
    score, align:
        See :func:`pyattn.luong_attention`.
    units:
        A, for score "concat" only; ``query_size`` by default.
    source_length:
        For score "location" only: the longest source.
    half_width:
        D, for the local alignments: a query sees the keys within D of its centre.
    position_units:
        The size of the hidden layer that predicts p_t, for "local-p"; ``query_size`` by default.
    renormalize:
        For "local-p": divide the weights by their sum.
    rng:
        Draws the initial parameters; None leaves them at zero, to be loaded.

    References
    ----------
    Luong, Pham and Manning 2015, arXiv:1508.04025, section 3.
    """

    def __init__(
        self,
        query_size: int,
        key_size: int | None = None,
        *,
        score: Score = "general",
        align: Alignment = "global",
        units: int | None = None,
        source_length: int | None = None,
        half_width: int | None = None,
        position_units: int | None = None,
        renormalize: bool = False,
        rng: np.random.Generator | None,
    ) -> None:
        key_size = query_size if key_size is None else key_size
        for name, given, known in (("score", score, Score), ("align", align, Alignment)):
            if given not in get_args(known):
                raise ValueError(
                    f"LuongAttention: {name} must be one of {get_args(known)}; got {given!r}"
                )
        if score == "dot" and query_size != key_size:
            raise ValueError(
                'LuongAttention: score "dot" needs query_size equal to key_size; got '
                f"{query_size} and {key_size}"
            )
        if (source_length is None) == (score == "location"):
            raise ValueError(
                'LuongAttention: score "location" needs source_length, the others take none; got '
                f"score {score!r}, source_length {source_length}"
            )
        if (half_width is None) == (align != "global"):
            raise ValueError(
                'LuongAttention: a local align needs half_width, "global" takes none; got align '
                f"{align!r}, half_width {half_width}"
            )
        self.score: Score = score
        self.align: Alignment = align
        self.half_width, self.renormalize = half_width, renormalize
        self.weight: Array | None = None
        self.v: Array | None = None
        if score == "general":
            self.weight = uniform(rng, (query_size, key_size), key_size)
        elif score == "concat":
            units = query_size if units is None else units
            self.weight = uniform(rng, (units, query_size + key_size), query_size + key_size)
            self.v = uniform(rng, (units,), units)
        elif source_length is not None:
            self.weight = uniform(rng, (source_length, query_size), query_size)
        self.position_weight: Array | None = None
        self.position_v: Array | None = None
        if align == "local-p":
            hidden = query_size if position_units is None else position_units
            self.position_weight = uniform(rng, (hidden, query_size), query_size)
            self.position_v = uniform(rng, (hidden,), hidden)
        self.output = Linear(key_size + query_size, query_size, bias=False, rng=rng)

    def project_key(self, key: Value) -> Any:
        """Return what score "concat" makes of every source state: ``(B, S, units)``.

        It is the same at every decoding step, so it is computed once for a source and handed to
        the calls. None for the other scores, which take the source states as they are.
        """
        return project_key(key, self.weight) if self.score == "concat" else None

    def __call__(
        self,
        query: Value,
        key: Value,
        attn_mask: Value | None = None,
        *,
        projected_key: Value | None = None,
        kv_lengths: Value | None = None,
        query_start: int | Value | None = None,
        aux: Sequence[str] = (),
    ) -> Any:
        """Return the attentional vectors ``(B, T, query_size)`` of ``query (B, T, query_size)``.

        ``key (B, S, key_size)`` are the source states. With ``projected_key``, what
        :meth:`project_key` made of ``key``, it is not made again. The other arguments, and what
        ``aux`` returns behind the vectors, are those of :func:`pyattn.luong_attention`.
        """
        result = luong_attention(
            query,
            key,
            score=self.score,
            weight=self.weight,
            v=self.v,
            projected_key=projected_key,
            align=self.align,
            half_width=self.half_width,
            position_weight=self.position_weight,
            position_v=self.position_v,
            renormalize=self.renormalize,
            query_start=query_start,
            attn_mask=attn_mask,
            kv_lengths=kv_lengths,
            aux=aux,
        )
        context, *extra = result if isinstance(result, tuple) else (result,)
        vector = tanh(self.output(concat([context, query], -1)))
        return (vector, *extra) if extra else vector
