"""Models that pyattn exports, in the server."""

from __future__ import annotations

import numpy as np
import pytest
from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.model_file import inspect

from .asgi_client import Client

pa = pytest.importorskip("pyattn")


@pytest.fixture
def layer():
    return pa.nn.TransformerEncoderLayer(64, 2, 96, rng=np.random.default_rng(0))


@pytest.mark.parametrize("weights", [None, "float16", "bfloat16", "int8"])
def test_weights_in_a_file_of_their_own(tmp_path, layer, weights):
    x = np.random.default_rng(1).standard_normal((2, 5, 64)).astype(np.float32)
    path = tmp_path / "layer.onnx"
    inputs = {"x": pa.Input(x, ("batch", "time", None))}
    pa.export(layer, inputs, path, weights=weights, external_data=True)
    assert inspect(path).external == {"layer.onnx.data"}
    engine = Engine([ModelSource.of(path)], threads=1)
    engine.load()
    try:
        request = {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [2, 5, 64], "data": x.ravel().tolist()}
            ]
        }
        client = Client(Application(engine, Limits(1 << 20, 30.0)))
        answer = client.infer("layer", request)
        assert answer.status == 200
        found = np.array(answer.tensors()["output"]).reshape(2, 5, 64)
    finally:
        engine.close()
    (expected,) = pa.ort.session(path).run(None, {"x": x})
    np.testing.assert_allclose(found, expected, atol=1e-6)
