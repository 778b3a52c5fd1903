"""GRU and LSTM: lengths and what is behind them, layers, half precision, export, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyattn as pa
from pyattn import nn, ops
from pyattn.ort import session
from pyattn.tensor import Tensor
from tests import reference_recurrent
from tests.draws import poison
from tests.reference import max_error

F = np.float32
every_isa = pytest.mark.parametrize("isa", pa.runtime.available_isas())
both = pytest.mark.parametrize("op", ["gru", "lstm"])


def layer_inputs(
    op: str, rng: Any, dtype: Any = F, *, batch: int = 3, length: int = 5, size: int = 6
) -> dict[str, Any]:
    """Return every input but the lengths."""
    rows = (3 if op == "gru" else 4) * size

    def normal(*shape: int) -> Any:
        return (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(dtype)

    arrays = {
        "x": normal(batch, length, 4),
        "weight_input": normal(rows, 4),
        "weight_hidden": normal(rows, size),
        "bias_input": normal(1, rows)[0],
        "bias_hidden": normal(1, rows)[0],
        "h0": normal(batch, size),
    }
    return arrays if op == "gru" else arrays | {"c0": normal(batch, size)}


def all_gradients(op: str, arrays: dict[str, Any], **fixed: Any) -> dict[str, Any]:
    """Return the gradients of a sum over all results, by the name of the input."""
    rng = np.random.default_rng(7)

    def loss(values: dict[str, Any]) -> Any:
        results = getattr(ops, op)(**values, **fixed)
        drawn = [rng.standard_normal(r.shape).astype(r.dtype) for r in results]
        total = ops.sum(results[0] * drawn[0])
        for result, weight in zip(results[1:], drawn[1:], strict=True):
            total = total + ops.sum(result * weight)
        return total

    return dict(pa.grad(loss)(arrays))


def test_the_oracles_by_hand() -> None:
    # One unit. Without an input r = z = 1/2 and n = tanh(h / 2), or tanh(U (h / 2)).
    weights = np.zeros((3, 1)), np.array([[0.0], [0.0], [2.0]])
    for after, inner in ((True, 0.5 * (2 * 3.0 + 1)), (False, 2 * (0.5 * 3.0) + 1)):
        output, last = reference_recurrent.gru(
            np.zeros((1, 1, 1)), *weights, None, np.array([0, 0, 1.0]), [[3.0]], reset_after=after
        )
        assert output[0, 0, 0] == last[0, 0] == pytest.approx(0.5 * np.tanh(inner) + 0.5 * 3)
    weights = np.zeros((4, 1)), np.array([[0.0], [0.0], [1.0], [0.0]])
    output, h_n, c_n = reference_recurrent.lstm(np.zeros((1, 1, 1)), *weights, None, None, [[2.0]],
                                                [[4.0]])  # fmt: skip
    assert c_n[0, 0] == pytest.approx(0.5 * 4 + 0.5 * np.tanh(2.0))
    assert output[0, 0, 0] == h_n[0, 0] == pytest.approx(0.5 * np.tanh(c_n[0, 0]))


@both
@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_behind_a_length_reaches_nothing(op: str, reverse: bool, rng: Any) -> None:
    arrays = layer_inputs(op, rng, batch=4)
    lengths = np.array([0, 5, 2, 3], np.int32)
    poisoned = arrays | {"x": poison(arrays["x"], np.arange(5) >= lengths[:, None])}
    call = getattr(ops, op)
    clean = call(**arrays, lengths=lengths, reverse=reverse)
    found = call(**poisoned, lengths=lengths, reverse=reverse)
    for c, f in zip(clean, found, strict=True):
        np.testing.assert_array_equal(f, c)
    assert not found[0][np.arange(5) >= lengths[:, None]].any()
    np.testing.assert_array_equal(found[1][0], arrays["h0"][0])
    clean, found = (
        all_gradients(op, a, lengths=lengths, reverse=reverse) for a in (arrays, poisoned)
    )
    for name in arrays:
        np.testing.assert_array_equal(found[name], clean[name], err_msg=name)


@both
@pytest.mark.parametrize("reverse", [False, True])
def test_a_length_is_a_shorter_sequence(op: str, reverse: bool, rng: Any) -> None:
    arrays = layer_inputs(op, rng, batch=1)
    short = arrays | {"x": arrays["x"][:, :3]}
    call = getattr(ops, op)
    output, *last = call(**arrays, lengths=np.array([3]), reverse=reverse)
    alone, *last_alone = call(**short, reverse=reverse)
    np.testing.assert_allclose(output[:, :3], alone, atol=1e-6)
    for a, b in zip(last, last_alone, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@both
def test_no_steps_and_no_sequences(op: str, rng: Any) -> None:
    for batch, length in ((2, 0), (0, 3)):
        arrays = layer_inputs(op, rng, batch=batch, length=length)
        output, *last = getattr(ops, op)(**arrays)
        assert output.shape == (batch, length, 6)
        for name, state in zip(("h0", "c0"), last, strict=False):
            np.testing.assert_array_equal(state, arrays[name])
        gradients = all_gradients(op, arrays)
        assert gradients["x"].shape == arrays["x"].shape
        assert not gradients["weight_hidden"].any()


@both
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_float32_rounded_once(op: str, dtype: Any, rng: Any) -> None:
    arrays = layer_inputs(op, rng, dtype)
    wide = {name: a.astype(F) for name, a in arrays.items()}
    lengths = np.array([5, 0, 2])
    found = getattr(ops, op)(**arrays, lengths=lengths)
    exact = getattr(ops, op)(**wide, lengths=lengths)
    for f, e in zip(found, exact, strict=True):
        assert f.dtype == dtype
        np.testing.assert_array_equal(f, e.astype(dtype))


@both
def test_gradients_in_half_precision(op: str, rng: Any) -> None:
    arrays = layer_inputs(op, rng, np.float16)
    found = all_gradients(op, arrays)
    exact = all_gradients(op, {name: a.astype(F) for name, a in arrays.items()})
    for name in arrays:
        assert found[name].dtype == np.float16
        assert max_error(found[name], exact[name]) <= 2e-2 * max(np.abs(exact[name]).max(), 1)


@both
def test_cells_are_layers_of_one_step(op: str, rng: Any) -> None:
    sizes = {"gru": (nn.GRU, nn.GRUCell), "lstm": (nn.LSTM, nn.LSTMCell)}[op]
    layer, cell = (kind(4, 6, rng=np.random.default_rng(1)) for kind in sizes)
    x = rng.standard_normal((2, 3, 4)).astype(F)
    output, last = layer(x)
    state: Any = np.zeros((2, 6), F)
    state = state if op == "gru" else (state, state)
    for t in range(3):
        state = cell(x[:, t], state)
        np.testing.assert_allclose(state if op == "gru" else state[0], output[:, t], atol=1e-6)
    for a, b in zip(
        [last] if op == "gru" else last, [state] if op == "gru" else state, strict=True
    ):
        np.testing.assert_allclose(a[0], b, atol=1e-6)


@both
def test_layers_and_directions(op: str, rng: Any) -> None:
    kind = nn.GRU if op == "gru" else nn.LSTM
    layer = kind(4, 6, layers=2, bidirectional=True, rng=rng)
    names = [f"{k}_l{i}{end}" for i in range(2) for end in ("", "_reverse")
             for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]  # fmt: skip
    assert list(layer.parameters()) == names
    assert layer.parameters()["weight_ih_l1_reverse"].shape == ((3 if op == "gru" else 4) * 6, 12)
    x, lengths = rng.standard_normal((3, 5, 4)).astype(F), np.array([5, 1, 3])
    first = tuple(rng.standard_normal((4, 3, 6)).astype(F) for _ in range(1 if op == "gru" else 2))
    output, last = layer(x, first[0] if op == "gru" else first, lengths=lengths)
    lasts = (last,) if op == "gru" else last
    below, parameters = x, layer.parameters()
    for i in range(2):
        outputs = []
        for d, end in enumerate(("", "_reverse")):
            given = [parameters[f"{k}_l{i}{end}"] for k in
                     ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]  # fmt: skip
            begin = [state[2 * i + d] for state in first]
            exact, *ends = getattr(reference_recurrent, op)(
                below, *given, *begin, lengths, reverse=bool(d)
            )
            outputs.append(exact)
            for a, b in zip(lasts, ends, strict=True):
                np.testing.assert_allclose(a[2 * i + d], b, atol=1e-5)
        below = np.concatenate(outputs, -1)
    np.testing.assert_allclose(output, below, atol=1e-5)


@pytest.mark.parametrize("op", ["gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layers_export_as_the_standard_operator(op: str, bidirectional: bool, rng: Any) -> None:
    kind = nn.GRU if op == "gru" else nn.LSTM
    layer = kind(4, 6, layers=2, bidirectional=bidirectional, rng=rng)
    x, lengths = rng.standard_normal((3, 5, 4)).astype(F), np.array([5, 1, 0])

    def model(x: Any, lengths: Any) -> Any:
        output, last = layer(x, lengths=lengths)
        return (output, last) if op == "gru" else (output, *last)

    inputs = {
        "x": pa.Input(x, ("batch", "steps", None)),
        "lengths": pa.Input(lengths, ("batch",), at_most="steps"),
    }
    proto = pa.export(model, inputs)  # which compares it with the eager model
    operators = [node.op_type for node in proto.graph.node]
    assert operators.count(op.upper()) == (4 if bidirectional else 2)
    assert not {"Split", "Loop", "Scan"} & set(operators)  # the weights are in ONNX's order


@both
def test_a_first_state_of_a_sequence_without_steps_in_onnx(op: str, rng: Any) -> None:
    arrays = layer_inputs(op, rng) | {"lengths": np.array([0, 3, 5], np.int32)}
    call = getattr(ops, op)
    proto = pa.export(lambda **a: call(**a), arrays, verify=False)
    found = session(proto).run(None, arrays)
    for f, e in zip(found, call(**arrays), strict=True):
        assert max_error(f, e) <= 1e-5
    np.testing.assert_array_equal(found[1][0], arrays["h0"][0])


def test_weights_that_are_used_often_are_written_once(rng: Any) -> None:
    cell = nn.GRUCell(4, 6, rng=rng)
    x, h = rng.standard_normal((2, 4)).astype(F), rng.standard_normal((2, 6)).astype(F)

    def model(x: Any, h: Any) -> Any:
        return cell(x, cell(x, cell(x, h)))

    proto = pa.export(model, {"x": pa.Input(x, ("batch", None)), "h": pa.Input(h, ("batch", None))})
    shapes = [tuple(tensor.dims) for tensor in proto.graph.initializer]
    assert shapes.count((1, 18, 4)) == shapes.count((1, 18, 6)) == 1


DIMS: dict[str, Any] = {
    "x": ("batch", "steps", None), "h0": ("batch", None), "c0": ("batch", None),
    "lengths": ("batch",),
}  # fmt: skip


@pytest.mark.parametrize("weights", ["constant", "traced"])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("op", "options"), [("gru", {}), ("gru", {"reset_after": False}), ("lstm", {})]
)
def test_float64_is_exported_as_a_scan(
    op: str, options: Any, padded: bool, reverse: bool, state: bool, weights: str, rng: Any
) -> None:
    arrays: dict[str, Any] = layer_inputs(op, rng, np.float64, batch=3, length=5)
    for name in ("h0", "c0"):
        if name in arrays and not state:
            del arrays[name]
    arrays |= {"lengths": np.array([5, 2, 0])} if padded else {}
    fixed = {k: arrays.pop(k) for k in list(arrays) if weights == "constant" and k not in DIMS}

    def model(**given: Any) -> Any:
        return getattr(ops, op)(**given, **fixed, reverse=reverse, **options)

    inputs = {
        name: pa.Input(array, DIMS.get(name, ()), at_most="steps" if name == "lengths" else None)
        for name, array in arrays.items()
    }
    proto = pa.export(model, inputs)
    assert [node.op_type for node in proto.graph.node].count("Scan") == 1
    for batch, length in ((3, 5), (1, 1), (4, 9)):
        given = {k: v.resized({"batch": batch, "steps": length}) for k, v in inputs.items()}
        if padded:
            given["lengths"] = rng.integers(0, length + 1, batch)
            given["x"] = poison(given["x"], np.arange(length) >= given["lengths"][:, None])
        exact = model(**given)
        for f, e in zip(session(proto).run(None, given), exact, strict=True):
            assert f.dtype == np.float64
            assert max_error(f, e) <= 1e-14


@both
def test_layers_of_float64_are_exported(op: str, rng: Any) -> None:
    layer: Any = (nn.GRU if op == "gru" else nn.LSTM)(4, 6, layers=2, bidirectional=True, rng=rng)
    layer = layer.replace({k: v.astype(np.float64) for k, v in layer.parameters().items()})
    x = pa.Input(rng.standard_normal((3, 5, 4)), DIMS["x"])
    lengths = pa.Input(np.array([5, 1, 0]), DIMS["lengths"], at_most="steps")

    def model(x: Any, lengths: Any) -> Any:
        output, last = layer(x, lengths=lengths)
        return (output, last) if op == "gru" else (output, *last)

    run = session(pa.export(model, {"x": x, "lengths": lengths}))
    given = {"x": rng.standard_normal((2, 8, 4)), "lengths": np.array([3, 8])}
    for f, e in zip(run.run(None, given), model(**given), strict=True):
        assert max_error(f, e) <= 1e-14


@both
def test_float16_is_exported_by_way_of_float32(op: str, rng: Any) -> None:
    arrays = layer_inputs(op, rng, np.float16) | {"lengths": np.array([0, 3, 5])}
    call = getattr(ops, op)
    proto = pa.export(lambda **a: call(**a), arrays, verify=False)
    for f, e in zip(session(proto).run(None, arrays), call(**arrays), strict=True):
        assert f.dtype == np.float16
        assert max_error(f, e) <= 1e-3


@given(st.data())
def test_any_shape(data: Any) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    op = data.draw(st.sampled_from(["gru", "lstm"]))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    sizes = {
        "batch": data.draw(st.sampled_from([1, 2, 3, 5, 8, 9])),
        "length": data.draw(st.integers(1, 6)),
        "size": data.draw(st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, 33])),
    }
    arrays = layer_inputs(op, rng, dtype, **sizes)
    for name in ("bias_input", "bias_hidden", "h0", "c0"):
        if data.draw(st.booleans()):
            arrays.pop(name, None)
    options: dict[str, Any] = {"reverse": data.draw(st.booleans())}
    if op == "gru":
        options["reset_after"] = data.draw(st.booleans())
    if data.draw(st.booleans()):
        lengths = rng.integers(0, sizes["length"] + 1, sizes["batch"])
        arrays["x"] = poison(arrays["x"], np.arange(sizes["length"]) >= lengths[:, None])
        options["lengths"] = lengths
    clean = {k: np.nan_to_num(v, posinf=0) for k, v in arrays.items()}
    exact = getattr(reference_recurrent, op)(**clean, **options)
    pa.runtime.set_isa(data.draw(st.sampled_from(pa.runtime.available_isas())))
    try:
        found = getattr(ops, op)(**arrays, **options)
    finally:
        pa.runtime.set_isa(pa.runtime.available_isas()[0])
    for f, e in zip(found, exact, strict=True):
        assert f.dtype == dtype
        assert max_error(f, e) <= 64 * np.finfo(dtype).eps * max(np.abs(e).max(initial=0), 1)


X, W, U = np.ones((2, 5, 4), F), np.ones((18, 4), F), np.ones((18, 6), F)
B, H0 = np.ones(18, F), np.ones((2, 6), F)


def gru(x: Any = X, w: Any = W, u: Any = U, *more: Any, **options: Any) -> Any:
    return ops.gru(x, w, u, *more, **options)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "rank": (lambda: gru(X[0]), ValueError, r"gru: x must be \(B, T, I\); got float32\(5, 4\)"),
    "list": (lambda: gru([1.0]), TypeError, "gru: expected a NumPy array"),
    "dtype": (lambda: gru(X.astype(int)), TypeError, "gru: .*dtypes must be equal"),
    "integers": (lambda: ops.gru(*(a.astype(int) for a in (X, W, U))), TypeError, "bfloat16"),
    "mixed": (lambda: gru(h0=H0.astype(float)), TypeError, "gru: .*dtypes must be equal"),
    "input": (lambda: gru(w=W[:, :3]), ValueError, r"weight_input \(3H, I\)"),
    "hidden": (lambda: gru(u=U[:, :5]), ValueError, r"weight_hidden \(3H, H\)"),
    "hidden rank": (lambda: gru(u=U[0]), ValueError, r"weight_hidden \(3H, H\)"),
    "four gates": (lambda: ops.lstm(X, W, U), ValueError, r"lstm: .*weight_input \(4H, I\)"),
    "bias": (lambda: gru(bias_input=B[:3]), ValueError, r"bias_input must be \(18,\)"),
    "bias hidden": (lambda: gru(X, W, U, B, U), ValueError, r"bias_hidden must be \(18,\)"),
    "state": (lambda: gru(h0=H0[0]), ValueError, r"gru: h0 must be \(2, 6\); got float32\(6,\)"),
    "cell": (lambda: ops.lstm(X, np.ones((24, 4), F), np.ones((24, 6), F), c0=H0[:1]), ValueError,
             r"lstm: c0 must be \(2, 6\)"),
    "lengths dtype": (lambda: gru(lengths=np.ones(2)), TypeError, "lengths must be int32 or int64"),
    "lengths shape": (lambda: gru(lengths=np.ones(3, int)), ValueError, r"lengths must be \(2,\)"),
    "long": (lambda: gru(lengths=np.array([1, 6])), ValueError, r"gru: lengths .* 0\.\.5; got 1"),
    "below": (lambda: gru(lengths=np.array([-1, 5])), ValueError, r"lengths must lie in 0\.\.5"),
    "cell rank": (lambda: ops.gru_cell(X, H0, W, U), ValueError, r"gru_cell: x must be \(B, I\)"),
    "lstm cell": (lambda: ops.lstm_cell(X, H0, H0, W, U), ValueError, r"lstm_cell: x must be"),
    "module layers": (lambda: nn.GRU(4, 6, layers=0, rng=None), ValueError, "layers must be"),
    "module size": (lambda: nn.LSTM(4, 0, rng=None), ValueError, "must be positive"),
    "module state": (lambda: nn.GRU(4, 6, layers=2, rng=None)(X, H0), ValueError,
                     r"GRU: h0 must be \(2, B, H\)"),
    "module cell": (lambda: nn.LSTM(4, 6, rng=None)(X, (H0[None], H0)), ValueError,
                    r"LSTM: c0 must be \(1, B, H\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["rank", "bias", "state", "cell rank", "lengths shape"])
def test_a_trace_gives_the_same_message(name: str, monkeypatch: Any) -> None:
    call, error, _ = BAD[name]
    with pytest.raises(error) as eager:
        call()
    monkeypatch.setattr(f"{__name__}.B", Tensor.symbolic(B.shape, B.dtype))
    monkeypatch.setattr(f"{__name__}.X", Tensor.symbolic(X.shape, X.dtype))
    with pytest.raises(error) as traced:
        call()
    assert str(traced.value) == str(eager.value)
