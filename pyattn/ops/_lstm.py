"""The long short-term memory as an operation: evaluation and gradient of a sequence."""

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

LSTM = Layer("lstm", 4, ("h0", "c0"), "LSTM", (0, 3, 1, 2))


def _shape(
    x: Spec,
    weight_input: Spec,
    weight_hidden: Spec,
    bias_input: Spec | None,
    bias_hidden: Spec | None,
    h0: Spec | None,
    c0: Spec | None,
    lengths: Spec | None,
    *,
    reverse: bool,
    keep: bool,
) -> tuple[Spec, ...]:
    del reverse
    batch, length, size = LSTM.check(
        x, weight_input, weight_hidden, (bias_input, bias_hidden), (h0, c0), lengths
    )
    state = Spec((batch, size), x.dtype)
    results = (Spec((batch, length, size), x.dtype), state, state)
    if not keep:
        return results
    return (*results, LSTM.kept(x, size), Spec((batch, length, size), x.dtype))


def _eval(
    x: Array,
    weight_input: Array,
    weight_hidden: Array,
    bias_input: Array | None,
    bias_hidden: Array | None,
    h0: Array | None,
    c0: Array | None,
    lengths: Array | None,
    *,
    reverse: bool,
    keep: bool,
) -> tuple[Array, ...]:
    weight, h, c, steps = LSTM.dense(x, weight_hidden, h0, c0, lengths)
    x, w, b, d = contiguous(x, weight_input, bias_input, bias_hidden)
    output, h_n, c_n, gates, cells = _core.lstm(x, w, weight, b, d, h, c, steps, reverse, keep)
    last = (output, h_n, c_n)
    return last if gates is None or cells is None else (*last, gates, cells)


def _vjp(
    node: Node, g: tuple[Array, ...], inputs: tuple[Any, ...], outputs: tuple[Array, ...]
) -> tuple[Array | None, ...]:
    dtype, reverse = inputs[0].dtype, node.params["reverse"]
    if not node.params["keep"]:  # half precision
        inputs, g = tuple(wide(inputs)), tuple(wide(g))
        outputs = _eval(*inputs, reverse=reverse, keep=True)
    gradients = _gradients(inputs, outputs, g, reverse=reverse)
    return (*[a if a is None else a.astype(dtype, copy=False) for a in gradients], None)


def _gradients(
    inputs: tuple[Any, ...], outputs: tuple[Array, ...], g: tuple[Array, ...], *, reverse: bool
) -> tuple[Array | None, ...]:
    x, weight_input, weight_hidden, bias_input, bias_hidden, h0, c0, lengths = inputs
    output, _, _, gates, cells = outputs
    valid = LSTM.valid(x, lengths)
    weight, h, c, steps = LSTM.dense(x, weight_hidden, h0, c0, lengths)
    g_output, g_last, g_cell = (np.ascontiguousarray(a) for a in g[:3])
    g_gates, g_h0, g_c0 = _core.lstm_gradient(
        gates, weight, h, c, steps, reverse, cells, g_output, g_last, g_cell
    )
    before = states_before(output, h0, lengths, reverse=reverse)
    sums, states, rows = (np.ascontiguousarray(rows_of(a, valid)) for a in (g_gates, before, x))
    g_bias = sums.sum(0)
    return (
        spread(_core.product(sums, np.ascontiguousarray(weight_input)), valid, *x.shape[:2]),
        _core.product(sums.T, rows),
        _core.product(sums.T, states),
        None if bias_input is None else g_bias,
        None if bias_hidden is None else g_bias,
        None if h0 is None else g_h0,
        None if c0 is None else g_c0,
    )


def _step(node: Node) -> Step:
    """Return one step of the definition, which reads U and its bias from the node."""
    units: Any = node.outputs[1].shape[1]

    def step(given: Value, h: Value, c: Value) -> tuple[Any, Any]:
        sums = given + linear(h, node.required(2), node.inputs[4])
        i, f, g, o = (sums[:, n * units : (n + 1) * units] for n in range(4))
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c

    return step


def _onnx(graph: Any, node: Node, *names: str) -> Any:
    if is_large_cell(node):
        return single(graph, node, _step(node))
    if node.outputs[0].dtype.itemsize == 8:
        return scan(graph, node, _step(node))
    return LSTM.write(graph, node, names)


OP = Op("lstm", through_float32(_eval), _shape, _vjp, _onnx, arguments=LSTM.arguments, optional=5)
