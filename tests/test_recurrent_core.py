"""The kernels behind GRU and LSTM: sizes at register edges, threads, strides, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import _core, nn, ops
from pyattn.tensor import Tensor
from tests.reference import max_error, tolerance
from tests.test_recurrent import all_gradients, layer_inputs

F = np.float32
every_isa = pytest.mark.parametrize("isa", pa.runtime.available_isas())
both = pytest.mark.parametrize("op", ["gru", "lstm"])


@pytest.fixture
def with_threads() -> Any:
    before = pa.runtime.threads()
    yield pa.runtime.set_threads
    pa.runtime.set_threads(before)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def naive(op: str, a: dict[str, Any], *, reset_after: bool = True) -> list[Any]:
    """The formulas as NumPy code usually writes them, in the dtype of the inputs."""
    h, c, size, outputs = a["h0"], a.get("c0"), a["h0"].shape[1], []
    for x in a["x"].swapaxes(0, 1):
        given = x @ a["weight_input"].T + a["bias_input"]
        inner = h @ a["weight_hidden"].T + a["bias_hidden"]
        if op == "lstm":
            i, f, g, o = np.split(given + inner, 4, 1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            r, z = np.split(sigmoid((given + inner)[:, : 2 * size]), 2, 1)
            if reset_after:
                inner = r * inner[:, 2 * size :]
            else:
                inner = (r * h) @ a["weight_hidden"][2 * size :].T + a["bias_hidden"][2 * size :]
            h = z * h + (1 - z) * np.tanh(given[:, 2 * size :] + inner)
        outputs.append(h)
    return [np.stack(outputs, 1), h] if c is None else [np.stack(outputs, 1), h, c]


@every_isa
@both
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_is_at_most_twice_the_naive_one(
    op: str, dtype: Any, isa: str, rng: Any, use_isa: Any
) -> None:
    use_isa(isa)
    for size in (1, 15, 16, 17, 31, 33, 63, 64, 65, 129):
        arrays = layer_inputs(op, rng, dtype, batch=7, length=12, size=size)
        wide = {name: a.astype(np.float64) for name, a in arrays.items()}
        for options in ({}, {"reset_after": False}) if op == "gru" else ({},):
            exact = naive(op, wide, **options)
            plain = naive(op, arrays, **options)
            for f, p, e in zip(getattr(ops, op)(**arrays, **options), plain, exact, strict=True):
                assert max_error(f, e) <= tolerance(p, e)


@both
def test_bits_do_not_depend_on_the_threads(op: str, rng: Any, with_threads: Any) -> None:
    arrays = layer_inputs(op, rng, batch=5, length=9, size=130)
    lengths = np.array([9, 0, 4, 9, 1])
    with_threads(1)
    results = getattr(ops, op)(**arrays, lengths=lengths)
    gradients = all_gradients(op, arrays, lengths=lengths)
    for count in (2, 3):
        with_threads(count)
        for expected, found in zip(results, getattr(ops, op)(**arrays, lengths=lengths),
                                   strict=True):  # fmt: skip
            np.testing.assert_array_equal(found, expected)
        for name, found in all_gradients(op, arrays, lengths=lengths).items():
            np.testing.assert_array_equal(found, gradients[name], err_msg=name)


@both
@pytest.mark.parametrize("length", [1, 5])
def test_a_sequence_has_the_same_bits_alone(op: str, length: int, rng: Any) -> None:
    arrays = layer_inputs(op, rng, batch=8, length=length, size=33)
    entries = ("x", "h0", "c0")
    alone = {k: v[6:7] if k in entries else v for k, v in arrays.items()}
    together, single = (getattr(ops, op)(**a) for a in (arrays, alone))
    for many, one in zip(together, single, strict=True):
        np.testing.assert_array_equal(many[6:7], one)


@every_isa
@both
def test_a_step_with_weights_at_any_address(op: str, isa: str, rng: Any, use_isa: Any) -> None:
    use_isa(isa)
    for size in (1, 16, 33):
        arrays = layer_inputs(op, rng, batch=2, length=1, size=size)
        together = getattr(ops, op)(**arrays)
        alone = {k: v[1:] if k in ("x", "h0", "c0") else v for k, v in arrays.items()}
        for shift in range(17):
            for name in ("weight_input", "weight_hidden"):
                place = np.empty(arrays[name].size + 17, F)[shift:][: arrays[name].size]
                place[:] = arrays[name].ravel()
                alone[name] = place.reshape(arrays[name].shape)
            for many, one in zip(together, getattr(ops, op)(**alone), strict=True):
                np.testing.assert_array_equal(one, many[1:])


@both
def test_a_cell_is_one_step_of_the_layer(op: str, rng: Any) -> None:
    """Dense arrays go straight to the kernel, all else through the operation."""
    cell = getattr(ops, f"{op}_cell")
    states = ("h0",) if op == "gru" else ("h0", "c0")
    for dtype in (F, np.float64, np.float16):
        arrays = layer_inputs(op, rng, dtype, length=1)
        last = getattr(ops, op)(**arrays)[1:]
        weights = {k: v for k, v in arrays.items() if k not in ("x", *states)}
        x, before = arrays["x"][:, 0], [arrays[k] for k in states]
        spread = np.full((3, 8), np.nan, dtype)
        spread[:, ::2] = x
        for given in (x, spread[:, ::2], Tensor(x)):
            found = cell(given, *before, **weights)
            for f, e in zip((found,) if op == "gru" else found, last, strict=True):
                assert f.dtype == dtype
                np.testing.assert_array_equal(f.numpy() if isinstance(f, Tensor) else f, e)
        zero = cell(x, *[np.zeros_like(a) for a in before], **weights)
        absent = cell(x, *[None for _ in before], **weights)
        np.testing.assert_array_equal(absent, zero)


@both
def test_inputs_of_any_layout(op: str, rng: Any) -> None:
    arrays = layer_inputs(op, rng)
    results, gradients = getattr(ops, op)(**arrays), all_gradients(op, arrays)
    spread = {}
    for name, array in arrays.items():
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        wide[..., ::2] = array
        spread[name] = wide[..., ::2]
        spread[name].flags.writeable = False
    turned = {k: np.asfortranarray(v) for k, v in arrays.items()}
    for other in (spread, turned):
        for a, b in zip(getattr(ops, op)(**other), results, strict=True):
            np.testing.assert_array_equal(a, b)
        found = all_gradients(op, other)
        for name in arrays:
            np.testing.assert_array_equal(found[name], gradients[name], err_msg=name)


def test_a_repeated_sequence_of_stride_0(rng: Any) -> None:
    arrays = layer_inputs("gru", rng, batch=1)
    many = arrays | {
        "x": np.broadcast_to(arrays["x"], (3, *arrays["x"].shape[1:])),
        "h0": np.broadcast_to(arrays["h0"], (3, 6)),
    }
    output, last = ops.gru(**many)
    alone, alone_last = ops.gru(**arrays)
    np.testing.assert_array_equal(output, np.repeat(alone, 3, 0))
    np.testing.assert_array_equal(last, np.repeat(alone_last, 3, 0))


@every_isa
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products(dtype: Any, isa: str, rng: Any, use_isa: Any) -> None:
    use_isa(isa)
    for m, n, k in ((1, 1, 1), (7, 65, 513), (200, 31, 5), (3, 64, 0), (0, 4, 3), (5, 0, 2)):
        left, right = (rng.standard_normal(s).astype(dtype) for s in ((m, k), (k, n)))
        bias = rng.standard_normal(n).astype(dtype)
        exact = left.astype(np.float64) @ right + bias
        for a in (left, np.asfortranarray(left)):
            for b in (right, np.asfortranarray(right)):
                found = _core.product(a, b, bias)
                assert max_error(found, exact) <= tolerance(left @ right + bias, exact)
                added = np.ones((m, n), dtype)
                assert _core.product(a, b, None, added) is added
                assert max_error(added, exact - bias + 1) <= tolerance(left @ right, exact) * 2


X, W, U, H = np.ones((2, 5, 4), F), np.ones((18, 4), F), np.ones((18, 6), F), np.ones((2, 6), F)
W4, U4 = np.ones((24, 4), F), np.ones((24, 6), F)
Y, M = np.ones((2, 5, 6), F), np.ones((4, 3), F)
G, G4 = np.ones((1, 5, 2, 48), F), np.ones((1, 5, 2, 64), F)
STRIDED = np.broadcast_to(F(1), (2, 5, 4))


def gru(x: Any = X, weight_input: Any = W, weight: Any = U, bias_input: Any = None,
        bias_hidden: Any = None, h0: Any = H, lengths: Any = None) -> Any:  # fmt: skip
    biases = bias_input, bias_hidden
    return _core.gru(x, weight_input, weight, *biases, h0, lengths, False, True, False)


def gru_gradient(output: Any = Y, gates: Any = G) -> Any:
    return _core.gru_gradient(gates, U, H, None, False, True, output, Y, Y, H)


def lstm_gradient(cells: Any = Y, gates: Any = G4) -> Any:
    return _core.lstm_gradient(gates, U4, H, H, None, False, cells, Y, H, H)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "x rank": (lambda: gru(X[0]), ValueError, r"gru: x must have shape \(B, T, any\)"),
    "x dtype": (lambda: gru(X.astype(np.float16)), TypeError, "supported: float32, float64"),
    "x strided": (lambda: gru(STRIDED), ValueError, "x must be dense"),
    "weight_input": (lambda: gru(weight_input=W[:, :3]), ValueError,
                     r"weight_input must be dense, of shape \(18, 4"),
    "bias_input": (lambda: gru(bias_input=H[0]), ValueError, "bias_input must be dense"),
    "weight": (lambda: gru(weight=U[:17]), ValueError, r"weight must be dense, of shape \(18, 6"),
    "weight rank": (lambda: gru(weight=U[0]), ValueError, r"weight must have shape \(gates"),
    "weight dtype": (lambda: gru(weight=U.astype(float)), TypeError, "supported: float32"),
    "state": (lambda: gru(h0=H[:1]), ValueError, "h0 must be dense"),
    "bias_hidden": (lambda: gru(bias_hidden=H), ValueError, "bias_hidden must be dense"),
    "lengths": (lambda: gru(lengths=np.array([1, 6])), ValueError, r"must lie in 0\.\.5, got 6"),
    "lengths dtype": (lambda: gru(lengths=np.ones(2, F)), TypeError, "supported: int64"),
    "lengths shape": (lambda: gru(lengths=np.ones(3, int)), ValueError, r"shape \(2,\)"),
    "lstm": (lambda: _core.lstm(X, W4, U, None, None, H, H, None, False, False), ValueError,
             r"lstm: weight must be dense, of shape \(24, 6"),
    "gradient output": (lambda: gru_gradient(output=Y[0]), ValueError, "gru_gradient: output must"),
    "gradient gates": (lambda: gru_gradient(gates=Y), ValueError, "gru_gradient: gates must be"),
    "lstm gradient cells": (lambda: lstm_gradient(cells=Y[0]), ValueError,
                            "lstm_gradient: cells must have shape"),
    "lstm gradient gates": (lambda: lstm_gradient(gates=G), ValueError, "gates must be dense"),
    "product sizes": (lambda: _core.product(M, M), ValueError, "left has 3 columns, right has 4"),
    "product rank": (lambda: _core.product(M, M[0]), ValueError, r"right must have shape \(rows"),
    "product dtype": (lambda: _core.product(M, M.T.astype(float)), TypeError, "that of left"),
    "product ints": (lambda: _core.product(M.astype(int), M.T), TypeError, "float32, float64"),
    "product strides": (lambda: _core.product(np.ones((4, 6, 2), F)[..., 0], np.ones((6, 2), F)),
                        ValueError, "unit stride"),
    "product bias": (lambda: _core.product(M, M.T, M[0]), ValueError, "bias must be dense and fit"),
    "product add": (lambda: _core.product(M, M.T, None, M), ValueError, "add_to must be dense"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_the_core_refuses_what_it_could_not_read(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("op", ["gru", "gru before", "lstm"])
@pytest.mark.parametrize("state", [False, True])
def test_a_large_cell_is_exported_as_its_operators(op: str, state: bool, rng: Any) -> None:
    """ONNX Runtime packs the weights of its GRU and LSTM at every call."""
    kind: Any = nn.LSTM if op == "lstm" else nn.GRU
    options = {} if op == "lstm" else {"reset_after": op == "gru"}
    layer = kind(400, 1000, **options, rng=rng)
    assert sum(array.size for array in layer.parameters().values()) >= 1 << 22

    def draw(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    inputs = {"x": pa.Input(draw(3, 1, 400), ("batch", None, None))}
    if state:
        names = ("h", "c") if op == "lstm" else ("h",)
        inputs |= {name: pa.Input(draw(1, 3, 1000), (None, "batch", None)) for name in names}

    def model(x: Any, h: Any = None, c: Any = None) -> Any:
        output, last = layer(x, h if c is None else (h, c))
        return (output, *last) if op == "lstm" else (output, last)

    proto = pa.export(model, inputs)  # which compares it with the eager model
    assert not {"GRU", "LSTM"} & {node.op_type for node in proto.graph.node}
