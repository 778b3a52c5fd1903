"""Memory under a mix of requests, for a short while; PYATTN_SOAK_ROUNDS makes it longer."""

from __future__ import annotations

import http.client
import json
import os
import threading

import numpy as np

from . import models
from .asgi_client import tensor
from .process import ServerProcess

ROUNDS = int(os.environ.get("PYATTN_SOAK_ROUNDS", "12"))
CLIENTS = 4
REQUESTS = 150  # of each client in a round
TOLERANCE = 0.05


def bodies(seed):
    """Requests of many lengths, with errors among them, in JSON."""
    generator = np.random.default_rng(seed)
    for i in range(REQUESTS):
        rows, length = generator.integers(1, 4), int(generator.integers(1, 400))
        ids = generator.integers(0, 10, (rows, length))
        if i % 25 == 7:
            ids[0, 0] = 99  # beyond the table: the run fails
        body = json.dumps({"inputs": [tensor("ids", "INT64", ids.shape, ids.ravel().tolist())]})
        yield body[: len(body) // 2] if i % 25 == 13 else body, int((ids**2)[0].sum())


def ask(server, seed, failures):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for i, (body, expected) in enumerate(bodies(seed)):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v2/models/m/infer", body, headers)
        response = connection.getresponse()
        content = json.loads(response.read())
        if response.status != (400 if i % 25 in (7, 13) else 200):
            failures.append((i, response.status, content))
        elif response.status == 200:
            total = next(entry for entry in content["outputs"] if entry["name"] == "total")
            if total["data"][0] != expected:
                failures.append((i, total, expected))
        if i % 50 == 49:  # leave in the middle of a request now and then
            with server.accepted_request("/v2/models/m/infer", 1000) as other:
                other.sendall(b"{")
    connection.close()


def test_resident_memory_stays_flat(tmp_path):
    """The most of the last third of the rounds is within 5 % of the most of the first."""
    path = models.save(models.table_sum(), tmp_path / "m.onnx")
    resident, failures = [], []
    with ServerProcess(path, "--log-level", "error") as server:
        for turn in range(ROUNDS + 2):
            threads = [
                threading.Thread(target=ask, args=(server, CLIENTS * turn + n, failures))
                for n in range(CLIENTS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            resident.append(server.resident_memory())
        server.signal()
        assert server.wait()[0] == 0
    assert failures == []
    rounds = resident[2:]  # the first two warm up
    third = len(rounds) // 3
    assert max(rounds[-third:]) <= (1 + TOLERANCE) * max(rounds[:third]), resident
