"""Models on disk and in memory: versions, settings, load, unload."""

from __future__ import annotations

import asyncio
import json

import pytest
from pyattn_serving.engine.engine import Engine, Mode
from pyattn_serving.engine.failures import (
    ModelError,
    NotAllowedError,
    UnavailableError,
    UnknownModelError,
)
from pyattn_serving.engine.repository import Repository

from . import models
from .test_batching import OUTPUTS, padded_request

TWO = padded_request([2])


def put(folder, factor=1, proto=None):
    """Write a model whose answer tells which one it is: 4 * factor. Complete when it appears."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "model.new"
    models.save(models.table_sum(factor=factor) if proto is None else proto, fresh)
    fresh.replace(folder / "model.onnx")


def spoil(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(b"\x08\x09 not a model")


def ask(engine, name="m", version=None):
    model = engine.model(name, version)
    return asyncio.run(engine.infer(model, TWO, OUTPUTS))[1].tolist()


def lines(engine):
    found = asyncio.run(engine.index())
    return [(line.name, line.version, line.state.value, line.reason) for line in found]


def load(engine, name="m"):
    asyncio.run(engine.load_model(name))


def test_a_folder_of_models(tmp_path, make_engine):
    put(tmp_path / "flat", 1)
    put(tmp_path / "m" / "2", 2)
    put(tmp_path / "m" / "10", 10)
    put(tmp_path / "m" / "03", 3)  # not a version: 3 and 03 would be one
    put(tmp_path / ".hidden", 4)
    put(tmp_path / "a b", 5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.onnx").write_bytes(b"")
    engine = make_engine(Mode.FIXED)
    assert sorted(engine.names) == ["flat", "m"]
    assert engine.versions("m") == ["10"]
    assert (ask(engine, "flat"), ask(engine), ask(engine, "m", "10")) == ([4], [40], [40])
    with pytest.raises(UnavailableError, match="not one of the versions to serve"):
        engine.model("m", "2")
    with pytest.raises(UnknownModelError, match="no version '3'; it has 10"):
        engine.model("m", "3")
    assert lines(engine)[1:] == [
        ("m", "2", "UNAVAILABLE", "not one of the versions to serve"),
        ("m", "10", "READY", ""),
    ]


def test_a_folder_that_is_one_model(tmp_path):
    put(tmp_path / "single", 3)
    for name, expected in ((None, "single"), ("other", "other")):
        engine = Engine(Repository(tmp_path / "single", name), threads=1)
        engine.load()
        assert engine.names == [expected]
        engine.close()


def test_a_flat_model_beside_versions(tmp_path, make_engine):
    put(tmp_path / "m", 1)
    put(tmp_path / "m" / "2", 2)
    (tmp_path / "m" / "model.serving.toml").write_text('versions = "all"')
    engine = make_engine(Mode.FIXED)
    assert (ask(engine, "m", "1"), ask(engine, "m", "2"), ask(engine)) == ([4], [8], [8])


def test_folders_that_cannot_be_served(tmp_path, make_engine):
    with pytest.raises(ModelError, match="no model in the folder"):
        make_engine(Mode.FIXED)
    with pytest.raises(ModelError, match="no model 'm' to load"):
        make_engine(startup=["m"])
    with pytest.raises(ModelError, match="--name is for one model"):
        Engine(Repository(tmp_path, "name")).load()
    with pytest.raises(ModelError, match="does not exist"):
        Engine(Repository(tmp_path / "none.onnx")).load()
    engine = make_engine()
    tmp_path.rmdir()
    with pytest.raises(ModelError):
        load(engine)


def test_one_wrong_model_stops_the_start_in_the_mode_fixed(tmp_path, make_engine):
    put(tmp_path / "a")
    spoil(tmp_path / "b")
    with pytest.raises(ModelError, match="not an ONNX model"):
        make_engine(Mode.FIXED)


def test_load_and_unload(tmp_path, make_engine):
    put(tmp_path / "m" / "1", 1)
    put(tmp_path / "n" / "1", 7)
    engine = make_engine(startup=["n"])
    assert engine.names == ["n"]
    assert lines(engine)[0] == ("m", "1", "UNAVAILABLE", "not loaded")
    with pytest.raises(UnknownModelError):
        engine.model("m")
    load(engine)
    assert (ask(engine), ask(engine, "n")) == ([4], [28])
    asyncio.run(engine.unload_model("m"))
    assert engine.names == ["n"]
    with pytest.raises(UnavailableError, match="not ready: unloaded"):
        engine.model("m")
    with pytest.raises(UnavailableError, match="not ready: unloaded"):
        engine.model("m", "1")
    assert lines(engine)[0] == ("m", "1", "UNAVAILABLE", "unloaded")
    load(engine)
    assert ask(engine) == [4]
    for name in ("none", "../m", "m/1", ""):
        with pytest.raises(UnknownModelError):
            load(engine, name)
        with pytest.raises(UnknownModelError):
            asyncio.run(engine.unload_model(name))
    asyncio.run(engine.unload_model("n"))
    asyncio.run(engine.unload_model("n"))


@pytest.mark.parametrize("mode", [Mode.FIXED, Mode.POLLING])
def test_other_modes_load_nothing_on_demand(tmp_path, make_engine, mode):
    put(tmp_path / "m")
    engine = make_engine(mode)
    with pytest.raises(NotAllowedError, match=f"this server has the mode {mode}"):
        load(engine)
    with pytest.raises(NotAllowedError):
        asyncio.run(engine.unload_model("m"))


def test_a_failed_load_leaves_the_old_one_serving(tmp_path, make_engine):
    put(tmp_path / "m" / "1", 1)
    engine = make_engine(startup=["m"])
    spoil(tmp_path / "m" / "2")
    with pytest.raises(ModelError):
        load(engine)
    assert ask(engine) == [4]
    (first, second) = lines(engine)
    assert first == ("m", "1", "READY", "")
    assert second[:3] == ("m", "2", "UNAVAILABLE")
    assert second[3].startswith("model file 2/model.onnx is not an ONNX model")  # no local path
    spoil(tmp_path / "m" / "1")
    with pytest.raises(ModelError):
        load(engine)
    assert ask(engine) == [4]
    put(tmp_path / "m" / "2", 2)
    load(engine)
    assert ask(engine) == [8]
    (tmp_path / "m" / "model.serving.toml").write_text("versions = 7")
    with pytest.raises(ModelError, match="versions"):
        load(engine)
    assert ask(engine) == [8]


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ('"all"', ["1", "2", "10"]),
        ("{latest = 2}", ["2", "10"]),
        ("{latest = 9}", ["1", "2", "10"]),
        ("{specific = [2, 1, 5]}", ["1", "2"]),
    ],
)
def test_policies_of_versions(tmp_path, make_engine, policy, served):
    for version in (1, 2, 10):
        put(tmp_path / "m" / str(version), version)
    (tmp_path / "m" / "model.serving.toml").write_text(f"versions = {policy}")
    engine = make_engine(Mode.FIXED)
    assert engine.versions("m") == served
    assert ask(engine) == [4 * int(served[-1])]


def test_a_policy_that_leaves_nothing(tmp_path, make_engine):
    put(tmp_path / "m" / "1")
    (tmp_path / "m" / "model.serving.toml").write_text("versions = {specific = [5]}")
    with pytest.raises(ModelError, match="none of the versions it shall have"):
        make_engine(Mode.FIXED)


def test_warm_up(tmp_path, make_engine):
    put(tmp_path / "m")
    settings = tmp_path / "m" / "model.serving.toml"
    settings.write_text("[[warmup]]\nids = [2, 8]\nmask = [2, 8]\n")
    engine = make_engine(startup=["m"])
    for wrong, problem in (
        ("[[warmup]]\nids = [2, 8]\n", "the warm-up has the inputs"),
        ("[[warmup]]\nids = [2, 8]\nmask = [2, 9]\n", "the warm-up failed"),
    ):
        settings.write_text(wrong)
        with pytest.raises(ModelError, match=problem):
            load(engine)
        assert ask(engine) == [4]
    settings.write_text("warmup = false")
    load(engine)
    assert ask(engine) == [4]


def test_the_table_of_axes_may_stand_in_the_settings(tmp_path, make_engine):
    put(tmp_path / "m", proto=models.table_sum(None))
    (tmp_path / "m" / "model.serving.json").write_text(json.dumps({"batching": models.PADDED}))
    engine = make_engine(startup=["m"])
    assert engine.model("m").layout.mask == "mask"


def test_check_loads_everything_and_keeps_nothing(tmp_path, make_engine):
    put(tmp_path / "good" / "1")
    put(tmp_path / "plain" / "1", proto=models.table_sum(None))
    spoil(tmp_path / "bad" / "4")
    put(tmp_path / "odd" / "1")
    (tmp_path / "odd" / "model.serving.toml").write_text("versions = {specific = [9]}")
    engine = make_engine()
    engine._startup = ("none",)
    found = list(engine.check())
    assert [error for _, error in found] == [True, True, False, True, False]
    text = "\n".join(line for line, _ in found)
    assert "none: there is no such model" in text
    assert "good 1: ok, padded batching, pyattn's operators: none" in text
    assert "plain 1: ok, no batching" in text
    assert "bad 4: model file" in text
    assert "odd: model 'odd' has none of the versions" in text
    assert engine.names == []


def test_check_of_nothing(make_engine):
    assert list(make_engine().check()) == [("there is no model", True)]
