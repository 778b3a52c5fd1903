"""RMS normalisation and rotary embedding: half precision, strides, threads, modules, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pyattn as pa
from pyattn import _core, nn, ops
from pyattn.tensor import Tensor
from tests import reference_layers
from tests.reference import max_error

F = np.float32
HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
every_isa = pytest.mark.parametrize("isa", pa.runtime.available_isas())


@pytest.fixture
def with_threads() -> Any:
    before = pa.runtime.threads()
    yield pa.runtime.set_threads
    pa.runtime.set_threads(before)


def rotary_inputs(rng: Any, dtype: Any = F, *, length: int = 5, size: int = 36) -> list[Any]:
    x = rng.standard_normal((2, 3, length, size)).astype(dtype)
    tables = [rng.standard_normal((11, size // 2)).astype(dtype) for _ in range(2)]
    return [x, *tables, rng.integers(0, 11, (2, length))]


def test_the_oracles_by_hand() -> None:
    norm = reference_layers.rms_norm([[3.0, 4.0], [0.0, 2.0]], [1.0, 10.0], -1, 0.0)
    np.testing.assert_allclose(norm, [[3 / 12.5**0.5, 40 / 12.5**0.5], [0, 20 / 2**0.5]])
    whole = reference_layers.rms_norm([[1.0, 2.0], [3.0, 4.0]], [[1.0], [0.0]], 0, 0.5)
    np.testing.assert_allclose(whole, [[1 / 8**0.5, 2 / 8**0.5], [0, 0]])
    x = np.array([1.0, 2.0, 3.0, 4.0, 9.0]).reshape(1, 1, 1, 5)
    cosine, sine = np.array([[0.0, 0.6]]), np.array([[1.0, 0.8]])
    turned = reference_layers.rotary_embedding(x, cosine, sine, [[0]], rotary_embedding_dim=4)
    np.testing.assert_allclose(turned.ravel(), [-3, 0.6 * 2 - 0.8 * 4, 1, 0.8 * 2 + 0.6 * 4, 9])
    turned = reference_layers.rotary_embedding(
        x, cosine, sine, [[0]], rotary_embedding_dim=4, interleaved=True
    )
    np.testing.assert_allclose(turned.ravel(), [-2, 1, 0.6 * 3 - 0.8 * 4, 0.8 * 3 + 0.6 * 4, 9])


@every_isa
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_float32_rounded_once(
    isa: str, dtype: Any, rng: Any, use_isa: Any
) -> None:
    use_isa(isa)
    for size in (2, 6, 14, 16, 18, 30, 34, 62, 66, 130, 36):
        x, cosine, sine, positions = rotary_inputs(rng, dtype, size=size)
        wide = [a.astype(F) for a in (x, cosine, sine)]
        gaps = np.repeat(x, 2, -1)[..., ::2]
        for interleaved in (False, True):
            exact = ops.rotary_embedding(*wide, positions, interleaved=interleaved)
            for each in (x, gaps, x.swapaxes(1, 2).copy().swapaxes(1, 2)):
                found = ops.rotary_embedding(each, cosine, sine, positions, interleaved=interleaved)
                assert found.dtype == dtype
                np.testing.assert_array_equal(found, exact.astype(dtype))
    x[0, 0, 0] *= 1000  # whose squares are beyond float16
    scale = rng.standard_normal(36).astype(dtype)
    found = ops.rms_norm(x, scale)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, ops.rms_norm(x.astype(F), scale.astype(F)).astype(dtype))


def test_gradients_in_half_precision(rng: Any) -> None:
    x, cosine, sine, positions = rotary_inputs(rng, np.float16)
    scale = rng.standard_normal(36).astype(np.float16)

    def loss(x: Any, cosine: Any, sine: Any, scale: Any) -> Any:
        turned = ops.rotary_embedding(x, cosine, sine, positions)
        return ops.sum(ops.astype(ops.rms_norm(turned, scale), F) ** 3)

    arguments = (x, cosine, sine, scale)
    found = pa.grad(loss, (0, 1, 2, 3))(*arguments)
    exact = pa.grad(loss, (0, 1, 2, 3))(*[a.astype(F) for a in arguments])
    for f, e in zip(found, exact, strict=True):
        assert f.dtype == np.float16
        assert max_error(f, e) <= 2e-2 * np.abs(e).max()


@pytest.mark.parametrize(("opset", "standard"), [(18, False), (24, True)])
def test_export_in_float16(opset: int, standard: bool, rng: Any, session: Any) -> None:
    x, cosine, sine, positions = rotary_inputs(rng, np.float16)

    def model(x: Any, positions: Any) -> Any:
        turned = ops.rotary_embedding(x, cosine, sine, positions, interleaved=True)
        return ops.rms_norm(turned, cosine[0, :1])

    inputs = {"x": x, "positions": positions.astype(np.int32)}
    proto = pa.export(model, inputs, opset=opset, verify=False)
    bodies = (proto.graph, *proto.functions)
    operators = {node.op_type for body in bodies for node in body.node}
    assert ({"RotaryEmbedding", "RMSNormalization"} <= operators) == standard
    (found,) = session(proto).run(None, inputs)
    assert found.dtype == np.float16
    assert max_error(found, model(**inputs)) <= 4e-3


def test_bfloat16_is_exported_in_operators_that_onnx_runtime_has(rng: Any, session: Any) -> None:
    x, cosine, sine, positions = rotary_inputs(rng)
    half = HALVES[1]

    def model(x: Any, positions: Any) -> Any:
        tables = (cosine.astype(half), sine.astype(half))
        turned = ops.rotary_embedding(ops.astype(x, half), *tables, positions)
        return ops.astype(ops.rms_norm(turned, tables[0][0, :1]), F)

    inputs = {"x": x, "positions": positions}
    (found,) = session(pa.export(model, inputs, verify=False)).run(None, inputs)
    assert max_error(found, model(**inputs)) <= 2e-2


@pytest.mark.parametrize("opset", [18, 24])
def test_float64_is_exported(opset: int, rng: Any, session: Any) -> None:
    x, cosine, sine, positions = rotary_inputs(rng, np.float64)

    def model(x: Any) -> Any:
        turned = ops.rotary_embedding(x, cosine, sine, positions)
        return ops.rms_norm(turned, cosine[0, :1], axis=2, epsilon=0.5)

    (found,) = session(pa.export(model, {"x": x}, opset=opset, verify=False)).run(None, {"x": x})
    assert found.dtype == np.float64
    assert max_error(found, model(x)) <= 1e-12


@pytest.mark.parametrize("opset", [18, 24])
def test_a_position_outside_the_tables_is_refused_by_the_exported_file_too(
    opset: int, session: Any
) -> None:
    rotary = nn.RotaryEmbedding(8, 4)
    x, positions = np.ones((1, 2, 3, 8), F), np.array([[0, 1, 2]])
    dims = {
        "x": pa.Input(x, (None, None, "T", None)),
        "position_ids": pa.Input(positions, (None, "T")),
    }
    run = session(pa.export(rotary, dims, opset=opset, verify=False))
    for outside in (4, -1):
        bad = np.array([[0, outside, 1]])
        with pytest.raises(ValueError, match=rf"position_ids must lie in 0\.\.3.*got {outside}"):
            rotary(x, bad)
        with pytest.raises(Exception, match=r"out of|range|bounds|must lie in 0\.\.3"):
            run.run(None, {"x": x, "position_ids": bad})


def strided(array: Any) -> Any:
    """Return the same numbers in memory that is reversed, transposed and has gaps."""
    poison = np.nan if array.dtype.kind == "f" else 10**9
    wide = np.full((*array.shape[::-1], 2), poison, array.dtype)
    view = wide[..., 1].T[..., ::-1]
    view[...] = array
    return view


@every_isa
@pytest.mark.parametrize("dtype", [F, np.float64])
def test_strides_do_not_change_a_bit(isa: str, dtype: Any, rng: Any, use_isa: Any) -> None:
    use_isa(isa)
    x, cosine, sine, positions = rotary_inputs(rng, dtype, length=17)
    for interleaved in (False, True):
        dense = ops.rotary_embedding(x, cosine, sine, positions, interleaved=interleaved)
        views = [strided(a) for a in (x, cosine, sine, positions)]
        found = ops.rotary_embedding(*views, interleaved=interleaved)
        np.testing.assert_array_equal(dense, found)
    scale, g = rng.standard_normal((3, 36)).astype(dtype), strided(x)[::-1]
    scale = scale[:, None, :]
    dense = ops.rms_norm(x, scale, axis=1)
    np.testing.assert_array_equal(dense, ops.rms_norm(strided(x), strided(scale), axis=1))
    args = (1, 1e-5, True)
    for a, b in zip(
        _core.rms_norm_gradient(x, scale, np.ascontiguousarray(g), *args),
        _core.rms_norm_gradient(strided(x), strided(scale), g, *args),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@every_isa
def test_threads_and_neighbours_do_not_change_a_bit(
    isa: str, rng: Any, use_isa: Any, with_threads: Any
) -> None:
    use_isa(isa)
    x = rng.standard_normal((3, 8, 200, 68)).astype(F)
    scale, g = rng.standard_normal(68).astype(F), rng.standard_normal(x.shape).astype(F)
    rotary = nn.RotaryEmbedding(68, 200, interleaved=True)

    def everything() -> list[Any]:
        gradients = _core.rms_norm_gradient(x, scale, g, 3, 1e-5, True)
        return [rotary(x), ops.rms_norm(x, scale), *gradients]

    with_threads(1)
    alone = everything()
    with_threads(3)
    for a, b in zip(alone, everything(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(ops.rms_norm(x[1:2, 3:4, 7:8], scale), alone[1][1:2, 3:4, 7:8])
    np.testing.assert_array_equal(rotary(x[2:, :, :9]), alone[0][2:, :, :9])


def test_more_pairs_than_a_table_of_the_kernel_holds(rng: Any) -> None:
    for interleaved in (False, True):
        x, cosine, sine, positions = rotary_inputs(rng, length=2, size=4500)
        exact = reference_layers.rotary_embedding(
            x, cosine, sine, positions, interleaved=interleaved
        )
        for given in (x, strided(x)):
            found = ops.rotary_embedding(given, cosine, sine, positions, interleaved=interleaved)
            assert max_error(found, exact) <= 4e-6


def test_empty_arrays() -> None:
    rotary = nn.RotaryEmbedding(4, 8)
    for shape in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4)):
        assert rotary(np.ones(shape, F)).shape == shape
        assert ops.rms_norm(np.ones(shape, F), np.ones(4, F)).shape == shape
    x = np.ones((3, 0), F)
    assert ops.rms_norm(x, np.ones(0, F)).shape == (3, 0)
    assert pa.grad(lambda w: ops.sum(ops.rms_norm(x, w)))(np.ones(1, F)).tolist() == [0.0]
    no_rows = pa.grad(lambda w: ops.sum(ops.rms_norm(x.T, w)))(np.ones(3, F))
    assert no_rows.tolist() == [0.0, 0.0, 0.0]


def test_the_gradient_of_the_caches_is_left_out_where_nobody_asks(rng: Any) -> None:
    x, cosine, sine, positions = rotary_inputs(rng)
    leaf = Tensor(x, requires_grad=True)
    node = ops.rotary_embedding(leaf, cosine, sine, positions).node
    assert node is not None
    gradients = node.op.vjp(node, (x,), (x, cosine, sine, positions), node.values)
    np.testing.assert_array_equal(
        gradients[0], ops.rotary_embedding(x, cosine, 0 - sine, positions)
    )
    assert gradients[1:] == (None, None, None)


def test_rms_norm_module(rng: Any) -> None:
    norm = nn.RMSNorm(7, eps=1e-3)
    assert list(norm.parameters()) == ["weight"]
    norm.weight = rng.standard_normal(7).astype(F)
    x = rng.standard_normal((2, 3, 7)).astype(F)
    exact = reference_layers.rms_norm(x, norm.weight, -1, 1e-3)
    assert max_error(norm(x), exact) <= 2e-6


def test_rotary_module_is_the_paper_s(rng: Any) -> None:
    rotary = nn.RotaryEmbedding(6, 20, 100.0, interleaved=True, dtype=np.float64)
    assert rotary.parameters() == {}
    x = rng.standard_normal((2, 3, 9, 8))
    angles = np.arange(9)[:, None] * 100.0 ** (-2 * np.arange(3) / 6)
    exact = reference_layers.rotary_embedding(
        x, np.cos(angles), np.sin(angles), np.tile(np.arange(9), (2, 1)),
        rotary_embedding_dim=6, interleaved=True,
    )  # fmt: skip
    np.testing.assert_allclose(rotary(x), exact, rtol=1e-13, atol=1e-13)
    merged = x.swapaxes(1, 2).reshape(2, 9, 24)
    np.testing.assert_array_equal(
        rotary(merged, num_heads=3), rotary(x).swapaxes(1, 2).reshape(2, 9, 24)
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_the_difference_of_positions(interleaved: bool, rng: Any) -> None:
    rotary = nn.RotaryEmbedding(16, 64, interleaved=interleaved, dtype=np.float64)
    query, key = rng.standard_normal((2, 1, 1, 1, 16))

    def score(p: int, j: int) -> float:
        return float(np.vdot(rotary(query, np.array([[p]])), rotary(key, np.array([[j]]))))

    assert score(9, 4) == pytest.approx(score(59, 54), rel=1e-12)
    assert score(9, 4) != pytest.approx(score(9, 5), rel=1e-3)


def test_modules_are_exported_with_any_batch_and_length(rng: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.norm, self.rotary = nn.RMSNorm(24), nn.RotaryEmbedding(8, 32)

        def __call__(self, x: Any) -> Any:
            return self.rotary(self.norm(x), num_heads=3)

    x = rng.standard_normal((2, 5, 24)).astype(F)
    for opset in (18, 24):
        pa.export(Model(), {"x": pa.Input(x, ("B", "T", None))}, opset=opset)


X, TABLE, ROWS = np.ones((2, 3, 5, 8), F), np.ones((11, 4), F), np.zeros((2, 5), np.int64)
MERGED = np.ones((2, 5, 24), F)


def rotary(x: Any = X, cosine: Any = TABLE, sine: Any = None, rows: Any = ROWS, **more: Any) -> Any:
    return ops.rotary_embedding(x, cosine, cosine if sine is None else sine, rows, **more)


def norm(x: Any = X, scale: Any = X[0, 0, 0], **more: Any) -> Any:
    return ops.rms_norm(x, scale, **more)


def core(
    x: Any = X, cosine: Any = TABLE, sine: Any = TABLE, rows: Any = ROWS, heads: int = 0
) -> Any:
    return _core.rotary_embedding(x, cosine, sine, rows, heads, False, False)


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "list": (lambda: rotary([1.0]), TypeError, "got list"),
    "integers": (lambda: rotary(X.astype(int), TABLE.astype(int)), TypeError, "bfloat16"),
    "dtypes": (lambda: rotary(X, TABLE.astype(float)), TypeError, "dtypes must be equal"),
    "half and single": (lambda: rotary(X.astype(np.float16)), TypeError, "must be equal"),
    "rank": (lambda: rotary(X[0, 0]), ValueError, r"\(B, H, T, D\) or \(B, T, H\*D\); got float32"),
    "no heads": (lambda: rotary(MERGED), ValueError, r"num_heads must divide .* got 0"),
    "heads": (lambda: rotary(MERGED, num_heads=5), ValueError, "num_heads must divide .* got 5"),
    "heads of four axes": (lambda: rotary(num_heads=2), ValueError, "num_heads is 2, but x"),
    "negative heads": (lambda: rotary(MERGED, num_heads=-1), ValueError, "0 or more; got -1"),
    "heads as text": (lambda: rotary(MERGED, num_heads="3"), TypeError, "an integer; got '3'"),
    "odd D": (lambda: rotary(X[..., :7]), ValueError, "D must be even.* got 7"),
    "odd": (lambda: rotary(rotary_embedding_dim=3), ValueError, "dim must be even.* got 3"),
    "dim": (lambda: rotary(rotary_embedding_dim=10), ValueError, "at most D; got 10"),
    "dim kind": (lambda: rotary(rotary_embedding_dim=4.0), TypeError, "an integer; got 4.0"),
    "pairs": (lambda: rotary(X, TABLE[:, :3]), ValueError, "with 4 pairs; got"),
    "sine": (lambda: rotary(X, TABLE, TABLE[:3]), ValueError, "must have one shape"),
    "cache rank": (lambda: rotary(X, X[0, :2, :, :4]), ValueError, r"\(positions, pairs\)"),
    "no positions": (lambda: rotary(rows=None), ValueError, r"\(2, 5, 4\); got float32\(11, 4\)"),
    "positions": (lambda: rotary(rows=ROWS[:, :3]), ValueError, r"\(B, T\) = \(2, 5\); got"),
    "position dtype": (lambda: rotary(rows=ROWS + 0.5), TypeError, "int32 or int64; got float64"),
    "position": (lambda: rotary(rows=ROWS + 11), ValueError, r"must lie in 0\.\.10.*got 11"),
    "position below": (lambda: rotary(rows=ROWS - 1), ValueError, r"must lie in 0\.\.10.*got -1"),
    "no table": (lambda: rotary(X, TABLE[:0]), ValueError, r"must lie in 0\.\.-1.*got 0"),
    "scale": (lambda: norm(X, np.ones(5, F)), ValueError, r"scale must broadcast .* \(8,\)"),
    "scale rank": (lambda: norm(X, np.ones((5, 8), F)), ValueError, "scale must broadcast"),
    "scale dtype": (lambda: norm(X, np.ones(8)), TypeError, "dtypes must be equal"),
    "norm integers": (lambda: norm(ROWS, ROWS[0]), TypeError, "bfloat16"),
    "rank 0": (lambda: norm(np.ones((), F)), ValueError, "axis -1 is out of range"),
    "axis": (lambda: norm(axis=4), ValueError, "axis 4 is out of range"),
    "epsilon": (lambda: norm(epsilon=0.0), ValueError, "epsilon must be positive and finite"),
    "epsilon nan": (lambda: norm(epsilon=np.nan), ValueError, "positive and finite; got nan"),
    "module dim": (lambda: nn.RotaryEmbedding(5, 8), ValueError, "dim must be even"),
    "module size": (lambda: nn.RotaryEmbedding(4, 0), ValueError, "max_positions must be positive"),
    "module base": (lambda: nn.RotaryEmbedding(4, 8, 0.0), ValueError, "base must be positive"),
    "module eps": (lambda: nn.RMSNorm(4, eps=-1.0), ValueError, "eps must be positive"),
    "module long": (lambda: nn.RotaryEmbedding(8, 4)(X), ValueError, r"0\.\.3.*got 4"),
    "module rank": (lambda: nn.RotaryEmbedding(8, 4)(X[0, 0]), ValueError, r"\(B, H, T, D\)"),
    "core heads": (lambda: core(MERGED, heads=0), ValueError, "num_heads must divide"),
    "core rank": (lambda: core(X[0, 0]), ValueError, "x must have shape"),
    "core dtype": (lambda: core(X.astype(np.int16)), TypeError, "int16; supported: float32"),
    "core cache dtype": (lambda: core(X.astype(np.float16)), TypeError, "cos_cache has dtype"),
    "core pairs": (lambda: core(X, *np.ones((2, 11, 5), F)), ValueError, "2 \\* pairs <= D"),
    "core sine": (lambda: core(X, TABLE, TABLE[:5]), ValueError, "the shape of cos_cache"),
    "core cache": (lambda: core(X, TABLE, TABLE, None), ValueError, r"must have shape \(B, T, pa"),
    "core rows": (lambda: core(rows=ROWS.T), ValueError, r"\(B, T\) = \(2, 5\), got \(5, 2\)"),
    "core row dtype": (lambda: core(rows=ROWS.astype(np.int8)), TypeError, "int32, int64"),
    "core axis": (lambda: _core.rms_norm(X, X[0, 0, 0], 4, 1e-5), ValueError, "no axis 4"),
    "core scale": (lambda: _core.rms_norm(X, TABLE, 3, 1e-5), ValueError, "the last 1 axes of x"),
    "core gradient": (
        lambda: _core.rms_norm_gradient(X, X[0, 0, 0], X[0], 3, 1e-5, True),
        ValueError,
        "gradient must have the shape of x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message) as caught:
        call()
    if not name.startswith(("module", "core")):
        assert str(caught.value).startswith(("rotary_embedding: ", "rms_norm: "))


@pytest.mark.parametrize("name", ["heads", "odd", "pairs", "no positions"])
def test_a_trace_gives_the_same_message(name: str, monkeypatch: Any) -> None:
    call, error, _ = BAD[name]
    with pytest.raises(error) as eager:
        call()
    monkeypatch.setattr(f"{__name__}.X", Tensor.symbolic(X.shape, X.dtype))
    monkeypatch.setattr(f"{__name__}.MERGED", Tensor.symbolic(MERGED.shape, MERGED.dtype))
    with pytest.raises(error) as traced:
        call()
    assert str(traced.value) == str(eager.value)
