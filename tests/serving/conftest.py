"""Models on disk and applications that serve them."""

from __future__ import annotations

import pytest
from pyattn_serving import Settings, create_app
from pyattn_serving.asgi.app import Application
from pyattn_serving.asgi.body import Limits
from pyattn_serving.engine.engine import Engine, Mode, ModelSource
from pyattn_serving.engine.repository import Repository
from pyattn_serving.protocol import json_text

from . import models
from .asgi_client import Client, tensor
from .process import ServerProcess

MAX_BODY = 1 << 20


def _protos():
    protos = {
        "add": models.add(),
        "broadcast": models.broadcast(),
        "broken_string": models.broken_string(),
        "constant": models.constant(),
        "divide": models.divide(),
        "fill": models.fill(),
        "fixed": models.fixed(),
        "gather": models.gather(),
        "slow": models.slow(),
        "scalar": models.identity("FP32", ()),
        "unranked": models.identity("FP32", None),
        "vector": models.identity("FP32", ("N",)),
        "one_string": models.identity("BYTES", (1,)),
        "two_strings": models.identity("BYTES", (2,)),
        "columns": models.identity("FP32", ("N", 4)),
    }
    for datatype in models.ONNX_TYPES:
        protos[f"identity_{datatype}"] = models.identity(datatype)
    return protos


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A folder with one file per model, named after it."""
    folder = tmp_path_factory.mktemp("models")
    for name, proto in _protos().items():
        models.save(proto, folder / f"{name}.onnx")
    return folder


@pytest.fixture(scope="session")
def engine(model_folder):
    """One engine with all models."""
    sources = [ModelSource.of(path) for path in sorted(model_folder.glob("*.onnx"))]
    engine = Engine(sources, threads=1)
    engine.load()
    yield engine
    engine.close()


@pytest.fixture
def client(engine):
    """A client of an application over all models, with a small limit on bodies."""
    return Client(Application(engine, Limits(MAX_BODY, 30.0)))


@pytest.fixture
def make_app(model_folder):
    """Make applications of one model as an operator would, and close them afterwards."""
    made = []

    def make(model, /, **settings):
        app = create_app(Settings(model=model_folder / f"{model}.onnx", **settings))
        made.append(app)
        return app

    yield make
    for app in made:
        app.engine.close()


@pytest.fixture
def make_engine(tmp_path):
    """Make engines of the models in `tmp_path`, and close them afterwards."""
    made = []

    def make(mode=Mode.EXPLICIT, **options):
        engine = Engine(Repository(tmp_path), threads=1, mode=mode, **options)
        made.append(engine)
        engine.load()
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture(scope="module")
def impatient_process(model_folder):
    timeouts = ["--header-timeout", "1", "--idle-timeout", "3", "--send-timeout", "2"]
    with ServerProcess(model_folder / "vector.onnx", *timeouts) as server:
        yield server
        server.signal()
        code, errors = server.wait()
        assert code == 0
        assert "Traceback" not in errors


@pytest.fixture
def impatient(impatient_process):
    """A process that does not wait long; whatever a client did, the next one is served."""
    yield impatient_process
    request = {"inputs": [tensor("x", "FP32", (2,), [1, 2])]}
    assert impatient_process.infer("vector", request)[2]["outputs"][0]["data"] == [1, 2]


@pytest.fixture(params=["extension", "python"])
def each_reader(request, monkeypatch):
    """Run a test with the reader of arrays in JSON, and with Python's objects in its place."""
    if request.param == "python":
        monkeypatch.setattr(json_text, "_json", None)
    elif json_text._json is None:
        pytest.skip("the extension was not built")
