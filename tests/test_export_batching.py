"""What the metadata of a file tells: sizes, and how requests are put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pyattn as pa
from pyattn import ops
from pyattn.models import Bert, BertConfig
from pyattn.ort import session

CONFIG = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=32, max_position_embeddings=24, pad_token_id=3,
)  # fmt: skip


def metadata(proto: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.metadata_props}


def batching(proto: Any) -> Any:
    return json.loads(metadata(proto).get("pyattn.batching", "null"))


@pytest.fixture
def bert(rng: Any) -> Bert:
    return Bert(CONFIG, rng=rng)


@pytest.fixture
def padded(rng: Any) -> dict[str, Any]:
    """Inputs of which one is a mask of the other."""
    x = rng.standard_normal((2, 4, 8)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    return {
        "x": pa.Input(x, ("batch", "time", None), pad=7.5),
        "real": pa.Input(mask, ("batch", "time"), mask_of="time"),
    }


def test_what_a_file_tells_of_itself(bert: Any, tmp_path: Path) -> None:
    path = tmp_path / "bert.onnx"
    pa.export(bert, bert.example_inputs(), path, opset=20, target="primitive", weights="float16")
    found = metadata(onnx.load(path))
    both = {"input_ids": 0, "attention_mask": 0}
    assert json.loads(found.pop("pyattn.dimensions")) == {
        "batch": both,
        "sequence": dict.fromkeys(both, 1),
    }
    assert json.loads(found.pop("pyattn.batching"))["kind"] == "padded"
    assert found == {
        "pyattn.version": pa.runtime.build_info()["version"],
        "pyattn.opset": "20",
        "pyattn.target": "primitive",
        "pyattn.weights": "float16",
    }
    assert session(path).get_modelmeta().custom_metadata_map["pyattn.opset"] == "20"


def test_padded_sequences(bert: Any) -> None:
    axes = {"batch": 0, "sequence": 1}
    assert batching(pa.export(bert, bert.example_inputs())) == {
        "kind": "padded",
        "inputs": {"input_ids": {**axes, "pad": 3}, "attention_mask": {**axes, "pad": 0}},
        "mask": "attention_mask",
        "outputs": {"output": axes},
    }

    def pooled(**inputs: Any) -> Any:
        return {"states": bert(**inputs), "pooled": bert.pool(bert(**inputs))}

    outputs = batching(pa.export(pooled, bert.example_inputs()))["outputs"]
    assert outputs == {"states": axes, "pooled": {"batch": 0, "sequence": None}}


def test_packed_sequences(bert: Any) -> None:
    def model(input_ids: Any, cu_seqlens: Any) -> Any:
        states = bert(input_ids, cu_seqlens=cu_seqlens)
        return {"states": states, "first": ops.take(states, cu_seqlens[:-1])}

    assert batching(pa.export(model, bert.example_inputs(packed=True))) == {
        "kind": "packed",
        "offsets": "cu_seqlens",
        "inputs": {"input_ids": {"axis": 0}},
        "outputs": {
            "states": {"axis": 0, "per": "token"},
            "first": {"axis": 0, "per": "sequence"},
        },
    }


def test_a_server_gets_the_answers_of_single_requests(bert: Any, rng: Any) -> None:
    """Requests put together by the metadata alone."""
    proto = pa.export(bert, bert.example_inputs())
    run, how = session(proto), batching(proto)
    requests = [
        {"input_ids": rng.integers(0, 30, (1, n)), "attention_mask": np.ones((1, n), np.int64)}
        for n in (5, 2, 9, 1)
    ]
    longest = 9
    together = {}
    for name, axes in how["inputs"].items():
        rows = []
        for request in requests:
            width = [(0, 0)] * request[name].ndim
            width[axes["sequence"]] = (0, longest - request[name].shape[axes["sequence"]])
            rows.append(np.pad(request[name], width, constant_values=axes["pad"]))
        together[name] = np.concatenate(rows, axes["batch"])
    (states,) = run.run(None, together)
    for row, request in enumerate(requests):
        (alone,) = run.run(None, request)
        length = request["input_ids"].shape[1]
        np.testing.assert_allclose(states[row : row + 1, :length], alone, atol=1e-6)


def test_entries_of_equal_shape() -> None:
    x = pa.Input(np.ones((2, 3, 4), np.float32), ("batch", None, None))
    assert batching(pa.export(lambda x: ops.sum(x, 2), {"x": x})) == {
        "kind": "padded",
        "inputs": {"x": {"batch": 0, "sequence": None, "pad": 0}},
        "mask": None,
        "outputs": {"output": {"batch": 0, "sequence": None}},
    }


def test_sequences_along_two_axes(padded: Any) -> None:
    def pairs(x: Any, real: Any) -> Any:
        real = ops.astype(real, np.float32)
        return ops.expand_dims(ops.sum(x, 2) * real, 2) * ops.expand_dims(real, 1)

    how = batching(pa.export(pairs, padded))
    assert how["outputs"] == {"output": {"batch": 0, "sequence": [1, 2]}}

    def hide(x: Any, real: Any, apart: Any) -> Any:
        return x * ops.expand_dims(ops.astype(real * ops.sum(apart, 2), np.float32), 2)

    apart = pa.Input(np.ones((2, 4, 4), np.int64), ("batch", "time", "time"))
    how = batching(pa.export(hide, {**padded, "apart": apart}))
    assert how["inputs"]["apart"] == {"batch": 0, "sequence": [1, 2], "pad": 0}


def test_where_nothing_is_told(padded: Any) -> None:
    # Another dynamic dimension, and one of another name than "batch".
    x = padded["x"].example
    for dims in (("batch", "time", None), ("B", None, None), (None, None, None)):
        assert batching(pa.export(ops.tanh, {"x": pa.Input(x, dims)})) is None
    # Entries that are gone from the output.

    def without_entries(x: Any, real: Any) -> Any:
        return ops.sum(x, 0)

    assert batching(pa.export(without_entries, padded)) is None


def test_a_batch_that_changes_its_entries_is_refused(padded: Any) -> None:
    def over_the_padding(x: Any, real: Any) -> Any:
        return ops.mean(x, 1) + ops.astype(ops.sum(real, 1, keepdims=True) * 0, np.float32)

    def over_the_batch(x: Any, real: Any) -> Any:
        real = ops.astype(real, np.float32)
        return ops.expand_dims(real, 2) * (x - ops.mean(x, 0, keepdims=True))

    for model in (over_the_padding, over_the_batch):
        with pytest.raises(pa.VerificationError, match="in a batch differs from that of it alone"):
            pa.export(model, padded)
    x = {"x": pa.Input(padded["x"].example, ("batch", None, None))}
    with pytest.raises(pa.VerificationError, match="in a batch differs"):
        pa.export(lambda x: x - ops.mean(x, 0, keepdims=True), x)
    packed = {
        "x": pa.Input(np.ones((4, 2), np.float32), ("tokens", None)),
        "ends": pa.Input(np.array([0, 1, 4]), ("offsets",), offsets_of="tokens"),
    }

    def across(x: Any, ends: Any) -> Any:
        return x + ops.sum(x, 0, keepdims=True)

    with pytest.raises(pa.VerificationError, match="in a batch differs"):
        pa.export(across, packed)


def test_wrong_inputs_of_a_batch() -> None:
    ids = np.ones((2, 3), np.int64)
    for dims in ((None, "time"), ("time", "batch"), ()):
        with pytest.raises(ValueError, match=r"a mask of 'time' must have dims \(batch, 'time'\)"):
            pa.Input(ids, dims, mask_of="time")
    with pytest.raises(TypeError, match="pad must be a number; got '0'"):
        pa.Input(ids, pad="0")  # type: ignore[arg-type]
