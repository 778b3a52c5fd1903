"""``pyattn-serve bench`` against servers of our own: what it sends, measures and tells."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading

import pytest
from pyattn_serving.bench import requests
from pyattn_serving.bench.client import Address
from pyattn_serving.bench.load import Measurement
from pyattn_serving.bench.report import summary, table, write_json

from . import models
from .process import COMMAND, PATIENCE, ServerProcess
from .test_store import put

ADDRESS = Address("host", 80)
SHORT = ["--quiet", "--warmup", "0"]


def bench(server, *arguments):
    done = subprocess.run(
        [*COMMAND, "bench", "--url", f"http://127.0.0.1:{server.port}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    for name, model in {
        "sum": models.table_sum(),
        "BYTES": models.identity("BYTES"),
        "BF16": models.identity("BF16"),
        "FP16": models.identity("FP16"),
        "BOOL": models.identity("BOOL"),
        "scalar": models.identity("FP32", ()),
    }.items():
        (folder / name).mkdir()
        models.save(model, folder / name / "model.onnx")
    with ServerProcess(folder) as server:
        yield server


def counted(server, model):
    """Requests for a model that the server itself has counted."""
    found = server.request("GET", f"/v2/models/{model}/stats")[2]["model_stats"][0]
    return found["inference_stats"]["success"]["count"], found["inference_count"]


@pytest.mark.parametrize("form", [[], ["--binary"]])
def test_closed_loop(server, tmp_path, form):
    before = counted(server, "sum")[0]
    file = tmp_path / "report.json"
    options = ["--clients", 3, "--requests", 200, "--lengths", "uniform:2:9", "--json", file]
    code, output, errors = bench(server, "sum", *options, *form, *SHORT)
    assert (code, errors) == (0, "")
    report = json.loads(file.read_text())
    result = report["result"]
    assert result["requests"] == result["succeeded"] == 200
    assert counted(server, "sum")[0] - before == 200 + 1  # and the one that is tried
    assert result["errors"] == {}
    assert sum(entry["count"] for entry in result["histogram"]) == 200
    times = result["latency_ms"]
    assert 0 < times["min"] <= times["p50"] <= times["p99"] <= times["p99.9"] <= times["max"]
    assert result["requests_per_second"] == pytest.approx(200 / result["seconds"])
    assert result["tokens_per_second"] > 2 * result["requests_per_second"]
    assert report["server"]["name"] == "pyattn-serve"
    assert report["options"]["clients"] == 3
    assert "200 in" in output
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_open_loop(server, tmp_path):
    file = tmp_path / "report.json"
    options = ["--rate", 200, "--duration", 1, "--lengths", 4, "--json", file, "--warmup", "0.2"]
    code, _, errors = bench(server, "sum", *options)
    result = json.loads(file.read_text())["result"]
    assert code == 0
    assert 140 < result["requests"] < 260  # Poisson: 200 and four deviations of 14
    assert "requests," in errors


@pytest.mark.parametrize("model", ["BYTES", "FP16", "BOOL", "scalar"])
@pytest.mark.parametrize("form", [[], ["--binary"]])
def test_datatypes(server, model, form):
    code, _, errors = bench(server, model, "--requests", 3, *form, *SHORT)
    assert (code, errors) == (0, "")


def test_bfloat16_travels_in_binary(server):
    assert bench(server, "BF16", "--requests", 3, "--binary", *SHORT)[0] == 0
    code, _, errors = bench(server, "BF16", "--requests", 3, *SHORT)
    assert code == 2
    assert "use --binary" in errors


def test_errors_are_counted_by_code(tmp_path):
    """One request in the queue and eight clients: most are refused."""
    model = models.save(models.slow(), tmp_path / "slow.onnx")
    report = tmp_path / "report.json"
    shapes = ["--values", "count=400:400"]
    with ServerProcess(model, "--max-queue", "1", "--concurrency", "1") as server:
        options = [*shapes, "--clients", 8, "--duration", 1, "--binary", "--json", report]
        code, output, _ = bench(server, "slow", *options, *SHORT)
    result = json.loads(report.read_text())["result"]
    assert code == 0
    assert set(result["errors"]) == {"429"}
    assert result["errors"]["429"]["count"] == result["requests"] - result["succeeded"] > 0
    assert "error 429" in output
    assert "wait for the model" in result["errors"]["429"]["first"]


def test_time_out_and_a_server_that_stalls_in_an_open_loop(tmp_path):
    """A server that answers one request at a time is charged for those who wait for it."""
    model = models.save(models.slow(), tmp_path / "slow.onnx")
    report = tmp_path / "report.json"
    with ServerProcess(model) as server:
        base = ["slow", "--binary", "--values", "count=1:1", "--json", report, *SHORT]
        assert bench(server, *base, "--requests", 20)[0] == 0
        lone = json.loads(report.read_text())["result"]["latency_ms"]["p50"]
        # Ten times as many as one connection can carry: the last waits for all before it.
        rate = 10 / (lone / 1e3)
        assert bench(server, *base, "--rate", rate, "--clients", 1, "--requests", 300)[0] == 0
        assert json.loads(report.read_text())["result"]["latency_ms"]["p90"] > 20 * lone
        base[3] = "count=1000000000:1000000000"
        code, _, errors = bench(server, *base, "--requests", 2, "--timeout", "0.2")
    assert (code, "was not answered within 0.2 s" in errors) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["none"], 1, "404"),
        (["sum", "--shape", "x=1"], 2, "the model has no input x; it has"),
        (["sum", "--mask", "x"], 2, "the model has no input x"),
        (["sum", "--shape", "ids=1xL"], 2, "--lengths does not say"),
        (["sum", "--values", "ids=99:99"], 1, "the first request was answered with 400"),
        (["sum", "--shape", "ids"], 2, "is not NAME=SIZExSIZE"),
        (["sum", "--lengths", "uniform:3:2"], 2, "is not N, uniform:LOW:HIGH"),
        (["sum", "--values", "ids=2:1"], 2, "is not NAME=LOW:HIGH"),
        (["sum", "--values", "ids=a:b"], 2, "is not NAME=LOW:HIGH"),
        (["sum", "--url", "ftp://x"], 2, "is not a URL"),
        (["sum", "--url", "https://x", "--tls-ca", "/nowhere"], 2, "cannot use /nowhere: No such"),
        (["sum", "--url", "http://127.0.0.1:1"], 1, "127.0.0.1 port 1"),
        (["sum", "--json", "/nowhere/report.json"], 1, "No such file"),
    ],
)
def test_what_cannot_be_measured(server, arguments, code, problem):
    found, output, errors = bench(server, *arguments, "--requests", 1, *SHORT)
    assert (found, output) == (code, "")
    assert problem in errors
    assert "Traceback" not in errors


def test_token(tmp_path):
    (tmp_path / "token").write_text("0123456789")
    put(tmp_path / "models" / "sum" / "1")
    token = ["--token-file", str(tmp_path / "token")]
    with ServerProcess(tmp_path / "models", *token) as server:
        assert bench(server, "sum", "--requests", 2, *token, *SHORT)[0] == 0
        code, _, errors = bench(server, "sum", "--requests", 2, *SHORT)
    assert (code, "401" in errors) == (1, True)


def test_a_server_that_closes_each_connection_and_one_that_talks_nonsense():
    """Connections are opened again; what is no HTTP is an error with a name."""
    metadata = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}).encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answers = [metadata, metadata, b"{}", b"{}", b"{}", None, b"{}"]

        def answer():
            for content in answers:
                with listener.accept()[0] as connection:
                    connection.recv(65536)
                    if content is None:
                        connection.sendall(b"nonsense\r\n\r\n")
                        continue
                    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                    connection.sendall(head % len(content) + content)

        thread = threading.Thread(target=answer)
        thread.start()
        server = type("Server", (), {"port": listener.getsockname()[1]})
        code, output, _ = bench(server, "x", "--requests", 4, *SHORT)
        thread.join()
    assert code == 0
    assert "3 in" in output
    assert "error ConnectionError: 1, the first: the answer is not HTTP" in output


def test_a_server_that_answers_what_is_not_json():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes")

        thread = threading.Thread(target=answer)
        thread.start()
        server = type("Server", (), {"port": listener.getsockname()[1]})
        code, _, errors = bench(server, "x", "--requests", 4, *SHORT)
        thread.join()
    assert (code, "/v2: the answer is not JSON" in errors) == (1, True)


@pytest.fixture
def interruptible():
    """A shell runs what is in its background without this signal, and all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt(server):
    before = counted(server, "sum")[0]
    url = f"http://127.0.0.1:{server.port}"
    command = [*COMMAND, "bench", "sum", "--url", url, "--duration", "100", *SHORT]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while counted(server, "sum")[0] < before + 10:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (130, "")


def test_help_of_both_commands():
    for words, expected in ((["bench", "--help"], "--rate"), (["--help"], "pyattn-serve bench")):
        done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=True)
        assert expected in done.stdout


def test_requests_have_the_drawn_lengths(tmp_path):
    """Sizes named L are one length for a whole request, drawn from the file."""
    (tmp_path / "lengths").write_text("3\n5\n")
    metadata = {
        "inputs": [
            {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "attention_mask", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "bias", "datatype": "FP32", "shape": [-1, 2]},
        ]
    }
    plan = requests.Plan(
        shapes=dict([requests.read_shape("bias=Lx2")]),
        lengths=requests.read_lengths(str(tmp_path / "lengths")),
        values=dict([requests.read_values("ids=7:9")]),
        distinct=50,
    )
    seen = set()
    for message in requests.make_requests(metadata, "/infer", ADDRESS, plan):
        head, _, body = message.data.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        ids, mask, bias = json.loads(body)["inputs"]
        assert ids["shape"] == mask["shape"] == [1, bias["shape"][0]]
        assert set(ids["data"]) <= {7, 8, 9}
        assert set(mask["data"]) == {1}
        assert message.tokens == ids["shape"][1]
        seen.add(message.tokens)
    assert seen == {3, 5}
    assert requests.make_requests(metadata, "/infer", ADDRESS, plan) == requests.make_requests(
        metadata, "/infer", ADDRESS, plan
    )


def test_summary_against_numbers_written_out(tmp_path):
    result = Measurement(begin=10.0, end=12.0, tokens=500, processor=1.9)
    result.latencies.extend([0.001, 0.002, 0.003, 0.004])
    result.errors["503"] = 2
    result.messages["503"] = "draining"
    figures = summary(result, with_tokens=True)
    assert (figures["requests"], figures["succeeded"]) == (6, 4)
    assert (figures["requests_per_second"], figures["tokens_per_second"]) == (2.0, 250.0)
    assert figures["latency_ms"]["p50"] == pytest.approx(2.5)
    assert figures["histogram"] == [
        {"up_to_ms": 1.0, "count": 1},
        {"up_to_ms": 2.0, "count": 1},
        {"up_to_ms": 5.0, "count": 2},
    ]
    assert "the generator itself was the limit" in table(figures)
    assert "error 503: 2, the first: draining" in table(figures)
    nothing = summary(Measurement(), with_tokens=False)
    assert (nothing["latency_ms"], nothing["requests_per_second"]) == (None, 0.0)
    assert "0 in" in table(nothing)
    (tmp_path / "r.json").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(figures, tmp_path / "r.json")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
