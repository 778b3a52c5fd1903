"""Where local-p expects the alignment: `sigmoid(v . tanh(W h_t))`, a share of the source."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn import _core
from pyattn.ops import expand_dims, linear, matmul, sigmoid, tanh
from pyattn.tensor import Array, Op, Spec, Value


def _shape(state: Spec, weight: Spec, v: Spec) -> Spec:
    del weight, v  # see luong.py
    return Spec(state.shape[:2], state.dtype)


def _eval(state: Array, weight: Array, v: Array) -> Array:
    return _core.positions(np.ascontiguousarray(state), np.ascontiguousarray(weight), v, 1, None)


def _expand(state: Value, weight: Value, v: Value) -> Any:
    return sigmoid(matmul(tanh(linear(state, weight)), expand_dims(v, 1))[..., 0])


# state (B, T, H), weight (P, H), v (P,); the result is (B, T). See csrc/cpu/position.inl. The
# gradient is that of the expansion, which computes the hidden numbers again.
POSITION = Op("position", _eval, _shape, expand=_expand)
