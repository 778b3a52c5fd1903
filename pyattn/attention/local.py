"""Attention within a window around a real centre: what Luong's local-p alignment does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyattn import _core
from pyattn.attention import _checks as checks
from pyattn.attention import _sdpa_graph as graph
from pyattn.attention._sdpa_backward import needs_gradient
from pyattn.dtypes import IN_A_NAME
from pyattn.ops import (
    arange_like,
    astype,
    equal,
    exp,
    expand_dims,
    greater,
    less,
    less_equal,
    logical_and,
    matmul,
    reshape,
    size,
    take,
    tanh,
    where,
)
from pyattn.ops import sum as reduce_sum
from pyattn.tensor import Array, Node, Op, Spec, Tensor, Value

AUX = ("weights", "lse", "window_weights")

# The inputs that the kernel differentiates, and where they stand among the seven.
PLACES = {"query": 0, "key": 1, "value": 2, "centre": 3, "v": 4}


def _shape(
    query: Spec,
    key: Spec,
    value: Spec,
    centre: Spec,
    v: Spec | None,
    mask: Spec | None,
    kv_lengths: Spec | None,
    *,
    half_width: int,
    aux: tuple[str, ...],
    **_: Any,
) -> Any:
    del v, mask, kv_lengths  # see luong.py
    rows = query.shape[:2]
    extra = {
        "weights": Spec((*rows, key.shape[1]), query.dtype),
        "window_weights": Spec((*rows, 2 * half_width + 1), query.dtype),
        "lse": Spec(rows, centre.dtype),
    }
    out = Spec((*rows, value.shape[2]), query.dtype)
    return (out, *(extra[name] for name in aux)) if aux else out


def _eval(
    query: Array,
    key: Array,
    value: Array,
    centre: Array,
    v: Array | None,
    mask: Array | None,
    kv_lengths: Array | None,
    *,
    half_width: int,
    renormalize: bool,
    aux: tuple[str, ...],
) -> Any:
    return _core.local(
        query, key, value, centre, half_width, renormalize, v, mask, kv_lengths, aux or None
    )


def _vjp(
    node: Node,
    cotangents: Sequence[Array],
    inputs: Any,
    _: Sequence[Array],
) -> Any:
    """Return the gradients of the operation's inputs, by the contract of `Op.vjp`.

    See ``csrc/cpu/local_backward.inl``. The window's edges have no derivative. A float mask has the
    gradient of the expansion.
    """
    if needs_gradient(node, 5):
        return NotImplemented
    names = ("out", *node.params["aux"])
    given = dict(zip(names, cotangents, strict=True))
    out = given.pop("out")
    query, key, value, centre, v, mask, kv_lengths = inputs
    want = {name for name, place in PLACES.items() if needs_gradient(node, place)}
    *grads, grad_v = _core.local_backward(
        query, key, value, centre, node.params["half_width"], node.params["renormalize"],
        v, mask, kv_lengths, out, given.get("lse"), given.get("weights"),
        given.get("window_weights"), want,
    )  # fmt: skip
    return (*grads, grad_v, None, None)


def _expand(
    query: Value,
    key: Value,
    value: Value,
    centre: Value,
    v: Value | None,
    mask: Value | None,
    kv_lengths: Value | None,
    *,
    half_width: int,
    renormalize: bool,
    aux: tuple[str, ...],
) -> Any:
    """The same with the keys and values of each window gathered: ``(B, T, W, n)``, W = 2 D + 1."""
    dtype, wide = query.dtype, centre.dtype
    first, index, allowed = _window(centre, key, kv_lengths, half_width)
    place = where(allowed, index, 0)  # some key, where there is none
    query = astype(query, wide)
    keys, values = (_rows_at(astype(x, wide), place) for x in (key, value))
    if v is None:
        scores = matmul(keys, expand_dims(query, 3))[..., 0]
    else:
        scores = matmul(tanh(keys + expand_dims(query, 2)), expand_dims(v, 1))[..., 0]
    if mask is not None:
        bias = _mask_at(mask, place)
        given: Any = checks.allowed_keys(key, bias, None)
        allowed = logical_and(allowed, given)
        scores = scores if bias.dtype == np.bool_ else scores + astype(bias, wide)
    found: dict[str, Any] = {"biased_scores": where(allowed, scores, -np.inf)}
    graph.add_weights(found, allowed, None, ("lse",))
    away = astype(index, wide) - expand_dims(centre, 2)
    weights = found["weights"] * exp(where(allowed, away * away, 0.0) * (-2.0 / half_width**2))
    if renormalize:
        total = reduce_sum(weights, -1, keepdims=True)
        weights = weights / where(greater(total, 0.0), total, 1.0)
    nan = _nan_rows(centre, kv_lengths)
    out = matmul(expand_dims(weights, 2), values)[:, :, 0] + expand_dims(nan, 2)
    found["window_weights"] = astype(weights + expand_dims(nan, 2), dtype)
    found["lse"] = found["lse"] + nan
    if "weights" in aux:
        found["weights"] = astype(_scattered(weights, first, key) + expand_dims(nan, 2), dtype)
    out = astype(out, dtype)
    return (out, *(found[name] for name in aux)) if aux else out


def _window(
    centre: Value, key: Value, kv_lengths: Value | None, half_width: int
) -> tuple[Any, Any, Any]:
    """Return the first key of each window, the keys ``(B, T, W)``, which of them are there."""
    near = where(equal(centre, centre), centre, 0.0)
    whole = astype(near, np.int64)
    back = astype(whole, centre.dtype)
    above = astype(less(back, near), np.int64)
    below = astype(less(near, back), np.int64)
    first = whole + above - half_width
    index = expand_dims(first, 2) + np.arange(2 * half_width + 1)
    last = expand_dims(whole - below + half_width, 2)
    length: Any = size(key, 1)
    if kv_lengths is not None:
        length = expand_dims(expand_dims(graph.astype_int(kv_lengths), 1), 2)
    inside = logical_and(less_equal(np.array(0), index), less(index, length))
    return first, index, logical_and(inside, less_equal(index, last))


def _numbers(x: Value, axis: int) -> Any:
    """Return 0, 1, ... along an axis of ``x`` as an array of rank 3 along that axis."""
    count = arange_like(x, axis)
    for other in {0, 1, 2} - {axis}:
        count = expand_dims(count, other)
    return count


def _rows_at(x: Value, place: Value) -> Any:
    """Return rows ``(B, T, W, n)`` of ``x (B, S, n)``."""
    return take(reshape(x, (-1, x.shape[2])), place + _numbers(x, 0) * size(x, 1))  # type: ignore[arg-type]


def _mask_at(mask: Value, place: Value) -> Any:
    """Return what a mask, which broadcasts to ``(B, T, S)``, says of the keys ``place``."""
    while mask.ndim < 3:
        mask = expand_dims(mask, 0)
    at: Any = np.zeros((1, 1, 1), np.int64)
    for axis, number in enumerate((_numbers(place, 0), _numbers(place, 1), place)):
        if mask.shape[axis] != 1:  # else it is broadcast
            at = at * size(mask, axis) + number
    return take(reshape(mask, (-1, 1)), at)[..., 0]


def _scattered(weights: Any, first: Any, key: Value) -> Any:
    """Return the weights ``(B, T, W)`` of the windows among zeros, ``(B, T, S)``."""
    width = weights.shape[2]
    index = expand_dims(expand_dims(arange_like(key, 1), 0), 0) - expand_dims(first, 2)
    inside = logical_and(less_equal(np.array(0), index), less(index, np.array(width)))
    row = _numbers(weights, 0) * size(weights, 1) + _numbers(weights, 1)
    at = where(inside, index, 0) + row * np.array(width)
    return where(inside, take(reshape(weights, (-1, 1)), at)[..., 0], 0.0)


def _nan_rows(centre: Value, kv_lengths: Value | None) -> Any:
    """Return NaN where the centre is NaN and there are keys, 0 elsewhere."""
    nan = centre - centre
    if kv_lengths is None:
        return nan
    return where(greater(expand_dims(graph.astype_int(kv_lengths), 1), np.array(0)), nan, 0.0)


def _function(node: Node) -> str:
    """Name the ONNX function of a node: it must tell everything that the body depends on."""
    v, mask, lengths = node.inputs[4:]
    query, params = node.required(0), node.params
    parts = {
        IN_A_NAME[query.dtype.name]: True,
        "Concat": v is not None,
        f"Within{params['half_width']}": True,
        "Renormalized": params["renormalize"],
        "BoolMask": mask is not None and mask.dtype == np.bool_,
        "FloatMask": mask is not None and mask.dtype != np.bool_,
        f"Mask{_broadcast_axes(mask)}": mask is not None,
        "Lengths": lengths is not None,
        **{name.title().replace("_", ""): True for name in params["aux"]},
    }
    return "LuongLocal" + "".join(part for part, present in parts.items() if present)


def _broadcast_axes(mask: Tensor | None) -> str:
    """Return the letters of the axes along which a mask has numbers of its own."""
    if mask is None:
        return ""
    return "".join(x for x, n in zip("BTS"[-mask.ndim :], mask.shape, strict=True) if n != 1)


# query (B, T, D), key (B, S, D), value (B, S, E), centre (B, T), v (D,): scores v . tanh(q + k),
# without it q . k. centre, v and lse are in the dtype of the arithmetic.
LOCAL = Op(
    "local",
    _eval,
    _shape,
    _vjp,
    expand=_expand,
    function=_function,
    arguments=("query", "key", "value", "centre", "v", "attn_mask", "kv_lengths"),
    optional=3,
)
