"""The engine by itself: threads, cancellation, errors of ONNX Runtime."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from pyattn_serving.engine.cpus import available_cpus, cgroup_quota
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.failures import (
    InferenceError,
    InvalidRequestError,
    ModelError,
    UnavailableError,
    UnknownModelError,
)
from pyattn_serving.engine.session import one_line, translate

ENDLESS = {"x": np.eye(64, dtype=np.float32), "count": np.array(10**12)}
BRIEF = {"x": np.eye(64, dtype=np.float32), "count": np.array(3)}


@pytest.fixture
def slow_engine(model_folder):
    engine = Engine([ModelSource.of(model_folder / "slow.onnx")], threads=1, concurrency=1)
    engine.load()
    yield engine
    engine.close()


def test_cancelling_ends_the_run(slow_engine):
    """With one thread, a run that is not ended would keep the next one out for ever."""

    async def run():
        model = slow_engine.model("slow")
        running = asyncio.create_task(slow_engine.infer(model, ENDLESS, ["y"]))
        waiting = asyncio.create_task(slow_engine.infer(model, ENDLESS, ["y"]))
        await asyncio.sleep(0)
        running.cancel()
        waiting.cancel()
        (result,) = await slow_engine.infer(model, BRIEF, ["y"])
        return result, await asyncio.gather(running, waiting, return_exceptions=True)

    result, cancelled = asyncio.run(run())
    np.testing.assert_array_equal(result, BRIEF["x"])
    assert all(isinstance(error, asyncio.CancelledError) for error in cancelled)


def test_terminate_ends_what_runs_and_what_waits(slow_engine):
    async def run():
        model = slow_engine.model("slow")
        tasks = [asyncio.create_task(slow_engine.infer(model, ENDLESS, ["y"])) for _ in range(3)]
        await asyncio.sleep(0)
        slow_engine.terminate()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(UnavailableError):
            await slow_engine.infer(model, BRIEF, ["y"])
        return results

    assert all(isinstance(error, UnavailableError) for error in asyncio.run(run()))


def test_event_loop_is_free_while_a_model_runs(slow_engine):
    async def run():
        model = slow_engine.model("slow")
        running = asyncio.create_task(slow_engine.infer(model, ENDLESS, ["y"]))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not running.done()
        # Decoding and encoding have threads of their own.
        name = await slow_engine.offload(lambda: threading.current_thread().name)
        running.cancel()
        await asyncio.wait({running})
        return name

    assert asyncio.run(run()).startswith("codec")


def test_unknown_model_and_version(engine):
    with pytest.raises(UnknownModelError, match="no model 'none'"):
        engine.model("none")
    with pytest.raises(UnknownModelError, match="no version '2'"):
        engine.model("add", "2")


def test_models_are_there_after_load(model_folder):
    engine = Engine([ModelSource.of(model_folder / "add.onnx")])
    assert (engine.loaded, engine.names) == (False, [])
    engine.load()
    engine.load()
    assert (engine.loaded, engine.names) == (True, ["add"])
    engine.close()


def test_load_failure_leaves_the_engine_not_loaded(tmp_path):
    engine = Engine([ModelSource.of(tmp_path / "none.onnx")])
    with pytest.raises(ModelError):
        engine.load()
    assert not engine.loaded
    engine.close()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            state.InvalidArgument(
                "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: x\n"
                " index: 1 Got: 4 Expected: 3\n"
            ),
            InvalidRequestError,
            "the model refused the inputs (x [2, 3]): "
            "Got invalid dimensions for input: x index: 1 Got: 4 Expected: 3",
        ),
        (
            state.Fail(
                "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running "
                "Reshape node. Name:'r 1' Status Message: /src/core/reshape_helper.h:91 "
                "ReshapeHelper::ReshapeHelper(const TensorShape&, bool) a == b was false. The "
                "input tensor cannot be reshaped to the requested shape. Input shape:{2,3}\n"
            ),
            InvalidRequestError,
            "the model refused the inputs (x [2, 3]): Reshape: The input tensor cannot be reshaped "
            "to the requested shape. Input shape:{2,3}",
        ),
        (
            state.Fail("Batch size must be greater than 0"),
            InvalidRequestError,
            "the model refused the inputs (x [2, 3]): Batch size must be greater than 0",
        ),
        (
            state.Fail(
                "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running "
                "Exp node. Name:'' Status Message: /src/bfc_arena.cc:360 void* "
                "onnxruntime::Arena::Allocate(size_t, bool, Stream*) Failed to allocate memory"
            ),
            InferenceError,
            "the model failed: Exp: Failed to allocate memory",
        ),
        (
            state.Fail("cannot open /home/someone/file.bin now"),
            InferenceError,
            "the model failed: cannot open (path) now",
        ),
        (RuntimeError("x" * 1000), InferenceError, "the model failed: " + "x" * 297 + "..."),
        (
            state.Fail("Exiting due to terminate flag being set to true."),
            UnavailableError,
            "the inference was stopped",
        ),
    ],
)
def test_errors_of_onnxruntime(error, kind, message):
    translated = translate(error, {"x": np.zeros((2, 3))})
    assert type(translated) is kind
    assert str(translated) == message


def test_plain_messages_stay():
    assert one_line("two\n lines / and a ratio 3/4") == "two lines / and a ratio 3/4"


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content + "\n")


@pytest.mark.parametrize(
    ("inner", "outer", "quota"),
    [
        ("max 100000", "max 100000", None),
        ("150000 100000", "max 100000", 1.5),
        ("400000 100000", "200000 100000", 2.0),
        ("50000 100000", "200000 100000", 0.5),
        ("nonsense", "", None),
    ],
)
def test_quota_of_control_groups_version_2(tmp_path, inner, outer, quota):
    group(tmp_path, "a/b", cpu__max=inner)
    group(tmp_path, "a", cpu__max=outer)
    self_file = tmp_path / "self"
    self_file.write_text("0::/a/b\n")
    assert cgroup_quota(tmp_path, self_file) == quota


@pytest.mark.parametrize(("value", "quota"), [("-1", None), ("300000", 3.0)])
def test_quota_of_control_groups_version_1(tmp_path, value, quota):
    group(tmp_path, "cpu/a", cpu__cfs_quota_us=value, cpu__cfs_period_us="100000")
    self_file = tmp_path / "self"
    self_file.write_text("4:memory:/m\n3:cpuset:/\n2:cpu,cpuacct:/a\n")
    assert cgroup_quota(tmp_path, self_file) == quota


def test_quota_inside_a_container(tmp_path):
    """The path is the host's and does not exist below the container's mount."""
    group(tmp_path, "", cpu__max="120000 100000")
    self_file = tmp_path / "self"
    self_file.write_text("0::/docker/1234\n")
    assert cgroup_quota(tmp_path, self_file) == 1.2


def test_without_control_groups(tmp_path):
    assert cgroup_quota(tmp_path, tmp_path / "none") is None
    assert available_cpus(tmp_path, tmp_path / "none") >= 1


def test_quota_rounds_up_and_is_at_least_one(tmp_path):
    group(tmp_path, "", cpu__max="10000 100000")
    self_file = tmp_path / "self"
    self_file.write_text("0::/\n")
    assert available_cpus(tmp_path, self_file) == 1
