"""The examples of docs/serving.md, run against a server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pyattn_serving.bench.command import _parser as bench_parser
from pyattn_serving.cli import _parser

from .process import PATIENCE, ServerProcess

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def server(model_folder):
    with ServerProcess(model_folder / "add.onnx") as server:
        yield server


def here(server, text):
    return text.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_examples(server, code):
    done = subprocess.run(
        [sys.executable, "-c", here(server, code)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "print" in code:
        assert re.findall(r"[\d.]+", done.stdout) == ["2."] * 6


def test_curl_example(server):
    command, answer = re.findall(r"^```\n(curl .*?)^```\n\n```\n(.*?)^```", PAGE, re.S | re.M)[0]
    body = re.search(r"-d '(.*)'", command, re.DOTALL).group(1)
    status, _, content = server.infer("add", json.loads(body))
    assert (status, content) == (200, json.loads(answer))


def test_ready_line(server):
    shown = re.search(r"^pyattn-serve: .*$", PAGE, re.MULTILINE).group()
    shown = shown.replace("model is ready", "add is ready").replace("models/model", "models/add")
    assert here(server, shown) + "\n" == server.ready_line


def test_every_option_is_described():
    options = {
        option
        for parser in (_parser(), bench_parser())
        for action in parser._actions
        for option in action.option_strings
        if option not in ("-h", "--help", "--version")
    }
    assert {o for o in options if f"`{o}" not in PAGE} == set()
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= options


def test_the_tests_of_faults_are_there():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    files = Path(__file__).parent.glob("test_*.py")
    written = {n for f in files for n in re.findall(r"^def (test_\w+)", f.read_text(), re.M)}
    assert len(named) > 15
    assert named - written == set()
