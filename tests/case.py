"""What a case is: an operation or mechanism, applied in one particular way, with its oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import pyattn as pa

# P is the length of a past, C the number of offsets of packed sequences: one more than these.
SIZES = {"B": 2, "H": 4, "T": 5, "S": 7, "P": 3, "P + S": 10, "C": 4}
OTHER_SIZES = (
    {"B": 1, "H": 2, "T": 1, "S": 3, "P": 2, "P + S": 5, "C": 2},
    {"B": 3, "H": 6, "T": 9, "S": 2, "P": 1, "P + S": 3, "C": 6},
    {"B": 2, "H": 4, "T": 4, "S": 17, "P": 5, "P + S": 22, "C": 3},
)


@dataclass(frozen=True)
class In:
    """One input of a case: its shape in names and numbers, and what it holds.

    ``kind``: "float", "weight" (floats of rows whose squares sum to about 1), "positive", "slight"
    (within 0.02 of 0), "spaced" (no two alike, none near 0), "bool", "bias" (floats, some -inf),
    "slopes" (small, without a gradient), "starts" (positions, some negative), "offsets" (rising
    from 0 to the size that ``total`` names), "pages" (int32 below ``total``), or an upper bound, a
    number or a name, for integers.
    """

    shape: tuple[str | int, ...]
    kind: str | int = "float"
    total: str = ""

    def make(self, rng: np.random.Generator, sizes: Mapping[str, int], dtype: Any) -> Any:
        shape = tuple(sizes[s] if isinstance(s, str) else s for s in self.shape)
        if self.kind == "bool":
            return rng.random(shape) < 0.7
        if self.kind == "bias":
            drawn = rng.standard_normal(shape)
            return np.where(rng.random(shape) < 0.3, -np.inf, drawn).astype(dtype)
        if self.kind == "weight":
            return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(dtype)
        if self.kind == "slight":
            return rng.uniform(-0.02, 0.02, shape).astype(dtype)
        if self.kind == "slopes":
            return (rng.random(shape) / 4).astype(dtype)
        if self.kind == "starts":
            return rng.integers(-3, 7, shape)
        if self.kind == "pages":
            return rng.integers(0, int(self.total), shape, dtype=np.int32)
        if self.kind == "offsets":
            inner = np.sort(rng.integers(0, sizes[self.total] + 1, shape[0] - 2))
            return np.concatenate([[0], inner, [sizes[self.total]]])
        if self.kind in ("float", "positive"):
            drawn = rng.standard_normal(shape)
            return (np.abs(drawn) + 0.1 if self.kind == "positive" else drawn).astype(dtype)
        if self.kind == "spaced":
            count = int(np.prod(shape))
            return ((rng.permutation(count) - count // 2 + 0.5) * 0.25).reshape(shape).astype(dtype)
        high = sizes[self.kind] if isinstance(self.kind, str) else self.kind
        return rng.integers(0, high + 1, shape)

    @property
    def dims(self) -> tuple[str | None, ...]:
        return tuple(s if isinstance(s, str) else None for s in self.shape)

    @property
    def has_gradient(self) -> bool:
        """Whether it is differentiated: not where a step would leave -inf, nor a constant."""
        return self.kind in ("float", "weight", "positive", "slight", "spaced")


@dataclass(frozen=True)
class Case:
    """An operation applied in one particular way."""

    name: str
    op: str
    inputs: dict[str, In]
    call: Callable[..., Any]
    oracle: Callable[..., Any]
    plain: Callable[..., Any] | None = None  # NumPy in the input's dtype: the yardstick of error
    smooth: bool = True  # whether its gradient can be compared with finite differences
    static: frozenset[str] = field(default_factory=frozenset)  # sizes that ONNX must know

    def arrays(
        self, rng: np.random.Generator, sizes: Mapping[str, int], dtype: Any
    ) -> dict[str, Any]:
        return {name: given.make(rng, sizes, dtype) for name, given in self.inputs.items()}

    def onnx_inputs(self, arrays: Mapping[str, Any]) -> dict[str, pa.Input]:
        return {
            name: pa.Input(
                arrays[name],
                tuple(None if d in self.static else d for d in given.dims),
            )
            for name, given in self.inputs.items()
        }
