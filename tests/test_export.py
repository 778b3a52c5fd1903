"""The exporter's interface: names, sizes, functions, verification, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pyattn as pa
from pyattn import nn, ops
from pyattn.ort import session
from tests import reference

TARGETS: tuple[Any, ...] = ("functions", "primitive")


@pytest.fixture
def layer(rng: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(16, 4, 32, rng=rng)


@pytest.fixture
def x(rng: Any) -> pa.Input:
    return pa.Input(rng.standard_normal((2, 5, 16)).astype(np.float32), ("batch", "time", None))


def dims(value: Any) -> list[Any]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_names_and_dimensions_of_inputs_and_outputs(layer: Any, x: Any) -> None:
    proto = pa.export(layer, {"x": x})
    assert [(v.name, dims(v)) for v in proto.graph.input] == [("x", ["batch", "time", 16])]
    assert [(v.name, dims(v)) for v in proto.graph.output] == [("output", ["batch", "time", 16])]
    proto = pa.export(lambda x: (x + 1.0, ops.sum(x, 1)), {"x": x})
    assert [(v.name, dims(v)) for v in proto.graph.output] == [
        ("output_0", ["batch", "time", 16]),
        ("output_1", ["batch", 16]),
    ]
    proto = pa.export(lambda x: {"doubled": x * 2.0}, {"x": x})
    assert [v.name for v in proto.graph.output] == ["doubled"]


def test_parameters_keep_their_names(layer: Any, x: Any) -> None:
    names = {tensor.name for tensor in pa.export(layer, {"x": x}).graph.initializer}
    assert {"attention.query.weight.T", "attention.query.bias", "output_norm.weight"} <= names


def test_opset_and_functions(layer: Any, x: Any) -> None:
    for opset in (18, 20, 23, 24, onnx.defs.onnx_opset_version()):
        proto = pa.export(layer, {"x": x}, opset=opset, verify=False)
        assert {o.domain: o.version for o in proto.opset_import} == {"": opset, "pyattn": 1}
        (function,) = proto.functions
        assert (function.domain, function.name) == ("pyattn", "ScaledDotProductAttention")
        assert list(function.input) == ["query", "key", "value"]
        assert list(function.attribute) == ["scale"]
        ops_used = {node.op_type for node in function.node}
        assert ("Attention" in ops_used) == (opset in (23, 24))
        inline = pa.export(layer, {"x": x}, opset=opset, target="primitive", verify=False)
        assert not inline.functions
        assert {o.domain for o in inline.opset_import} == {""}
        assert {node.domain for node in inline.graph.node} == {""}


def test_layers_of_one_kind_share_one_function(rng: Any, x: Any) -> None:
    layers = [nn.SelfAttention(16, heads, rng=rng) for heads in (4, 4, 2)]

    def model(x: Any) -> Any:
        for layer in layers:
            x = layer(x)
        return x

    proto = pa.export(model, {"x": x})
    assert len(proto.functions) == 1
    calls = [node for node in proto.graph.node if node.domain == "pyattn"]
    scales = [node.attribute[0].f for node in calls]
    assert scales == pytest.approx([0.5, 0.5, 8**-0.5])


@pytest.mark.parametrize("opset", [18, 24])
def test_attention_outputs_are_the_weights(rng: Any, opset: int) -> None:
    layers = [nn.SelfAttention(8, 2, rng=rng), nn.SelfAttention(8, 4, rng=rng)]
    sample = rng.standard_normal((2, 6, 8)).astype(np.float32)
    lengths = np.array([6, 3])

    def model(x: Any, lengths: Any) -> Any:
        for layer in layers:
            x = layer(x, kv_lengths=lengths)
        return x

    inputs = {
        "x": pa.Input(sample, ("B", "T", None)),
        "lengths": pa.Input(lengths, ("B",), at_most="T"),
    }
    proto = pa.export(model, inputs, opset=opset, attention_outputs=True)
    outputs = {v.name: dims(v) for v in proto.graph.output}
    assert outputs == {
        "output": ["B", "T", 8],
        "attention_weights_0": ["B", 2, "T", "T"],
        "attention_weights_1": ["B", 4, "T", "T"],
    }
    found = dict(
        zip(outputs, session(proto).run(None, {"x": sample, "lengths": lengths}), strict=True)
    )
    x = sample
    for i, layer in enumerate(layers):
        x, weights = layer(x, kv_lengths=lengths, aux=("weights",))
        np.testing.assert_allclose(found[f"attention_weights_{i}"], weights, atol=1e-6)
        assert not weights[1, :, :, 3:].any()


def test_rows_without_keys_are_zero_in_onnx_too(rng: Any) -> None:
    q, k, v = (rng.standard_normal((2, 2, 4, 8)).astype(np.float32) for _ in range(3))
    mask = rng.random((2, 1, 4, 4)) < 0.5
    mask[0, 0, 1] = mask[1] = False
    exact = reference.sdpa(q, k, v, mask=mask).out
    feed = {"q": q, "k": k, "v": v, "m": mask}
    for opset in (18, 24):
        for target in TARGETS:
            proto = pa.export(
                lambda q, k, v, m: pa.scaled_dot_product_attention(q, k, v, m),
                feed, opset=opset, target=target,
            )  # fmt: skip
            (found,) = session(proto).run(None, feed)
            np.testing.assert_allclose(found, exact, atol=1e-6)
            assert not found[1].any()


@pytest.mark.parametrize("opset", [18, 22, 23, 24, 26])
def test_variants_of_a_mechanism_do_not_share_a_body(opset: int, rng: Any) -> None:
    """One model that calls both mechanisms in every way; a name must tell its body."""
    arrays: dict[str, Any] = {
        "x": rng.standard_normal((2, 4, 5, 8)), "y": rng.standard_normal((2, 2, 7, 8)),
        "square": rng.random((5, 5)) < 0.7, "wide": rng.random((2, 1, 1, 7)) < 0.7,
        "row": rng.random(7) < 0.7, "bias": rng.standard_normal((5, 7)),
        "n": np.array([3, 7]),
    }  # fmt: skip

    def attend(
        x: Any, y: Any, dtype: Any, square: Any, wide: Any, row: Any, bias: Any, n: Any
    ) -> Any:
        x, y, bias = (ops.astype(a, dtype) for a in (x, y, bias))
        sdpa, additive = pa.scaled_dot_product_attention, pa.additive_attention
        q, k, v = x[:, 0], y[:, 0], np.linspace(-1, 1, 8).astype(dtype)
        results = [
            sdpa(x, x, x, square), sdpa(x, y, y, wide), sdpa(x, y, y, row), sdpa(x, y, y, bias),
            sdpa(x, y, y, kv_lengths=n), sdpa(x, x, x, is_causal=True), sdpa(x, y, y),
            sdpa(x, y, y, scale=-0.5), sdpa(x, y, y, scale=0.7), sdpa(y, y, y, row, kv_lengths=n),
            *sdpa(x, y, y, aux=("lse",)), *sdpa(x, y, y, row, aux=("weights", "lse")),
            *sdpa(x, y, y, row, aux=("lse", "weights")), sdpa(x, x[:, :1], x[:, :1, :, :3]),
            additive(q, k, k, v), additive(q, k, k, v, is_causal=True),
            additive(q, k, k, v, attn_mask=row), additive(q, k, k, v, attn_mask=bias),
            additive(q, k, k, v, kv_lengths=n), *additive(q, k, k, v, aux=("weights",)),
            *additive(q, k, k, v, aux=("lse",)),
        ]  # fmt: skip
        return [ops.astype(r, np.float64) for r in results]

    def model(**given: Any) -> Any:
        return tuple(r for dtype in (np.float32, np.float64) for r in attend(dtype=dtype, **given))

    exact = model(**arrays)
    for target in TARGETS:
        proto = pa.export(model, arrays, opset=opset, target=target)
        found = session(proto).run(None, arrays)
        for i, (e, f) in enumerate(zip(exact, found, strict=True)):
            np.testing.assert_allclose(f, e, atol=1e-5 if i < len(exact) / 2 else 1e-12)


def test_a_finite_bias_is_a_bias_in_onnx_too(rng: Any) -> None:
    q, k, v = (rng.standard_normal((1, 2, 4, 8)).astype(np.float32) for _ in range(3))
    mask = np.zeros((4, 4), np.float32)
    mask[1] = np.finfo(np.float32).min
    feed = {"q": q, "k": k, "v": v, "m": mask}
    for opset in (18, 24):
        proto = pa.export(
            lambda q, k, v, m: pa.scaled_dot_product_attention(q, k, v, m), feed, opset=opset
        )
        (found,) = session(proto).run(None, feed)
        np.testing.assert_allclose(found[:, :, 1], v.mean(2), atol=1e-6)


def test_names_that_clash_are_told_apart(x: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.x = np.full(16, 5, np.float32)
            self.output = np.full(16, 7, np.float32)
            self.Add = np.full(16, 9, np.float32)

        def __call__(self, x: Any) -> Any:
            return {"output": x + self.x, "Add_1": x + self.output, "constant": x + self.Add}

    found = session(pa.export(Model(), {"x": x})).run(None, {"x": x.example})
    for array, added in zip(found, (5, 7, 9), strict=True):
        np.testing.assert_array_equal(array, x.example + np.float32(added))
    one, nine = (pa.Tensor(np.full(16, n, np.float32), name="w") for n in (1, 9))
    proto = pa.export(lambda x: x + one + nine, {"x": x}, verify=False)
    (array,) = session(proto).run(None, {"x": x.example})
    np.testing.assert_allclose(array, x.example + np.float32(10), rtol=1e-5)
    with pytest.raises(ValueError, match="share a name"):
        pa.export(lambda x: {"x": x + 1.0}, {"x": x})


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_the_table_is_refused_in_onnx_too(index: int, rng: Any) -> None:
    table = nn.Embedding(5, 2, rng=rng)
    run = session(pa.export(table, {"indices": pa.Input(np.array([1, 2]), ("n",))}))
    with pytest.raises(Exception, match="out of data bounds"):
        run.run(None, {"indices": np.array([index])})


def test_large_results_are_compared_by_their_size(rng: Any) -> None:
    a = (1e5 * rng.standard_normal((4, 64))).astype(np.float32)
    b = rng.standard_normal((64, 4)).astype(np.float32)
    pa.export(ops.matmul, {"x": a, "y": b})


def test_an_empty_batch_in_onnx(layer: Any, x: Any) -> None:
    run = session(pa.export(layer, {"x": x}, opset=22))
    for shape in ((0, 5, 16), (2, 0, 16)):
        (found,) = run.run(None, {"x": np.zeros(shape, np.float32)})
        assert found.shape == shape


def test_verification_raises_with_the_largest_difference(x: Any) -> None:
    def model(x: Any) -> Any:
        # Means one thing while tracing and another when it runs: what verification is for.
        return x * 2.0 if isinstance(x, pa.Tensor) else x * np.float32(2.5)

    with pytest.raises(pa.VerificationError, match=r"output 'output' at sizes .* differs .* by"):
        pa.export(model, {"x": x})
    assert pa.export(model, {"x": x}, verify=False).graph.output


def test_verification_uses_sizes_other_than_the_traced_ones(x: Any) -> None:
    seen = []

    def model(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            seen.append(x.shape[:2])
        return x + 1.0

    pa.export(model, {"x": x})
    assert len(set(seen)) == 3
    assert all(batch != 2 and time != 5 for batch, time in seen)


def test_a_dynamic_size_cannot_be_read_while_tracing(x: Any) -> None:
    for use in (
        lambda x: x * (1.0 if x.shape[1] > 3 else 2.0),
        lambda x: x[:, : x.shape[1] - 1],
        lambda x: x * float(x.shape[1]),
        lambda x: [x for _ in range(x.shape[1])],
        lambda x: x * float(ops.sum(x)),
    ):
        with pytest.raises(pa.TraceError):
            pa.export(use, {"x": x})


def test_the_file_is_what_is_returned(layer: Any, x: Any, tmp_path: Path) -> None:
    path = tmp_path / "layer.onnx"
    proto = pa.export(layer, {"x": x}, path)
    assert onnx.load(path) == proto
    assert [p.name for p in tmp_path.iterdir()] == ["layer.onnx"]
    (found,) = session(path).run(None, {"x": x.example})
    np.testing.assert_allclose(found, layer(x.example), atol=1e-5)


def test_a_failure_leaves_no_file_and_keeps_the_old_one(x: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def wrong(x: Any) -> Any:
        return x * 2.0 if isinstance(x, pa.Tensor) else x

    with pytest.raises(pa.VerificationError):
        pa.export(wrong, {"x": x}, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_paths_that_cannot_be_written(layer: Any, x: Any, tmp_path: Path) -> None:
    traced = []

    def model(x: Any) -> Any:
        traced.append(x)
        return x + 1.0

    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "m.onnx", tmp_path, tmp_path / "file" / "m.onnx"):
        with pytest.raises(OSError, match=r"none|folder|Not a directory"):
            pa.export(model, {"x": x}, path)
    assert not traced


@pytest.mark.parametrize("opset", [17, 0, 99, "24"])
def test_opsets_out_of_range(x: Any, opset: Any) -> None:
    with pytest.raises(ValueError, match=rf"opset must lie in 18\.\..*; got .?{opset}"):
        pa.export(lambda x: x + 1.0, {"x": x}, opset=opset)


def test_other_wrong_arguments(x: Any) -> None:
    with pytest.raises(ValueError, match="one input or more"):
        pa.export(lambda: np.ones(3), {})
    with pytest.raises(TypeError, match="must be a Tensor that depends on the inputs"):
        pa.export(lambda x: np.ones(3), {"x": x})  # noqa: ARG005
    with pytest.raises(ValueError, match="name 2 axes"):
        pa.Input(np.ones(3), ("a", "b"))
    with pytest.raises(TypeError, match="example must be an array"):
        pa.Input([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dims must be a tuple"):
        pa.Input(np.ones(2), "a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dims must be a tuple"):
        pa.Input(np.ones((2, 16)), ("a", 16))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="example is empty"):
        pa.Input(np.ones((0, 16)), ("a", None))
    with pytest.raises(TypeError, match="inputs must map names"):
        pa.export(ops.tanh, [np.ones(3)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a module or a function"):
        pa.export(3, {"x": x})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contradicts"):
        pa.export(ops.add, {n: pa.Input(np.ones(s), ("B",)) for n, s in (("x", 3), ("y", 4))})
    with pytest.raises(ValueError, match="which is no dim"):
        pa.export(ops.tanh, {"x": pa.Input(np.ones(3), ("B",), at_most="T")})
    with pytest.raises(ValueError, match="dynamic dimensions must have the same name"):
        pa.export(
            lambda x, y: x + y,
            {"x": pa.Input(np.ones(3), ("a",)), "y": pa.Input(np.ones(3), ("b",))},
        )


def test_dropout_is_refused_while_tracing(rng: Any, x: Any) -> None:
    with pytest.raises(pa.TraceError, match="dropout"):
        pa.export(lambda x: ops.dropout(x, 0.5, rng), {"x": x})
