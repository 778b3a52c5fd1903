"""The registry of cases: every operation and mechanism, with inputs and an oracle.

One entry here puts an operation before all the questions that the tests ask: is its result the
oracle's, in float32 and float64 and on every instruction set; is its gradient right; is its ONNX
form right at sizes other than the traced ones. A test fails for an operation without an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyattn import ops
from tests import reference, reference_decoder, reference_layers
from tests.case import Case, In
from tests.cases_attention import ADDITIVE, PAGED, SDPA, VARLEN
from tests.cases_decoding import DECODING
from tests.cases_luong import LUONG
from tests.cases_recurrent import RECURRENT


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
    _unary("relu", lambda x: np.where(x > 0, x, 0), "spaced"),
    _unary("erf", reference.erf),
    _unary("gelu", reference.gelu),
    _unary("negative", lambda x: 0 - x),
    _unary("softmax", reference.softmax),
    _unary("log_softmax", lambda x: np.log(reference.softmax(x))),
    _binary("add", lambda x, y: x + y),
    _binary("subtract", lambda x, y: x - y),
    _binary("multiply", lambda x, y: x * y),
    _binary("divide", lambda x, y: x / y),
    Case(
        "maximum",
        "maximum",
        {"x": In(("B", 1, "S"), "spaced"), "y": In(("T", "S"), "spaced")},
        lambda x, y: ops.maximum(x, y + 0.1),  # never near each other: there is no derivative there
        lambda x, y: np.where(x >= y + 0.1, x, y + 0.1),
    ),
    Case(
        "minimum",
        "minimum",
        {"x": In(("B", 1, "S"), "spaced"), "y": In(("T", "S"), "spaced")},
        lambda x, y: ops.minimum(x, y + 0.1),
        lambda x, y: np.where(x <= y + 0.1, x, y + 0.1),
    ),
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
        "logical_or",
        "logical_or",
        {"x": In(("T", "S"), "bool"), "y": In(("B", 1, "S"), "bool")},
        ops.logical_or,
        lambda x, y: ~(~x * ~y),
        smooth=False,
    ),
    Case(
        "logical_not",
        "logical_not",
        {"x": In(("T", "S"), "bool")},
        ops.logical_not,
        lambda x: x < 1,
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
        "argmax",
        "argmax",
        {"x": In(("B", "T", 3), "spaced")},
        ops.argmax,
        lambda x: [[list(row).index(max(row)) for row in rows] for rows in x],
        smooth=False,
    ),
    Case(
        "take_along",
        "take_along",
        {"x": In(("B", "T", "S")), "indices": In(("B", "T", 4), "S")},
        lambda x, indices: ops.take_along(ops.pad(x, 1), indices),
        lambda x, indices: [
            [[[*row, 0.0][i] for i in at] for row, at in zip(*rows, strict=True)]
            for rows in zip(x, indices, strict=True)
        ],
    ),
    Case(
        "scatter_add",
        "scatter_add",
        {"x": In(("B", 6)), "indices": In(("B", "S"), 5), "updates": In(("B", "S"))},
        ops.scatter_add,
        reference_decoder.scatter_add,
    ),
    Case(
        "pad",
        "pad",
        {"x": In(("B", "T", 3))},
        lambda x: ops.pad(x, 2),
        lambda x: [[[*row, 0.0, 0.0] for row in rows] for rows in x],
    ),
    Case(
        "zeros_like/gradient",
        "zeros_like",
        {"x": In(("B", "T"))},
        lambda x: x - ops.zeros_like(x),
        lambda x: x + 0.0,
    ),
    Case(
        "zeros_like",
        "zeros_like",
        {"x": In(("B", "T", 3))},
        lambda x: ops.zeros_like(x, np.int64),
        lambda x: x * 0,
        smooth=False,
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
        {"x": In(("B", "T", "S"), "spaced")},
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


def _rms_norm(name: str, scale: tuple[str | int, ...], axis: int) -> Case:
    return Case(
        f"rms_norm/{name}",
        "rms_norm",
        {"x": In(("B", "T", 3, 10)), "scale": In(scale)},
        lambda x, scale: ops.rms_norm(x, scale, axis=axis, epsilon=1e-3),
        lambda x, scale: reference_layers.rms_norm(x, scale, axis, 1e-3),
    )


def _rotary(name: str, shape: tuple[str | int, ...], pairs: int, **options: Any) -> Case:
    """A case of rotary_embedding; the caches are tables if its name says "positions"."""
    inputs = {"x": In(shape)}
    looked_up = "positions" in name
    cache = In((11, pairs) if looked_up else ("B", "T", pairs))
    inputs |= {"cos_cache": cache, "sin_cache": cache}
    if looked_up:
        inputs["position_ids"] = In(("B", "T"), 10)
    return Case(
        f"rotary_embedding/{name}",
        "rotary_embedding",
        inputs,
        lambda **arrays: ops.rotary_embedding(**arrays, **options),
        lambda **arrays: reference_layers.rotary_embedding(**arrays, **options),
    )


LAYERS = [
    _rms_norm("last", (10,), -1),
    _rms_norm("two-axes", (3, 10), 2),
    _rms_norm("broadcast", (3, 1), -2),
    _rms_norm("dynamic-axis", (1,), 1),
    _rms_norm("scalar", (), 3),
    _rotary("positions", ("B", "H", "T", 16), 8),
    _rotary("caches", ("B", "H", "T", 16), 8),
    _rotary("positions-interleaved", ("B", "H", "T", 38), 19, interleaved=True),
    _rotary("part", ("B", "H", "T", 23), 9, rotary_embedding_dim=18),
    _rotary("positions-part", ("B", "H", "T", 64), 16, rotary_embedding_dim=32),
    _rotary("part-interleaved", ("B", "H", "T", 7), 2, rotary_embedding_dim=4, interleaved=True),
    _rotary("positions-merged", ("B", "T", 24), 4, num_heads=3),
    _rotary("merged-part", ("B", "T", 21), 3, num_heads=3, rotary_embedding_dim=6),
    _rotary("positions-merged-interleaved", ("B", "T", 36), 6, num_heads=3, interleaved=True),
]


def _repeated(start: Any, weight: Any, source: Any, **options: Any) -> Any:
    """A step with a nested state, a weight and a source from outside, and outputs of two kinds."""

    def step(state: Any) -> Any:
        h, (count,) = state
        after = ops.tanh(ops.matmul(h, weight) + ops.mean(source, 1))
        result = (after, (count + 1,)), (h, count)
        return (*result, ops.all(ops.equal(count, 3))) if options["stops"] else result

    state = start, (ops.arange_like(source, 0) * 0,)
    (last, (count,)), (states, counts) = ops.loop(step, state, options["steps"])
    return last, ops.astype(count, start.dtype), states, ops.astype(counts, start.dtype)


def _loop(name: str, ran: int, **options: Any) -> Case:
    inputs = {"start": In(("B", 3)), "weight": In((3, 3)), "source": In(("B", "S", 3))}
    return Case(
        f"loop/{name}",
        "loop",
        inputs,
        lambda **arrays: _repeated(**arrays, **options),
        lambda **arrays: reference_decoder.repeated(**arrays, steps=ran),
    )


LOOPS = [_loop("steps", 3, steps=3, stops=False), _loop("done", 4, steps=9, stops=True)]

CASES = [
    *ELEMENTWISE,
    *MOVING,
    *LAYERS,
    *LOOPS,
    *DECODING,
    *SDPA,
    *VARLEN,
    *PAGED,
    *ADDITIVE,
    *LUONG,
    *RECURRENT,
]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES)
