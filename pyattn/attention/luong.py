"""Luong's multiplicative and concat attention, composed of the other two mechanisms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from pyattn import interchange
from pyattn.attention import _checks as checks
from pyattn.attention.additive import additive_attention
from pyattn.attention.sdpa import scaled_dot_product_attention
from pyattn.ops import expand_dims, linear, matmul
from pyattn.tensor import Value, spec_of

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
    optional = {"weight": weight, "v": v, "attn_mask": attn_mask, "kv_lengths": kv_lengths}
    if not checks.require_arrays(NAME, optional, query=query, key=key, value=value):
        return interchange.call(luong_attention, locals())
    if (weight is None) != (score == "dot") or (v is None) != (score != "concat"):
        raise ValueError(
            f'{NAME}: score "dot" takes no weight and no v, "general" takes weight, "concat" both; '
            f"got {score!r} with weight {weight is not None}, v {v is not None}"
        )
    _check(query, key, value, score, weight, v, attn_mask)
    size = query.shape[2]
    if weight is not None and v is not None:
        return additive_attention(
            linear(query, weight[:, :size]),
            linear(key, weight[:, size:]),
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


def _check(
    query: Value,
    key: Value,
    value: Value,
    score: Score,
    weight: Value | None,
    v: Value | None,
    mask: Value | None,
) -> None:
    """Raise TypeError or ValueError where dtypes or shapes do not fit the score."""
    given: Any = {"query": query, "key": key, "value": value, "weight": weight, "v": v}
    specs: dict[str, Any] = {name: spec_of(x) for name, x in given.items() if x is not None}
    checks.require_floats(NAME, **specs)
    q, k, x = specs["query"], specs["key"], specs["value"]
    for name, spec, layout in (
        ("query", q, "B, T, D"), ("key", k, "B, S, Dk"), ("value", x, "B, S, E"),
    ):  # fmt: skip
        checks.require_rank(NAME, layout, **{name: spec})
    checks.require_shared(NAME, "B", 0, query=q, key=k)
    checks.require_shared(NAME, "B", 0, query=q, value=x)
    checks.require_shared(NAME, "S", 1, key=k, value=x)
    checks.require_mask(NAME, spec_of(mask), q.dtype, (*q.shape[:2], k.shape[1]))
    if score == "dot":
        checks.require_shared(NAME, "D", 2, query=q, key=k)
        return
    w = specs["weight"]
    wanted: Any = (q.shape[2], k.shape[2])
    if score == "concat":
        wanted = (specs["v"].shape[0] if specs["v"].ndim == 1 else "A", q.shape[2] + k.shape[2])
    if w.shape != wanted:
        raise ValueError(
            f"{NAME}: weight must be {wanted} for score {score!r}; got weight {w.shape}"
            + (f", v {specs['v'].shape}" if "v" in specs else "")
        )
