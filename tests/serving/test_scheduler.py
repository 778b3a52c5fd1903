"""Queues and the threads behind them: bounds, priorities, time-outs, cancellation, faults."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import numpy as np
import pytest
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.failures import (
    DeadlineError,
    InferenceError,
    QueueFullError,
    UnavailableError,
)
from pyattn_serving.engine.model_settings import ModelSettings
from pyattn_serving.engine.queue import Work
from pyattn_serving.engine.statistics import Histogram, Statistics, Timing

from . import models
from .test_batching import ENDLESS, OUTPUTS, held, padded_request


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scheduler")
    models.save(models.table_sum(), folder / "padded.onnx")
    models.save(models.table_sum(None), folder / "plain.onnx")
    models.save(models.identity("BYTES", ("N",)), folder / "strings.onnx")
    models.save(models.slow(), folder / "slow.onnx")
    models.save(
        models.batching(
            models.fill(), {"kind": "padded", "inputs": {"shape": {"batch": 0}}, "outputs": {}}
        ),
        folder / "fill.onnx",
    )
    return folder


@pytest.fixture
def make_engine(folder):
    made = []

    def make(threads=1, **settings):
        sources = [ModelSource.of(path) for path in sorted(folder.glob("*.onnx"))]
        engine = Engine(sources, threads=1, concurrency=threads, settings=ModelSettings(**settings))
        engine.load()
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


def start(engine, name, request, outputs=OUTPUTS, **options):
    return asyncio.create_task(engine.infer(engine.model(name), request, outputs, **options))


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


ONE = padded_request([1])


def test_a_full_queue_refuses_at_once(make_engine):
    engine = make_engine(max_queue=3)

    async def run():
        async with held(engine):
            tasks = [start(engine, "padded", ONE) for _ in range(3)]
            await settle()
            took = []
            for _ in range(50):
                before = time.perf_counter()
                with pytest.raises(QueueFullError, match="3 requests wait"):
                    await engine.infer(engine.model("padded"), ONE, OUTPUTS)
                took.append(time.perf_counter() - before)
            assert len(engine.model("padded").queue) == 3
            # Another model has a queue of its own.
            other = start(engine, "plain", ONE)
            await settle()
        await asyncio.gather(*tasks, other)
        return took

    assert np.median(asyncio.run(run())) < 0.01
    assert engine.model("padded").statistics.rejected == 50


def test_bytes_in_the_queue_are_bounded(make_engine):
    engine = make_engine(max_queue_bytes=100)
    large = padded_request([1] * 50)  # larger than the bound: taken when nothing else waits

    async def run():
        async with held(engine):
            tasks = [start(engine, "padded", large)]
            await settle()
            with pytest.raises(QueueFullError, match="800 bytes of requests wait"):
                await engine.infer(engine.model("padded"), ONE, OUTPUTS)
            queue = engine.model("padded").queue
            assert (len(queue), queue.bytes) == (1, 800)
        await asyncio.gather(*tasks)
        assert (len(queue), queue.bytes, queue.rows) == (0, 0, 0)

    asyncio.run(run())


def test_strings_count_with_their_content(make_engine):
    engine = make_engine()

    async def run():
        few = np.array(["a" * 1000, "b"], dtype=object)
        many = np.array(["a" * 1000] * 5000, dtype=object)
        none = np.array([], dtype=object)
        model = engine.model("strings")
        return [Work(model, {"x": array}, ("y",)).size for array in (few, many, none)]

    few, many, none = asyncio.run(run())
    assert 1000 < few < 2000
    assert many >= 5_000_000
    assert none == 0


def test_priority_comes_before_arrival(make_engine):
    engine = make_engine(max_batch=1)
    done = []

    async def one(name, priority):
        await engine.infer(engine.model(name), ONE, OUTPUTS, priority=priority)
        done.append((name, priority))

    async def run():
        order = [("padded", 5), ("plain", 0), ("plain", 1), ("padded", 101), ("padded", 1)]
        async with held(engine):
            tasks = []
            for name, priority in order:
                tasks.append(asyncio.create_task(one(name, priority)))
                await settle()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert done == [("plain", 1), ("padded", 1), ("padded", 5), ("plain", 0), ("padded", 101)]


def test_a_request_out_of_time_leaves_the_queue(make_engine):
    engine = make_engine()

    async def run():
        queue = engine.model("padded").queue
        async with held(engine):
            late = start(engine, "padded", ONE, timeout=0.02)
            kept = start(engine, "padded", ONE)
            with pytest.raises(DeadlineError, match=r"timeout of 0\.02 seconds is over"):
                await late
            assert len(queue) == 1
        return await kept

    assert asyncio.run(run())[1].tolist() == [1]
    found = engine.model("padded").statistics
    assert (found.expired, found.executions, found.inferences) == (1, 1, 1)


def test_a_run_out_of_time_ends(make_engine):
    """With one thread, the next request would never be answered otherwise."""
    engine = make_engine()

    async def run():
        with pytest.raises(DeadlineError):
            await engine.infer(engine.model("slow"), ENDLESS, ["y"], timeout=0.05)
        return await engine.infer(engine.model("padded"), ONE, OUTPUTS)

    assert asyncio.run(run())[1].tolist() == [1]


def test_the_models_own_time_out_counts_where_the_request_has_none(make_engine):
    engine = make_engine(timeout=0.02)

    async def run():
        with pytest.raises(DeadlineError):
            await engine.infer(engine.model("slow"), ENDLESS, ["y"])

    asyncio.run(run())


def test_a_cancelled_request_leaves_the_queue_and_its_batch(make_engine):
    engine = make_engine()

    async def run():
        model = engine.model("padded")
        async with held(engine):
            tasks = [start(engine, "padded", ONE) for _ in range(4)]
            await settle()
            tasks[0].cancel()
            tasks[2].cancel()
            await settle()
            assert len(model.queue) == 2
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(run())
    assert [isinstance(a, asyncio.CancelledError) for a in answers] == [True, False, True, False]
    found = engine.model("padded").statistics
    assert (found.cancelled, list(found.batches)) == (2, [2])


def test_a_run_ends_when_nobody_waits_for_it(make_engine):
    """One of two in a batch goes away: the run goes on; both: it is ended."""
    engine = make_engine()

    async def run():
        work = [Work(engine.model("slow"), ENDLESS, ("y",)) for _ in range(2)]
        scheduler = engine._scheduler
        scheduler.submit(work[0])
        while not engine.model("slow").queue.running:
            await asyncio.sleep(0)
        run = scheduler._running[work[0]]
        run.works.append(work[1])
        scheduler._running[work[1]] = run
        scheduler.cancel(work[0])
        assert not run.options.terminate
        scheduler.cancel(work[1])
        assert run.options.terminate
        return await engine.infer(engine.model("padded"), ONE, OUTPUTS)

    assert asyncio.run(run())[1].tolist() == [1]


def test_terminate_fails_what_waits_in_every_queue(make_engine):
    engine = make_engine()

    async def run():
        async with held(engine):
            tasks = [start(engine, name, ONE) for name in ("padded", "plain", "padded")]
            await settle()
            engine.terminate()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(error, UnavailableError) for error in asyncio.run(run()))


def test_no_memory_for_one_request_hurts_no_other(make_engine):
    """A batch that asks for 4 EiB fails; run singly, only the one that wanted them does."""
    engine = make_engine()

    async def run():
        async with held(engine):
            greedy = start(engine, "fill", {"shape": np.array([1 << 30, 1 << 30])}, ("y",))
            modest = start(engine, "fill", {"shape": np.array([2, 3])}, ("y",))
            others = [start(engine, "padded", ONE) for _ in range(3)]
            await settle()
        return await asyncio.gather(greedy, modest, *others, return_exceptions=True)

    greedy, modest, *others = asyncio.run(run())
    assert isinstance(greedy, InferenceError)
    assert modest[0].shape == (2, 3)
    assert [other[1].tolist() for other in others] == [[1]] * 3


def test_a_model_may_have_fewer_runs_at_once_than_the_server(make_engine):
    engine = make_engine(3, concurrency=1)
    slow = engine.model("slow")

    async def run():
        tasks = [start(engine, "slow", ENDLESS, ("y",)) for _ in range(3)]
        while not slow.queue.running or len(slow.queue) < 2:
            await asyncio.sleep(0)
        other = await engine.infer(engine.model("padded"), ONE, OUTPUTS)
        assert (slow.queue.running, len(slow.queue)) == (1, 2)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return other

    assert asyncio.run(run())[1].tolist() == [1]


def test_a_thread_outlives_an_error_that_nobody_foresaw(make_engine, caplog):
    engine = make_engine()

    async def run():
        work = Work(engine.model("padded"), ONE, OUTPUTS)
        work.feeds = None
        engine._scheduler.submit(work)
        with pytest.raises(InferenceError, match="the run failed: TypeError"):
            await work.future
        return await engine.infer(engine.model("padded"), ONE, OUTPUTS)

    assert asyncio.run(run())[1].tolist() == [1]
    assert "a run failed" in caplog.text


def test_an_answer_after_the_end_of_the_event_loop_goes_nowhere(make_engine):
    engine = make_engine()

    async def run():
        work = Work(engine.model("slow"), ENDLESS, ("y",))
        engine._scheduler.submit(work)
        return work

    work = asyncio.run(run())  # nobody waits: the loop is closed while it runs
    engine._scheduler.cancel(work)
    answer = asyncio.run(engine.infer(engine.model("padded"), ONE, OUTPUTS))
    assert answer[1].tolist() == [1]


def test_an_engine_that_is_gone_leaves_no_model_behind(folder):
    engine = Engine([ModelSource.of(folder / "padded.onnx")], threads=1)
    engine.load()
    model = weakref.ref(engine.model("padded"))
    asyncio.run(engine.infer(model(), ONE, OUTPUTS))
    engine.close()
    del engine
    gc.collect()
    assert model() is None


def test_sizes_of_runs_are_kept_up_to_a_bound():
    statistics = Statistics()
    for rows in (1, 5000, 6000):
        statistics.ran(Timing(1, 2, 3, rows, rows, rows), [0], [10])
    assert sorted(statistics.batches) == [1, 1024]
    assert statistics.inferences == 11001


def test_histograms_count_up_to_their_bounds():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 7.0):
        histogram.add(value)
    assert histogram.cumulative() == [(1.0, 2), (2.0, 3), (float("inf"), 4)]
    assert histogram.sum == 10.0
