"""Scaled dot-product attention of packed sequences of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pyattn import _core, interchange
from pyattn.attention import _checks as checks
from pyattn.attention import _sdpa_graph as graph
from pyattn.attention._sdpa_backward import sink_gradient
from pyattn.attention._sdpa_options import (
    UNBOUNDED,
    normalize_dropout,
    normalize_scale,
    normalize_softcap,
    normalize_window,
)
from pyattn.dtypes import FLOATS, compute_dtype
from pyattn.ops import (
    arange_like,
    equal,
    expand_dims,
    less_equal,
    take,
    transpose,
)
from pyattn.ops import sum as reduce_sum
from pyattn.tensor import Array, Node, Op, Spec, Tensor, Value, apply

NAME = "varlen_attention"
AUX = ("lse",)
OFFSETS = ("cu_seqlens_q", "cu_seqlens_k")


def _shape(
    query: Spec,
    key: Spec,
    value: Spec,
    cu_seqlens_q: Spec,
    cu_seqlens_k: Spec,
    alibi_slopes: Spec | None,
    sinks: Spec | None,
    *,
    aux: tuple[str, ...],
    **_: Any,
) -> Any:
    checks.require_floats(NAME, FLOATS, query=query, key=key, value=value)
    checks.require_rank(NAME, "N, H, D", query=query)
    checks.require_rank(NAME, "M, G, D", key=key)
    checks.require_rank(NAME, "M, G, E", value=value)
    checks.require_shared(NAME, "M", 0, key=key, value=value)
    checks.require_shared(NAME, "G", 1, key=key, value=value)
    checks.require_shared(NAME, "D", 2, query=query, key=key)
    checks.require_groups(NAME, query, key)
    for name, spec in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if spec.ndim != 1 or spec.shape == (0,):
            raise ValueError(f"{NAME}: {name} must have shape (B + 1,); got {spec.shape}")
        checks.require_integers(NAME, name, spec, cu_seqlens_q.shape[0])
    heads, wide = query.shape[1], compute_dtype(query.dtype)
    checks.require_vector(NAME, "alibi_slopes", alibi_slopes, heads, wide)
    checks.require_vector(NAME, "sinks", sinks, heads, wide)
    out = Spec((query.shape[0], heads, value.shape[2]), query.dtype)
    return (out, Spec((heads, query.shape[0]), wide)) if aux else out


def core_options(
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    alibi_slopes: Array | None,
    sinks: Array | None,
    params: dict[str, Any],
) -> dict[str, Any]:
    """Return what differs from the defaults, in the terms of the compiled core."""
    starts = None
    if params["bottom_right"]:
        starts = (np.diff(cu_seqlens_k) - np.diff(cu_seqlens_q)).astype(np.int64)
    options = {
        "query_starts": starts,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "left": None if params["left"] == UNBOUNDED else params["left"],
        "softcap": params["softcap"] or None,
        "dropout": params["dropout_p"] or None,
        "seed": params["seed"] if params["dropout_p"] else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _eval(
    query: Array,
    key: Array,
    value: Array,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    alibi_slopes: Array | None,
    sinks: Array | None,
    *,
    scale: float,
    right: int,
    aux: tuple[str, ...],
    **params: Any,
) -> Any:
    checks.require_offsets(NAME, "cu_seqlens_q", cu_seqlens_q, query.shape[0])
    checks.require_offsets(NAME, "cu_seqlens_k", cu_seqlens_k, key.shape[0])
    options = core_options(cu_seqlens_q, cu_seqlens_k, alibi_slopes, sinks, params)
    out, lse = _core.varlen(
        query, key, value, cu_seqlens_q, cu_seqlens_k, scale, right, bool(aux), options or None
    )
    return (out, lse) if aux else out


def _expand(
    query: Value,
    key: Value,
    value: Value,
    cu_seqlens_q: Value,
    cu_seqlens_k: Value,
    alibi_slopes: Value | None,
    sinks: Value | None,
    *,
    scale: Any,
    aux: tuple[str, ...],
    bottom_right: bool,
    **params: Any,
) -> Any:
    """One large attention in which every sequence sees its own keys only."""
    row_of, row_at, row_end = places(query, cu_seqlens_q)
    key_of, key_at, key_end = places(key, cu_seqlens_k)
    if bottom_right:  # positions counted back from the end of the sequence
        row_at, key_at = row_at - row_end, key_at - key_end
    distance = expand_dims(expand_dims(key_at, 0) - expand_dims(row_at, 1), 0)
    allowed = equal(expand_dims(row_of, 1), expand_dims(key_of, 0))
    query, key, value = (expand_dims(transpose(x, (1, 0, 2)), 0) for x in (query, key, value))
    result = graph.attend(
        query, key, value, None, allowed, distance, alibi_slopes, sinks, scale=scale, aux=aux,
        **params,
    )  # fmt: skip
    if not aux:
        return transpose(result[0], (1, 0, 2))
    return transpose(result[0][0], (1, 0, 2)), result[1][0]


def places(x: Value, offsets: Value) -> tuple[Any, Any, Any]:
    """Return for each row of a packed array its sequence, its place in it and the length of it.

    ``offsets`` ``(B + 1,)`` rise from 0 to the number of rows. All three are int64 ``(N,)``.
    """
    rows = arange_like(x, 0)
    offsets = graph.astype_int(offsets)
    passed = less_equal(expand_dims(offsets[1:], 1), expand_dims(rows, 0))
    sequence = reduce_sum(graph.astype_int(passed), 0)
    table = expand_dims(offsets, 1)
    begin = take(table, sequence)[:, 0]
    return sequence, rows - begin, take(table, sequence + 1)[:, 0] - begin


def _vjp(
    node: Node,
    cotangents: Sequence[Array],
    inputs: Sequence[Array | None],
    outputs: Sequence[Array],
) -> Any:
    """Return the gradients by the kernel of `scaled_dot_product_attention`, each sequence apart."""
    if not node.params["aux"]:
        return NotImplemented
    arrays: Any = inputs
    query, key, value, ends_q, ends_k, slopes, sinks = arrays
    options = core_options(ends_q, ends_k, slopes, sinks, node.params)
    out, lse = outputs
    grad_out, grad_lse = (np.ascontiguousarray(g) for g in cotangents)
    by_kernel = _core.varlen_backward(
        query, key, value, ends_q, ends_k, node.params["scale"], node.params["right"],
        options or None, out, lse, grad_out, grad_lse,
    )  # fmt: skip
    grad_sinks = None
    if sinks is not None:
        by_head = [x.swapaxes(0, 1)[None] for x in (out, grad_out)]
        grad_sinks = sink_gradient(sinks, by_head[0], lse[None], by_head[1], grad_lse[None])
    return (*by_kernel, None, None, None, grad_sinks)


def _function(node: Node) -> str:
    return "VarlenAttention" + graph.variant_name(node, None, None, None, *node.inputs[5:])


VARLEN = Op(
    "varlen",
    _eval,
    _shape,
    vjp=_vjp,
    expand=_expand,
    function=_function,
    arguments=("query", "key", "value", *OFFSETS, "alibi_slopes", "sinks"),
    attributes=("scale",),
    optional=2,
    has_weights=False,
)


def varlen_attention(
    query: Value,
    key: Value,
    value: Value,
    cu_seqlens_q: Value,
    cu_seqlens_k: Value,
    *,
    is_causal: bool | Literal["top_left", "bottom_right"] = False,
    scale: float | None = None,
    softcap: float = 0.0,
    window: int | tuple[int, int] | None = None,
    alibi_slopes: Value | None = None,
    sinks: Value | None = None,
    dropout_p: float = 0.0,
    rng: int | np.random.Generator | None = None,
    aux: Sequence[str] = (),
) -> Any:
    """Return ``softmax(scale * Q K^T + bias) V`` for sequences packed one behind the other.

    No padding is stored or computed. Sequence b has the queries ``cu_seqlens_q[b]`` to
    ``cu_seqlens_q[b + 1]`` and the keys ``cu_seqlens_k[b]`` to ``cu_seqlens_k[b + 1]``, and sees
    no other. Each gets the bits that `scaled_dot_product_attention` gives it alone.

    Parameters
    ----------
    query:
        ``(N, H, D)``, float32, float64, float16 or bfloat16; N is the number of all queries.
    key, value:
        ``(M, G, D)`` and ``(M, G, E)`` of the same dtype; H is a multiple of G.
    cu_seqlens_q, cu_seqlens_k:
        ``(B + 1,)`` int32 or int64, rising from 0 to N and to M.
    is_causal, scale, softcap, window, alibi_slopes, sinks, dropout_p, rng:
        As in `scaled_dot_product_attention`. ``"bottom_right"`` lets the last query of a sequence
        stand at its last key; otherwise the first stands at the first. Dropout counts b, h and
        positions within the sequence.
    aux:
        ``("lse",)`` returns ``(output, lse)``, the log-sum-exp ``(H, N)`` in the dtype of the
        arithmetic.

    Returns
    -------
    The output ``(N, H, E)``, or a tuple. A query that may see no key gets 0.

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes that do not fit, and offsets that do not rise from 0 to the end.

    Notes
    -----
    Memory and kernels are those of `scaled_dot_product_attention`. In ONNX and in the gradient:
    one attention over all queries and keys with a mask of N x M, without dropout.

    References
    ----------
    Dao 2023, "FlashAttention-2", arXiv:2307.08691 (whose interface for packed sequences this is).

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((10, 4, 32), dtype=np.float32) for _ in range(3))
    >>> ends = np.array([0, 3, 10], np.int32)  # one sequence of 3, one of 7
    >>> pa.varlen_attention(q, k, v, ends, ends, is_causal=True).shape
    (10, 4, 32)
    """
    optional = {"alibi_slopes": alibi_slopes, "sinks": sinks}
    arrays = {"query": query, "key": key, "value": value}
    ends = {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    if not checks.require_arrays(NAME, optional, **arrays, **ends):
        return interchange.call(varlen_attention, locals())
    names = checks.normalize_aux(NAME, aux, AUX)
    left, right = normalize_window(NAME, is_causal, window)
    params = {
        "left": left,
        "right": right,
        "bottom_right": is_causal == "bottom_right",
        "scale": normalize_scale(NAME, scale, query),
        "softcap": normalize_softcap(NAME, softcap),
        **normalize_dropout(NAME, dropout_p, rng),
    }
    inputs = (query, key, value, cu_seqlens_q, cu_seqlens_k, alibi_slopes, sinks)
    wanted = names
    if any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        wanted = AUX  # the gradient needs it
    found = apply(VARLEN, *inputs, aux=wanted, **params)
    return found[0] if wanted and not names else found
