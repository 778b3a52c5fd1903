"""A client that others use, unchanged."""

from __future__ import annotations

import asyncio

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as tritonhttp
import tritonclient.http.aio as tritonaio

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

    connect.server = running.get
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


def test_settings_of_the_server(servers):
    client = servers("add")
    assert client.get_log_settings()["log_error"] is True
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.get_trace_settings("add")["trace_level"] == ["OFF"]
    for change in (
        lambda: client.update_log_settings({"log_verbose_level": 1}),
        lambda: client.update_trace_settings(settings={"trace_level": ["MAX"]}),
    ):
        with pytest.raises(tritonhttp.InferenceServerException) as caught:
            change()
        assert caught.value.status() == "405"


@pytest.mark.parametrize("request_encoding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_encoding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compression(servers, request_encoding, response_encoding, binary):
    a = np.arange(3000, dtype=np.float32).reshape(3, 1000)
    inputs = [tensor("a", a, "FP32", binary), tensor("b", a, "FP32", True)]
    result = servers("add").infer(
        "add",
        inputs,
        outputs=[tritonhttp.InferRequestedOutput("total", binary_data=binary)],
        request_compression_algorithm=request_encoding,
        response_compression_algorithm=response_encoding,
    )
    np.testing.assert_array_equal(result.as_numpy("total"), a + a)


def test_time_and_priority(servers):
    x = np.zeros((64, 64), np.float32)
    count = np.array(10**7)

    def infer(count, **options):
        inputs = [tensor("x", x, "FP32", True), tensor("count", count, "INT64", True)]
        return servers("slow").infer("slow", inputs, priority=1, **options)

    with pytest.raises(tritonhttp.InferenceServerException, match="timeout") as caught:
        infer(count, timeout=50_000)
    assert caught.value.status() == "504"
    np.testing.assert_array_equal(infer(np.array(1), timeout=60_000_000).as_numpy("y"), x)


def test_headers_and_parameters(servers):
    x = np.float32([1, 2])
    result = servers("vector").infer(
        "vector",
        [tensor("x", x, "FP32", True)],
        model_version="1",
        headers={"X-Request-Id": "t1"},
        query_params={"a": 1},
        parameters={"note": "kept for oneself", "share": 0.5},
    )
    np.testing.assert_array_equal(result.as_numpy("y"), x)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "BOOL", "UINT64", "INT8"])
def test_datatypes(servers, datatype):
    kind = {"FP16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": bool, "UINT64": np.uint64}
    values = np.array([[0, 1], [1, 0]], kind.get(datatype, np.int8))
    name = f"identity_{datatype}"
    result = servers(name).infer(name, [tensor("x", values, datatype, True)])
    np.testing.assert_array_equal(result.as_numpy("y"), values)


def test_body_made_beforehand(servers):
    x = np.float32([1, 2])
    body, size = tritonhttp.InferenceServerClient.generate_request_body(
        [tensor("x", x, "FP32", True)]
    )
    servers("vector")
    headers = {"Inference-Header-Content-Length": str(size)}
    status, received, content = servers.server("vector").request(
        "POST", "/v2/models/vector/infer", body, headers
    )
    assert status == 200
    received = {key.lower(): value for key, value in received.items()}
    result = tritonhttp.InferenceServerClient.parse_response_body(
        content, header_length=int(received["inference-header-content-length"])
    )
    np.testing.assert_array_equal(result.as_numpy("y"), x)


def test_asyncio_client(servers):
    """The calls of the client for asyncio, many at a time."""
    servers("add")
    address = f"127.0.0.1:{servers.server('add').port}"
    a = np.arange(2000, dtype=np.float32).reshape(2, 1000)

    async def run():
        async with tritonaio.InferenceServerClient(address) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("add", "1")
            assert not await client.is_model_ready("none")
            assert (await client.get_server_metadata())["name"] == "pyattn-serve"
            assert (await client.get_model_metadata("add"))["name"] == "add"
            assert (await client.get_log_settings())["log_error"] is True
            assert (await client.get_trace_settings())["trace_level"] == ["OFF"]
            calls = [
                client.infer(
                    "add",
                    [tensor("a", a * i, "FP32", i % 2 == 0), tensor("b", a, "FP32", True)],
                    outputs=[tritonhttp.InferRequestedOutput("total", binary_data=i % 3 == 0)],
                    request_id=str(i),
                    request_compression_algorithm=(None, "gzip", "deflate")[i % 3],
                    response_compression_algorithm=(None, "gzip", "deflate")[i // 3 % 3],
                )
                for i in range(18)
            ]
            for i, result in enumerate(await asyncio.gather(*calls)):
                np.testing.assert_array_equal(result.as_numpy("total"), a * i + a)
                assert result.get_response()["id"] == str(i)
            with pytest.raises(tritonhttp.InferenceServerException, match="missing input"):
                await client.infer("add", [tensor("a", a, "FP32", True)])

    asyncio.run(run())
