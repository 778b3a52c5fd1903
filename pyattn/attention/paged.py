"""Scaled dot-product attention against a cache of keys and values in pages."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from pyattn import _core, interchange
from pyattn.attention import _checks as checks
from pyattn.attention import _sdpa_graph as graph
from pyattn.attention._sdpa_options import (
    UNBOUNDED,
    normalize_scale,
    normalize_softcap,
    normalize_window,
)
from pyattn.dtypes import FLOATS, compute_dtype
from pyattn.ops import arange_like, expand_dims, less, reshape, take, transpose, where
from pyattn.tensor import Array, Dim, Node, Op, Spec, TraceError, Value, apply, spec_of

NAME = "paged_attention"


def _shape(
    query: Spec,
    key: Spec,
    value: Spec,
    block_table: Spec,
    kv_lengths: Spec,
    alibi_slopes: Spec | None,
    sinks: Spec | None,
    **_: Any,
) -> Any:
    del key, block_table, kv_lengths, alibi_slopes, sinks  # see _check
    return Spec((*query.shape[:3], value.shape[3]), query.dtype)


def _eval(
    query: Array,
    key_pages: Array,
    value_pages: Array,
    block_table: Array,
    kv_lengths: Array,
    alibi_slopes: Array | None,
    sinks: Array | None,
    *,
    scale: float,
    right: int,
    left: int,
    bottom_right: bool,
    softcap: float,
    **_: Any,
) -> Any:
    _check_numbers(key_pages, block_table, kv_lengths)
    options: dict[str, Any] = {"kv_lengths": kv_lengths}
    if bottom_right:
        options["query_starts"] = kv_lengths.astype(np.int64) - query.shape[2]
    if left != UNBOUNDED:
        options["left"] = left
    if softcap:
        options["softcap"] = softcap
    for name, vector in (("alibi_slopes", alibi_slopes), ("sinks", sinks)):
        if vector is not None:
            options[name] = vector
    return _core.paged(query, key_pages, value_pages, block_table, scale, right, options)


def _expand(
    query: Value,
    key_pages: Value,
    value_pages: Value,
    block_table: Value,
    kv_lengths: Value,
    alibi_slopes: Value | None,
    sinks: Value | None,
    **params: Any,
) -> Any:
    """Dense attention on the pages of each entry, gathered one behind the other."""
    page: Any = key_pages.shape[2]
    starts = expand_dims(arange_like(block_table, 1) * page, 0)
    used = less(starts, expand_dims(graph.astype_int(kv_lengths), 1))
    # What stands behind the last valid page may be anything.
    table = where(used, graph.astype_int(block_table), 0)
    key, value = (_gathered(pages, table) for pages in (key_pages, value_pages))
    return graph.expand(
        query, key, value, None, kv_lengths, None, alibi_slopes, sinks, start=0, **params
    )


def _gathered(pages: Value, table: Value) -> Any:
    """Return the pages ``(N, G, page, D)`` that the rows of ``table`` name: ``(B, G, S, D)``."""
    sizes: Any = pages.shape[1:]  # all static, see _check
    groups, page, size = sizes
    rows = take(reshape(pages, (0, -1)), table)
    split = reshape(rows, (0, 0, groups, page, size))
    return reshape(transpose(split, (0, 2, 1, 3, 4)), (0, 0, -1, size))


def _function(node: Node) -> str:
    return "PagedAttention" + graph.variant_name(node, None, None, None, *node.inputs[5:])


PAGED = Op(
    "paged",
    _eval,
    _shape,
    expand=_expand,
    function=_function,
    arguments=(
        *("query", "key_pages", "value_pages", "block_table", "kv_lengths"),
        *("alibi_slopes", "sinks"),
    ),
    attributes=("scale",),
    optional=2,
    has_weights=False,
)


def paged_attention(
    query: Value,
    key_pages: Value,
    value_pages: Value,
    block_table: Value,
    kv_lengths: Value,
    *,
    is_causal: bool | Literal["top_left", "bottom_right"] = "bottom_right",
    scale: float | None = None,
    softcap: float = 0.0,
    window: int | tuple[int, int] | None = None,
    alibi_slopes: Value | None = None,
    sinks: Value | None = None,
) -> Any:
    """Return ``softmax(scale * Q K^T + bias) V`` with K and V in pages of a shared cache.

    Key j of entry b is row ``j % page`` of page ``block_table[b, j // page]``. Pages may be shared
    between entries and lie in any order; nothing is gathered or copied. The result has the bits of
    `scaled_dot_product_attention` on the same keys in one piece.

    Parameters
    ----------
    query:
        ``(B, H, T, D)``, float32, float64, float16 or bfloat16: the T newest tokens.
    key_pages, value_pages:
        ``(N, G, page, D)`` and ``(N, G, page, E)`` of the same dtype, any page size; H is a
        multiple of G. (A cache ``(N, page, G, D)`` passes as ``cache.transpose(0, 2, 1, 3)``.)
    block_table:
        ``(B, pages)`` int32. Entries behind the last valid key are not looked at.
    kv_lengths:
        ``(B,)`` int32 or int64: valid keys of each entry, the newest T included.
    is_causal, scale, softcap, window, alibi_slopes, sinks:
        As in `scaled_dot_product_attention`. The last query stands at the last valid key, whether
        causal or not, unless ``is_causal="top_left"``.

    Returns
    -------
    The output ``(B, H, T, E)``. A query that may see no key gets 0.

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes that do not fit, lengths beyond the pages of the table, and pages
        that do not exist.

    Notes
    -----
    In ONNX the function ``pyattn::PagedAttention...``, whose body gathers the pages, as the
    gradient does. There a NaN in the rest of the last page spreads.

    References
    ----------
    Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
    PagedAttention", arXiv:2309.06180.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> rng = np.random.default_rng(0)
    >>> pages = rng.standard_normal((2, 8, 4, 16, 64), dtype=np.float32)  # keys and values
    >>> query = rng.standard_normal((2, 8, 1, 64), dtype=np.float32)
    >>> table = np.array([[3, 0], [5, 1]], np.int32)
    >>> pa.paged_attention(query, pages[0], pages[1], table, np.array([20, 9])).shape
    (2, 8, 1, 64)
    """
    optional = {"alibi_slopes": alibi_slopes, "sinks": sinks}
    arrays = {"query": query, "key_pages": key_pages, "value_pages": value_pages}
    more = {"block_table": block_table, "kv_lengths": kv_lengths}
    if not checks.require_arrays(NAME, optional, **arrays, **more):
        return interchange.call(paged_attention, locals())
    _check(arrays, block_table, kv_lengths, alibi_slopes, sinks)
    left, right = normalize_window(NAME, is_causal, window)
    return apply(
        PAGED, *arrays.values(), block_table, kv_lengths, alibi_slopes, sinks,
        scale=normalize_scale(NAME, scale, query), left=left, right=right,
        bottom_right=is_causal != "top_left", softcap=normalize_softcap(NAME, softcap), aux=(),
    )  # fmt: skip


def _check(
    arrays: dict[str, Value],
    block_table: Value,
    kv_lengths: Value,
    alibi_slopes: Value | None,
    sinks: Value | None,
) -> None:
    """Raise TypeError or ValueError where dtypes or shapes do not fit."""
    specs: dict[str, Any] = {name: spec_of(x) for name, x in arrays.items()}
    query, key, value = specs.values()
    checks.require_floats(NAME, FLOATS, **specs)
    checks.require_rank(NAME, "B, H, T, D", query=query)
    checks.require_rank(NAME, "N, G, page, D", key_pages=key)
    checks.require_rank(NAME, "N, G, page, E", value_pages=value)
    for axis, what in enumerate(("N", "G", "page")):
        checks.require_shared(NAME, what, axis, key_pages=key, value_pages=value)
    checks.require_shared(NAME, "D", 3, query=query, key_pages=key)
    checks.require_groups(NAME, query, key)
    batch, heads, wide = query.shape[0], query.shape[1], compute_dtype(query.dtype)
    checks.require_lengths(NAME, spec_of(kv_lengths), batch)
    checks.require_vector(NAME, "alibi_slopes", spec_of(alibi_slopes), heads, wide)
    checks.require_vector(NAME, "sinks", spec_of(sinks), heads, wide)
    if block_table.dtype != np.int32:
        raise TypeError(f"{NAME}: block_table must be int32; got {block_table.dtype}")
    if block_table.ndim != 2 or block_table.shape[0] != batch:
        raise ValueError(
            f"{NAME}: block_table must have shape ({batch}, pages); got {block_table.shape}"
        )
    if any(isinstance(n, Dim) for n in key.shape[1:]):
        raise TraceError(f"{NAME}: G, page and D must be static; got key_pages {key.shape}")
    if key.shape[2] == 0:
        raise ValueError(f"{NAME}: pages must hold a key; got key_pages {key.shape}")


def _check_numbers(key_pages: Array, block_table: Array, kv_lengths: Array) -> None:
    """Raise ValueError for lengths beyond the table and for pages that do not exist."""
    page = key_pages.shape[2]
    checks.check_lengths(NAME, kv_lengths, block_table.shape[1] * page)
    used = np.arange(block_table.shape[1]) * page < kv_lengths[:, None]
    named = block_table[used]
    if named.size and not (named.min() >= 0 and named.max() < key_pages.shape[0]):
        raise ValueError(
            f"{NAME}: block_table must name pages 0..{key_pages.shape[0] - 1}; got {named.min()}.."
            f"{named.max()}"
        )
