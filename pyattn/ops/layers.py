"""Fused operations of network layers: GELU, layer normalisation, dropout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyattn import _core
from pyattn.ops._rules import join, require_float, same_spec
from pyattn.ops.elementwise import erf
from pyattn.tensor import Array, Node, Op, Spec, Tensor, TraceError, Value, apply, rank_of


def _gelu_expand(x: Value) -> Any:
    return x * 0.5 * (erf(x * math.sqrt(0.5)) + 1.0)


def _gelu_vjp(_: Node, g: tuple[Array], inputs: tuple[Array], __: tuple[Array]) -> tuple[Array]:
    (x,) = inputs
    half, root = x.dtype.type(0.5), x.dtype.type(math.sqrt(0.5))
    cumulative = half * (1 + _core.erf(x * root))
    density = np.exp(-half * x * x) * x.dtype.type(1 / math.sqrt(2 * math.pi))
    return (g[0] * (cumulative + x * density),)


def _gelu_onnx(graph: Any, _: Node, x: str) -> Any:
    return graph.node("Gelu", x, approximate="none") if graph.opset >= 20 else None


_GELU = Op(
    "gelu", _core.gelu, same_spec("gelu", floating=True), _gelu_vjp, _gelu_onnx, _gelu_expand
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


def gelu(x: Value) -> Any:
    """Return ``0.5 x (1 + erf(x / sqrt 2))``, the exact GELU (arXiv:1606.08415)."""
    return apply(_GELU, x)


def layer_norm(x: Value, weight: Value, bias: Value, *, eps: float = 1e-5) -> Any:
    """Return ``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axis.

    Layer normalisation, arXiv:1607.06450; ``weight`` and ``bias`` have the size of that axis.
    """
    return apply(_LAYER_NORM, x, weight, bias, eps=eps)


def dropout(x: Value, p: float, rng: np.random.Generator | None) -> Any:
    """Return ``x`` with entries zeroed with probability ``p`` and the rest scaled by 1/(1-p).

    Without a generator, or with ``p`` 0, ``x`` comes back as it is: that is inference.
    """
    rank_of("dropout", x)
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must lie in [0, 1); got {p}")
    if rng is None or p == 0:
        return x
    if isinstance(x, Tensor) and x.value is None:
        raise TraceError("dropout: a traced model has no randomness; leave rng out")
    shape = x.numpy().shape if isinstance(x, Tensor) else x.shape
    kept = rng.random(shape) >= p
    return x * (kept / (1 - p)).astype(x.dtype)
