"""Luong's multiplicative and concat attention, composed of the other two mechanisms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from pyattn.attention import _checks as checks
from pyattn.attention.additive import additive_attention
from pyattn.attention.sdpa import scaled_dot_product_attention
from pyattn.ops import expand_dims, linear, matmul
from pyattn.tensor import Value

NAME = "luong_attention"
Score = Literal["dot", "general", "concat"]


def luong_attention(
    query: Value,
    key: Value,
    value: Value | None = None,
    *,
    score: Score = "dot",
    weight: Value | None = None,
    v: Value | None = None,
    attn_mask: Value | None = None,
    kv_lengths: Value | None = None,
    aux: Sequence[str] = (),
) -> Any:
    """Return Luong's global attention: the context ``softmax_s(score(h_t, h_s)) value``.

    ==========  ==================================  ==================
    ``score``   formula                             ``weight``
    ==========  ==================================  ==================
    "dot"       ``h_t . h_s``                       none, D = Dk
    "general"   ``h_t . W h_s``                     ``(D, Dk)``
    "concat"    ``v . tanh(W [h_t; h_s])``          ``(A, D + Dk)``
    ==========  ==================================  ==================

    Parameters
    ----------
    query:
        The current decoder states ``(B, T, D)``, float32 or float64.
    key:
        The source states ``(B, S, Dk)`` of the same dtype.
    value:
        ``(B, S, E)``; ``key`` by default, as in the paper.
    score, weight:
        See the table.
    v:
        ``(A,)``, for "concat" only.
    attn_mask:
        Broadcasts to ``(B, T, S)``; boolean (True may be attended) or added to the scores.
    kv_lengths:
        ``(B,)`` integers: only the first ``kv_lengths[b]`` source states are valid.
    aux:
        ``"weights"`` and ``"lse"``, as in :func:`pyattn.additive_attention`.

    Returns
    -------
    The context ``(B, T, E)``, or a tuple of it and what ``aux`` names.

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes that do not fit, or a ``weight`` or ``v`` that the score does not
        take or needs.

    References
    ----------
    Luong, Pham and Manning 2015, "Effective Approaches to Attention-based Neural Machine
    Translation", arXiv:1508.04025, section 3.1.
    """
    if score not in get_args(Score):
        raise ValueError(f"{NAME}: score must be one of {get_args(Score)}; got {score!r}")
    value = key if value is None else value
    checks.require_arrays(
        NAME, query=query, key=key, value=value, weight=weight, v=v, attn_mask=attn_mask
    )
    if (weight is None) != (score == "dot") or (v is None) != (score != "concat"):
        raise ValueError(
            f'{NAME}: score "dot" takes no weight and no v, "general" takes weight, "concat" both; '
            f"got {score!r} with weight {weight is not None}, v {v is not None}"
        )
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 3:
            raise ValueError(f"{NAME}: {name} must be of rank 3; got shape {x.shape}")
    sizes = (query.shape[2], key.shape[2])
    if weight is not None:
        columns = sum(sizes) if score == "concat" else sizes[1]
        rows = weight.shape[0] if score == "concat" else sizes[0]
        if weight.shape != (rows, columns):
            raise ValueError(
                f"{NAME}: weight must be ({'A' if score == 'concat' else rows}, {columns}) for "
                f"score {score!r}; got {weight.shape}"
            )
    if weight is not None and v is not None:
        return additive_attention(
            linear(query, weight[:, : sizes[0]]),
            linear(key, weight[:, sizes[0] :]),
            value,
            v,
            attn_mask=attn_mask,
            kv_lengths=kv_lengths,
            aux=aux,
        )
    if weight is not None:
        query = matmul(query, weight)
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = expand_dims(attn_mask, 1)
    result = scaled_dot_product_attention(
        expand_dims(query, 1),
        expand_dims(key, 1),
        expand_dims(value, 1),
        attn_mask,
        scale=1.0,
        kv_lengths=kv_lengths,
        aux=aux,
    )
    parts = result if isinstance(result, tuple) else (result,)
    parts = tuple(part[:, 0] for part in parts)
    return parts if aux else parts[0]
