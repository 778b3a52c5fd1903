"""Fused operations of network layers: GELU, layer and RMS normalisation, dropout."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from pyattn import _core, interchange
from pyattn.ops._rules import (
    join,
    normalize_axis,
    require_float,
    require_real,
    same_spec,
    through_float32,
    unbroadcast,
)
from pyattn.ops.elementwise import astype, erf, multiply, sqrt, tanh
from pyattn.ops.reduce import mean
from pyattn.tensor import Array, Node, Op, Spec, Tensor, TraceError, Value, apply, rank_of

GELU_OPSET = 20


def _gelu_expand(x: Value) -> Any:
    return x * 0.5 * (erf(x * math.sqrt(0.5)) + 1.0)


def _gelu_vjp(_: Node, g: tuple[Array], inputs: tuple[Array], __: tuple[Array]) -> tuple[Array]:
    (x,) = inputs
    half, root = x.dtype.type(0.5), x.dtype.type(math.sqrt(0.5))
    cumulative = half * (1 + _core.erf(x * root))
    density = np.exp(-half * x * x) * x.dtype.type(1 / math.sqrt(2 * math.pi))
    return (g[0] * (cumulative + x * density),)


def _gelu_onnx(graph: Any, _: Node, x: str) -> Any:
    return graph.node("Gelu", x, approximate="none") if graph.opset >= GELU_OPSET else None


_GELU = Op(
    "gelu", _core.gelu, same_spec("gelu", floating=True), _gelu_vjp, _gelu_onnx, _gelu_expand
)


_BELL = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


def _gelu_tanh(x: Array) -> Array:
    inner = x * x
    inner *= _BELL * _CUBIC
    inner += _BELL
    inner *= x
    np.tanh(inner, out=inner)
    inner += 1
    inner *= x
    inner *= 0.5
    return inner


def _gelu_tanh_onnx(graph: Any, _: Node, x: str) -> Any:
    return graph.node("Gelu", x, approximate="tanh") if graph.opset >= GELU_OPSET else None


_GELU_TANH = Op(
    "gelu_tanh",
    _gelu_tanh,
    same_spec("gelu", floating=True),
    onnx=_gelu_tanh_onnx,
    expand=lambda x: x * 0.5 * (tanh((x * x * _CUBIC + 1.0) * x * _BELL) + 1.0),
)


def _layer_norm_shape(x: Spec, weight: Spec, bias: Spec, *, eps: float) -> Spec:
    require_float("layer_norm", x, weight, bias)
    if not eps > 0:
        raise ValueError(f"layer_norm: eps must be positive; got {eps}")
    if x.ndim < 1 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"{join('layer_norm', x, weight, bias)}; weight and bias must be (size of x's last "
            "axis,)"
        )
    return x


def _layer_norm_vjp(
    node: Node, g: tuple[Array], inputs: tuple[Array, Array, Array], _: tuple[Array]
) -> tuple[Array, Array, Array]:
    x, weight, _bias = inputs
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + node.params["eps"])
    unit = centred / deviation
    rows = tuple(range(x.ndim - 1))
    scaled = g[0] * weight
    projected = scaled.mean(axis=-1, keepdims=True) + unit * (scaled * unit).mean(
        axis=-1, keepdims=True
    )
    return (scaled - projected) / deviation, (g[0] * unit).sum(axis=rows), g[0].sum(axis=rows)


_LAYER_NORM = Op(
    "layer_norm",
    lambda x, weight, bias, eps: _core.layer_norm(x, weight, bias, eps),
    _layer_norm_shape,
    _layer_norm_vjp,
    lambda graph, node, *names: graph.node(
        "LayerNormalization", *names, axis=-1, epsilon=node.params["eps"]
    ),
)


def _rms_norm_shape(x: Spec, scale: Spec, *, axis: int, epsilon: float) -> Spec:
    require_real("rms_norm", x, scale)
    if not 0 < epsilon < math.inf:
        raise ValueError(f"rms_norm: epsilon must be positive and finite; got {epsilon}")
    sizes = x.shape[axis:]
    pairs = zip(reversed(scale.shape), reversed(sizes), strict=False)
    if scale.shape != sizes and (scale.ndim > len(sizes) or any(a not in (1, b) for a, b in pairs)):
        raise ValueError(
            f"{join('rms_norm', x, scale)}; scale must broadcast to the axes of x that are "
            f"normalised, {sizes}"
        )
    return x


def _rms_norm_vjp(
    node: Node, g: tuple[Array], inputs: tuple[Array, Array], _: tuple[Array]
) -> tuple[Array, Array | None]:
    x, scale = inputs
    gradient = through_float32(_core.rms_norm_gradient)
    want_scale = node.required(1).requires_grad
    of_x, of_scale = gradient(x, scale, g[0], **node.params, want_scale=want_scale)
    return of_x, None if of_scale is None else unbroadcast(of_scale, scale.shape)


def _rms_norm_expand(x: Value, scale: Value, *, axis: int, epsilon: float) -> Any:
    dtype = x.dtype
    wide = astype(x, np.float32) if dtype.itemsize == 2 else x
    factor = astype(scale, np.float32) if dtype.itemsize == 2 else scale
    axes = tuple(range(axis, rank_of("rms_norm", x)))
    result = wide / sqrt(mean(multiply(wide, wide), axes, keepdims=True) + epsilon) * factor
    return astype(result, dtype) if dtype.itemsize == 2 else result


def _rms_norm_onnx(graph: Any, node: Node, x: str, scale: str) -> Any:
    dtype = node.outputs[0].dtype
    if graph.opset < 23 or dtype.name == "bfloat16":  # ONNX Runtime 1.32 lacks bfloat16
        return None
    stash = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    return graph.node("RMSNormalization", x, scale, **node.params, stash_type=stash)


_RMS_NORM = Op(
    "rms_norm",
    through_float32(_core.rms_norm),
    _rms_norm_shape,
    _rms_norm_vjp,
    _rms_norm_onnx,
    _rms_norm_expand,
)


def gelu(x: Value, approximate: Literal["none", "tanh"] = "none") -> Any:
    """Return ``0.5 x (1 + erf(x / sqrt 2))``, the GELU (arXiv:1606.08415).

    With ``approximate="tanh"``, as in GPT-2,
    ``0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f'gelu: approximate must be "none" or "tanh"; got {approximate!r}')
    return apply(_GELU if approximate == "none" else _GELU_TANH, x)


def layer_norm(x: Value, weight: Value, bias: Value, *, eps: float = 1e-5) -> Any:
    """Return ``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis.

    Layer normalisation, arXiv:1607.06450; ``weight`` and ``bias`` have the size of that axis.
    """
    return apply(_LAYER_NORM, x, weight, bias, eps=eps)


def rms_norm(x: Value, scale: Value, *, axis: int = -1, epsilon: float = 1e-5) -> Any:
    """Return ``x / sqrt(mean(x^2) + epsilon) * scale``, the mean over the axes from ``axis`` on.

    Root-mean-square normalisation: layer normalisation without the mean and without a bias.

    Parameters
    ----------
    x:
        An array of any shape with one axis or more, and of any strides; float32, float64, float16
        or bfloat16. Half precision is computed in float32 and rounded once.
    scale:
        Broadcasts to the shape of the axes that are normalised; the dtype of ``x``.
    axis:
        The first axis that is normalised; a negative one counts from the end.
    epsilon:
        Added to the mean; positive.

    Returns
    -------
    An array of the shape and dtype of ``x``.

    Raises
    ------
    TypeError
        For a dtype other than these, or dtypes that differ.
    ValueError
        For an axis that ``x`` does not have, a ``scale`` that does not broadcast, or an ``epsilon``
        that is not positive.

    Notes
    -----
    One kernel for the result and one for the gradients with respect to ``x`` and ``scale``. In ONNX
    this is ``RMSNormalization`` from opset 23 on, and standard operators before that and for
    bfloat16.

    References
    ----------
    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> pa.ops.rms_norm(np.array([3.0, -4.0, 0.0, 0.0]), np.ones(4)).round(3).tolist()
    [1.2, -1.6, 0.0, 0.0]
    """
    first = normalize_axis("rms_norm", axis, rank_of("rms_norm", x))
    return apply(_RMS_NORM, x, scale, axis=first, epsilon=float(epsilon))


def dropout(x: Value, p: float, rng: np.random.Generator | None) -> Any:
    """Return ``x`` with entries zeroed with probability ``p`` and the rest scaled by 1/(1-p).

    Without a generator, or with ``p`` 0, ``x`` comes back as it is: that is inference.
    """
    rank_of("dropout", x)
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must lie in [0, 1); got {p}")
    if rng is None or p == 0:
        return x
    if interchange.is_foreign(x):
        return interchange.call(dropout, locals())
    if isinstance(x, Tensor) and x.value is None:
        raise TraceError("dropout: a traced model has no randomness; leave rng out")
    shape = x.numpy().shape if isinstance(x, Tensor) else x.shape
    kept = rng.random(shape) >= p
    return x * (kept / (1 - p)).astype(x.dtype)
