"""The gated recurrent unit as an operation: evaluation and gradient of a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn import _core
from pyattn.ops._recurrent import Layer, contiguous, rows_of, spread, states_before, wide
from pyattn.ops._recurrent_scan import Step, is_large_cell, scan, single
from pyattn.ops._rules import through_float32
from pyattn.ops.elementwise import sigmoid, tanh
from pyattn.ops.linalg import linear
from pyattn.tensor import Array, Node, Op, Spec, Value

GRU = Layer("gru", 3, ("h0",), "GRU", (1, 0, 2))


def _shape(
    x: Spec,
    weight_input: Spec,
    weight_hidden: Spec,
    bias_input: Spec | None,
    bias_hidden: Spec | None,
    h0: Spec | None,
    lengths: Spec | None,
    *,
    reverse: bool,
    reset_after: bool,
    keep: bool,
) -> tuple[Spec, ...]:
    del reverse, reset_after
    batch, length, size = GRU.check(
        x, weight_input, weight_hidden, (bias_input, bias_hidden), (h0,), lengths
    )
    results = (Spec((batch, length, size), x.dtype), Spec((batch, size), x.dtype))
    if not keep:
        return results
    return (*results, GRU.kept(x, size), Spec((batch, length, size), x.dtype))


def _eval(
    x: Array,
    weight_input: Array,
    weight_hidden: Array,
    bias_input: Array | None,
    bias_hidden: Array | None,
    h0: Array | None,
    lengths: Array | None,
    *,
    reverse: bool,
    reset_after: bool,
    keep: bool,
) -> tuple[Array, ...]:
    weight, first, steps = GRU.dense(x, weight_hidden, h0, lengths)
    x, w, b, c = contiguous(x, weight_input, bias_input, bias_hidden)
    output, h_n, gates, inner = _core.gru(
        x, w, weight, b, c, first, steps, reverse, reset_after, keep
    )
    return (output, h_n) if gates is None or inner is None else (output, h_n, gates, inner)


def _vjp(
    node: Node, g: tuple[Array, ...], inputs: tuple[Any, ...], outputs: tuple[Array, ...]
) -> tuple[Array | None, ...]:
    dtype = inputs[0].dtype
    params = {key: node.params[key] for key in ("reverse", "reset_after")}
    if not node.params["keep"]:  # half precision
        inputs, g = tuple(wide(inputs)), tuple(wide(g))
        outputs = _eval(*inputs, **params, keep=True)
    gradients = _gradients(inputs, outputs, g[0], g[1], **params)
    return (*[a if a is None else a.astype(dtype, copy=False) for a in gradients], None)


def _gradients(
    inputs: tuple[Any, ...],
    outputs: tuple[Array, ...],
    g_output: Array,
    g_last: Array,
    *,
    reverse: bool,
    reset_after: bool,
) -> tuple[Array | None, ...]:
    x, weight_input, weight_hidden, bias_input, bias_hidden, h0, lengths = inputs
    output, _, gates, inner = outputs
    size = weight_hidden.shape[1]
    valid = GRU.valid(x, lengths)
    weight, first, steps = GRU.dense(x, weight_hidden, h0, lengths)
    g_output, g_last = np.ascontiguousarray(g_output), np.ascontiguousarray(g_last)
    g_gates, g_first = _core.gru_gradient(
        gates, weight, first, steps, reverse, reset_after, output, inner, g_output, g_last
    )
    before = states_before(output, h0, lengths, reverse=reverse)
    sums, states, rows = (np.ascontiguousarray(rows_of(a, valid)) for a in (g_gates, before, x))
    g_rz, g_new = sums[:, : 2 * size], sums[:, 3 * size :]
    weight_input = np.ascontiguousarray(weight_input)
    g_rows = _core.product(g_rz, weight_input[: 2 * size])
    _core.product(g_new, weight_input[2 * size :], None, g_rows)
    if reset_after:
        g_hidden = sums[:, 2 * size : 3 * size]
        g_weight_hidden = _core.product(sums[:, : 3 * size].T, states)
    else:
        g_hidden, reset = g_new, np.ascontiguousarray(rows_of(inner, valid))
        parts = _core.product(g_rz.T, states), _core.product(g_new.T, reset)
        g_weight_hidden = np.concatenate(parts)
    both = g_rz.sum(0)
    return (
        spread(g_rows, valid, *x.shape[:2]),
        np.concatenate([_core.product(g_rz.T, rows), _core.product(g_new.T, rows)]),
        g_weight_hidden,
        None if bias_input is None else np.concatenate([both, g_new.sum(0)]),
        None if bias_hidden is None else np.concatenate([both, g_hidden.sum(0)]),
        None if h0 is None else g_first,
    )


def _step(node: Node) -> Step:
    """Return one step of the definition, which reads U and its bias from the node."""
    weight, bias = node.required(2), node.inputs[4]
    units: Any = node.outputs[1].shape[1]

    def step(given: Value, h: Value) -> tuple[Any]:
        if node.params["reset_after"]:
            inner = linear(h, weight, bias)
            r, z = gates(given, inner)
            inner = r * inner[:, 2 * units :]
        else:
            first, new = (
                (weight[rows], None if bias is None else bias[rows])
                for rows in (slice(2 * units), slice(2 * units, None))
            )
            r, z = gates(given, linear(h, *first))
            inner = linear(r * h, *new)
        n = tanh(given[:, 2 * units :] + inner)
        return (n + z * (h - n),)

    def gates(given: Value, inner: Value) -> tuple[Any, Any]:
        both = sigmoid(given[:, : 2 * units] + inner[:, : 2 * units])
        return both[:, :units], both[:, units:]

    return step


def _onnx(graph: Any, node: Node, *names: str) -> Any:
    if is_large_cell(node):
        return single(graph, node, _step(node))
    if node.outputs[0].dtype.itemsize == 8:
        return scan(graph, node, _step(node))
    return GRU.write(graph, node, names, linear_before_reset=int(node.params["reset_after"]))


OP = Op("gru", through_float32(_eval), _shape, _vjp, _onnx, arguments=GRU.arguments, optional=4)
