"""The deployment of Ray Serve on a local Ray, in a process of its own: Ray starts many."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

SCRIPT = """
import concurrent.futures, http.client, json, pathlib, socket, sys
import ray
from ray import serve
from pyattn_serving import Settings
from pyattn_serving.ray import deployment

with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(deployment(Settings(model=pathlib.Path(sys.argv[1])), num_replicas=2))

def call(method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())

def infer(i):
    x = {"name": "x", "datatype": "FP32", "shape": [2], "data": [i, 2]}
    status, content = call("POST", "/v2/models/vector/infer", json.dumps({"inputs": [x]}))
    return status, content["outputs"][0]["data"]

assert call("GET", "/v2/health/ready")[0] == 200
assert call("GET", "/v2/models/vector")[1]["name"] == "vector"
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    assert list(pool.map(infer, range(100))) == [(200, [i, 2]) for i in range(100)]
status, content = call("POST", "/v2/models/vector/infer", "{")
assert (status, list(content)) == (400, ["error"])
assert call("GET", "/v2/models/none")[0] == 404
serve.shutdown()
print("done")
"""


def test_deployment(model_folder):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model_folder / "vector.onnx")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip().endswith("done"), done.stderr
