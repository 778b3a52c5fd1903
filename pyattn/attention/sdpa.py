"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pyattn import _core, interchange
from pyattn.attention import _checks as checks
from pyattn.attention import _sdpa_graph as graph
from pyattn.attention import _sdpa_onnx
from pyattn.attention._rotary import turn
from pyattn.attention._sdpa_backward import vjp
from pyattn.attention._sdpa_options import core_options, normalize_options
from pyattn.dtypes import FLOATS, compute_dtype
from pyattn.ops import concat
from pyattn.tensor import Array, Op, Spec, Tensor, Value, apply, spec_of

NAME = "scaled_dot_product_attention"
AUX = (
    "weights",
    "lse",
    "max",
    "entropy",
    "top_weights",
    "top_indices",
    "column_mass",
    "scores",
    "capped_scores",
    "biased_scores",
)
PRESENT = ("present_key", "present_value")
ARGUMENTS = (
    *("query", "key", "value", "attn_mask"),
    *("kv_lengths", "query_start", "alibi_slopes", "sinks"),
)


def _shape(
    query: Spec,
    key: Spec,
    value: Spec,
    mask: Spec | None,
    kv_lengths: Spec | None,
    query_starts: Spec | None,
    alibi_slopes: Spec | None,
    sinks: Spec | None,
    *,
    scale: float,
    top_k: int,
    aux: tuple[str, ...],
    **_: Any,
) -> Any:
    check_arrays(NAME, query, key, value)
    batch, heads, rows, _depth = query.shape
    keys = key.shape[2]
    if not abs(scale) <= float(np.finfo(compute_dtype(query.dtype)).max):
        raise ValueError(f"{NAME}: scale must be finite; got {scale}")
    scores = (batch, heads, rows, keys)
    wide = compute_dtype(query.dtype)
    checks.require_mask(NAME, mask, query.dtype, scores, short=True)
    checks.require_lengths(NAME, kv_lengths, batch)
    checks.require_integers(NAME, "query_start", query_starts, batch)
    checks.require_vector(NAME, "alibi_slopes", alibi_slopes, heads, wide)
    checks.require_vector(NAME, "sinks", sinks, heads, wide)
    return checks.result_specs(query, key, value, top_k, aux)


def check_arrays(function: str, query: Spec, key: Spec, value: Spec) -> None:
    """Raise TypeError or ValueError where dtypes or shapes do not fit each other."""
    checks.require_floats(function, FLOATS, query=query, key=key, value=value)
    checks.require_rank(function, "B, H, T, D", query=query)
    checks.require_rank(function, "B, G, S, D", key=key)
    checks.require_rank(function, "B, G, S, E", value=value)
    checks.require_shared(function, "B", 0, query=query, key=key)
    checks.require_shared(function, "B", 0, query=query, value=value)
    checks.require_shared(function, "G", 1, key=key, value=value)
    checks.require_shared(function, "S", 2, key=key, value=value)
    checks.require_shared(function, "D", 3, query=query, key=key)
    checks.require_groups(function, query, key)


def _eval(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    kv_lengths: Array | None,
    query_starts: Array | None,
    alibi_slopes: Array | None,
    sinks: Array | None,
    *,
    scale: float,
    aux: tuple[str, ...],
    **params: Any,
) -> Any:
    options = core_options(query, key, kv_lengths, query_starts, alibi_slopes, sinks, params)
    right = params["right"]
    # The column mass is made of the log-sum-exp, in another kernel.
    wanted = tuple(name for name in aux if name != "column_mass")
    if "column_mass" in aux and "lse" not in aux:
        wanted += ("lse",)
    if params.get("out") is not None:
        shape = (*query.shape[:3], value.shape[3])
        checks.require_out(NAME, params["out"], shape, query.dtype)
        options["out"] = params["out"]
    found = _core.sdpa(query, key, value, mask, scale, right, wanted or None, options or None)
    if not aux:
        return found
    named = dict(zip(("output", *wanted), found, strict=True))
    if "column_mass" in aux:
        options = {k: v for k, v in options.items() if k != "out"} | {"lse": named["lse"]}
        named["column_mass"] = _core.column_mass(query, key, mask, scale, right, options)
    return (named["output"], *(named[name] for name in aux))


SDPA = Op(
    "sdpa",
    _eval,
    _shape,
    vjp=vjp,
    onnx=_sdpa_onnx.write,
    expand=graph.expand,
    function=graph.function_name,
    arguments=ARGUMENTS,
    attributes=("scale",),
    optional=5,
)


def scaled_dot_product_attention(
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    *,
    is_causal: bool | Literal["top_left", "bottom_right"] = False,
    scale: float | None = None,
    softcap: float = 0.0,
    window: int | tuple[int, int] | None = None,
    query_start: int | Value | None = None,
    alibi_slopes: Value | None = None,
    sinks: Value | None = None,
    kv_lengths: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    rotary_cos: Value | None = None,
    rotary_sin: Value | None = None,
    rotary_interleaved: bool = False,
    dropout_p: float = 0.0,
    rng: int | np.random.Generator | None = None,
    top_k: int = 0,
    aux: Sequence[str] = (),
    out: Array | None = None,
) -> Any:
    """Return ``softmax(scale * Q K^T + bias) V`` for each batch and head.

    Query head h reads key and value head ``h // (H / G)``: G = H is multi-head attention, G = 1
    multi-query, in between grouped-query attention (arXiv:2305.13245).

    Parameters
    ----------
    query:
        ``(B, H, T, D)``, float32, float64, float16 or bfloat16 (of ``ml_dtypes``).
    key, value:
        ``(B, G, S, D)`` and ``(B, G, S, E)`` of the same dtype; H is a multiple of G.
    attn_mask:
        Broadcasts to ``(B, H, T, S)`` by NumPy's rule, rank 1 to 4. Boolean: True may be attended.
        Float, of the query's dtype: added to the scaled scores; -inf is masked. A last axis that
        is shorter than S, and not 1, leaves the keys behind it masked.
    is_causal:
        A query at position p sees keys j <= p. True or ``"top_left"``: query i stands at
        ``query_start + i``. ``"bottom_right"``: the last query stands at the last valid key,
        ``p = (kv_lengths[b] or S) - T + i``.
    scale:
        ``1 / sqrt(D)`` by default; any finite number.
    softcap:
        Above 0, scores become ``softcap * tanh(score / softcap)`` before every bias and mask.
    window:
        ``(left, right)``: a query at position p sees keys ``p - left <= j <= p + right``; -1 is
        unbounded. An integer stands for both sides.
    query_start:
        Position of the first query, an integer or ``(B,)`` int32 or int64; may be negative.
        The length of ``past_key`` by default, or 0.
    alibi_slopes:
        ``(H,)`` in the dtype of the arithmetic (float32; float64 for float64): adds
        ``-slope[h] * |p - j|`` (arXiv:2108.12409). A constant: it gets no gradient.
    sinks:
        ``(H,)``, likewise: one more score per head, whose weight is dropped (arXiv:2309.17453).
    kv_lengths:
        ``(B,)`` int32 or int64: only the first ``kv_lengths[b]`` keys of entry b are valid, those
        of ``past_key`` included.
    past_key, past_value:
        ``(B, G, P, D)`` and ``(B, G, P, E)``, in front of ``key`` and ``value``.
    rotary_cos, rotary_sin, rotary_interleaved:
        Tables ``(positions, R / 2)`` of the query's dtype: query and key are turned as by
        :func:`pyattn.ops.rotary_embedding` (arXiv:2104.09864), key j by row j and a query at
        position p by row p, on their way into the kernel and to the same bits. Keys of the past
        are not turned yet.
    dropout_p, rng:
        Probability with which a weight is dropped, in [0, 1), and an integer seed below 2**64 or a
        generator that gives one. Which weights are dropped depends on the seed and on b, h, i and
        j only (Philox4x32-10: Salmon et al. 2011, DOI 10.1145/2063384.2063405).
    top_k:
        How many weights ``"top_weights"`` and ``"top_indices"`` hold.
    aux:
        Further results to return, in this order, behind the output:

        - ``"weights"`` ``(B, H, T, S)``: the softmax, before dropout;
        - ``"lse"`` ``(B, H, T)``: log-sum-exp of the scores, the sink among them;
        - ``"max"`` ``(B, H, T)``: the largest score;
        - ``"entropy"`` ``(B, H, T)``: ``-sum_j w_j ln w_j``, in nats;
        - ``"top_weights"``, ``"top_indices"`` ``(B, H, T, top_k)``: the largest weights, in
          descending order, and their keys; 0 and -1 where there are fewer keys;
        - ``"column_mass"`` ``(B, H, S)``: the weight that a key gets, summed over the queries;
        - ``"scores"``, ``"capped_scores"``, ``"biased_scores"`` ``(B, H, T, S)``: after the scale,
          after the softcap, and as the softmax sees them, -inf where masked;
        - ``"present_key"``, ``"present_value"``: the keys and values, the past in front.

        Statistics are in the dtype of the arithmetic, weights and scores in that of the query.
        Those with an axis S or top_k, and the entropy, take a second pass over the keys.
    out:
        An array that receives the output: its shape and dtype, contiguous along the last axis.
        It must not overlap the inputs.

    Returns
    -------
    The output ``(B, H, T, E)``, or a tuple of it and what ``aux`` names. A query that may see no
    key gets output 0, weights 0, entropy 0, max -inf, and log-sum-exp -inf or the sink. With S = 0
    that is every query.

    Raises
    ------
    TypeError
        For a dtype that is not listed above, or dtypes that differ.
    ValueError
        For shapes that do not fit, lengths outside 0..S, unknown names in ``aux``, and numbers
        outside their range.

    Notes
    -----
    Computed in tiles with a running maximum and sum: memory grows with T + S, not T * S, unless
    an output of that size is asked for. Float16 and bfloat16 are widened to float32. A row's bits
    depend on its query and on the keys it may see only: not on the batch, the other rows, T, or the
    number of threads. Entries of ``key`` and ``value`` that are masked for a query are not
    used for it, so a NaN there does not reach its output. Gradients flow through the output and
    the log-sum-exp by a kernel of their own; through other outputs by the formula in smaller
    operations, whose memory grows with T * S.
    In ONNX: the function ``pyattn::ScaledDotProductAttention...``, whose body is MatMul, Softmax,
    MatMul, or at opset 23 and 24 the operator ``Attention`` where ONNX Runtime's kernel computes
    the same. There a masked NaN spreads.

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
    >>> out, lse = pa.scaled_dot_product_attention(q, k, v, window=(2, 0), aux=("lse",))
    """
    # The common call, without the checks: where it fails, they say why.
    try:
        if (
            window is rng is query_start is alibi_slopes is sinks is kv_lengths is past_key
            is past_value is rotary_cos is rotary_sin is out is None
            and rotary_interleaved is False
            and (is_causal is False or is_causal is True)
            and (scale is None or isinstance(scale, float))
            and aux == ()
            and softcap == dropout_p == top_k == 0
        ):  # fmt: skip
            return _core.sdpa(query, key, value, attn_mask, scale, is_causal - 1, None, None)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError, IndexError, AttributeError):
        pass
    optional = {
        "attn_mask": attn_mask,
        "kv_lengths": kv_lengths,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "past_key": past_key,
        "past_value": past_value,
        "rotary_cos": rotary_cos,
        "rotary_sin": rotary_sin,
    }
    given = {"query": query, "key": key, "value": value, **optional}
    more = {"query_start": query_start if interchange.is_foreign(query_start) else None, "out": out}
    if not checks.require_arrays(NAME, optional | more, query=query, key=key, value=value):
        return interchange.call(scaled_dot_product_attention, locals())
    names = checks.normalize_aux(NAME, aux, (*AUX, *PRESENT))
    query_starts, params = normalize_options(
        NAME, query, is_causal, window, query_start, past_key, scale, softcap, dropout_p, rng,
        top_k, names,
    )  # fmt: skip
    key, value = _with_past(key, value, past_key, past_value)
    if key.ndim == 4:
        checks.check_lengths(NAME, kv_lengths, key.shape[2])
    wanted = tuple(name for name in names if name not in PRESENT)
    present = {"present_key": key, "present_value": value}
    query, key, rotary = turn(
        NAME, query, key, kv_lengths, query_starts, params, rotary_cos, rotary_sin,
        rotary_interleaved, whole="column_mass" in names,
    )  # fmt: skip
    if rotary is not None:
        params["rotary"] = rotary
    inputs = (query, key, value, attn_mask, kv_lengths, query_starts, alibi_slopes, sinks)
    if any(isinstance(x, Tensor) for x in (*inputs, out)):
        if out is not None:
            raise TypeError(f"{NAME}: out takes arrays only; an argument is a Tensor")
        if attn_mask is not None:
            inputs = (*inputs[:3], _full_mask(query, key, value, attn_mask), *inputs[4:])
        if "lse" not in wanted and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            wanted += ("lse",)  # the gradient needs it
    if out is not None:
        checks.require_apart(NAME, out, given)
        params["out"] = out
    found = apply(SDPA, *inputs, aux=wanted, **params)
    if not names:
        return found[0] if wanted else found
    named = dict(zip(("output", *wanted), found if wanted else (found,), strict=True))
    named |= present
    return (named["output"], *(named[name] for name in names))


def _full_mask(query: Value, key: Value, value: Value, attn_mask: Value) -> Value:
    """Return the mask that a graph gets, after the checks that would look at the mask given."""
    specs: Any = [spec_of(x) for x in (query, key, value)]
    check_arrays(NAME, *specs)
    scores = (*query.shape[:3], key.shape[2])
    checks.require_mask(NAME, spec_of(attn_mask), query.dtype, scores, short=True)
    return graph.full_mask(attn_mask, key.shape[2])


def _with_past(
    key: Value, value: Value, past_key: Value | None, past_value: Value | None
) -> tuple[Value, Value]:
    """Return keys and values behind those of the past."""
    if (past_key is None) != (past_value is None):
        raise ValueError(f"{NAME}: past_key and past_value must be given together")
    if past_key is None or past_value is None:
        return key, value
    joined = []
    if past_key.ndim == past_value.ndim == 4 and past_key.shape[2] != past_value.shape[2]:
        raise ValueError(
            f"{NAME}: past_key and past_value must share P; got past_key {past_key.shape}, "
            f"past_value {past_value.shape}"
        )
    for name, past, new in (("key", past_key, key), ("value", past_value, value)):
        if past.dtype != new.dtype:
            raise TypeError(
                f"{NAME}: past_{name} and {name} must have one dtype; got past_{name} "
                f"{past.dtype}, {name} {new.dtype}"
            )
        fits = past.ndim == new.ndim == 4 and all(past.shape[i] == new.shape[i] for i in (0, 1, 3))
        if not fits:
            raise ValueError(
                f"{NAME}: past_{name} must have the shape of {name} but for the length; got "
                f"past_{name} {past.shape}, {name} {new.shape}"
            )
        joined.append(concat([past, new], 2))
    return joined[0], joined[1]
