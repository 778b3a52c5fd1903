"""Additive (Bahdanau) attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pyattn import _core, interchange
from pyattn.attention import _checks as checks
from pyattn.attention import _sdpa_graph as graph
from pyattn.attention._sdpa_backward import forward_results, needs_gradient
from pyattn.attention._sdpa_options import core_options, normalize_options
from pyattn.dtypes import FLOATS, compute_dtype
from pyattn.ops import astype, expand_dims, matmul, reshape, tanh, transpose
from pyattn.tensor import Array, Dim, Node, Op, Spec, Tensor, Value, apply, spec_of

NAME = "additive_attention"
AUX = (
    *("weights", "lse", "max", "entropy"),
    *("top_weights", "top_indices", "scores", "biased_scores"),
)


def _shape(
    query: Spec,
    key: Spec,
    value: Spec,
    v: Spec,
    mask: Spec | None,
    kv_lengths: Spec | None,
    query_starts: Spec | None,
    *,
    top_k: int,
    aux: tuple[str, ...],
    **_: Any,
) -> Any:
    del v, mask, kv_lengths, query_starts  # see _check
    return checks.result_specs(query, key, value, top_k, aux)


def _eval(
    query: Array,
    key: Array,
    value: Array,
    v: Array,
    mask: Array | None,
    kv_lengths: Array | None,
    query_starts: Array | None,
    *,
    aux: tuple[str, ...],
    **params: Any,
) -> Any:
    options = core_options(query, key, kv_lengths, query_starts, None, None, params)
    wide = v.astype(compute_dtype(v.dtype), copy=False)
    return _core.additive(query, key, value, wide, mask, params["right"], aux or None, options)


# The inputs that have a gradient, and where they stand among the seven.
PLACES = {"query": 0, "key": 1, "value": 2, "v": 3, "mask": 4}


def _vjp(
    node: Node,
    cotangents: Sequence[Array],
    inputs: Sequence[Array | None],
    outputs: Sequence[Array],
) -> Any:
    """Return the gradients of the operation's inputs, by the contract of `Op.vjp`.

    With ds as in scaled dot-product attention (`_sdpa_backward.vjp`) and t = tanh(q_i + k_j)::

        dq_i = sum_j ds_ij v (1 - t^2)    dk_j = sum_i ds_ij v (1 - t^2)    dv = sum_ij ds_ij t

    The scores are computed again, so that memory grows with T + S.
    """
    results = forward_results(node, cotangents, outputs)
    if results is None:
        return NotImplemented
    query, key, value, v, mask, kv_lengths, starts = inputs
    if query is None or key is None or value is None or v is None:
        raise ValueError("additive: query, key, value and v are required")
    want = {name for name, place in PLACES.items() if needs_gradient(node, place)}
    options = core_options(query, key, kv_lengths, starts, None, None, node.params)
    *grads, grad_mask, grad_v = _core.additive_backward(
        query, key, value, v.astype(compute_dtype(v.dtype), copy=False), mask,
        node.params["right"], options or None, *results, want,
    )  # fmt: skip
    if grad_v is not None:
        grad_v = grad_v.astype(v.dtype, copy=False)
    return (*grads, grad_v, grad_mask, None, None)


def _expand(
    query: Value,
    key: Value,
    value: Value,
    v: Value,
    mask: Value | None,
    kv_lengths: Value | None,
    query_starts: Value | None,
    *,
    aux: tuple[str, ...],
    **params: Any,
) -> Any:
    dtype, wide = query.dtype, compute_dtype(query.dtype)
    distance = graph.distances(query, key, kv_lengths, query_starts, params)
    allowed = checks.allowed_keys(key, mask, kv_lengths)
    if dtype != wide:
        query, key, value, v = (astype(x, wide) for x in (query, key, value, v))
        if mask is not None and mask.dtype != np.bool_:
            mask = astype(mask, wide)
    hidden = tanh(expand_dims(query, 3) + expand_dims(key, 2))  # (B, H, T, S, A)
    scores = matmul(hidden, expand_dims(expand_dims(v, 1), 3))[..., 0]
    return graph.weigh(
        scores, value, mask, allowed, distance, None, None, dtype=dtype, aux=aux, **params
    )


def _function(node: Node) -> str:
    return "AdditiveAttention" + graph.variant_name(node, *node.inputs[4:])


# Of heads: query (B, H, T, A), key (B, H, S, A), value (B, H, S, E), v (H, A).
ADDITIVE = Op(
    "additive",
    _eval,
    _shape,
    _vjp,
    expand=_expand,
    function=_function,
    arguments=("query", "key", "value", "v", "attn_mask", "kv_lengths", "query_start"),
    optional=3,
)


def _check(
    query: Spec,
    key: Spec,
    value: Spec,
    v: Spec,
    bias: Spec | None,
    mask: Spec | None,
    kv_lengths: Spec | None,
    query_starts: Spec | None,
    *,
    num_heads: Any,
) -> None:
    """Raise TypeError or ValueError where dtypes or shapes do not fit each other."""
    checks.require_floats(NAME, FLOATS, query=query, key=key, value=value, v=v)
    checks.require_rank(NAME, "B, T, A", query=query)
    checks.require_rank(NAME, "B, S, A", key=key)
    checks.require_rank(NAME, "B, S, E", value=value)
    checks.require_rank(NAME, "A", v=v)
    checks.require_shared(NAME, "B", 0, query=query, key=key)
    checks.require_shared(NAME, "B", 0, query=query, value=value)
    checks.require_shared(NAME, "S", 1, key=key, value=value)
    checks.require_shared(NAME, "A", 2, query=query, key=key)
    checks.require_shared(NAME, "A", -1, query=query, v=v)
    if bias is not None:
        checks.require_floats(NAME, FLOATS, query=query, bias=bias)
        if bias.shape != query.shape[-1:]:
            raise ValueError(f"{NAME}: bias must be (A,); got {bias.shape} for query {query.shape}")
    scores = (*query.shape[:2], key.shape[1])
    if num_heads is not None:
        if isinstance(num_heads, bool) or not isinstance(num_heads, (int, np.integer)):
            raise TypeError(f"{NAME}: num_heads must be an integer; got {num_heads!r}")
        sizes = (query.shape[2], value.shape[2])
        if num_heads < 1 or any(isinstance(n, Dim) or n % num_heads for n in sizes):
            raise ValueError(
                f"{NAME}: num_heads must divide A and E; got {num_heads} for query {query.shape}, "
                f"value {value.shape}"
            )
        scores = (scores[0], int(num_heads), *scores[1:])
    checks.require_mask(NAME, mask, query.dtype, scores, short=True)
    checks.require_lengths(NAME, kv_lengths, query.shape[0])
    checks.require_integers(NAME, "query_start", query_starts, query.shape[0])


def _split(x: Value, heads: int) -> Any:
    """Return ``(B, L, n)`` as ``(B, H, L, n / H)``."""
    if heads == 1:
        return expand_dims(x, 1)
    size: Any = x.shape[2]
    return transpose(reshape(x, (0, 0, heads, size // heads)), (0, 2, 1, 3))


def additive_attention(
    query: Value,
    key: Value,
    value: Value,
    v: Value,
    *,
    attn_mask: Value | None = None,
    bias: Value | None = None,
    kv_lengths: Value | None = None,
    is_causal: bool | Literal["top_left", "bottom_right"] = False,
    window: int | tuple[int, int] | None = None,
    query_start: int | Value | None = None,
    num_heads: int | None = None,
    dropout_p: float = 0.0,
    rng: int | np.random.Generator | None = None,
    top_k: int = 0,
    aux: Sequence[str] = (),
) -> Any:
    """Return ``softmax_s(v . tanh(query_t + key_s + bias)) value``: Bahdanau's attention.

    ``query`` and ``key`` are the projections W s and U h of the paper, so that U h is computed once
    for a source and used at every decoding step; :class:`pyattn.nn.AdditiveAttention` holds W, U
    and v.

    Parameters
    ----------
    query:
        ``(B, T, A)``, float32, float64, float16 or bfloat16 (of ``ml_dtypes``).
    key, value:
        ``(B, S, A)`` and ``(B, S, E)`` of the same dtype.
    v:
        ``(A,)`` of the same dtype.
    attn_mask:
        Broadcasts to ``(B, T, S)`` by NumPy's rule, rank 1 to 3, or with ``num_heads`` to
        ``(B, H, T, S)``. Boolean: True may be attended. Float, of the query's dtype: added to the
        scores; -inf is masked. A last axis that is shorter than S, and not 1, leaves the keys
        behind it masked.
    bias:
        ``(A,)``, added inside the tanh. The paper has none.
    kv_lengths:
        ``(B,)`` int32 or int64: only the first ``kv_lengths[b]`` keys of row b are valid.
    is_causal, window, query_start:
        Which keys a query sees by its position, as in
        :func:`pyattn.scaled_dot_product_attention`; True is query i and keys j <= i.
    num_heads:
        H heads, each with its part of A and of E: head h scores with the numbers from ``h A / H``
        on, and the outputs of the heads lie side by side. One head without an axis by default.
    dropout_p, rng, top_k:
        As in :func:`pyattn.scaled_dot_product_attention`.
    aux:
        Further results to return, in this order, behind the output: ``"weights"`` ``(B, T, S)``;
        ``"lse"``, ``"max"`` and ``"entropy"`` ``(B, T)``: log-sum-exp and maximum of the scores,
        entropy of the weights in nats; ``"top_weights"`` and ``"top_indices"`` ``(B, T, top_k)``;
        ``"scores"`` and ``"biased_scores"`` ``(B, T, S)``: without masks, and -inf where masked.
        With ``num_heads`` all have an axis H behind B.

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
    No ``(B, T, S, A)`` array is made, nor for the gradient of output and log-sum-exp: memory grows
    with T + S. In float32 a score is within ``6e-7 * sum(|v|)`` of the exact one, measured for
    queries and keys up to 1e4; float16 and bfloat16 are widened to float32. The gradients of other
    outputs, and the ONNX function ``pyattn::AdditiveAttention...``, are the formula in smaller
    operations and do make that array.

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
    # The common call, without the checks: where it fails, they say why.
    try:
        if (
            type(query) is np.ndarray
            and bias is query_start is window is num_heads is rng is None
            and (is_causal is False or is_causal is True)
            and aux == ()
            and dropout_p == top_k == 0
            and (attn_mask is None or attn_mask.ndim < 4)
        ):
            mask: Any = attn_mask
            if attn_mask is not None and attn_mask.ndim == 3:
                mask = attn_mask[:, None]
            options = None if kv_lengths is None else {"kv_lengths": kv_lengths}
            out: Array = _core.additive(
                query[:, None], key[:, None], value[:, None], v[None],  # type: ignore[arg-type]
                mask, is_causal - 1, None, options,
            )  # fmt: skip
            return out[:, 0]
    except (TypeError, ValueError, IndexError, AttributeError):
        pass
    optional = {"attn_mask": attn_mask, "bias": bias, "kv_lengths": kv_lengths}
    more = {"query_start": query_start if interchange.is_foreign(query_start) else None}
    if not checks.require_arrays(NAME, optional | more, query=query, key=key, value=value, v=v):
        return interchange.call(additive_attention, locals())
    names = checks.normalize_aux(NAME, aux, AUX)
    starts, params = normalize_options(
        NAME, query, is_causal, window, query_start, None, 1.0, 0.0, dropout_p, rng, top_k, names
    )
    del params["scale"]
    specs: Any = [spec_of(x) for x in (query, key, value, v, bias, attn_mask, kv_lengths, starts)]
    _check(*specs, num_heads=num_heads)
    checks.check_lengths(NAME, kv_lengths, key.shape[1])
    if bias is not None:
        query = query + bias
    if attn_mask is not None:
        if num_heads is None and attn_mask.ndim == 3:
            attn_mask = expand_dims(attn_mask, 1)
        if any(isinstance(x, Tensor) for x in (query, key, value, v, attn_mask)):
            attn_mask = graph.full_mask(attn_mask, key.shape[1])
    wanted, tensors = names, [x for x in (query, key, value, v, attn_mask) if isinstance(x, Tensor)]
    if "lse" not in names and any(x.requires_grad for x in tensors):
        wanted += ("lse",)  # the gradient needs it
    heads = 1 if num_heads is None else int(num_heads)
    found: Any = apply(
        ADDITIVE,
        *(_split(x, heads) for x in (query, key, value)),
        reshape(v, (heads, -1)) if v.shape[0] else expand_dims(v, 0),
        attn_mask,
        kv_lengths,
        starts,
        aux=wanted,
        **params,
    )
    by_head, *extra = found if wanted else (found,)
    extra = extra[: len(names)]
    if heads == 1:
        joined = by_head[:, 0]
    else:
        joined = reshape(transpose(by_head, (0, 2, 1, 3)), (0, 0, -1))
    if num_heads is None:
        extra = [x[:, 0] for x in extra]
    return (joined, *extra) if names else joined
