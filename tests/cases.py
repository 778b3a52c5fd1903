"""The registry of cases: every operation and mechanism, with inputs and an oracle.

One entry here puts an operation before all the questions that the tests ask: is its result the
oracle's, in float32 and float64 and on every instruction set; is its gradient right; is its ONNX
form right at sizes other than the traced ones. A test fails for an operation without an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import pyattn as pa
from pyattn import ops
from tests import naive, reference

SIZES = {"B": 2, "H": 4, "T": 5, "S": 7}
OTHER_SIZES = (
    {"B": 1, "H": 2, "T": 1, "S": 3},
    {"B": 3, "H": 6, "T": 9, "S": 2},
    {"B": 2, "H": 4, "T": 4, "S": 17},
)


@dataclass(frozen=True)
class In:
    """One input of a case: its shape in names and numbers, and what it holds.

    ``kind``: "float", "positive", "bool", "bias" (floats, some -inf), or an upper bound, a number
    or a name, for integers.
    """

    shape: tuple[str | int, ...]
    kind: str | int = "float"

    def make(self, rng: np.random.Generator, sizes: Mapping[str, int], dtype: Any) -> Any:
        shape = tuple(sizes[s] if isinstance(s, str) else s for s in self.shape)
        if self.kind == "bool":
            return rng.random(shape) < 0.7
        if self.kind == "bias":
            drawn = rng.standard_normal(shape)
            return np.where(rng.random(shape) < 0.3, -np.inf, drawn).astype(dtype)
        if self.kind in ("float", "positive"):
            drawn = rng.standard_normal(shape)
            return (np.abs(drawn) + 0.1 if self.kind == "positive" else drawn).astype(dtype)
        high = sizes[self.kind] if isinstance(self.kind, str) else self.kind
        return rng.integers(0, high + 1, shape)

    @property
    def dims(self) -> tuple[str | None, ...]:
        return tuple(s if isinstance(s, str) else None for s in self.shape)


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


def _unary(name: str, oracle: Callable[..., Any], kind: str = "float") -> Case:
    return Case(name, name, {"x": In(("B", "T", 3), kind)}, getattr(ops, name), oracle)


def _binary(name: str, oracle: Callable[..., Any], *, smooth: bool = True) -> Case:
    inputs = {"x": In(("B", 1, "S")), "y": In(("T", "S"), "positive")}
    return Case(name, name, inputs, getattr(ops, name), oracle, smooth=smooth)


ELEMENTWISE = [
    _unary("exp", lambda x: np.exp(x)),
    _unary("log", lambda x: np.log(x), "positive"),
    _unary("sqrt", lambda x: np.sqrt(x), "positive"),
    _unary("tanh", lambda x: np.tanh(x)),
    _unary("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    _unary("relu", lambda x: np.where(x > 0, x, 0)),
    _unary("erf", reference.erf),
    _unary("gelu", reference.gelu),
    _unary("negative", lambda x: 0 - x),
    _unary("softmax", reference.softmax),
    _binary("add", lambda x, y: x + y),
    _binary("subtract", lambda x, y: x - y),
    _binary("multiply", lambda x, y: x * y),
    _binary("divide", lambda x, y: x / y),
    _binary("maximum", lambda x, y: np.where(x >= y, x, y)),
    _binary("equal", lambda x, y: x == y, smooth=False),
    _binary("less", lambda x, y: x < y, smooth=False),
    _binary("less_equal", lambda x, y: x <= y, smooth=False),
    _binary("greater", lambda x, y: x > y, smooth=False),
    Case(
        "power",
        "power",
        {"x": In(("B", "T"), "positive")},
        lambda x: ops.power(x, 1.5),
        lambda x: x * np.sqrt(x),
    ),
    Case(
        "logical_and",
        "logical_and",
        {"x": In(("T", "S"), "bool"), "y": In(("B", 1, "S"), "bool")},
        ops.logical_and,
        lambda x, y: x * y,
        smooth=False,
    ),
    Case(
        "where",
        "where",
        {"condition": In(("B", "T", 1), "bool"), "x": In(("T", "S")), "y": In(("B", 1, "S"))},
        ops.where,
        lambda condition, x, y: condition * x + (1 - condition) * y,
    ),
    Case(
        "astype",
        "astype",
        {"x": In(("B", "S"), 9)},
        lambda x: ops.astype(x, np.float32),
        lambda x: x + 0.0,
        smooth=False,
    ),
]


def _layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    return ops.layer_norm(x, weight, bias, eps=1e-5)


MOVING = [
    Case(
        "reshape/merge",
        "reshape",
        {"x": In(("B", "T", 4, 6))},
        lambda x: ops.reshape(x, (0, 0, -1)),
        lambda x: x.reshape(x.shape[0], x.shape[1], 24),
    ),
    Case(
        "reshape/flatten",
        "reshape",
        {"x": In(("B", "T", 6))},
        lambda x: ops.reshape(x, (-1, 6)),
        lambda x: np.concatenate(list(x)),
    ),
    Case(
        "transpose",
        "transpose",
        {"x": In(("B", "T", "S"))},
        lambda x: ops.transpose(x, (1, -1, 0)),
        lambda x: np.einsum("bts->tsb", x),
    ),
    Case(
        "expand_dims",
        "expand_dims",
        {"x": In(("B", "T"))},
        lambda x: ops.expand_dims(x, -2),
        lambda x: x[:, None, :],
    ),
    Case(
        "concat",
        "concat",
        {"x": In(("B", "T", 2)), "y": In(("B", "T", 5))},
        lambda x, y: ops.concat([x, y, x], -1),
        lambda x, y: np.dstack([x, y, x]),
    ),
    Case(
        "getitem",
        "getitem",
        {"x": In(("B", "T", 8, 6))},
        lambda x: ops.getitem(x, (..., slice(1, None), slice(-4, -1))),
        lambda x: x[:, :, 1:, 2:5],
    ),
    Case(
        "getitem/drop",
        "getitem",
        {"x": In(("B", "T", 8))},
        lambda x: ops.getitem(x, (slice(None), 0, -1)),
        lambda x: np.stack([row[0][-1] for row in x]),
    ),
    Case(
        "repeat",
        "repeat",
        {"x": In(("B", 3, "T"))},
        lambda x: ops.repeat(x, 2, 1),
        lambda x: np.stack([x[:, i // 2] for i in range(6)], 1),
    ),
    Case(
        "arange_like",
        "arange_like",
        {"x": In(("B", "T", 2))},
        lambda x: ops.arange_like(x, 1),
        lambda x: np.array(list(range(x.shape[1]))),
        smooth=False,
    ),
    Case(
        "take",
        "take",
        {"table": In((11, 3)), "indices": In(("B", "T"), 10)},
        ops.take,
        lambda table, indices: np.array([[table[i] for i in row] for row in indices]),
    ),
    Case(
        "sum",
        "sum",
        {"x": In(("B", "T", "S"))},
        lambda x: ops.sum(x, (0, -1)),
        lambda x: np.einsum("bts->t", x),
    ),
    Case(
        "mean",
        "mean",
        {"x": In(("B", "T", "S"))},
        lambda x: ops.mean(x, 1, keepdims=True),
        lambda x: np.einsum("bts->bs", x)[:, None] / x.shape[1],
    ),
    Case(
        "max",
        "max",
        {"x": In(("B", "T", "S"))},
        lambda x: ops.max(x, -1),
        lambda x: np.sort(x, -1)[..., -1],
    ),
    Case(
        "matmul",
        "matmul",
        {"x": In(("B", 1, "T", 6)), "y": In((3, 6, "S"))},
        ops.matmul,
        lambda x, y: np.einsum("bxtd,hds->bhts", x, y),
    ),
    Case(
        "linear",
        "linear",
        {"x": In(("B", "T", 6)), "weight": In((4, 6)), "bias": In((4,))},
        ops.linear,
        reference.linear,
    ),
    Case(
        "linear/no-bias",
        "linear",
        {"x": In(("B", "T", 6)), "weight": In((4, 6))},
        ops.linear,
        reference.linear,
    ),
    Case(
        "layer_norm",
        "layer_norm",
        {"x": In(("B", "T", 6)), "weight": In((6,)), "bias": In((6,))},
        _layer_norm,
        lambda x, weight, bias: reference.layer_norm(x, weight, bias, 1e-5),
    ),
]

QKV = {
    "query": In(("B", "H", "T", 16)),
    "key": In(("B", "H", "S", 16)),
    "value": In(("B", "H", "S", 9)),
}


def _sdpa(name: str, more: Mapping[str, In] | None = None, **options: Any) -> Case:
    """A case of scaled dot-product attention with extra inputs and fixed options."""
    inputs = QKV | dict(more or {})

    def call(query: Any, key: Any, value: Any, mask: Any = None, kv_lengths: Any = None) -> Any:
        return pa.scaled_dot_product_attention(
            query, key, value, mask, kv_lengths=kv_lengths, aux=("weights", "lse"), **options
        )

    def oracle(query: Any, key: Any, value: Any, **rest: Any) -> Any:
        return reference.sdpa(query, key, value, **rest, **options)

    def plain(query: Any, key: Any, value: Any, **rest: Any) -> Any:
        return naive.naive_sdpa(query, key, value, **rest, **options)

    # To repeat key and value heads for the query heads, ONNX must know how many there are.
    static = frozenset("H") if "QA" in name else frozenset()
    return Case(f"sdpa/{name}", "sdpa", inputs, call, oracle, plain, static=static)


SDPA = [
    _sdpa("plain"),
    _sdpa("causal", is_causal=True),
    _sdpa("bool-mask", {"mask": In(("B", 1, "T", "S"), "bool")}),
    _sdpa("row-mask", {"mask": In(("S",), "bool")}),
    _sdpa("float-mask", {"mask": In(("H", "T", "S"), "bias")}),
    _sdpa("float-mask-causal", {"mask": In(("T", "S"), "bias")}, is_causal=True),
    _sdpa("lengths", {"kv_lengths": In(("B",), "S")}),
    _sdpa(
        "lengths-mask-causal",
        {"mask": In(("B", "H", 1, "S"), "bool"), "kv_lengths": In(("B",), "S")},
        is_causal=True,
    ),
    _sdpa("lengths-float", {"mask": In(("T", "S"), "bias"), "kv_lengths": In(("B",), "S")}),
    _sdpa("negative-scale", scale=-0.3),
    _sdpa("GQA", {"key": In(("B", 2, "S", 16)), "value": In(("B", 2, "S", 9))}),
    _sdpa(
        "MQA-causal", {"key": In(("B", 1, "S", 16)), "value": In(("B", 1, "S", 9))}, is_causal=True
    ),
]


def _additive(name: str, more: Mapping[str, In] | None = None, **options: Any) -> Case:
    inputs = {
        "query": In(("B", "T", 12)),
        "key": In(("B", "S", 12)),
        "value": In(("B", "S", 9)),
        "v": In((12,)),
    } | dict(more or {})

    def call(query: Any, key: Any, value: Any, v: Any, mask: Any = None, **rest: Any) -> Any:
        return pa.additive_attention(
            query, key, value, v, attn_mask=mask, aux=("weights", "lse"), **rest, **options
        )

    return Case(
        f"additive/{name}",
        "additive",
        inputs,
        call,
        lambda *a, **k: reference.additive(*a, **k, **options),
        lambda *a, **k: naive.naive_additive(*a, **k, **options),
    )


ADDITIVE = [
    _additive("plain"),
    _additive("causal", is_causal=True),
    _additive("bias", {"bias": In((12,))}),
    _additive("bool-mask", {"mask": In(("B", "T", "S"), "bool")}),
    _additive("float-mask", {"mask": In((1, "S"), "bias")}),
    _additive("lengths", {"kv_lengths": In(("B",), "S")}),
]


def _luong(score: str, **weights: In) -> Case:
    inputs = {"query": In(("B", "T", 6)), "key": In(("B", "S", 6 if score == "dot" else 5))}
    mask = {"attn_mask": In(("B", "T", "S"), "bool")}

    def oracle(query: Any, key: Any, attn_mask: Any, **rest: Any) -> Any:
        return reference.luong(query, key, score=score, mask=attn_mask, **rest)  # type: ignore[arg-type]

    return Case(
        f"luong/{score}",
        "additive" if score == "concat" else "sdpa",
        inputs | mask | weights,
        lambda query, key, attn_mask, **rest: pa.luong_attention(
            query,
            key,
            score=score,
            attn_mask=attn_mask,
            aux=("weights", "lse"),
            **rest,  # type: ignore[arg-type]
        ),
        oracle,
    )


LUONG = [
    _luong("dot"),
    _luong("general", weight=In((6, 5))),
    _luong("concat", weight=In((8, 11)), v=In((8,))),
]

CASES = [*ELEMENTWISE, *MOVING, *SDPA, *ADDITIVE, *LUONG]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES)
