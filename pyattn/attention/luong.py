"""Luong's attention: four scores, three alignments, made of three mechanisms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from pyattn import _core, interchange
from pyattn.attention import _checks as checks
from pyattn.attention import _sdpa_graph as graph
from pyattn.attention._luong_checks import NAME, check_alignment, check_arrays
from pyattn.attention._luong_checks import Alignment as Alignment
from pyattn.attention._luong_checks import Score as Score
from pyattn.attention._sdpa_options import normalize_options
from pyattn.attention.additive import additive_attention
from pyattn.attention.local import AUX as LOCAL_AUX
from pyattn.attention.local import LOCAL
from pyattn.attention.position import POSITION
from pyattn.attention.sdpa import scaled_dot_product_attention
from pyattn.dtypes import compute_dtype
from pyattn.ops import arange_like, astype, expand_dims, linear, matmul, size, take
from pyattn.tensor import Dim, Tensor, Value, apply, spec_of

AUX = ("weights", "lse", "max", "entropy")


def luong_attention(
    query: Value,
    key: Value,
    value: Value | None = None,
    *,
    score: Score = "dot",
    weight: Value | None = None,
    v: Value | None = None,
    projected_key: Value | None = None,
    align: Alignment = "global",
    half_width: int | None = None,
    position_weight: Value | None = None,
    position_v: Value | None = None,
    renormalize: bool = False,
    query_start: int | Value | None = None,
    attn_mask: Value | None = None,
    kv_lengths: Value | None = None,
    aux: Sequence[str] = (),
) -> Any:
    """Return Luong's context ``sum_s w_ts value_s`` of decoder states h_t and source states h_s.

    ==========  ====================================  ==================
    ``score``   formula                               ``weight``
    ==========  ====================================  ==================
    "dot"       ``h_t . h_s``                         none, D = Dk
    "general"   ``h_t . W h_s``                       ``(D, Dk)``
    "concat"    ``v . tanh(W [h_t; h_s])``            ``(A, D + Dk)``
    "location"  ``W_s . h_t``, row s of W             ``(L, D)``, L >= S
    ==========  ====================================  ==================

    ==========  ====================================================================
    ``align``   weights ``w_ts``
    ==========  ====================================================================
    "global"    ``softmax_s(score)`` over all s
    "local-m"   the same over ``|s - t| <= half_width``
    "local-p"   ``softmax_s(score) exp(-(s - p_t)^2 / (2 sigma^2))`` over the integers
                ``|s - p_t| <= half_width``, with ``sigma = half_width / 2`` and
                ``p_t = S_b sigmoid(position_v . tanh(position_weight h_t))``
    ==========  ====================================================================

    Parameters
    ----------
    query:
        The current decoder states ``(B, T, D)``, float32, float64, float16 or bfloat16.
    key:
        The source states ``(B, S, Dk)`` of the same dtype. Score "location" looks at S only.
    value:
        ``(B, S, E)`` of the same dtype; ``key`` by default.
    weight, v:
        What the score takes, see above; v is ``(A,)`` and for "concat" only.
    projected_key:
        For "concat": the part of the scores that is the same for every query, ``W_s h_s`` with the
        last Dk columns W_s of ``weight``, ``(B, S, A)``. Who has it from an earlier step, as in
        decoding, saves its product; else it is made here.
    align, half_width:
        The alignment; the two local ones need ``half_width``, 1 or more.
    position_weight, position_v:
        ``(P, D)`` and ``(P,)``, for "local-p".
    renormalize:
        For "local-p": divide the weights by their sum. The paper does not.
    query_start:
        For "local-m": where query 0 stands, an integer or one for each entry, ``(B,)``, as at a
        step of decoding; 0 by default.
    attn_mask:
        Broadcasts to ``(B, T, S)``, rank 1 to 3, as for :func:`pyattn.additive_attention`.
    kv_lengths:
        ``(B,)`` integers: only the first ``kv_lengths[b]`` source states are valid. This is the
        S_b of "local-p", S without it.
    aux:
        Further results to return behind the context, in this order: ``"weights"`` ``(B, T, S)``,
        ``"lse"`` ``(B, T)``, the log-sum-exp of the scores; for "global" and "local-m" ``"max"``
        and ``"entropy"`` ``(B, T)``; for "local-p" ``"position"`` ``(B, T)``, p_t, and
        ``"window_weights"`` ``(B, T, 2 half_width + 1)``, the weights of the keys from
        ``ceil(p_t) - half_width`` on.

    Returns
    -------
    The context ``(B, T, E)``, or a tuple of it and what ``aux`` names. A query that may see no key
    gets context 0, weights 0 and log-sum-exp -inf. With "local-p" a query whose p_t is NaN gets
    NaN everywhere, where its entry has keys.

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes that do not fit, or an argument that the score or the alignment does
        not take or needs.

    Notes
    -----
    The local alignments take time that grows with ``T * half_width``, not with T x S, and memory
    that grows with T + S, forward and backward; only ``aux=("weights",)`` fills an array
    ``(B, T, S)``. The gradient flows through p_t by the Gaussian; the edges of a window have no
    derivative. float16 and bfloat16 are widened to float32, projected queries and keys rounded to
    the dtype; p_t and ``"lse"`` are float32 (float64 for float64). In float32 a p_t of some
    thousands is good to 5e-4, and the weights with it. In ONNX "local-p" is a function
    ``pyattn::LuongLocal...`` that gathers each window, ``T * half_width * (Dk + E)`` numbers; the
    gradient of a float mask takes the same way.

    References
    ----------
    Luong, Pham and Manning 2015, "Effective Approaches to Attention-based Neural Machine
    Translation", arXiv:1508.04025, sections 3.1 and 3.2.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> rng = np.random.default_rng(0)
    >>> h_t, h_s = (rng.standard_normal((2, n, 16)) for n in (3, 50))
    >>> position = {
    ...     "position_weight": rng.standard_normal((8, 16)),
    ...     "position_v": rng.standard_normal(8),
    ... }
    >>> context, p_t = pa.luong_attention(
    ...     h_t, h_s, align="local-p", half_width=5, **position, aux=("position",)
    ... )
    >>> context.shape, p_t.shape
    ((2, 3, 16), (2, 3))
    """
    # The common call, without the checks: where it fails, they say why.
    try:
        if (
            type(query) is np.ndarray
            and score in ("dot", "general")
            and (weight is None) == (score == "dot")
            and v is projected_key is attn_mask is query_start is None
            and aux == ()
        ):
            found = _common(
                query, key, key if value is None else value, weight, align, half_width,
                position_weight, position_v, renormalize, kv_lengths,
            )  # fmt: skip
            if found is not None:
                return found
    except (TypeError, ValueError, IndexError, AttributeError):
        pass
    for name, given, known in (("score", score, Score), ("align", align, Alignment)):
        if given not in get_args(known):
            raise ValueError(f"{NAME}: {name} must be one of {get_args(known)}; got {given!r}")
    value = key if value is None else value
    optional: dict[str, Any] = {
        "weight": weight, "v": v, "projected_key": projected_key, "attn_mask": attn_mask,
        "kv_lengths": kv_lengths,
        "query_start": query_start if interchange.is_foreign(query_start) else None,
    }  # fmt: skip
    position = {"position_weight": position_weight, "position_v": position_v}
    arrays = {"query": query, "key": key, "value": value}
    if not checks.require_arrays(NAME, optional | position, **arrays):
        return interchange.call(luong_attention, locals())
    check_arrays(
        query, key, value, score, weight, v, projected_key, position, attn_mask, kv_lengths
    )
    check_alignment(align, half_width, position, renormalize, query_start)
    local = align == "local-p"
    names = checks.normalize_aux(NAME, aux, (*LOCAL_AUX, "position") if local else AUX)
    q, k, v = _scored(query, key, score, weight, v, projected_key)
    options: Any
    if local:
        centre = _centres(query, key, kv_lengths, position_weight, position_v)
        options = {"half_width": int(half_width or 1), "renormalize": bool(renormalize)}
        return _within(q, k, value, centre, v, attn_mask, kv_lengths, names, **options)
    window = None if align == "global" else half_width
    starts, _ = normalize_options(
        NAME, query, False, window, query_start, None, 1.0, 0.0, 0.0, None, 0, names
    )
    checks.require_integers(NAME, "query_start", spec_of(starts), query.shape[0])
    options = {
        "kv_lengths": kv_lengths, "window": window, "query_start": query_start, "aux": names,
    }  # fmt: skip
    if v is not None:
        return additive_attention(q, k, value, v, attn_mask=attn_mask, **options)
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = expand_dims(attn_mask, 1)
    q, k, x = (expand_dims(part, 1) for part in (q, k, value))
    result = scaled_dot_product_attention(q, k, x, attn_mask, scale=1.0, **options)
    parts = result if isinstance(result, tuple) else (result,)
    parts = tuple(part[:, 0] for part in parts)
    return parts if names else parts[0]


def _common(
    query: Any,
    key: Any,
    value: Any,
    weight: Any,
    align: Alignment,
    half_width: Any,
    position_weight: Any,
    position_v: Any,
    renormalize: Any,
    kv_lengths: Any,
) -> Any:
    """Return the context of arrays; where something does not fit, None or some error."""
    dtype = query.dtype
    if dtype.itemsize == 2 or not isinstance(renormalize, bool):
        return None
    scored = query
    if weight is not None:
        if weight.dtype != dtype or weight.ndim != 2:
            return None
        scored = np.matmul(query, weight)
    if align == "global":
        if not (half_width is position_weight is position_v is None) or renormalize:
            return None
        options = None if kv_lengths is None else {"kv_lengths": kv_lengths}
        q, k, x = scored[:, None], key[:, None], value[:, None]
        return _core.sdpa(q, k, x, None, 1.0, -1, None, options)[:, 0]
    if align != "local-p" or type(half_width) is not int:
        return None
    if not position_weight.dtype == position_v.dtype == dtype:
        return None
    centre = query, position_weight, position_v
    return _core.local(
        scored, key, value, centre, half_width, renormalize, None, None, kv_lengths, None
    )


def _within(
    query: Value,
    key: Value,
    value: Value,
    centre: Value,
    v: Value | None,
    mask: Value | None,
    kv_lengths: Value | None,
    names: tuple[str, ...],
    **params: Any,
) -> Any:
    """Attend around the centres."""
    if mask is not None and any(isinstance(x, Tensor) for x in (query, key, value, centre, mask)):
        mask = graph.full_mask(mask, key.shape[1])
    v = v if v is None or v.dtype == centre.dtype else astype(v, centre.dtype)
    wanted = tuple(name for name in names if name != "position")
    found = apply(LOCAL, query, key, value, centre, v, mask, kv_lengths, aux=wanted, **params)
    if not names:
        return found
    out, *extra = found if wanted else (found,)
    by_name = dict(zip(wanted, extra, strict=True)) | {"position": centre}
    return (out, *(by_name[name] for name in names))


def _scored(
    query: Value,
    key: Value,
    score: Score,
    weight: Any,
    v: Value | None,
    projected_key: Value | None,
) -> tuple[Any, Any, Value | None]:
    """Return q and k with score ``q . k``, or with v ``v . tanh(q + k)``."""
    if score == "dot":
        return query, key, None
    if score == "general":
        return _in_full(matmul, query, weight), key, None
    if score == "location":
        return query, _location(query, key, weight), None
    if projected_key is None:
        projected_key = project_key(key, weight)
    size = query.shape[2]
    return _in_full(linear, query, weight[:, :size]), projected_key, v


def project_key(key: Value, weight: Any) -> Any:
    """Return ``W_s h_s`` of score "concat", W_s being the last columns of ``weight``."""
    return _in_full(linear, key, weight[:, weight.shape[1] - key.shape[2] :])


def _in_full(product: Callable[..., Any], x: Value, weight: Any) -> Any:
    """Multiply in the dtype of the arithmetic, and round."""
    wide = compute_dtype(x.dtype)
    if x.dtype == wide:
        return product(x, weight)
    return astype(product(astype(x, wide), astype(weight, wide)), x.dtype)


def _location(query: Value, key: Value, weight: Value) -> Any:
    """Return the first S rows of the weight as keys ``(B, S, D)``."""
    if not any(isinstance(x, Tensor) for x in (query, key, weight)):
        rows: Any = weight[: key.shape[1]]
        return np.broadcast_to(rows, (query.shape[0], *rows.shape))  # type: ignore[arg-type]
    entries = expand_dims(arange_like(query, 0) * 0, 1)
    return take(weight, entries + expand_dims(arange_like(key, 1), 0))


def _centres(query: Value, key: Value, kv_lengths: Value | None, weight: Any, v: Any) -> Any:
    """Return p_t, ``(B, T)``, in the dtype of the arithmetic."""
    wide = compute_dtype(query.dtype)
    query, weight, v = (x if x.dtype == wide else astype(x, wide) for x in (query, weight, v))
    share = apply(POSITION, query, weight, v)
    if kv_lengths is not None:
        return share * expand_dims(astype(kv_lengths, wide), 1)
    keys = key.shape[1]
    return share * (astype(size(key, 1), wide) if isinstance(keys, Dim) else float(keys))
