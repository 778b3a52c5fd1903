"""The command: a configuration in TOML, a folder of models, and --check."""

from __future__ import annotations

import shutil

import pytest
from pyattn_serving.cli import _options

from . import models
from .process import ServerProcess
from .test_process import VECTOR, run
from .test_store import put, spoil


def write(tmp_path, text):
    file = tmp_path / "serve.toml"
    file.write_text(text)
    return file


def test_every_option_may_stand_in_the_file(tmp_path):
    file = write(
        tmp_path,
        'model = "models"\nname = "x"\nhost = "0.0.0.0"\nport = 1\nthreads = 2\nconcurrency = 3\n'
        'spin = true\noperators = false\nmode = "explicit"\npoll_seconds = 1.5\n'
        'load = ["a", "b"]\nmax_batch = 4\nmax_delay = 0.5\nmax_queue = 5\nmax_queue_bytes = 6\n'
        'timeout = 7\nmax_body = 8\nbody_timeout = 9.5\ndrain_timeout = 10\nlog_level = "error"\n',
    )
    options = vars(_options(["--config", str(file), "--port", "2", "--max-batch", "40"]))
    del options["config"], options["check"]
    expected = {
        "model": tmp_path / "models",
        "name": "x",
        "host": "0.0.0.0",  # noqa: S104 - an address in a file, not one that is listened on
        "port": 2,
        "threads": 2,
        "concurrency": 3,
        "spin": True,
        "operators": False,
        "mode": "explicit",
        "poll_seconds": 1.5,
        "load": ["a", "b"],
        "max_batch": 40,
        "max_delay": 0.5,
        "max_queue": 5,
        "max_queue_bytes": 6,
        "timeout": 7.0,
        "max_body": 8,
        "body_timeout": 9.5,
        "drain_timeout": 10.0,
        "log_level": "error",
    }
    assert {key: options[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nonsense = 1", "there is no option 'nonsense'"),
        ("check = true", "there is no option 'check'"),
        ("spin = 1", "'spin' must be true or false; got 1"),
        ("load = 'a'", "'load' must be a list of strings"),
        ("port = [1]", "'port' must be a single value"),
        ("port = 99999", "argument --port: 99999 is not a port"),
        ("mode = 'other'", "'mode' must be one of fixed, polling, explicit"),
        ("[a", "cannot be read"),
        ("port = 0", "required: MODEL"),
        (None, "cannot be read"),
    ],
)
def test_wrong_files(tmp_path, capsys, text, problem):
    file = tmp_path / "none.toml" if text is None else write(tmp_path, text)
    with pytest.raises(SystemExit) as caught:
        _options(["--config", str(file)])
    assert caught.value.code == 2
    assert problem in capsys.readouterr().err


def test_serving_a_folder(tmp_path, model_folder):
    for name, version in (("vector", "1"), ("vector", "2"), ("add", "7")):
        folder = tmp_path / "models" / name / version
        folder.mkdir(parents=True)
        shutil.copy(model_folder / f"{name}.onnx", folder / "model.onnx")
    file = write(tmp_path, 'mode = "polling"\npoll_seconds = 0.05\n')
    with ServerProcess(tmp_path / "models", "--config", str(file)) as server:
        status, _, content = server.infer("vector", VECTOR)
        assert (status, content["model_version"]) == (200, "2")
        status, _, content = server.request("GET", "/v2/models/add")
        assert (status, content["versions"]) == (200, ["7"])
        shutil.rmtree(tmp_path / "models" / "vector" / "2")
        while content.get("model_version") != "1":
            status, _, content = server.infer("vector", VECTOR)
            assert status == 200
        server.signal()
        assert server.wait()[0] == 0


def test_a_server_without_a_model_says_so(tmp_path):
    with ServerProcess(tmp_path, "--mode", "explicit") as server:
        assert server.ready_line.endswith(
            f"ready at http://127.0.0.1:{server.port}, with no model yet\n"
        )
        assert server.request("GET", "/v2/health/ready")[0] == 200


def test_check(tmp_path):
    put(tmp_path / "good" / "1", proto=models.table_sum())
    assert run(tmp_path, "--check")[0] == 0
    spoil(tmp_path / "bad" / "1")
    assert run(tmp_path, "--check") == (1, "")
    assert run(tmp_path / "none.onnx", "--check")[0] == 1


def test_check_tells_what_it_found(tmp_path, capsys):
    from pyattn_serving.cli import main

    put(tmp_path / "good" / "1", proto=models.table_sum())
    spoil(tmp_path / "bad" / "1")
    assert main([str(tmp_path), "--check"]) == 1
    bad, good = capsys.readouterr().out.splitlines()
    assert bad.startswith("pyattn-serve: bad 1: model file")
    assert good == "pyattn-serve: good 1: ok, padded batching, pyattn's operators: none"
