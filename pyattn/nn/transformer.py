"""The Transformer's encoder layer, which with causal attention is that of GPT's decoders too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from pyattn.nn.attention import SelfAttention
from pyattn.nn.cache import LayerCache
from pyattn.nn.layers import Dropout, LayerNorm, Linear
from pyattn.nn.module import Module
from pyattn.ops import gelu, relu
from pyattn.tensor import Value

Activation = Literal["gelu", "gelu_tanh", "relu"]
ACTIVATIONS: dict[str, Callable[[Value], Any]] = {
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "relu": relu,
}


class TransformerEncoderLayer(Module):
    """Self-attention and a two-layer network, each with a residual and a layer normalisation.

    Parameters
    ----------
    size, heads:
        The model's size and its number of attention heads.
    hidden_size:
        The inner size of the network.
    activation:
        "gelu", its approximation "gelu_tanh", or "relu".
    norm_first:
        False normalises after each residual, as in the paper and in BERT; True before each part.
    dropout:
        The probability of dropping entries of each part's result when a generator is given.
    eps:
        Of the layer normalisations.
    rng:
        Draws the initial parameters; None leaves them at zero, to be loaded.

    References
    ----------
    Vaswani et al. 2017, arXiv:1706.03762, section 3.1; Xiong et al. 2020, arXiv:2002.04745, for
    ``norm_first``.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        hidden_size: int,
        *,
        activation: Activation = "gelu",
        norm_first: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-5,
        rng: np.random.Generator | None,
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"TransformerEncoderLayer: activation must be one of {sorted(ACTIVATIONS)}; got "
                f"{activation!r}"
            )
        self.attention = SelfAttention(size, heads, rng=rng)
        self.attention_norm = LayerNorm(size, eps=eps)
        self.hidden = Linear(size, hidden_size, rng=rng)
        self.output = Linear(hidden_size, size, rng=rng)
        self.output_norm = LayerNorm(size, eps=eps)
        self.dropout = Dropout(dropout)
        self.activation, self.norm_first = activation, norm_first

    def __call__(
        self,
        x: Value,
        attn_mask: Value | None = None,
        *,
        is_causal: bool = False,
        kv_lengths: Value | None = None,
        cu_seqlens: Value | None = None,
        cache: LayerCache | None = None,
        query_start: Value | None = None,
        rng: np.random.Generator | None = None,
        aux: Sequence[str] = (),
    ) -> Any:
        """Map ``x (B, T, size)`` to the same shape; masks as in :class:`SelfAttention`.

        With ``cu_seqlens``, ``x (N, size)`` holds packed sequences; with a ``cache``, ``x`` are the
        tokens from ``query_start`` on, and the cache with them in it comes behind the result.

        ``rng`` switches dropout on. ``aux`` returns the attention's auxiliary results as well.
        """
        result = self.attention(
            self.attention_norm(x) if self.norm_first else x,
            attn_mask,
            is_causal=is_causal,
            kv_lengths=kv_lengths,
            cu_seqlens=cu_seqlens,
            cache=cache,
            query_start=query_start,
            aux=aux,
        )
        attended, *extra = result if isinstance(result, tuple) else (result,)
        x = x + self.dropout(attended, rng)
        if self.norm_first:
            x = x + self.dropout(self._network(self.output_norm(x)), rng)
        else:
            x = self.attention_norm(x)
            x = self.output_norm(x + self.dropout(self._network(x), rng))
        return (x, *extra) if extra else x

    def _network(self, x: Value) -> Any:
        return self.output(ACTIVATIONS[self.activation](self.hidden(x)))
