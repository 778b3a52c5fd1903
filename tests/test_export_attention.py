"""Attention weights as outputs of a file, and the input that says whether they are computed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import nn, ops
from pyattn.ort import describe, session

OFF = np.array(False)


@pytest.fixture
def layers(rng: Any) -> list[nn.SelfAttention]:
    return [nn.SelfAttention(8, heads, rng=rng) for heads in (2, 4)]


@pytest.fixture
def inputs(rng: Any) -> dict[str, pa.Input]:
    x = rng.standard_normal((2, 4, 8)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    return {
        "x": pa.Input(x, ("batch", "time", None), pad=7.5),
        "real": pa.Input(mask, ("batch", "time"), mask_of="time"),
    }


@pytest.fixture
def model(layers: Any) -> Any:
    def model(x: Any, real: Any) -> Any:
        mask = ops.expand_dims(ops.expand_dims(ops.astype(real, np.bool_), 1), 1)
        for layer in layers:
            x = layer(x, mask)
        return x

    return model


def metadata(proto: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def request(rng: Any, length: int) -> dict[str, Any]:
    x = rng.standard_normal((1, length, 8)).astype(np.float32)
    return {"x": x, "real": np.ones((1, length), np.int64)}


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize(
    ("target", "opset"), [("functions", 18), ("functions", 24), ("onnx24", 24)]
)
def test_weights_are_computed_where_they_are_wanted(
    model: Any, layers: Any, inputs: Any, rng: Any, target: Any, opset: int, accelerate: bool
) -> None:
    proto = pa.export(model, inputs, target=target, opset=opset, attention_outputs=True)
    plain = session(pa.export(model, inputs, target=target, opset=opset), accelerate=accelerate)
    assert metadata(proto)["pyattn.attention"] == "attention_wanted"
    run = session(proto, accelerate=accelerate)
    assert [x.name for x in run.get_inputs()] == ["x", "real"]
    assert [x.name for x in run.get_overridable_initializers()] == ["attention_wanted"]
    feed = {"x": inputs["x"].example, "real": inputs["real"].example}
    (right,) = plain.run(None, feed)
    output, *weights = run.run(None, feed)
    # What is not asked for changes no bit of the rest.
    np.testing.assert_array_equal(output, right)
    x, mask = feed["x"], feed["real"][:, None, None, :].astype(bool)
    for layer, found in zip(layers, weights, strict=True):
        x, expected = layer(x, mask, aux=("weights",))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    output, *weights = run.run(None, {**feed, "attention_wanted": OFF})
    np.testing.assert_array_equal(output, right)
    assert [array.shape for array in weights] == [(0, 2, 0, 0), (0, 4, 0, 0)]


def test_the_kernels_of_the_weights_are_nodes_of_their_own(model: Any, inputs: Any) -> None:
    run = session(pa.export(model, inputs, attention_outputs=True))
    placed = [(x.operator.endswith("Weights"), x.accelerated) for x in describe(run)]
    assert sorted(placed) == [(False, True)] * 2 + [(True, True)] * 2


def test_no_switch_where_weights_cost_nothing(model: Any, inputs: Any, layers: Any) -> None:
    # Written out they are on the way to the output; here the model uses them itself.
    proto = pa.export(model, inputs, target="primitive", attention_outputs=True)
    assert "pyattn.attention" not in metadata(proto)

    def shown(x: Any, real: Any) -> Any:
        out, weights = layers[0](x, aux=("weights",))
        return out * ops.sum(weights) * ops.astype(ops.sum(real), np.float32)

    plain = {name: pa.Input(i.example) for name, i in inputs.items()}
    proto = pa.export(shown, plain, attention_outputs=True)
    assert "pyattn.attention" not in metadata(proto)
    assert [x.name for x in proto.graph.output] == ["output", "attention_weights_0"]
    assert "pyattn.attention" not in metadata(pa.export(model, inputs))


def test_the_switch_takes_no_name_of_the_model(layers: Any, inputs: Any) -> None:
    def model(attention_wanted: Any) -> Any:
        return layers[0](attention_wanted)

    x = inputs["x"]
    proto = pa.export(model, {"attention_wanted": x}, attention_outputs=True)
    name = metadata(proto)["pyattn.attention"]
    assert name != "attention_wanted"
    output, weights = session(proto).run(None, {"attention_wanted": x.example, name: OFF})
    np.testing.assert_allclose(output, layers[0](x.example), atol=1e-6)
    assert weights.size == 0


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_a_switch_in_a_file_of_small_weights(rng: Any, weights: Any) -> None:
    layer = nn.TransformerEncoderLayer(64, 2, 96, rng=rng)
    x = rng.standard_normal((2, 5, 64)).astype(np.float32)
    given = {"x": pa.Input(x, ("batch", "time", None))}
    run = session(pa.export(layer, given, weights=weights, attention_outputs=True))
    output, maps = run.run(None, {"x": x})
    assert maps.shape == (2, 2, 5, 5)
    found, none = run.run(None, {"x": x, "attention_wanted": OFF})
    np.testing.assert_array_equal(found, output)
    assert none.shape == (0, 2, 0, 0)


@pytest.mark.parametrize("target", ["functions", "primitive"])
def test_a_file_tells_how_weights_are_cut_out_of_a_batch(
    model: Any, inputs: Any, rng: Any, target: Any
) -> None:
    proto = pa.export(model, inputs, target=target, attention_outputs=True)
    how = json.loads(metadata(proto)["pyattn.batching"])
    axes = {"batch": 0, "sequence": [2, 3]}
    assert how["outputs"] == {
        "output": {"batch": 0, "sequence": 1},
        "attention_weights_0": axes,
        "attention_weights_1": axes,
    }
    requests = [request(rng, length) for length in (3, 7, 1)]
    together = {
        name: np.concatenate(
            [
                np.pad(
                    r[name],
                    [(0, 7 - n if i == 1 else 0) for i, n in enumerate(r[name].shape)],
                    constant_values=entry["pad"],
                )
                for r in requests
            ]
        )
        for name, entry in how["inputs"].items()
    }
    run = session(proto)
    found = run.run(None, together)
    for row, alone in enumerate(requests):
        length = alone["x"].shape[1]
        output, *weights = run.run(None, alone)
        np.testing.assert_allclose(found[0][row : row + 1, :length], output, atol=1e-6)
        for whole, part in zip(found[1:], weights, strict=True):
            cut = whole[row : row + 1, :, :length, :length]
            np.testing.assert_allclose(cut, part, atol=1e-6)
