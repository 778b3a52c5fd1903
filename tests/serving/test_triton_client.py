"""A client that others use, unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import tritonclient.http as tritonhttp

from .process import ServerProcess


@pytest.fixture(scope="module")
def servers(model_folder):
    """A function that returns a client of a server of one model."""
    running, clients = {}, []

    def connect(name):
        if name not in running:
            running[name] = ServerProcess(model_folder / f"{name}.onnx")
            clients.append(tritonhttp.InferenceServerClient(f"127.0.0.1:{running[name].port}"))
            running[name].client = clients[-1]
        return running[name].client

    yield connect
    for client in clients:
        client.close()
    for server in running.values():
        server.__exit__()


def tensor(name, values, datatype, binary):
    entry = tritonhttp.InferInput(name, list(values.shape), datatype)
    entry.set_data_from_numpy(values, binary_data=binary)
    return entry


def test_health_and_metadata(servers):
    client = servers("add")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("add")
    assert client.is_model_ready("add", "1")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["name"] == "pyattn-serve"
    assert [i["name"] for i in client.get_model_metadata("add")["inputs"]] == ["a", "b"]


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False, None])
def test_infer(servers, binary_input, binary_output):
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    b = a * 10
    inputs = [tensor("a", a, "FP32", binary_input), tensor("b", b, "FP32", True)]
    outputs = None
    if binary_output is not None:
        outputs = [tritonhttp.InferRequestedOutput("total", binary_data=binary_output)]
    result = servers("add").infer("add", inputs, outputs=outputs, request_id="7")
    np.testing.assert_array_equal(result.as_numpy("total"), a + b)
    assert result.get_response()["id"] == "7"
    if outputs is None:
        np.testing.assert_array_equal(result.as_numpy("rows"), (a + b).sum(1, keepdims=True))


@pytest.mark.parametrize("binary", [True, False])
def test_strings(servers, binary):
    values = np.array([["Grüße", ""], ["a b", "☃"]], dtype=object)
    outputs = [tritonhttp.InferRequestedOutput("y", binary_data=binary)]
    result = servers("identity_BYTES").infer(
        "identity_BYTES", [tensor("x", values, "BYTES", binary)], outputs=outputs
    )
    found = [v.decode() if isinstance(v, bytes) else v for v in result.as_numpy("y").ravel()]
    assert found == values.ravel().tolist()


def test_asynchronous_calls(servers):
    client = servers("add")
    ones = np.ones((1, 2), np.float32)
    calls = []
    for i in range(10):
        inputs = [tensor("a", ones * i, "FP32", True), tensor("b", ones, "FP32", True)]
        calls.append(client.async_infer("add", inputs))
    for i, call in enumerate(calls):
        np.testing.assert_array_equal(call.get_result().as_numpy("total"), ones * (i + 1))


def test_errors_reach_the_caller(servers):
    wrong = tensor("a", np.ones((1, 2), np.float32), "FP32", True)
    with pytest.raises(tritonhttp.InferenceServerException, match="missing input 'b'") as caught:
        servers("add").infer("add", [wrong])
    assert caught.value.status() == "400"
