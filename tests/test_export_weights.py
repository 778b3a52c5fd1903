"""How weights are stored: in 16 and 8 bits, and in a file of their own."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

import pyattn as pa
from pyattn import nn, onnx_weights
from pyattn.ort import describe, session

HALVES: dict[Any, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


class Reader(nn.Module):
    """Looks up, attends, and multiplies by the table that it looked up in."""

    def __init__(self, rng: Any) -> None:
        self.table = nn.Embedding(50, 32, rng=rng)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, rng=rng)
        self.head = nn.Linear(32, 50, rng=rng)

    def __call__(self, ids: Any) -> Any:
        return self.head(self.layer(self.table(ids)))


@pytest.fixture
def model(rng: Any) -> Reader:
    return Reader(rng)


@pytest.fixture
def inputs(rng: Any) -> dict[str, Any]:
    return {"ids": pa.Input(rng.integers(0, 50, (2, 6)), ("batch", "time"))}


def stored(proto: Any) -> dict[str, Any]:
    return {x.name: onnx.numpy_helper.to_array(x) for x in proto.graph.initializer}


def metadata(proto: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def rounded(model: Reader, dtype: Any) -> Any:
    """The same model by hand: matrices rounded, vectors as they are."""
    return model.replace(
        {
            name: array.astype(dtype).astype(np.float32)
            for name, array in model.parameters().items()
            if array.ndim >= 2
        }
    )


@pytest.mark.parametrize("target", ["functions", "primitive"])
@pytest.mark.parametrize("name", HALVES)
def test_halves(name: Any, target: Any, model: Any, inputs: Any, tmp_path: Path) -> None:
    paths = {weights: tmp_path / f"{weights}.onnx" for weights in (None, name)}
    for weights, path in paths.items():
        pa.export(model, inputs, path, weights=weights, target=target)
    proto = onnx.load(paths[name])
    assert metadata(proto)["pyattn.weights"] == name
    half = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(HALVES[name]))
    kinds = {x.name: x.data_type for x in proto.graph.initializer if len(x.dims) >= 2}
    assert set(kinds.values()) == {half}
    # A table is looked up in as it is stored: only the rows that are found are widened.
    (lookup,) = (node for node in proto.graph.node if node.op_type == "Gather")
    assert lookup.input[0] in kinds
    vectors = [x for x in proto.graph.initializer if len(x.dims) == 1]
    assert onnx.TensorProto.FLOAT in {x.data_type for x in vectors}
    ids = np.array([[3, 1, 49, 0]])
    (found,) = session(paths[name]).run(None, {"ids": ids})
    np.testing.assert_allclose(found, rounded(model, HALVES[name])(ids), atol=1e-5)
    exact = model(ids)
    assert np.abs(found - exact).max() > 1e-5  # rounded indeed


def test_halves_are_rounded_before_anything_is_made_of_them(rng: Any) -> None:
    """Weight normalisation makes new numbers: those are not rounded, or a bit would be lost."""
    layer = nn.AdditiveAttention(16, 16, 24, num_heads=2, normalize=True, rng=rng)
    x = pa.Input(rng.standard_normal((2, 5, 16)).astype(np.float32), ("B", "T", None))

    class Model(nn.Module):
        def __init__(self) -> None:
            self.attention = layer

        def __call__(self, x: Any) -> Any:
            return self.attention(x, x, x)

    pa.export(Model(), {"x": x}, weights="float16")


def test_a_weight_read_in_a_loop_is_widened_before_it(rng: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.linear = nn.Linear(32, 32, rng=rng)

        def __call__(self, x: Any) -> Any:
            def step(state: Any) -> Any:
                after = pa.ops.tanh(self.linear(state))
                return after, after

            return pa.ops.loop(step, x, 3)[0]

    x = pa.Input(rng.standard_normal((2, 32)).astype(np.float32), ("B", None))
    proto = pa.export(Model(), {"x": x}, weights="bfloat16")
    assert next(node.op_type for node in proto.graph.node) == "Cast"
    assert "Loop" in {node.op_type for node in proto.graph.node}


def test_models_that_have_no_half(model: Any, inputs: Any, rng: Any) -> None:
    with pytest.raises(TypeError, match=r"weights='float16' needs a module"):
        pa.export(lambda ids: model(ids), inputs, weights="float16")
    wide = model.replace({n: a.astype(np.float64) for n, a in model.parameters().items()})
    with pytest.raises(ValueError, match="no float32 matrix to store as bfloat16"):
        pa.export(wide, inputs, weights="bfloat16")
    weight = model.head.weight.copy()
    weight[3, 4] = 7e4
    large = model.replace({"head.weight": weight})
    with pytest.raises(
        ValueError, match=r"head\.weight has entries up to 7e\+04, beyond .*float16"
    ):
        pa.export(large, inputs, weights="float16")
    pa.export(large, inputs, weights="bfloat16")
    with pytest.raises(ValueError, match=r"weights must be None or one of .*; got 'int4'"):
        pa.export(model, inputs, weights="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["functions", "primitive", "onnx24"])
def test_eight_bits(target: Any, model: Any, inputs: Any, tmp_path: Path, rng: Any) -> None:
    path = tmp_path / "model.onnx"
    plain = pa.export(model, inputs, target=target)
    proto = pa.export(model, inputs, path, weights="int8", target=target)
    assert onnx.load(path) == proto
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert proto.functions == plain.functions  # the bodies are as they were
    count = [[x.op_type for x in p.graph.node].count("Attention") for p in (plain, proto)]
    assert count[0] == count[1] == (target == "onnx24")
    kinds = {x.data_type for x in proto.graph.initializer if len(x.dims) >= 2}
    assert kinds == {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}  # matrices, the table
    assert "MatMulInteger" in {node.op_type for node in proto.graph.node}
    assert not proto.graph.value_info
    if target == "functions":
        assert [x.accelerated for x in describe(session(path))] == [True]
    told = json.loads(metadata(proto)["pyattn.difference"])
    ids = rng.integers(0, 50, (4, 9))
    difference = np.abs(session(path).run(None, {"ids": ids})[0] - model(ids)).max()
    assert 0 < difference < 4 * told["largest"]
    assert 0 < told["relative"] < 0.25
    assert metadata(proto)["pyattn.weights"] == "int8"
    assert "onnx.quant.pre_process" not in metadata(proto)


def test_models_without_eight_bits(model: Any, inputs: Any, rng: Any) -> None:
    x = pa.Input(rng.standard_normal((2, 4, 8)).astype(np.float32), ("B", "T", None))
    with pytest.raises(ValueError, match="no float32 matrix to store as int8"):
        pa.export(nn.GRU(8, 4, rng=rng), {"x": x}, weights="int8")
    # One large number in each column, which the input never meets, leaves none of the others.
    weight = rng.standard_normal((8, 4)).astype(np.float32)
    weight[0] = 1e4

    class Outlier(nn.Module):
        def __init__(self) -> None:
            self.weight = weight

        def __call__(self, x: Any) -> Any:
            return x @ self.weight

    x.example[..., 0] = 0
    with pytest.raises(pa.VerificationError, match=r"moves by .* more than a quarter"):
        pa.export(Outlier(), {"x": x}, weights="int8")


def test_weights_in_a_file_of_their_own(model: Any, inputs: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    proto = pa.export(model, inputs, path, external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    for file in tmp_path.iterdir():
        status = file.lstat()
        assert stat.S_ISREG(status.st_mode)
        assert status.st_nlink == 1
        assert stat.S_IMODE(status.st_mode) & 0o400
    assert onnx.load(path, load_external_data=False) == proto
    assert path.stat().st_size < 12_000
    apart = [x for x in proto.graph.initializer if x.external_data]
    assert {entry.value for x in apart for entry in x.external_data if entry.key == "location"} == {
        "model.onnx.data"
    }
    offsets = [int(e.value) for x in apart for e in x.external_data if e.key == "offset"]
    assert offsets == sorted(offsets)
    assert not any(offset % 4096 for offset in offsets)
    onnx.checker.check_model(str(path), full_check=True)
    same = stored(onnx.load(path))
    for name, array in stored(pa.export(model, inputs)).items():
        np.testing.assert_array_equal(same[name], array)
    ids = np.array([[3, 1, 49, 0]])
    for run in (session(path), session(proto, folder=tmp_path), session(path, accelerate=False)):
        np.testing.assert_allclose(run.run(None, {"ids": ids})[0], model(ids), atol=1e-5)


@pytest.mark.parametrize("weights", [None, "bfloat16", "int8"])
def test_a_model_too_large_for_one_file(
    weights: Any, model: Any, inputs: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    size = pa.export(model, inputs, weights=weights).ByteSize()
    path = tmp_path / "model.onnx"
    monkeypatch.setattr(onnx_weights, "LARGEST_FILE", size // 2)
    with pytest.raises(ValueError, match=r"larger than one ONNX file, \d+; give a path"):
        pa.export(model, inputs, weights=weights)
    with pytest.raises(ValueError, match="give external_data=None"):
        pa.export(model, inputs, path, weights=weights, external_data=False)
    with pytest.raises(ValueError, match="external_data needs a path"):
        pa.export(model, inputs, weights=weights, external_data=True)
    assert not list(tmp_path.iterdir())
    pa.export(model, inputs, path, weights=weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    monkeypatch.undo()
    (tmp_path / "one").mkdir()
    whole = pa.export(model, inputs, tmp_path / "one" / "model.onnx", weights=weights)
    assert not any(x.external_data for x in whole.graph.initializer)
    ids = np.array([[3, 1, 49, 0]])
    one, other = (
        session(p).run(None, {"ids": ids})[0] for p in (path, tmp_path / "one/model.onnx")
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_failure_leaves_both_files_as_they_were(
    model: Any, inputs: Any, tmp_path: Path, rng: Any
) -> None:
    path = tmp_path / "model.onnx"
    pa.export(model, inputs, path, external_data=True)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    class Wrong(nn.Module):
        def __init__(self) -> None:
            self.weight = rng.standard_normal((50, 50)).astype(np.float32)

        def __call__(self, ids: Any) -> Any:
            rows = pa.ops.take(self.weight, ids)
            return rows * 2.0 if isinstance(rows, pa.Tensor) else rows

    with pytest.raises(pa.VerificationError):
        pa.export(Wrong(), inputs, path, external_data=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    pa.export(Reader(rng), inputs, path, external_data=True)
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after["model.onnx.data"] != before["model.onnx.data"]
