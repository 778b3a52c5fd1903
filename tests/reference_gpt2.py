"""GPT-2 in float64 and plain loops, from Radford et al. 2018 and 2019 and the published weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.reference import layer_norm, softmax
from tests.reference_sdpa import Array, float64


def gelu(x: Any) -> Array:
    """The approximation of Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2."""
    array = float64(x)
    bend = np.vectorize(math.tanh, otypes=[np.float64])
    return np.asarray(
        0.5 * array * (1 + bend(math.sqrt(2 / math.pi) * (array + 0.044715 * array**3)))
    )


def logits(weights: Mapping[str, Any], ids: Any, *, layers: int, heads: int) -> Array:
    """Logits ``(T, V)`` of one sequence, with the names and layouts of the published files."""
    w = {name: float64(array) for name, array in weights.items()}
    x = np.array([w["wte.weight"][token] + w["wpe.weight"][t] for t, token in enumerate(ids)])
    for i in range(layers):
        h = f"h.{i}."

        def norm(rows: Array, name: str, h: str = h) -> Array:
            return layer_norm(rows, w[f"{h}{name}.weight"], w[f"{h}{name}.bias"], eps=1e-5)

        def dense(rows: Array, name: str, h: str = h) -> Array:
            return np.asarray(rows @ w[f"{h}{name}.weight"] + w[f"{h}{name}.bias"])

        x = x + dense(_attend(dense(norm(x, "ln_1"), "attn.c_attn"), heads), "attn.c_proj")
        x = x + dense(gelu(dense(norm(x, "ln_2"), "mlp.c_fc")), "mlp.c_proj")
    x = layer_norm(x, w["ln_f.weight"], w["ln_f.bias"], eps=1e-5)
    return np.asarray(x @ w["wte.weight"].T)


def _attend(rows: Array, heads: int) -> Array:
    query, key, value = np.split(rows, 3, axis=1)
    size = query.shape[1] // heads
    out = np.zeros(query.shape)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for t in range(len(rows)):
            scores = [query[t, part] @ key[s, part] / math.sqrt(size) for s in range(t + 1)]
            out[t, part] = softmax(scores) @ value[: t + 1, part]
    return out
