"""The gated recurrent unit as an operation: evaluation and gradient of a sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn.ops._recurrent import Layer, project, rows_of, spread, states_before, wide
from pyattn.ops._rules import through_float32
from pyattn.tensor import Array, Node, Op, Spec

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
    return (*results, Spec((batch, length, 4 * size), x.dtype)) if keep else results


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
    lengths: Array | None,
    *,
    reverse: bool,
    reset_after: bool,
    keep: bool,
) -> tuple[Array, ...]:
    size = weight_hidden.shape[1]
    valid = GRU.valid(x, lengths)
    projected = project(x, weight_input, bias_input, valid)
    batch, length = x.shape[:2]
    h = np.zeros((batch, size), x.dtype) if h0 is None else h0.copy()
    bias = np.zeros(3 * size, x.dtype) if bias_hidden is None else bias_hidden
    output = np.zeros((batch, length, size), x.dtype)
    gates = np.zeros((batch, length, 4 * size), x.dtype)
    of_gates, of_new = weight_hidden[: 2 * size], weight_hidden[2 * size :]
    for t in reversed(range(length)) if reverse else range(length):
        b = slice(None) if valid is None else valid[:, t]
        before, given = h[b], projected[b, t]
        rz = _sigmoid(given[:, : 2 * size] + (before @ of_gates.T + bias[: 2 * size]))
        r, z = rz[:, :size], rz[:, size:]
        if reset_after:
            recurrent = before @ of_new.T + bias[2 * size :]
            n = np.tanh(given[:, 2 * size :] + r * recurrent)
        else:
            recurrent = r * before
            n = np.tanh(given[:, 2 * size :] + (recurrent @ of_new.T + bias[2 * size :]))
        h[b] = output[b, t] = (1 - z) * n + z * before
        gates[b, t] = np.concatenate([r, z, recurrent, n], -1)
    return (output, h, gates) if keep else (output, h)


def _steps_back(
    gates: Array,
    weight_hidden: Array,
    before: Array,
    valid: Array | None,
    g_output: Array,
    g_last: Array,
    *,
    reverse: bool,
    reset_after: bool,
) -> tuple[Array, Array]:
    """Return the gradients of the sums inside the gates, ``(B, T, 4H)``, and of h0.

    In the last axis: those of r and z, of what r multiplies (or zeros), of the new state.
    """
    length, size = before.shape[1:]
    of_gates, of_new = weight_hidden[: 2 * size], weight_hidden[2 * size :]
    result = np.zeros_like(gates)
    g = g_last.copy()
    for t in range(length) if reverse else reversed(range(length)):
        b = slice(None) if valid is None else valid[:, t]
        r, z, recurrent, n = np.split(gates[b, t], 4, axis=-1)
        h = before[b, t]
        at = g[b] + g_output[b, t]
        g_new = at * (1 - z) * (1 - n * n)
        g_z = at * (h - n) * z * (1 - z)
        if reset_after:
            g_recurrent, g_r = g_new * r, g_new * recurrent * r * (1 - r)
            back = g_recurrent @ of_new
        else:
            g_recurrent = np.zeros_like(g_new)
            product = g_new @ of_new
            g_r = product * h * r * (1 - r)
            back = product * r
        g_rz = np.concatenate([g_r, g_z], -1)
        g[b] = at * z + back + g_rz @ of_gates
        result[b, t] = np.concatenate([g_rz, g_recurrent, g_new], -1)
    return result, g


def _vjp(
    node: Node, g: tuple[Array, ...], inputs: tuple[Any, ...], outputs: tuple[Array, ...]
) -> tuple[Array | None, ...]:
    dtype = inputs[0].dtype
    params = {key: node.params[key] for key in ("reverse", "reset_after")}
    if dtype.itemsize == 2 or not node.params["keep"]:
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
    output, _, gates = outputs
    size = weight_hidden.shape[1]
    valid = GRU.valid(x, lengths)
    before = states_before(output, h0, lengths, reverse=reverse)
    g_gates, g_first = _steps_back(
        gates,
        weight_hidden,
        before,
        valid,
        g_output,
        g_last,
        reverse=reverse,
        reset_after=reset_after,
    )
    sums, states, rows = (rows_of(a, valid) for a in (g_gates, before, x))
    g_rz, g_new = sums[:, : 2 * size], sums[:, 3 * size :]
    g_hidden, new_states = sums[:, 2 * size : 3 * size], states
    if not reset_after:
        g_hidden, new_states = g_new, rows_of(gates, valid)[:, 2 * size : 3 * size]
    g_rows = g_rz @ weight_input[: 2 * size] + g_new @ weight_input[2 * size :]
    both = g_rz.sum(0)
    return (
        spread(g_rows, valid, *x.shape[:2]),
        np.concatenate([g_rz.T @ rows, g_new.T @ rows]),
        np.concatenate([g_rz.T @ states, g_hidden.T @ new_states]),
        None if bias_input is None else np.concatenate([both, g_new.sum(0)]),
        None if bias_hidden is None else np.concatenate([both, g_hidden.sum(0)]),
        None if h0 is None else g_first,
    )


def _onnx(graph: Any, node: Node, *names: str) -> Any:
    return GRU.write(graph, node, names, linear_before_reset=int(node.params["reset_after"]))


OP = Op("gru", through_float32(_eval), _shape, _vjp, _onnx, arguments=GRU.arguments, optional=4)
