"""The long short-term memory as an operation: evaluation and gradient of a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn.ops._recurrent import Layer, project, rows_of, spread, states_before, wide
from pyattn.ops._rules import through_float32
from pyattn.tensor import Array, Node, Op, Spec

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
    return (*results, Spec((batch, length, 5 * size), x.dtype)) if keep else results


def _sigmoid(x: Array) -> Array:
    half = x.dtype.type(0.5)
    result: Array = np.tanh(x * half) * half + half
    return result


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
    size = weight_hidden.shape[1]
    valid = LSTM.valid(x, lengths)
    projected = project(x, weight_input, bias_input, valid)
    batch, length = x.shape[:2]
    h, c = (np.zeros((batch, size), x.dtype) if s is None else s.copy() for s in (h0, c0))
    output = np.zeros((batch, length, size), x.dtype)
    gates = np.zeros((batch, length, 5 * size), x.dtype)
    for t in reversed(range(length)) if reverse else range(length):
        b = slice(None) if valid is None else valid[:, t]
        sums = projected[b, t] + h[b] @ weight_hidden.T
        if bias_hidden is not None:
            sums += bias_hidden
        i, f, g, o = np.split(sums, 4, axis=-1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        c[b] = f * c[b] + i * g
        h[b] = output[b, t] = o * np.tanh(c[b])
        gates[b, t] = np.concatenate([i, f, g, o, c[b]], -1)
    return (output, h, c, gates) if keep else (output, h, c)


def _steps_back(
    gates: Array,
    weight_hidden: Array,
    c0: Array | None,
    lengths: Array | None,
    valid: Array | None,
    g_output: Array,
    g_last: Array,
    g_cell: Array,
    *,
    reverse: bool,
) -> tuple[Array, Array, Array]:
    """Return the gradients of the sums inside the gates, ``(B, T, 4H)``, and of h0 and c0."""
    batch, length, size = g_output.shape
    before = states_before(gates[..., 4 * size :], c0, lengths, reverse=reverse)
    result = np.zeros((batch, length, 4 * size), gates.dtype)
    g_h, g_c = g_last.copy(), g_cell.copy()
    for t in range(length) if reverse else reversed(range(length)):
        b = slice(None) if valid is None else valid[:, t]
        i, f, g, o, c = np.split(gates[b, t], 5, axis=-1)
        at, squashed = g_h[b] + g_output[b, t], np.tanh(c)
        carried = g_c[b] + at * o * (1 - squashed * squashed)
        result[b, t] = np.concatenate(
            [
                carried * g * i * (1 - i),
                carried * before[b, t] * f * (1 - f),
                carried * i * (1 - g * g),
                at * squashed * o * (1 - o),
            ],
            -1,
        )
        g_c[b] = carried * f
        g_h[b] = result[b, t] @ weight_hidden
    return result, g_h, g_c


def _vjp(
    node: Node, g: tuple[Array, ...], inputs: tuple[Any, ...], outputs: tuple[Array, ...]
) -> tuple[Array | None, ...]:
    dtype, reverse = inputs[0].dtype, node.params["reverse"]
    if dtype.itemsize == 2 or not node.params["keep"]:
        inputs, g = tuple(wide(inputs)), tuple(wide(g))
        outputs = _eval(*inputs, reverse=reverse, keep=True)
    gradients = _gradients(inputs, outputs, g, reverse=reverse)
    return (*[a if a is None else a.astype(dtype, copy=False) for a in gradients], None)


def _gradients(
    inputs: tuple[Any, ...], outputs: tuple[Array, ...], g: tuple[Array, ...], *, reverse: bool
) -> tuple[Array | None, ...]:
    x, weight_input, weight_hidden, bias_input, bias_hidden, h0, c0, lengths = inputs
    output, _, _, gates = outputs
    valid = LSTM.valid(x, lengths)
    g_gates, g_h0, g_c0 = _steps_back(
        gates, weight_hidden, c0, lengths, valid, *g[:3], reverse=reverse
    )
    before = states_before(output, h0, lengths, reverse=reverse)
    sums, states, rows = (rows_of(a, valid) for a in (g_gates, before, x))
    g_bias = sums.sum(0)
    return (
        spread(sums @ weight_input, valid, *x.shape[:2]),
        sums.T @ rows,
        sums.T @ states,
        None if bias_input is None else g_bias,
        None if bias_hidden is None else g_bias,
        None if h0 is None else g_h0,
        None if c0 is None else g_c0,
    )


def _onnx(graph: Any, node: Node, *names: str) -> Any:
    return LSTM.write(graph, node, names)


OP = Op("lstm", through_float32(_eval), _shape, _vjp, _onnx, arguments=LSTM.arguments, optional=5)
