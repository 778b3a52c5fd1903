"""Attention weights of chosen queries, without the matrix of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pyattn import _core, interchange
from pyattn.attention import _checks as checks
from pyattn.attention._sdpa_options import core_options, normalize_options
from pyattn.attention.sdpa import check_arrays
from pyattn.dtypes import compute_dtype
from pyattn.tensor import Array, Tensor, spec_of

NAME = "attention_weights"


def attention_weights(
    query: Array,
    key: Array,
    attn_mask: Array | None = None,
    *,
    rows: Array | Sequence[int],
    lse: Array,
    is_causal: bool | Literal["top_left", "bottom_right"] = False,
    scale: float | None = None,
    softcap: float = 0.0,
    window: int | tuple[int, int] | None = None,
    query_start: int | Array | None = None,
    alibi_slopes: Array | None = None,
    kv_lengths: Array | None = None,
) -> Any:
    """Return ``exp(scale * Q K^T + bias - lse)`` for chosen rows: the weights of these queries.

    For looking at attention maps after a call that kept no weights. The log-sum-exp comes from
    that call (``aux=("lse",)``), sinks included, so that the rows agree with its output.

    Parameters
    ----------
    query, key, attn_mask, is_causal, scale, softcap, window, query_start, alibi_slopes, kv_lengths:
        What `scaled_dot_product_attention` was called with.
    rows:
        Indices of queries, ``(R,)``, each in 0..T - 1, in any order.
    lse:
        ``(B, H, T)``, in the dtype of the arithmetic.

    Returns
    -------
    The weights ``(B, H, R, S)`` in the dtype of ``query``.

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes that do not fit, and rows outside 0..T - 1.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = (rng.standard_normal((1, 2, 100, 16), dtype=np.float32) for _ in range(3))
    >>> out, lse = pa.scaled_dot_product_attention(q, k, v, aux=("lse",))
    >>> weights = pa.attention_weights(q, k, rows=[7, 42], lse=lse)
    >>> bool(np.allclose(weights @ v, out[:, :, [7, 42]], atol=1e-6))
    True
    """
    optional: dict[str, Any] = {"attn_mask": attn_mask, "kv_lengths": kv_lengths}
    optional["alibi_slopes"] = alibi_slopes
    for name, given in (("rows", rows), ("query_start", query_start)):  # an array or something else
        if isinstance(given, Tensor) or interchange.is_foreign(given):
            optional[name] = given
    if not checks.require_ndarrays(NAME, optional, query=query, key=key, lse=lse):
        return interchange.call(attention_weights, locals())
    specs: Any = [spec_of(query), spec_of(key)]
    check_arrays(NAME, specs[0], specs[1], specs[1])
    batch, heads, length, _ = query.shape
    wide = compute_dtype(query.dtype)
    checks.require_mask(
        NAME, spec_of(attn_mask), query.dtype, (batch, heads, length, key.shape[2]), short=True
    )
    checks.require_lengths(NAME, spec_of(kv_lengths), batch)
    checks.check_lengths(NAME, kv_lengths, key.shape[2])
    checks.require_vector(NAME, "alibi_slopes", spec_of(alibi_slopes), heads, wide)
    if lse.dtype != wide:
        raise TypeError(f"{NAME}: lse must be {wide}; got {lse.dtype}")
    if lse.shape != (batch, heads, length):
        raise ValueError(f"{NAME}: lse must have shape {(batch, heads, length)}; got {lse.shape}")
    chosen = _rows(rows, length)
    starts: Any
    starts, params = normalize_options(
        NAME, query, is_causal, window, query_start, None, scale, softcap, 0.0, None, 0, ()
    )
    checks.require_integers(NAME, "query_start", spec_of(starts), batch)
    options = core_options(query, key, kv_lengths, starts, alibi_slopes, None, params)
    options |= {"rows": chosen, "lse": np.ascontiguousarray(lse[:, :, chosen])}
    return _core.sdpa_weights(query, key, attn_mask, params["scale"], params["right"], options)


def _rows(rows: Any, length: int) -> Array:
    if not isinstance(rows, (np.ndarray, list, tuple, range)):
        raise TypeError(f"{NAME}: rows must be an array or a list; got {type(rows).__name__}")
    chosen = np.asarray(rows)
    if chosen.size and chosen.dtype.kind not in "iu":
        raise TypeError(f"{NAME}: rows must be integers; got {chosen.dtype}")
    if chosen.ndim != 1:
        raise ValueError(f"{NAME}: rows must have shape (R,); got {chosen.shape}")
    chosen = chosen.astype(np.int64)
    if chosen.size and not (chosen.min() >= 0 and chosen.max() < length):
        raise ValueError(
            f"{NAME}: rows must lie in 0..{length - 1}; got {chosen.min()}..{chosen.max()}"
        )
    return chosen
