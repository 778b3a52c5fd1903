"""A cache of keys or values with room for later ones, written to in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn import interchange
from pyattn.attention import _checks as checks
from pyattn.dtypes import FLOATS, IN_A_NAME
from pyattn.ops import arange_like, astype, expand_dims, less, stack, where
from pyattn.tensor import Array, Node, Op, Spec, Tensor, Value, apply

NAME = "update_cache"
_OUTSIDE = 2**40  # an index that no cache has


def _shape(cache: Spec, update: Spec, write_indices: Spec, **_: Any) -> Spec:
    checks.require_floats(NAME, FLOATS, cache=cache, update=update)
    checks.require_rank(NAME, "B, G, C, D", cache=cache)
    checks.require_rank(NAME, "B, G, T, D", update=update)
    for axis, what in ((0, "B"), (1, "G"), (3, "D")):
        checks.require_shared(NAME, what, axis, cache=cache, update=update)
    checks.require_integers(NAME, "write_indices", write_indices, cache.shape[0])
    return cache


def _eval(
    cache: Array, update: Array, write_indices: Array, *, out: Array | None = None, **_: Any
) -> Array:
    room, rows = cache.shape[2], update.shape[2]
    last = room - rows
    if write_indices.size and not (write_indices.min() >= 0 and write_indices.max() <= last):
        raise ValueError(
            f"{NAME}: write_indices must lie in 0..{last} for {rows} rows in a cache of {room}; "
            f"got {write_indices.min()}..{write_indices.max()}"
        )
    if out is None:
        out = cache.copy()
    elif not _same(out, cache):
        np.copyto(out, cache)
    for entry, new, start in zip(out, update, write_indices.tolist(), strict=True):
        entry[:, start : start + rows] = new
    return out


def _same(one: Array, other: Array) -> bool:
    return one.ctypes.data == other.ctypes.data and one.strides == other.strides


def _vjp(
    _: Node, g: tuple[Array], inputs: tuple[Array, Array, Array], __: tuple[Array]
) -> tuple[Array, Array, None]:
    _cache, update, starts = inputs
    kept, written = g[0].copy(), np.empty_like(update)
    for b, start in enumerate(starts.tolist()):
        rows = kept[b, :, start : start + update.shape[2]]
        written[b] = rows
        rows[...] = 0
    return kept, written, None


def _onnx(graph: Any, node: Node, cache: str, update: str, write_indices: str) -> Any:
    """Write ScatterND: ONNX Runtime has no kernel for TensorScatter of opset 24 before 1.25."""
    for x, name in zip(node.inputs, (cache, update, write_indices), strict=True):
        graph.bind(x, name)
    rows, starts = node.required(1), astype(node.required(2), np.int64)
    (places,) = graph.add([_places(rows, starts)])
    return graph.node("ScatterND", cache, places, update)


def _places(rows: Value, starts: Value) -> Any:
    """Return ``(B, G, T, 3)``: the entry, the group and the position of each row."""
    checked = where(less(starts, 0), _OUTSIDE, starts)  # ONNX counts them from the end
    entry = expand_dims(expand_dims(arange_like(rows, 0), 1), 2)
    group = expand_dims(expand_dims(arange_like(rows, 1), 0), 2)
    row = expand_dims(expand_dims(arange_like(rows, 2), 0), 0)
    row = row + expand_dims(expand_dims(checked, 1), 2)
    nothing = (entry + group + row) * 0
    return stack([entry + nothing, group + nothing, row + nothing], -1)


def _function(node: Node) -> str:
    return "UpdateCache" + IN_A_NAME[node.required(0).dtype.name]


UPDATE_CACHE = Op(
    "update_cache",
    _eval,
    _shape,
    _vjp,
    _onnx,
    function=_function,
    arguments=("cache", "update", "write_indices"),
    has_weights=False,
)


def update_cache(
    cache: Value, update: Value, write_indices: Value, *, out: Array | None = None
) -> Any:
    """Return the cache with new rows: ``out[b, :, write_indices[b] + t] = update[b, :, t]``.

    A cache has a fixed capacity C. A decoder writes the keys and values of its newest tokens behind
    those it has and attends with ``kv_lengths``, so that nothing grows and nothing is copied.

    Parameters
    ----------
    cache:
        ``(B, G, C, D)``, float32, float64, float16 or bfloat16.
    update:
        ``(B, G, T, D)`` of the same dtype.
    write_indices:
        ``(B,)`` int32 or int64: where the first row of each entry goes. All T rows have to fit.
    out:
        The result is written there: ``cache`` itself is written in place, another array gets a
        copy of it. Not with Tensors. By default a new array is made.

    Returns
    -------
    The cache ``(B, G, C, D)``.

    Raises
    ------
    TypeError, ValueError
        For dtypes and shapes that do not fit, and rows that would lie outside the cache.

    Notes
    -----
    In ONNX the function ``pyattn::UpdateCache``, whose body is ScatterND. Inside ONNX Runtime only
    the rows are written where input and output are bound to one buffer (``io_binding``), by
    pyattn's operator as by the body.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> cache = np.zeros((2, 1, 4, 1), np.float32)
    >>> rows = np.ones((2, 1, 2, 1), np.float32)
    >>> pa.update_cache(cache, rows, np.array([0, 1]), out=cache)[:, 0, :, 0]
    array([[1., 1., 0., 0.],
           [0., 1., 1., 0.]], dtype=float32)
    """
    arrays = {"cache": cache, "update": update, "write_indices": write_indices}
    if not checks.require_arrays(NAME, {"out": out}, **arrays):
        return interchange.call(update_cache, locals())
    if out is None:
        return apply(UPDATE_CACHE, *arrays.values(), aux=())
    if isinstance(out, Tensor) or any(isinstance(x, Tensor) for x in arrays.values()):
        raise TypeError(f"{NAME}: out takes arrays only; an argument is a Tensor")
    _check_out(out, cache, update)  # type: ignore[arg-type]
    return apply(UPDATE_CACHE, *arrays.values(), aux=(), out=out)


def _check_out(out: Array, cache: Array, update: Array) -> None:
    checks.require_out(NAME, out, cache.shape, cache.dtype)
    apart = {"update": update} if _same(out, cache) else {"cache": cache, "update": update}
    checks.require_apart(NAME, out, apart)
