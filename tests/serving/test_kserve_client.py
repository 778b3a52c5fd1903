"""KServe's client, unchanged."""

from __future__ import annotations

import asyncio
import importlib.util

import numpy as np
import pytest

from .process import ServerProcess

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("kserve") is None, reason="needs kserve"),
    # What its own imports do is not our concern.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def server(model_folder):
    with ServerProcess(model_folder / "add.onnx") as server:
        yield server


def call(server, use, **options):
    """Run `use` with a client, the address and the module."""
    import kserve
    from kserve.inference_client import InferenceRESTClient, RESTConfig

    async def run():
        config = RESTConfig(protocol="v2", timeout=60, **options)
        async with InferenceRESTClient(config) as client:
            return await use(client, f"http://127.0.0.1:{server.port}", kserve)

    return asyncio.run(run())


def test_health(server):
    async def use(client, url, _):
        assert await client.is_server_live(url) is True
        assert await client.is_server_ready(url) is True
        assert await client.is_model_ready(url, "add") is True
        assert await client.is_model_ready(url, "none") is False

    call(server, use)


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_infer(server, binary_input, binary_output):
    a = np.arange(6, dtype=np.float32).reshape(2, 3)

    async def use(client, url, kserve):
        inputs = []
        for name in ("a", "b"):
            entry = kserve.InferInput(name, list(a.shape), "FP32")
            entry.set_data_from_numpy(a, binary_data=binary_input)
            inputs.append(entry)
        request = kserve.InferRequest(
            "add",
            inputs,
            request_id="7",
            parameters={"binary_data_output": binary_output},
        )
        headers = {}
        response = await client.infer(url, request, "add", response_headers=headers)
        assert headers["x-request-id"]
        return response

    response = call(server, use)
    assert (response.id, response.model_name) == ("7", "add")
    np.testing.assert_array_equal(response.get_output_by_name("total").as_numpy(), a + a)


def test_request_as_a_dictionary(server):
    entry = {"shape": [1, 2], "datatype": "FP32", "data": [[1.5, 2]]}
    request = {"inputs": [{"name": name, **entry} for name in ("a", "b")]}

    async def use(client, url, _):
        return await client.infer(url, request, "add")

    assert call(server, use).get_output_by_name("total").data == [3, 4]


def test_errors_reach_the_caller(server):
    async def use(client, url, _):
        await client.infer(url, {"inputs": []}, "add")

    with pytest.raises(Exception, match="missing input 'a', 'b', '400 Bad Request'"):
        call(server, use)
