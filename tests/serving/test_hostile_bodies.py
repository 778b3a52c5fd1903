"""Bodies that are small and mean a lot, against a process."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from .asgi_client import tensor
from .process import ServerProcess

VECTOR = {"inputs": [tensor("x", "FP32", (2,), [1, 2])]}


@pytest.fixture(scope="module")
def server(model_folder):
    with ServerProcess(model_folder / "vector.onnx") as server:
        yield server
        assert server.infer("vector", VECTOR)[2]["outputs"][0]["data"] == [1, 2]
        server.signal()
        code, errors = server.wait()
        assert code == 0
        assert "Traceback" not in errors


def test_bomb(server):
    bomb = gzip.compress(bytes(200 << 20), 9)
    server.infer("vector", VECTOR)
    before = server.peak_memory()
    status, _, content = server.request(
        "POST", "/v2/models/vector/infer", bomb, {"Content-Encoding": "gzip"}
    )
    assert (status, "error" in content) == (413, True)
    assert server.peak_memory() - before < 100 << 20


@pytest.mark.parametrize("depth", [100, 101, 1_000_000])
def test_deep_json(server, depth):
    status, _, content = server.request(
        "POST", "/v2/models/vector/infer", b"[" * depth + b"]" * depth
    )
    assert (status, "error" in content) == (400, True)


@pytest.mark.parametrize(("depth", "status"), [(100, 200), (101, 400)])
def test_the_deepest_json(server, depth, status):
    """What the server does not know may be there, but not deeper than the rest."""
    extra = "[" * (depth - 1) + "]" * (depth - 1)
    text = json.dumps(VECTOR)[:-1] + f', "extra": {extra}}}'
    headers = {"Content-Type": "application/json"}
    found, _, content = server.request("POST", "/v2/models/vector/infer", text.encode(), headers)
    assert found == status
    assert status == 200 or "more than 100 deep" in content["error"]


@pytest.mark.parametrize("shape", [[2**63], [2**62, 4], [2**31, 2**31, 2], [-1], [2**64]])
def test_overflowing_shapes(server, shape):
    request = {"inputs": [tensor("x", "FP32", shape, [1, 2])]}
    status, _, content = server.infer("vector", request)
    assert (status, "error" in content) == (400, True)


def test_memory_of_large_json(server):
    """The numbers of a request in JSON take the memory of their tensor."""
    pytest.importorskip("pyattn_serving._json", reason="the extension was not built")
    values = np.random.default_rng(0).standard_normal(1_500_000).astype(np.float32)
    body = {"inputs": [tensor("x", "FP32", values.shape, values)]}
    body["parameters"] = {"binary_data_output": True}
    text = json.dumps(body).encode()
    assert len(text) > 30_000_000
    server.infer("vector", VECTOR)
    before = server.resident_memory()
    status, _, content = server.request(
        "POST", "/v2/models/vector/infer", text, {"Content-Type": "application/json"}
    )
    assert status == 200
    assert content[-values.nbytes :] == values.tobytes()
    peak = server.peak_memory()
    assert peak - before < 4 * len(text)
