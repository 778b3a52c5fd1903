"""Scaled dot-product attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pyattn import _core
from pyattn.attention import _checks as checks
from pyattn.ops import matmul, repeat, transpose
from pyattn.tensor import Array, Dim, Node, Op, Spec, Value, apply

NAME = "scaled_dot_product_attention"


def _shape(
    query: Spec,
    key: Spec,
    value: Spec,
    mask: Spec | None,
    kv_lengths: Spec | None,
    *,
    is_causal: bool,
    scale: float,
    aux: tuple[str, ...],
) -> Any:
    checks.require_floats(NAME, query=query, key=key, value=value)
    checks.require_rank(NAME, "B, H, T, D", query=query)
    checks.require_rank(NAME, "B, G, S, D", key=key)
    checks.require_rank(NAME, "B, G, S, E", value=value)
    checks.require_shared(NAME, "B", 0, query=query, key=key)
    checks.require_shared(NAME, "B", 0, query=query, value=value)
    checks.require_shared(NAME, "G", 1, key=key, value=value)
    checks.require_shared(NAME, "S", 2, key=key, value=value)
    checks.require_shared(NAME, "D", 3, query=query, key=key)
    batch, heads, rows, _ = query.shape
    groups, keys = key.shape[1:3]
    if isinstance(heads, Dim) or isinstance(groups, Dim):
        divides = heads == groups
    else:
        divides = heads == groups or (groups > 0 and heads % groups == 0)
    if not divides:
        raise ValueError(
            f"{NAME}: the heads of query must be a multiple of those of key; got query "
            f"{query.shape}, key {key.shape}"
        )
    if not abs(scale) <= float(np.finfo(query.dtype).max):
        raise ValueError(f"{NAME}: scale must be finite; got {scale}")
    scores = (batch, heads, rows, keys)
    checks.require_mask(NAME, mask, query.dtype, scores)
    checks.require_lengths(NAME, kv_lengths, batch)
    del is_causal
    extra = {"weights": Spec(scores, query.dtype), "lse": Spec(scores[:3], query.dtype)}
    out = Spec((batch, heads, rows, value.shape[3]), query.dtype)
    return (out, *(extra[name] for name in aux)) if aux else out


def _eval(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    kv_lengths: Array | None,
    *,
    is_causal: bool,
    scale: float,
    aux: tuple[str, ...],
) -> Any:
    out, weights, lse = _core.sdpa(
        query, key, value, mask, kv_lengths, is_causal, scale, "weights" in aux, "lse" in aux
    )
    return checks.select_aux(out, weights, lse, aux)


def _expand(
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    kv_lengths: Value | None,
    *,
    is_causal: bool,
    scale: Any,
    aux: tuple[str, ...],
) -> Any:
    groups: Any = query.shape[1]
    if key.shape[1] != groups:
        repeats = groups // key.shape[1]
        key, value = repeat(key, repeats, 1), repeat(value, repeats, 1)
    scores = matmul(query * scale, transpose(key, (0, 1, 3, 2)))
    allowed = checks.allowed_keys(query, key, mask, kv_lengths, is_causal=is_causal)
    weights, lse = checks.masked_softmax(checks.masked_bias(scores, mask), allowed, aux)
    return checks.select_aux(matmul(weights, value), weights, lse, aux)


def _onnx(graph: Any, node: Node, query: str, key: str, value: str, mask: str, lengths: str) -> Any:
    """Write the standard operator Attention, where the opset has it and it means the same.

    ONNX Runtime has a float32 kernel for versions 23 and 24 of the operator. It rejects scale <= 0,
    and returns 0 for a row of a float mask that is everywhere the lowest finite number.
    """
    params: Any = node.params
    mask_tensor: Any = node.inputs[3]
    scale = params["scale"]
    has_kernel = graph.opset in (23, 24) and node.required(0).dtype == np.float32
    float_mask = mask_tensor is not None and mask_tensor.dtype != np.bool_
    if not has_kernel or float_mask or "lse" in params["aux"]:
        return None
    if getattr(scale, "value", scale) <= 0:
        return None
    if lengths:
        for tensor, name in zip(node.inputs, (query, key, value, mask, lengths), strict=True):
            graph.bind(tensor, name)
        mask_tensor = checks.allowed_keys(
            node.required(0), node.required(1), mask_tensor, node.inputs[4], is_causal=False
        )
        (mask,) = graph.add([mask_tensor])
    if mask:
        mask = _full_mask(graph, mask, query, key)
    inputs = [query, key, value, mask] if mask else [query, key, value]
    attributes = {"is_causal": int(params["is_causal"]), "scale": scale}
    if not params["aux"]:
        return graph.node("Attention", *inputs, **attributes)
    # Output 3 is the weights when the mode is 3; 1 and 2 would be a cache.
    names = graph.node(
        "Attention", *inputs, outputs=4, unused=(1, 2), qk_matmul_output_mode=3, **attributes
    )
    return names[0], names[3]


def _full_mask(graph: Any, mask: str, query: str, key: str) -> str:
    """Give the mask its full last two axes: ONNX Runtime broadcasts only those before them."""
    sizes = [graph.node("Shape", name, start=2, end=3) for name in (query, key)]
    full: str = graph.node("Expand", mask, graph.node("Concat", *sizes, axis=0))
    return full


def _function(node: Node) -> str:
    query, key = node.required(0), node.required(1)
    name = "ScaledDotProductAttention" + checks.variant(node)
    if query.shape[1] != key.shape[1]:
        name += f"Heads{query.shape[1]}Of{key.shape[1]}"
    return name + ("NegativeScale" if node.params["scale"] <= 0 else "")


SDPA = Op(
    "sdpa",
    _eval,
    _shape,
    onnx=_onnx,
    expand=_expand,
    function=_function,
    arguments=("query", "key", "value", "attn_mask", "kv_lengths"),
    attributes=("scale",),
    optional=2,
)


def scaled_dot_product_attention(
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    *,
    is_causal: bool | Literal["top_left"] = False,
    scale: float | None = None,
    kv_lengths: Value | None = None,
    aux: Sequence[str] = (),
) -> Any:
    """Return ``softmax(scale * Q K^T + mask) V`` for each batch and head.

    Query head h reads key and value head ``h // (H / G)``: G = H is multi-head attention, G = 1
    multi-query, in between grouped-query attention (arXiv:2305.13245).

    Parameters
    ----------
    query:
        ``(B, H, T, D)``, float32 or float64.
    key, value:
        ``(B, G, S, D)`` and ``(B, G, S, E)`` of the same dtype; H is a multiple of G.
    attn_mask:
        Broadcasts to ``(B, H, T, S)`` by NumPy's rule, rank 1 to 4. Boolean: True may be attended.
        Float, of the query's dtype: added to the scaled scores; -inf is masked.
    is_causal:
        True or ``"top_left"``: query i sees keys j <= i.
    scale:
        ``1 / sqrt(D)`` by default; any finite number.
    kv_lengths:
        ``(B,)`` int32 or int64: only the first ``kv_lengths[b]`` keys of row b are valid.
    aux:
        Further results to return, in this order, behind the output: ``"weights"`` the attention
        weights ``(B, H, T, S)``, ``"lse"`` the log-sum-exp of the scores ``(B, H, T)``.

    Returns
    -------
    The output ``(B, H, T, E)``, or a tuple of it and what ``aux`` names. A query that may see no
    key gets output 0, weights 0 and log-sum-exp -inf. With S = 0 that is every query.

    Raises
    ------
    TypeError
        For a dtype that is not listed above, or dtypes that differ.
    ValueError
        For shapes that do not fit, lengths outside 0..S, unknown names in ``aux``.

    Notes
    -----
    Computed in tiles with a running maximum and sum: memory grows with T + S, not T * S, unless
    ``"weights"`` is asked for. Entries of ``key`` and ``value`` that are masked for a query are not
    used for it, so a NaN there does not reach its output. The gradient is that of the formula in
    smaller operations, whose memory grows with T * S and where a masked NaN does spread.
    In ONNX: the function ``pyattn::ScaledDotProductAttention...``, whose body is MatMul, Softmax,
    MatMul, or at opset 23 and 24 the operator ``Attention`` where ONNX Runtime's kernel computes
    the same. There, too, a masked NaN spreads.

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, equation 1.
    Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", arXiv:1805.02867.
    Dao et al. 2022, "FlashAttention", arXiv:2205.14135.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((2, 8, 5, 64), dtype=np.float32) for _ in range(3))
    >>> pa.scaled_dot_product_attention(q, k, v, is_causal=True).shape
    (2, 8, 5, 64)
    """
    optional = {"attn_mask": attn_mask, "kv_lengths": kv_lengths}
    checks.require_arrays(NAME, optional, query=query, key=key, value=value)
    if not isinstance(is_causal, bool) and is_causal != "top_left":
        raise ValueError(f'{NAME}: is_causal must be a bool or "top_left"; got {is_causal!r}')
    if scale is None:
        size = query.shape[-1] if query.ndim == 4 else 1
        if size == 0:
            raise ValueError(f"{NAME}: query must have D > 0; got query {query.shape}")
        scale = 1 / math.sqrt(size)
    if key.ndim == 4:
        checks.check_lengths(NAME, kv_lengths, key.shape[2])
    return apply(
        SDPA,
        query,
        key,
        value,
        attn_mask,
        kv_lengths,
        is_causal=bool(is_causal),
        scale=float(scale),
        aux=checks.normalize_aux(NAME, aux),
    )
