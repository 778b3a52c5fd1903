"""Workers: processes that share a port, seen by clients while some of them die."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pyattn_serving.cli import _options

from . import models
from .process import PATIENCE, ServerProcess, read_response
from .test_process import SLOW, VECTOR, run, slow_body

INFER = "/v2/models/vector/infer"
BODY = json.dumps(VECTOR).encode()
HEADERS = {"Content-Type": "application/json"}


def children(process):
    """The workers of a parent."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return {int(word) for word in text.split()}


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def owners(server, port):
    """For each worker the local ports of the clients whose connections it holds."""
    inodes = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].split(":")[1], 16) == port and words[9] != "0":
            inodes[f"socket:[{words[9]}]"] = int(words[2].split(":")[1], 16)
    found = {}
    for child in children(server.process):
        links = [str(f.readlink()) for f in Path(f"/proc/{child}/fd").iterdir() if f.is_symlink()]
        found[child] = {inodes[link] for link in links if inodes.get(link)}
    return found


class Client(threading.Thread):
    """Asks on and on over one connection, and another one when that is closed."""

    def __init__(self, server):
        super().__init__()
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        self.connection.connect()
        self.local_port = self.connection.sock.getsockname()[1]
        self.ended = threading.Event()
        self.answers, self.failures = [], []

    def run(self):
        try:
            self.ask_on()
        finally:
            self.connection.close()

    def ask_on(self):
        while not self.ended.is_set():
            try:
                self.connection.request("POST", INFER, BODY, HEADERS)
                response = self.connection.getresponse()
                content = json.loads(response.read())
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(error)
                return
            if response.status != 200:
                self.failures.append((response.status, content))
                return
            self.answers.append(content["outputs"][0]["data"])


@pytest.fixture
def server(model_folder):
    with ServerProcess(model_folder / "vector.onnx", "--workers", "2") as server:
        yield server
        # What a killed parent leaves ends by itself, or the next test finds it.
        workers = children(server.process) if server.process.poll() is None else set()
    wait_for(lambda: not any(is_running(worker) for worker in workers))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_killed_worker_under_load(server):
    """The clients of the others see nothing, and the worker is back."""
    clients = [Client(server) for _ in range(8)]
    for client in clients:
        client.start()
    wait_for(lambda: all(client.answers for client in clients))
    before = owners(server, server.port)
    victim = min(before, key=lambda worker: len(before[worker]))
    (others,) = (ports for worker, ports in before.items() if worker != victim)
    assert len(others) + len(before[victim]) == len(clients)
    os.kill(victim, signal.SIGKILL)
    # Those who come now are taken by the one that lives.
    for _ in range(20):
        assert server.infer("vector", VECTOR)[0] == 200
    wait_for(lambda: len(children(server.process)) == 2 and victim not in children(server.process))
    wait_for(lambda: set(seen_workers(server)) == {"1", "2"})
    for client in clients:
        client.ended.set()
        client.join()
    for client in clients:
        if client.local_port in others:
            assert client.failures == []
            assert client.answers == [[1, 2]] * len(client.answers)
    server.signal()
    code, errors = server.wait()
    assert code == 0
    assert re.search(r"worker \d ended with -9, and comes back in 0\.5 s", errors)
    assert re.search(r"worker \d is back", errors)
    assert "Traceback" not in errors


def seen_workers(server):
    """The workers that a few new connections reach, as the metrics tell."""
    seen = set()
    together = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(16)]
    for connection in together:
        connection.request("GET", "/metrics")
    for connection in together:
        text = connection.getresponse().read().decode()
        seen |= set(re.findall(r'pyattn_resident_memory_bytes\{worker="(\d)"\}', text))
        connection.close()
    return seen


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_under_load_drops_nothing(model_folder, workers):
    """Every request gets an answer, 200 or at last 503; a connection ends between two of them."""
    with ServerProcess(model_folder / "vector.onnx", "--workers", workers) as server:
        clients = [Client(server) for _ in range(8)]
        for client in clients:
            client.start()
        wait_for(lambda: all(len(client.answers) > 20 for client in clients))
        server.signal()
        code, errors = server.wait()
        for client in clients:
            client.ended.set()
            client.join()
    assert code == 0
    assert "Traceback" not in errors
    assert "cut off" not in errors
    answered = sum(len(client.answers) for client in clients)
    assert len(re.findall(rf"POST {INFER} 200", errors)) == answered
    for client in clients:
        for failure in client.failures:
            assert not isinstance(failure, http.client.IncompleteRead)
            assert not isinstance(failure, tuple) or failure[0] == 503


def samples(server):
    """What a scrape tells, by name and worker."""
    text = server.request("GET", "/metrics")[2].decode()
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names))  # each family stands once
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, sample.labels.pop("worker"), *sorted(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def test_any_worker_answers_for_the_metrics_of_all(server):
    clients = [Client(server) for _ in range(8)]
    for client in clients:
        client.start()
    wait_for(lambda: all(len(client.answers) > 10 for client in clients))
    for client in clients:
        client.ended.set()
        client.join()
    answered = sum(len(client.answers) for client in clients)
    model, version = ("model", "vector"), ("version", "1")
    total = ("le", "+Inf"), model, ("stage", "total"), version
    for _ in range(6):
        found = samples(server)
        counts = [found["nv_inference_request_success", worker, model, version] for worker in "12"]
        assert sum(counts) == answered
        assert {key[1] for key in found} == {"1", "2"}
        durations = [found["pyattn_duration_seconds_bucket", worker, *total] for worker in "12"]
        assert durations == counts
    victim = min(children(server.process))
    os.kill(victim, signal.SIGSTOP)  # one that is stuck is left out
    wait_for(lambda: len({key[1] for key in samples_of_the_others(server)}) == 1)
    os.kill(victim, signal.SIGCONT)
    wait_for(lambda: {key[1] for key in samples(server)} == {"1", "2"})


def samples_of_the_others(server):
    """A scrape that the worker which is not stopped takes; the other one would never answer."""
    while True:
        with server.connect() as connection:
            connection.settimeout(5)
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            try:
                text = connection.makefile("rb").read().partition(b"\r\n\r\n")[2]
            except TimeoutError:
                continue
        return {
            (sample.name, sample.labels["worker"])
            for family in text_string_to_metric_families(text.decode())
            for sample in family.samples
        }


def test_workers_end_with_their_parent(server):
    workers = children(server.process)
    assert len(workers) == 2
    server.process.kill()
    wait_for(lambda: not any(is_running(worker) for worker in workers))


def test_second_signal_ends_the_drain_of_workers(model_folder):
    options = ["--workers", "2", "--drain-timeout", "1000"]
    body = slow_body(10**12)
    with (
        ServerProcess(model_folder / "slow.onnx", *options) as server,
        server.accepted_request(SLOW, len(body)) as connection,
    ):
        connection.sendall(body)
        server.signal()
        wait_for(lambda: len(children(server.process)) == 1)  # the idle one has ended
        server.signal(signal.SIGINT)
        assert read_response(connection)[0] == 503
        code, errors = server.wait()
    assert code == 1
    assert "1 request cut off" in errors


def test_a_model_that_cannot_be_loaded_is_told_of_once(tmp_path):
    code, errors = run(tmp_path / "none.onnx", "--port", 0, "--workers", 3)
    assert code == 1
    assert len(errors.strip().splitlines()) == 1
    assert errors.startswith("pyattn-serve: error: model file")


def test_a_worker_that_cannot_come_back_does_not_come_in_a_fast_loop(tmp_path):
    model = models.save(models.identity("FP32"), tmp_path / "m.onnx")
    with ServerProcess(model, "--workers", "2") as server:
        model.write_bytes(b"")
        os.kill(min(children(server.process)), signal.SIGKILL)
        time.sleep(5)
        assert server.request("GET", "/v2/health/ready")[0] == 200
        server.signal()
        code, errors = server.wait()
    assert code == 0
    pauses = re.findall(r"comes back in ([\d.]+) s", errors)
    assert pauses in (["0.5", "1.0"], ["0.5", "1.0", "2.0"], ["0.5", "1.0", "2.0", "4.0"])


def test_explicit_models_take_one_worker(tmp_path):
    code, errors = run(tmp_path, "--workers", 2, "--mode", "explicit")
    assert code == 2
    assert "takes one worker" in errors


def test_port_of_the_environment(monkeypatch):
    monkeypatch.setenv("PORT", "1234")
    assert _options(["m.onnx"]).port == 1234
    assert _options(["m.onnx", "--port", "5"]).port == 5
    monkeypatch.setenv("PORT", "http")
    with pytest.raises(SystemExit):
        _options(["m.onnx"])
    monkeypatch.delenv("PORT")
    assert _options(["m.onnx"]).port == 8000
