"""Models that change under load, in a process of its own, seen by a client that others use."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tritonclient.http as tritonhttp

from . import models
from .process import ServerProcess
from .test_store import put, spoil


@pytest.fixture
def server(tmp_path):
    put(tmp_path / "m" / "1", 1)
    with ServerProcess(tmp_path, "--mode", "explicit", "--load", "m") as server:
        yield server


def connect(server):
    return tritonhttp.InferenceServerClient(f"127.0.0.1:{server.port}")


def ask(client):
    entry = tritonhttp.InferInput("ids", [1, 1], "INT64")
    entry.set_data_from_numpy(np.array([[2]]))
    return int(client.infer("m", [entry]).as_numpy("total")[0])


def test_calls_of_tritonclient(server, tmp_path):
    with connect(server) as client:
        assert ask(client) == 4
        assert client.get_model_config("m")["name"] == "m"
        found = client.get_inference_statistics("m")["model_stats"][0]
        assert found["inference_stats"]["success"]["count"] == 1
        assert len(client.get_inference_statistics()["model_stats"]) == 1
        assert client.get_model_repository_index() == [
            {"name": "m", "version": "1", "state": "READY", "reason": ""}
        ]
        put(tmp_path / "other" / "3")
        client.load_model("other")
        assert client.is_model_ready("other", "3")
        client.unload_model("other")
        assert not client.is_model_ready("other")
        with pytest.raises(tritonhttp.InferenceServerException) as caught:
            client.load_model("none")
        assert caught.value.status() == "404"


def test_reload_under_load_loses_nothing(server, tmp_path):
    """Four clients ask on and on while the model changes ten times, twice into a broken one."""
    seen, failures, ended = [], [], threading.Event()

    def ask_on():
        with connect(server) as client:
            while not ended.is_set():
                try:
                    seen.append(ask(client))
                except tritonhttp.InferenceServerException as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    with connect(server) as client:
        for i in range(10):
            if i in (3, 7):
                spoil(tmp_path / "m" / "1")
                with pytest.raises(tritonhttp.InferenceServerException):
                    client.load_model("m")
            else:
                put(tmp_path / "m" / "1", 1 + i % 2)
                client.load_model("m")
            before = len(seen)
            while len(seen) < before + 20:
                assert not failures
                ended.wait(0.005)
        ended.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert set(seen) == {4, 8}
        (found,) = client.get_inference_statistics("m")["model_stats"]
        assert found["inference_stats"]["success"]["count"] == len(seen)
    server.signal()
    assert server.wait()[0] == 0


def test_a_poisoned_request_among_others(tmp_path):
    """Many at once, every fifth one bad: each gets its own answer or its own error."""
    path = models.save(models.table_sum(), tmp_path / "m.onnx")
    with ServerProcess(path, "--concurrency", "1") as server:
        client = tritonhttp.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=16)
        calls = []
        for i in range(200):
            ids = np.full((1, 1 + i % 7), 99 if i % 5 == 0 else i % 9)
            entry = tritonhttp.InferInput("ids", list(ids.shape), "INT64")
            entry.set_data_from_numpy(ids)
            calls.append((ids, client.async_infer("m", [entry])))
        for i, (ids, call) in enumerate(calls):
            if i % 5 == 0:
                with pytest.raises(tritonhttp.InferenceServerException, match="idx=99"):
                    call.get_result()
            else:
                assert call.get_result().as_numpy("total") == [(ids**2).sum()]
        client.close()
