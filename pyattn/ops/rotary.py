"""Rotary position embedding: pairs of a vector turned by angles that grow with its position."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn import _core
from pyattn.dtypes import IN_A_NAME
from pyattn.ops._rules import INT64, require_real
from pyattn.ops.elementwise import astype
from pyattn.ops.index import take
from pyattn.ops.shape import concat, expand_dims, getitem, reshape
from pyattn.tensor import Array, Dim, Node, Op, Spec, Value, apply, rank_of

_NAME = "rotary_embedding"
_EVERY = slice(None)


def _check_size(x: Spec, num_heads: int, rotary_embedding_dim: int) -> int:
    """Return R, how many numbers of each head are turned; raise where x has no such heads."""
    if x.ndim not in (3, 4):
        raise ValueError(f"{_NAME}: x must be (B, H, T, D) or (B, T, H*D); got {x}")
    size = x.shape[-1]
    if isinstance(size, Dim):
        raise ValueError(f"{_NAME}: the last axis of x must have a static size; got {x}")
    if x.ndim == 3:
        if num_heads < 1 or size % num_heads:
            raise ValueError(
                f"{_NAME}: num_heads must divide the last axis of x (B, T, H*D); got "
                f"{num_heads} for {x}"
            )
        size //= num_heads
    elif num_heads not in (0, x.shape[1]):
        raise ValueError(f"{_NAME}: num_heads is {num_heads}, but x (B, H, T, D) is {x}")
    turned = rotary_embedding_dim or size
    if turned % 2 or not 0 < turned <= size:
        what = "rotary_embedding_dim" if rotary_embedding_dim else "D"
        raise ValueError(
            f"{_NAME}: {what} must be even, above 0 and at most D; got {turned} for {x}"
        )
    return turned


def _shape(
    x: Spec,
    cos_cache: Spec,
    sin_cache: Spec,
    position_ids: Spec | None,
    *,
    interleaved: bool,
    rotary_embedding_dim: int,
    num_heads: int,
) -> Spec:
    del interleaved
    require_real(_NAME, x, cos_cache, sin_cache)
    pairs = _check_size(x, num_heads, rotary_embedding_dim) // 2
    batch, length = x.shape[0], x.shape[-2]
    if cos_cache.shape != sin_cache.shape:
        raise ValueError(
            f"{_NAME}: cos_cache and sin_cache must have one shape; got {cos_cache}, {sin_cache}"
        )
    if position_ids is None:
        if cos_cache.shape != (batch, length, pairs):
            raise ValueError(
                f"{_NAME}: without position_ids the caches must be (B, T, pairs) = "
                f"({batch}, {length}, {pairs}); got {cos_cache} for x {x}"
            )
        return x
    if cos_cache.ndim != 2 or cos_cache.shape[1] != pairs:
        raise ValueError(
            f"{_NAME}: with position_ids the caches must be (positions, pairs) with {pairs} pairs; "
            f"got {cos_cache} for x {x}"
        )
    if position_ids.dtype not in (np.int32, np.int64):
        raise TypeError(f"{_NAME}: position_ids must be int32 or int64; got {position_ids}")
    if position_ids.shape != (batch, length):
        raise ValueError(
            f"{_NAME}: position_ids must be (B, T) = ({batch}, {length}); got {position_ids}"
        )
    return x


def _turn(
    x: Array,
    cos_cache: Array,
    sin_cache: Array,
    position_ids: Array | None,
    *,
    interleaved: bool,
    rotary_embedding_dim: int,
    num_heads: int,
    inverse: bool = False,
) -> Array:
    del rotary_embedding_dim  # the caches say it
    return _core.rotary_embedding(
        x, cos_cache, sin_cache, position_ids, num_heads, interleaved, inverse
    )


def _cache_gradients(
    x: Array, g: Array, node: Node, cache: Array, position_ids: Array | None
) -> tuple[Array, Array]:
    """Return the gradients of the two caches: sums over the heads, and over equal positions."""
    if x.ndim == 3:
        split = (*x.shape[:2], node.params["num_heads"], -1)
        x, g = (a.reshape(split).swapaxes(1, 2) for a in (x, g))
    pairs = cache.shape[-1]
    if node.params["interleaved"]:
        first, second = (slice(start, 2 * pairs, 2) for start in (0, 1))
    else:
        first, second = slice(0, pairs), slice(pairs, 2 * pairs)
    u, v, gu, gv = x[..., first], x[..., second], g[..., first], g[..., second]
    by_row = (u * gu + v * gv).sum(axis=1), (u * gv - v * gu).sum(axis=1)
    if position_ids is None:
        return by_row
    sums = np.zeros_like(cache), np.zeros_like(cache)
    for total, rows in zip(sums, by_row, strict=True):
        np.add.at(total, position_ids, rows)
    return sums


def _vjp(
    node: Node,
    g: tuple[Array],
    inputs: tuple[Array, Array, Array, Array | None],
    _: tuple[Array],
) -> tuple[Array | None, ...]:
    x, cos_cache, sin_cache, position_ids = inputs
    back = _OP.eval(g[0], cos_cache, sin_cache, position_ids, **node.params, inverse=True)
    if not (node.required(1).requires_grad or node.required(2).requires_grad):
        return back, None, None, None
    wide = [x, g[0], cos_cache]
    if x.dtype.itemsize == 2:
        wide = [array.astype(np.float32) for array in wide]
    of_caches = _cache_gradients(wide[0], wide[1], node, wide[2], position_ids)
    return back, *(gradient.astype(x.dtype, copy=False) for gradient in of_caches), None


def _onnx(graph: Any, node: Node, x: str, cosine: str, sine: str, positions: str) -> Any:
    # ONNX has no float64 rotation, and ONNX Runtime 1.32 no bfloat16 one: those are expanded.
    if graph.opset < 23 or node.outputs[0].dtype not in (np.float32, np.float16):
        return None
    names = [x, cosine, sine]
    if positions:  # a cast always, so that one function serves int32 and int64
        names.append(graph.node("Cast", positions, to=INT64))
    heads, size = _heads(node)
    turned: Any = 2 * node.required(1).shape[-1]
    params = {"num_heads": heads} if heads else {}
    return graph.node(
        "RotaryEmbedding",
        *names,
        interleaved=int(node.params["interleaved"]),
        rotary_embedding_dim=0 if turned == size else turned,
        **params,
    )


def _heads(node: Node) -> tuple[int, int]:
    """Return how many heads the last axis of x holds, 0 where they have their own, and their D."""
    x = node.required(0)
    heads = node.params["num_heads"] if x.ndim == 3 else 0
    size: Any = x.shape[-1]
    return heads, size // max(heads, 1)


def _expand(
    x: Value,
    cos_cache: Value,
    sin_cache: Value,
    position_ids: Value | None,
    *,
    interleaved: bool,
    rotary_embedding_dim: int,
    num_heads: int,
) -> Any:
    dtype, merged = x.dtype, rank_of(_NAME, x) == 3
    wide = [astype(a, np.float32) if dtype.itemsize == 2 else a for a in (x, cos_cache, sin_cache)]
    heads, cosine, sine = wide
    if position_ids is not None:
        rows = astype(position_ids, np.int64)  # always, see _onnx
        cosine, sine = take(cosine, rows), take(sine, rows)
    if merged:
        heads = reshape(heads, (0, 0, num_heads, -1))  # (B, T, H, D): the caches lack axis 2
    axis = 2 if merged else 1
    result = _expand_heads(
        heads, expand_dims(cosine, axis), expand_dims(sine, axis), interleaved, rotary_embedding_dim
    )
    if merged:
        result = reshape(result, (0, 0, -1))
    return astype(result, dtype) if dtype.itemsize == 2 else result


def _expand_heads(x: Any, cosine: Any, sine: Any, interleaved: bool, turned: int) -> Any:
    """Turn the first numbers of the last axis of x of rank 4."""
    size = x.shape[-1]
    turned = turned or size
    half = turned // 2
    moving = getitem(x, (..., slice(0, turned)))
    if interleaved:
        pairs = reshape(moving, (0, 0, 0, half, 2))
        u, v = getitem(pairs, (..., 0)), getitem(pairs, (..., 1))
    else:
        u, v = getitem(x, (..., slice(0, half))), getitem(x, (..., slice(half, turned)))
    parts = [u * cosine - v * sine, u * sine + v * cosine]
    if interleaved:
        result = reshape(concat([expand_dims(p, 4) for p in parts], -1), (0, 0, 0, turned))
        parts = [result]
    if turned < size:
        parts.append(getitem(x, (..., slice(turned, size))))
    return concat(parts, -1)


def _function(node: Node) -> str:
    """Name the ONNX function of a node: it must tell everything that the body depends on."""
    heads, size = _heads(node)
    cosine = node.required(1)
    parts = [
        IN_A_NAME[node.outputs[0].dtype.name],
        "Interleaved" * node.params["interleaved"],
        "Positions" * (node.inputs[3] is not None),
        f"Pairs{cosine.shape[-1]}Of{size}",
        f"Heads{heads}" * (heads > 0),
    ]
    return "RotaryEmbedding" + "".join(parts)


_OP = Op(
    _NAME,
    _turn,
    _shape,
    _vjp,
    _onnx,
    _expand,
    function=_function,
    arguments=("x", "cos_cache", "sin_cache", "position_ids"),
    optional=1,
    has_weights=False,
)


def rotary_embedding(
    x: Value,
    cos_cache: Value,
    sin_cache: Value,
    position_ids: Value | None = None,
    *,
    interleaved: bool = False,
    rotary_embedding_dim: int = 0,
    num_heads: int = 0,
) -> Any:
    """Rotary position embedding: turn pairs of numbers by angles that depend on the position.

    Of each head's first ``R`` numbers, pair ``k``, written ``(u, v)``, becomes
    ``(u cos - v sin, u sin + v cos)`` with the cosine and sine of its position ``p`` and ``k``; the
    numbers from ``R`` on stay as they are. The dot product of two vectors that were turned so
    depends on their positions only through the difference.

    Parameters
    ----------
    x:
        ``(B, H, T, D)``, or ``(B, T, H*D)`` with ``num_heads``, of any strides; float32, float64,
        float16 or bfloat16. Half precision is computed in float32 and rounded once.
    cos_cache, sin_cache:
        With ``position_ids`` tables ``(positions, R/2)``, else ``(B, T, R/2)``; the dtype of ``x``.
    position_ids:
        ``(B, T)``, int32 or int64: the row of the tables for each query.
    interleaved:
        Whether pair ``k`` is the numbers ``2k`` and ``2k + 1``, as in the paper. By default it is
        ``k`` and ``k + R/2``, as in most checkpoints.
    rotary_embedding_dim:
        ``R``, even and at most ``D``; 0 stands for ``D``.
    num_heads:
        ``H``, needed when ``x`` has three axes.

    Returns
    -------
    An array of the shape and dtype of ``x``.

    Raises
    ------
    TypeError
        For a dtype other than these, or dtypes that differ.
    ValueError
        For shapes that do not fit each other, and for a position outside the tables; a negative
        position is outside.

    Notes
    -----
    One kernel; beside the result it needs a few kilobytes. The gradient is the rotation by the
    negative angle. In ONNX this is a function ``pyattn::RotaryEmbedding...``, for which
    :func:`pyattn.ort.session` has a kernel; its body is ``RotaryEmbedding`` from opset 23 on, and
    standard operators before that and for float64 and bfloat16.

    References
    ----------
    Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding",
    arXiv:2104.09864.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> x = np.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> quarter = np.array([[[np.pi / 2]]])
    >>> pa.ops.rotary_embedding(x, np.cos(quarter), np.sin(quarter)).round(6).tolist()
    [[[[0.0, 1.0]]]]
    """
    return apply(
        _OP,
        x,
        cos_cache,
        sin_cache,
        position_ids,
        interleaved=bool(interleaved),
        rotary_embedding_dim=_size("rotary_embedding_dim", rotary_embedding_dim),
        num_heads=_size("num_heads", num_heads),
    )


def _size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{_NAME}: {name} must be an integer; got {value!r}")
    if value < 0:
        raise ValueError(f"{_NAME}: {name} must be 0 or more; got {value}")
    return int(value)
