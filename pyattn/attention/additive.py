"""Additive (Bahdanau) attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyattn import _core, interchange
from pyattn.attention import _checks as checks
from pyattn.ops import expand_dims, matmul, tanh
from pyattn.tensor import Array, Node, Op, Spec, Value, apply

NAME = "additive_attention"


def _shape(
    query: Spec,
    key: Spec,
    value: Spec,
    v: Spec,
    mask: Spec | None,
    kv_lengths: Spec | None,
    *,
    is_causal: bool,
    aux: tuple[str, ...],
) -> Any:
    checks.require_floats(NAME, query=query, key=key, value=value, v=v)
    checks.require_rank(NAME, "B, T, A", query=query)
    checks.require_rank(NAME, "B, S, A", key=key)
    checks.require_rank(NAME, "B, S, E", value=value)
    checks.require_rank(NAME, "A", v=v)
    checks.require_shared(NAME, "B", 0, query=query, key=key)
    checks.require_shared(NAME, "B", 0, query=query, value=value)
    checks.require_shared(NAME, "S", 1, key=key, value=value)
    checks.require_shared(NAME, "A", 2, query=query, key=key)
    checks.require_shared(NAME, "A", -1, query=query, v=v)
    batch, rows, _ = query.shape
    scores = (batch, rows, key.shape[1])
    checks.require_mask(NAME, mask, query.dtype, scores)
    checks.require_lengths(NAME, kv_lengths, batch)
    del is_causal
    extra = {"weights": Spec(scores, query.dtype), "lse": Spec(scores[:2], query.dtype)}
    out = Spec((batch, rows, value.shape[2]), query.dtype)
    return (out, *(extra[name] for name in aux)) if aux else out


def _eval(
    query: Array,
    key: Array,
    value: Array,
    v: Array,
    mask: Array | None,
    kv_lengths: Array | None,
    *,
    is_causal: bool,
    aux: tuple[str, ...],
) -> Any:
    out, weights, lse = _core.additive(
        query, key, value, v, mask, kv_lengths, is_causal, "weights" in aux, "lse" in aux
    )
    return checks.select_aux(out, weights, lse, aux)


def _expand(
    query: Value,
    key: Value,
    value: Value,
    v: Value,
    mask: Value | None,
    kv_lengths: Value | None,
    *,
    is_causal: bool,
    aux: tuple[str, ...],
) -> Any:
    hidden = tanh(expand_dims(query, 2) + expand_dims(key, 1))  # (B, T, S, A)
    scores = matmul(hidden, expand_dims(v, 1))[..., 0]
    allowed = checks.allowed_keys(query, key, mask, kv_lengths, is_causal=is_causal)
    weights, lse = checks.masked_softmax(checks.masked_bias(scores, mask), allowed, aux)
    return checks.select_aux(matmul(weights, value), weights, lse, aux)


def _function(node: Node) -> str:
    return "AdditiveAttention" + checks.variant(node)


ADDITIVE = Op(
    "additive",
    _eval,
    _shape,
    expand=_expand,
    function=_function,
    arguments=("query", "key", "value", "v", "attn_mask", "kv_lengths"),
    optional=2,
)


def additive_attention(
    query: Value,
    key: Value,
    value: Value,
    v: Value,
    *,
    attn_mask: Value | None = None,
    bias: Value | None = None,
    kv_lengths: Value | None = None,
    is_causal: bool = False,
    aux: Sequence[str] = (),
) -> Any:
    """Return ``softmax_s(v . tanh(query_t + key_s + bias)) value``: Bahdanau's attention.

    ``query`` and ``key`` are the projections W s and U h of the paper, so that U h is computed once
    for a source and used at every decoding step; :class:`pyattn.nn.AdditiveAttention` holds W, U
    and v.

    Parameters
    ----------
    query:
        ``(B, T, A)``, float32 or float64.
    key, value:
        ``(B, S, A)`` and ``(B, S, E)`` of the same dtype.
    v:
        ``(A,)`` of the same dtype.
    attn_mask:
        Broadcasts to ``(B, T, S)`` by NumPy's rule, rank 1 to 3. Boolean: True may be attended.
        Float, of the query's dtype: added to the scores; -inf is masked.
    bias:
        ``(A,)``, added inside the tanh. The paper has none.
    kv_lengths:
        ``(B,)`` int32 or int64: only the first ``kv_lengths[b]`` keys of row b are valid.
    is_causal:
        Whether query i sees keys j <= i only.
    aux:
        Further results to return, in this order, behind the output: ``"weights"`` the attention
        weights ``(B, T, S)``, ``"lse"`` the log-sum-exp of the scores ``(B, T)``.

    Returns
    -------
    The output ``(B, T, E)``, or a tuple of it and what ``aux`` names. A query that may see no key
    gets output 0, weights 0 and log-sum-exp -inf.

    Raises
    ------
    TypeError
        For a dtype that is not listed above, or dtypes that differ.
    ValueError
        For shapes that do not fit, lengths outside 0..S, unknown names in ``aux``; for another
        library's array that is not on the CPU or requires a gradient.

    Notes
    -----
    No ``(B, T, S, A)`` array is made: memory grows with T + S. In float32 a score is within
    ``6e-7 * sum(|v|)`` of the exact one, measured for queries and keys up to 1e4. The gradient, and
    the ONNX function ``pyattn::AdditiveAttention...``, are the formula in smaller operations and do
    make that array.

    References
    ----------
    Bahdanau, Cho and Bengio 2014, "Neural Machine Translation by Jointly Learning to Align and
    Translate", arXiv:1409.0473, section 3.1 and appendix A.1.2.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.standard_normal((2, n, 16)) for n in (3, 7, 7))
    >>> pa.additive_attention(query, key, value, rng.standard_normal(16)).shape
    (2, 3, 16)
    """
    optional = {"attn_mask": attn_mask, "bias": bias, "kv_lengths": kv_lengths}
    if not checks.require_arrays(NAME, optional, query=query, key=key, value=value, v=v):
        return interchange.call(additive_attention, locals())
    if not isinstance(is_causal, bool):
        raise TypeError(f"{NAME}: is_causal must be a bool; got {is_causal!r}")
    if bias is not None:
        checks.require_floats(NAME, query=query, bias=bias)
        if bias.shape != query.shape[-1:]:
            raise ValueError(f"{NAME}: bias must be (A,); got {bias.shape} for query {query.shape}")
        query = query + bias
    if key.ndim == 3:
        checks.check_lengths(NAME, kv_lengths, key.shape[1])
    return apply(
        ADDITIVE,
        query,
        key,
        value,
        v,
        attn_mask,
        kv_lengths,
        is_causal=is_causal,
        aux=checks.normalize_aux(NAME, aux),
    )
