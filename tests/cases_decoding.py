"""Cases of the operations that decoders are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

import pyattn as pa
from pyattn import ops
from tests import reference_gpt2
from tests.case import Case, In


def _top_k(x: Any, k: int) -> list[list[int]]:
    return [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in x]


def _update(name: str, heads: int, size: int) -> Case:
    def oracle(cache: Any, update: Any, write_indices: Any) -> Any:
        out = np.array(cache)
        for b, h, t in np.ndindex(update.shape[:3]):
            out[b, h, write_indices[b] + t] = update[b, h, t]
        return out

    inputs = {
        "cache": In(("B", heads, "P + S", size)),
        "update": In(("B", heads, "P", size)),
        "write_indices": In(("B",), "S"),
    }
    return Case(f"update_cache/{name}", "update_cache", inputs, pa.update_cache, oracle)


DECODING = [
    _update("plain", 2, 5),
    _update("one head of one number", 1, 1),
    Case(
        "size",
        "size",
        {"x": In(("B", "T", 3))},
        lambda x: ops.size(x, 1),
        lambda x: x.shape[1],
        smooth=False,
    ),
    Case(
        "take/rows of matrices",
        "take",
        {"table": In((4, 2, 3)), "indices": In(("B", "T"), 3)},
        ops.take,
        lambda table, indices: [[table[i] for i in row] for row in indices],
    ),
    Case(
        "top_k/values",
        "top_k",
        {"x": In(("B", 9), "spaced")},
        lambda x: ops.top_k(x, 4)[0],
        lambda x: [[row[i] for i in at] for row, at in zip(x, _top_k(x, 4), strict=True)],
    ),
    Case(
        "top_k/places, some equal",
        "top_k",
        {"x": In(("B", 30), 3)},
        lambda x: ops.top_k(x, 7)[1],
        lambda x: _top_k(x, 7),
        smooth=False,
    ),
    Case(
        "gelu_tanh",
        "gelu_tanh",
        {"x": In(("B", "T", 3))},
        lambda x: ops.gelu(x, "tanh"),
        reference_gpt2.gelu,
    ),
]
