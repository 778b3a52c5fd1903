"""pyattn's operators for ONNX Runtime inside the server, and the server without them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

import numpy as np
import pyattn_serving
import pytest
from onnx import TensorProto, helper
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.model_file import inspect
from pyattn_serving.engine.operators import Operators

import pyattn as pa

from . import models
from .asgi_client import Client

LIBRARY = pa.ort.custom_ops_library()


def attend(query, key, value):
    return pa.scaled_dot_product_attention(query, key, value, is_causal=True)


class Attend(pa.nn.Module):
    def __call__(self, query, key, value):
        return attend(query, key, value)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An exported model that calls an attention function."""
    path = tmp_path_factory.mktemp("operators") / "attend.onnx"
    example = np.zeros((1, 2, 3, 4), np.float32)
    names = {"query": "T", "key": "S", "value": "S"}
    inputs = {name: pa.Input(example, ("batch", None, size, None)) for name, size in names.items()}
    pa.export(Attend(), inputs, path, opset=21)  # older ONNX Runtimes read it, too
    return path


@pytest.fixture
def feeds(rng):
    return {
        name: rng.normal(size=(2, 2, 5, 4)).astype(np.float32) for name in ("query", "key", "value")
    }


def run(path, feeds, **options):
    engine = Engine([ModelSource.of(path)], threads=1, **options)
    engine.load()
    served = engine.model(path.stem)
    (answer,) = asyncio.run(engine.infer(served, feeds, list(served.outputs)))
    engine.close()
    return served.operators, answer


def test_the_library_is_found_without_importing_pyattn():
    code = (
        "import sys; from pyattn_serving.engine.operators import Operators; "
        "print(Operators.installed().path, 'pyattn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(LIBRARY.resolve()), "False"]


def test_operators_run_and_give_the_bits_of_eager(model, feeds):
    names, answer = run(model, feeds)
    assert names == ("ScaledDotProductAttentionCausal",)
    eager = attend(**feeds)
    np.testing.assert_array_equal(answer, eager)


def test_without_operators_the_bodies_run(model, feeds):
    names, answer = run(model, feeds, operators=False)
    assert names == ()
    np.testing.assert_allclose(answer, attend(**feeds), atol=1e-5)


def test_the_config_tells_which_operators_run(model):
    from pyattn_serving.asgi.app import Application
    from pyattn_serving.asgi.body import Limits

    engine = Engine([ModelSource.of(model)], threads=1)
    engine.load()
    config = Client(Application(engine, Limits(1 << 20, 30.0))).get("/v2/models/attend/config").json
    operators = config["parameters"]["pyattn.operators"]["string_value"]
    assert operators == "ScaledDotProductAttentionCausal"
    engine.close()


def test_names_of_operators_are_collected_wherever_they_are(tmp_path):
    """In the graph, in a subgraph and in a function; other domains do not count."""
    kind = TensorProto.FLOAT
    inner = helper.make_graph(
        [models.node("Inner", ["x"], ["z"], domain="pyattn")],
        "inner",
        [],
        [models.value("z", kind, ["N"])],
    )
    proto = models.model(
        [
            models.node("Outer", ["x"], ["a"], domain="pyattn"),
            models.node("Other", ["x"], ["b"], domain="com.example"),
            models.node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
        ],
        [models.value("x", kind, ["N"]), models.value("c", TensorProto.BOOL, [])],
        [models.value("y", kind, ["N"])],
    )
    proto.functions.append(
        helper.make_function(
            "com.example",
            "Other",
            ["x"],
            ["b"],
            [models.node("InFunction", ["x"], ["b"], domain="pyattn")],
            [helper.make_opsetid("pyattn", 1)],
        )
    )
    models.batching(proto, {"a": 1})
    file = inspect(models.save(proto, tmp_path / "m.onnx"))
    assert file.operators == {"Outer", "Inner", "InFunction"}
    assert file.metadata == {"pyattn.batching": '{"a": 1}'}


def test_only_names_with_a_kernel_are_asked_for():
    operators = Operators.installed()
    names = ["NoSuchAttention", "ScaledDotProductAttention", "ScaledDotProductAttention"]
    assert operators.kernels(names) == ("ScaledDotProductAttention",)


def first_on_the_path(monkeypatch, folder):
    """Let `folder` be searched first, also where pyattn is installed editable, by a finder."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "meta_path", [BuiltinImporter, FrozenImporter, PathFinder])
    monkeypatch.delitem(sys.modules, "pyattn")


def test_a_library_in_a_folder_of_models_is_not_used(model, feeds, tmp_path, monkeypatch, caplog):
    """Python's path may lead there, as `python -m` puts the current folder on it."""
    package = tmp_path / "pyattn"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "pyattn_ort.so").write_bytes(LIBRARY.read_bytes())
    (tmp_path / "attend.onnx").write_bytes(model.read_bytes())
    first_on_the_path(monkeypatch, tmp_path)
    assert Operators.installed().path == (package / "pyattn_ort.so").resolve()
    names, _ = run(tmp_path / "attend.onnx", feeds)
    assert names == ()
    assert "lies in a folder of models" in caplog.text


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_a_package_without_a_library_that_works(content, tmp_path, monkeypatch, model, feeds):
    package = tmp_path / "site" / "pyattn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    if content is not None:
        (package / "pyattn_ort.so").write_bytes(content)
    first_on_the_path(monkeypatch, tmp_path / "site")
    assert (Operators.installed() is None) == (content is None)
    assert run(model, feeds)[0] == ()


def test_a_library_that_onnxruntime_refuses(monkeypatch, model, feeds, caplog):
    """It has the kernels' names but no entry that ONNX Runtime can call."""
    found = Operators(Path(np._core._multiarray_umath.__file__))
    monkeypatch.setattr(Operators, "kernels", lambda *arguments: tuple(arguments[1]))
    monkeypatch.setattr(Operators, "installed", lambda *_: found)
    names, answer = run(model, feeds)
    assert names == ()
    assert answer.shape == (2, 2, 5, 4)
    assert "ONNX Runtime refuses" in caplog.text


def test_a_module_without_a_place(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyattn", type(sys)("pyattn"))  # no __spec__
    assert Operators.installed() is None


def test_the_server_runs_where_pyattn_is_not_installed(model, feeds):
    """In a process whose path has the server and its dependencies only."""
    source = Path(pyattn_serving.__file__).parent
    code = f"""
import sys, importlib.util
sys.path.insert(0, {str(source)!r})
import serve
sys.path.pop(0)
serve.load_package(__import__('pathlib').Path({str(source)!r}))
from pathlib import Path
from pyattn_serving.engine.engine import Engine, ModelSource
sys.modules['pyattn'] = None  # as where it is not installed
assert importlib.util.find_spec('pyattn') is None
engine = Engine([ModelSource.of(Path({str(model)!r}))], threads=1)
engine.load()
print(engine.names, engine.model('attend').operators)
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=model.parent,
        env=environment,
    )
    assert done.stdout.strip() == "['attend'] ()", done.stderr
