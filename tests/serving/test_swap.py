"""Models that change on disk while they are served: swap, unload, polling."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
import weakref

import numpy as np
from pyattn_serving.engine.engine import Mode
from pyattn_serving.engine.failures import UnavailableError, UnknownModelError

from . import models
from .process import PATIENCE
from .test_batching import OUTPUTS
from .test_store import TWO, ask, lines, load, put, spoil


def test_unchanged_versions_stay_and_changed_ones_are_replaced(tmp_path, make_engine):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.serving.json").write_text(json.dumps({"versions": "all"}))
    put(tmp_path / "m" / "1", 1)
    put(tmp_path / "m" / "2", 2)
    engine = make_engine(startup=["m"])
    first, second = engine.model("m", "1"), engine.model("m", "2")
    put(tmp_path / "m" / "2", 3)
    shutil.copy(tmp_path / "m" / "1" / "model.onnx", tmp_path / "spare")
    load(engine)
    assert engine.model("m", "1") is first
    assert engine.model("m", "2") is not second
    assert (ask(engine, "m", "1"), ask(engine, "m", "2")) == ([4], [12])
    shutil.rmtree(tmp_path / "m" / "1")
    load(engine)
    assert engine.versions("m") == ["2"]


def test_requests_in_flight_end_on_the_old_version_which_is_then_freed(tmp_path, make_engine):
    put(tmp_path / "m", proto=models.slow())
    engine = make_engine(startup=["m"])
    feeds = {"x": np.eye(64, dtype=np.float32), "count": np.array(20_000)}

    async def run():
        old = weakref.ref(engine.model("m"))
        running = asyncio.create_task(engine.infer(old(), feeds, ["y"]))
        while not old().queue.running:
            await asyncio.sleep(0)
        put(tmp_path / "m", 5)
        await engine.load_model("m")
        assert (await engine.infer(engine.model("m"), TWO, OUTPUTS))[1].tolist() == [20]
        assert not running.done()
        assert old() is not None
        (answer,) = await running
        np.testing.assert_array_equal(answer, feeds["x"])
        del running
        return old

    old = asyncio.run(run())
    until = time.monotonic() + PATIENCE
    while old() is not None and time.monotonic() < until:  # the thread lets go after it answered
        time.sleep(0.01)
    assert old() is None


def test_the_index_says_unloading_while_a_request_runs(tmp_path, make_engine):
    put(tmp_path / "m", proto=models.slow())
    engine = make_engine(startup=["m"])
    feeds = {"x": np.eye(64, dtype=np.float32), "count": np.array(10**12)}

    async def run():
        task = asyncio.create_task(engine.infer(engine.model("m"), feeds, ["y"]))
        await asyncio.sleep(0.01)
        await engine.unload_model("m")
        states = [(await engine.index())[0].state.value]
        task.cancel()
        await asyncio.wait({task})
        del task
        until = time.monotonic() + PATIENCE
        while (await engine.index())[0].state == "UNLOADING" and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return [*states, (await engine.index())[0].state.value]

    assert asyncio.run(run()) == ["UNLOADING", "UNAVAILABLE"]


def test_reload_under_load_loses_nothing(tmp_path, make_engine):
    """Every answer is that of one of the two models, and both are seen."""
    put(tmp_path / "m" / "1", 1)
    engine = make_engine(startup=["m"])
    seen, ended = [], threading.Event()

    async def client():
        while not ended.is_set():
            model = engine.model("m")
            answer = await engine.infer(model, TWO, OUTPUTS)
            seen.append(answer[1].tolist()[0])

    async def run():
        clients = [asyncio.create_task(client()) for _ in range(8)]
        for i in range(20):
            put(tmp_path / "m" / "1", 1 + i % 2)
            await engine.load_model("m")
            await asyncio.sleep(0.01)
        ended.set()
        await asyncio.gather(*clients)

    asyncio.run(run())
    assert set(seen) == {4, 8}
    assert engine.model("m").statistics.success.count == len(seen)
    assert engine.model("m").statistics.fail.count == 0


def wait_for(engine, expected):
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            if ask(engine) == expected:
                return
        except (UnavailableError, UnknownModelError):
            if expected is None:
                return
        time.sleep(0.01)
    raise AssertionError(f"never {expected}: {lines(engine)}")


def test_polling_follows_the_disk(tmp_path, make_engine, caplog):
    engine = make_engine(Mode.POLLING, poll_seconds=0.02)
    assert engine.names == []
    put(tmp_path / "m" / "1", 1)
    wait_for(engine, [4])
    put(tmp_path / "m" / "2", 2)
    wait_for(engine, [8])
    spoil(tmp_path / "m" / "3")
    until = time.monotonic() + PATIENCE
    while len(lines(engine)) < 3 or "not loaded" in lines(engine)[2][3]:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert ask(engine) == [8]
    assert "model m was not loaded: model file" in caplog.text
    count = caplog.text.count("was not loaded")
    time.sleep(0.1)  # a broken file is not tried again until it changes
    assert caplog.text.count("was not loaded") == count
    put(tmp_path / "m" / "3", 3)
    wait_for(engine, [12])
    shutil.rmtree(tmp_path / "m")
    wait_for(engine, None)
    until = time.monotonic() + PATIENCE
    while lines(engine):
        assert time.monotonic() < until
        time.sleep(0.01)
    shutil.rmtree(tmp_path)
    time.sleep(0.1)
    assert "cannot be read" in caplog.text or engine.names == []


def test_weights_outside_of_the_file_count_as_a_change(tmp_path, make_engine):
    put(tmp_path / "m" / "1", proto=models.external("w.bin"))
    weights = tmp_path / "m" / "1" / "w.bin"
    weights.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    engine = make_engine(startup=["m"])
    feeds = {"x": np.zeros(4, np.float32)}

    def total():
        return asyncio.run(engine.infer(engine.model("m"), feeds, ["y"]))[0].sum()

    assert total() == 6
    fresh = tmp_path / "fresh"
    fresh.write_bytes(np.ones(4, np.float32).tobytes())
    fresh.replace(weights)
    load(engine)
    assert total() == 4
