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
        inline = pa.export(layer, {"x": x}, opset=opset, functions=False, verify=False)
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
        for functions in (True, False):
            proto = pa.export(
                lambda q, k, v, m: pa.scaled_dot_product_attention(q, k, v, m),
                feed, opset=opset, functions=functions,
            )  # fmt: skip
            (found,) = session(proto).run(None, feed)
            np.testing.assert_allclose(found, exact, atol=1e-6)
            assert not found[1].any()


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


@pytest.mark.parametrize("opset", [17, 0, 99])
def test_opsets_out_of_range(x: Any, opset: int) -> None:
    with pytest.raises(ValueError, match=rf"opset must lie in 18\.\..*; got {opset}"):
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
    with pytest.raises(ValueError, match="dynamic dimensions must have the same name"):
        pa.export(
            lambda x, y: x + y,
            {"x": pa.Input(np.ones(3), ("a",)), "y": pa.Input(np.ones(3), ("b",))},
        )


def test_dropout_is_refused_while_tracing(rng: Any, x: Any) -> None:
    with pytest.raises(pa.TraceError, match="dropout"):
        pa.export(lambda x: ops.dropout(x, 0.5, rng), {"x": x})
