"""Requests that run together get the answers that they would get alone."""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.failures import InferenceError, InvalidRequestError
from pyattn_serving.engine.layout import Packed, Padded
from pyattn_serving.engine.model_settings import ModelSettings

from . import models

ENDLESS = {"x": np.eye(64, dtype=np.float32), "count": np.array(10**12)}
INPUTS, OUTPUTS = ("ids", "mask"), ("tokens", "total")


def protos():
    return {
        "padded": models.table_sum(),
        "packed": models.packed_sum(),
        "unmasked": models.table_sum({**models.PADDED, "mask": None}),
        "attention": models.self_attention(),
        "slow": models.slow(),
        "wrong": models.table_sum(
            {**models.PADDED, "outputs": {**models.PADDED["outputs"], "total": {"batch": 0}}},
        ),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batching")
    for name, proto in protos().items():
        models.save(proto, folder / f"{name}.onnx")
    return folder


def make_engine(folder, **options):
    options.setdefault("concurrency", 1)
    chosen = ModelSettings(**options.pop("settings", {}))
    sources = [ModelSource.of(path) for path in sorted(folder.glob("*.onnx"))]
    engine = Engine(sources, threads=1, settings=chosen, **options)
    engine.load()
    return engine


@pytest.fixture
def engine(folder):
    engine = make_engine(folder)
    yield engine
    engine.close()


@contextlib.asynccontextmanager
async def held(engine):
    """Keep the engine's only thread busy, so that what comes meanwhile waits."""
    slow = engine.model("slow")
    task = asyncio.create_task(engine.infer(slow, ENDLESS, ["y"]))
    while not slow.queue.running:
        await asyncio.sleep(0)
    try:
        yield
    finally:
        task.cancel()


def together(engine, name, requests, outputs=OUTPUTS):
    """Run requests that all wait before the first one is taken; return answers or errors."""

    async def run():
        model = engine.model(name)
        async with held(engine):
            tasks = [asyncio.create_task(engine.infer(model, r, outputs)) for r in requests]
            while len(model.queue) < len(requests):
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(run())


def alone(engine, name, request, outputs=OUTPUTS):
    return asyncio.run(engine.infer(engine.model(name), request, outputs))


def padded_request(*rows):
    ids = np.array(rows)
    return {"ids": ids, "mask": np.ones_like(ids)}


def packed_request(*rows):
    ids = np.array([i for row in rows for i in row], np.int64)
    return {"ids": ids, "offsets": np.cumsum([0, *map(len, rows)])}


def expected(rows):
    """The answer in plain loops, for a padded request of one row after the other."""
    sums = [sum(i * i for i in row) for row in rows]
    return [[i * i + total for i in row] for row, total in zip(rows, sums, strict=True)], sums


ROWS = st.integers(1, 40).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 9), min_size=length, max_size=length), min_size=1, max_size=3
    )
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=12), st.booleans(), st.floats(0, 1))
def test_padded_answers_are_those_of_plain_loops(shared_folder, mixes, with_mask, max_padding):
    """Integers have one right answer, so the answers are equal to the last bit."""
    engine = make_engine(
        shared_folder, settings={"max_padding": max_padding, "max_batch": 8, "max_tokens": 100}
    )
    requests = [padded_request(*rows) for rows in mixes]
    if not with_mask:
        requests = [{"ids": request["ids"]} for request in requests]
    for rows, answer in zip(mixes, together(engine, "padded", requests), strict=True):
        tokens, total = expected(rows)
        np.testing.assert_array_equal(answer[0], tokens)
        np.testing.assert_array_equal(answer[1], total)
    found = engine.model("padded").statistics
    assert found.inferences == sum(map(len, mixes))
    assert found.real == sum(len(row) for rows in mixes for row in rows)
    assert found.padded >= found.real
    engine.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 9), max_size=20), min_size=1, max_size=4),
        min_size=1,
        max_size=12,
    )
)
def test_packed_answers_are_those_of_plain_loops(shared_folder, mixes):
    engine = make_engine(shared_folder)
    requests = [packed_request(*rows) for rows in mixes]
    for rows, answer in zip(mixes, together(engine, "packed", requests), strict=True):
        np.testing.assert_array_equal(answer[0], [i * i for row in rows for i in row])
        np.testing.assert_array_equal(answer[1], [sum(i * i for i in row) for row in rows])
    found = engine.model("packed").statistics
    assert found.padded == found.real == sum(len(row) for rows in mixes for row in rows)
    engine.close()


@pytest.fixture(scope="module", name="shared_folder")
def _shared_folder(folder):
    """The same under a name that Hypothesis may use: its content does not change."""
    return folder


def attention(x):
    """Softmax attention in plain float64."""
    x = x.astype(np.float64)
    scores = np.einsum("nid,njd->nij", x, x)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights @ x, weights


def test_floating_point_answers_are_as_good_as_those_of_lone_runs(engine, rng):
    """Sums of another length are added in another order: the error may double, not more."""
    names = ("y", "weights")
    requests = [
        {"x": rng.normal(size=(n, s, 8)).astype(np.float32)}
        for n, s in [(1, 16), (2, 15), (1, 17), (3, 16), (1, 14), (1, 100)]
    ]
    lone = [alone(engine, "attention", request, names) for request in requests]
    joint = together(engine, "attention", requests, names)
    assert max(engine.model("attention").statistics.batches) > 3
    epsilon = np.finfo(np.float32).eps
    for request, one, other in zip(requests, lone, joint, strict=True):
        for right, mine, batched in zip(attention(request["x"]), one, other, strict=True):
            assert batched.shape == right.shape
            error = np.abs(batched - right).max()
            scale = np.abs(right).max()
            assert error <= 2 * np.abs(mine - right).max() + epsilon * scale


def test_lengths_are_grouped_and_padding_is_capped(folder):
    engine = make_engine(folder, settings={"max_padding": 0.1, "max_batch": 4})
    lengths = [10, 100, 11, 99, 10, 98, 11, 97, 50]
    together(engine, "padded", [padded_request([1] * n) for n in lengths])
    found = engine.model("padded").statistics
    assert {rows: stages["run"].count for rows, stages in found.batches.items()} == {4: 2, 1: 1}
    assert found.padded == 4 * 11 + 4 * 100 + 50
    assert found.real == sum(lengths)
    engine.close()


def test_tokens_of_a_batch_are_capped(folder):
    engine = make_engine(folder, settings={"max_tokens": 25})
    together(engine, "padded", [padded_request([1] * 10) for _ in range(6)])
    together(engine, "packed", [packed_request([1] * 10) for _ in range(6)])
    for name in ("padded", "packed"):
        batches = engine.model(name).statistics.batches
        assert {rows: stages["run"].count for rows, stages in batches.items()} == {2: 3}
    engine.close()


def test_without_a_mask_only_equal_lengths_run_together(engine):
    requests = [padded_request([1] * n) for n in (4, 5, 4, 5, 4)]
    answers = together(engine, "unmasked", requests)
    assert [answer[1].tolist() for answer in answers] == [[4], [5], [4], [5], [4]]
    batches = engine.model("unmasked").statistics.batches
    assert sorted(batches) == [2, 3]


def test_a_bad_request_in_a_batch_fails_alone(engine):
    good = padded_request([1, 2])
    poisoned = padded_request([1, 99])
    answers = together(engine, "padded", [good, poisoned, good, poisoned, good])
    assert [type(answer) for answer in answers[1::2]] == [InvalidRequestError] * 2
    assert "idx=99" in str(answers[1])
    for answer in answers[::2]:
        np.testing.assert_array_equal(answer[1], [5])
    found = engine.model("padded").statistics
    assert (found.success.count, found.fail.count) == (3, 2)


@pytest.mark.parametrize(
    "odd",
    [
        {"ids": np.ones((1, 3), np.int64), "mask": np.ones((1, 2), np.int64)},
        {"ids": np.ones((2, 3), np.int64), "mask": np.ones((1, 3), np.int64)},
        {"ids": np.ones((0, 3), np.int64), "mask": np.ones((0, 3), np.int64)},
        {"ids": np.ones(3, np.int64), "mask": np.ones(3, np.int64)},
    ],
)
def test_a_request_that_contradicts_itself_runs_alone(engine, odd):
    """Its sizes would move the rows of others."""
    good = padded_request([1, 2, 3])
    *answers, last = together(engine, "padded", [good, good, odd])
    for answer in answers:
        np.testing.assert_array_equal(answer[1], [14])
    (lone,) = together(engine, "padded", [odd])
    if isinstance(lone, Exception):
        assert (type(last), str(last)) == (type(lone), str(lone))
        return
    for mine, other in zip(last, lone, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize(
    "offsets", [[0, 2], [1, 3], [0, 2, 1, 3], [0, 4], [[0, 3]], [0], [], [-1, 3]]
)
def test_offsets_that_are_none_run_alone(engine, offsets):
    odd = {"ids": np.arange(3), "offsets": np.array(offsets, np.int64)}
    assert engine.model("packed").measure(odd, OUTPUTS) is None
    good = packed_request([1, 2, 3])
    first, _, second = together(engine, "packed", [good, odd, good])
    for answer in (first, second):
        np.testing.assert_array_equal(answer[1], [14])


def test_each_request_gets_the_outputs_it_asks_for(engine):
    async def run():
        model = engine.model("padded")
        wanted = [("total",), ("tokens", "total"), ("total", "tokens"), ("tokens",)]
        async with held(engine):
            tasks = [
                asyncio.create_task(engine.infer(model, padded_request([1, 2]), names))
                for names in wanted
            ]
            while len(model.queue) < len(tasks):
                await asyncio.sleep(0)
        return wanted, await asyncio.gather(*tasks)

    wanted, answers = asyncio.run(run())
    right = {"tokens": [[6, 9]], "total": [5]}
    for names, answer in zip(wanted, answers, strict=True):
        assert [a.tolist() for a in answer] == [right[name] for name in names]
    assert list(engine.model("padded").statistics.batches) == [4]


def test_an_output_that_is_not_described_runs_alone(folder):
    layout = Padded({}, {}, None)
    assert layout.measure({}, ["y"]) is None
    assert Packed("offsets", {}, {}).measure({"offsets": np.array([0, 1])}, ["y"]) is None


def test_a_model_that_contradicts_its_batching_still_answers(tmp_path):
    """`total` is said to have a row for each row of the batch along axis 0, which `tokens` has."""
    outputs = {"tokens": {"batch": 1, "sequence": 0}, "total": {"batch": 0}}
    models.save(models.table_sum({**models.PADDED, "outputs": outputs}), tmp_path / "odd.onnx")
    models.save(models.slow(), tmp_path / "slow.onnx")
    engine = make_engine(tmp_path)
    requests = [padded_request([1, 2]), padded_request([1, 3])]
    answers = together(engine, "odd", requests)
    assert [answer[1].tolist() for answer in answers] == [[5], [10]]
    layout = engine.model("odd").layout
    extents = [layout.measure(request, OUTPUTS) for request in requests[:1] * 3]
    with pytest.raises(InferenceError, match="axis 1 is 3"):
        layout.split(extents, ["tokens"], [np.zeros((2, 2))])
    engine.close()


def test_max_batch_1_turns_batching_off(folder):
    engine = make_engine(folder, settings={"max_batch": 1})
    together(engine, "padded", [padded_request([1])] * 5)
    assert list(engine.model("padded").statistics.batches) == [1]
    engine.close()


def test_a_busy_model_waits_for_company_and_an_idle_one_does_not(folder):
    engine = make_engine(folder, concurrency=2, settings={"max_delay": 30.0, "preferred_batch": 3})
    start = time.perf_counter()
    alone(engine, "padded", padded_request([1]))
    queue = engine.model("padded").queue

    async def run():
        model = engine.model("padded")
        queue.running += 1  # as if a run were under way
        tasks = [
            asyncio.create_task(engine.infer(model, padded_request([1]), OUTPUTS)) for _ in range(2)
        ]
        await asyncio.sleep(0.05)
        assert (len(queue), queue.due() > time.perf_counter() + 20) == (2, True)
        tasks.append(asyncio.create_task(engine.infer(model, padded_request([1]), OUTPUTS)))
        await asyncio.gather(*tasks)
        queue.running -= 1

    asyncio.run(run())
    assert time.perf_counter() - start < 20
    assert sorted(engine.model("padded").statistics.batches) == [1, 3]
    engine.close()


def test_delay_ends(folder):
    engine = make_engine(folder, settings={"max_delay": 0.05, "preferred_batch": 3})
    engine.model("padded").queue.running += 1
    answer = alone(engine, "padded", padded_request([1, 2]))
    assert answer[1].tolist() == [5]
    assert engine.model("padded").statistics.stages["queue"].ns >= 0.05e9
    engine.close()


def test_mask_may_be_left_out_through_http(folder):
    from pyattn_serving.asgi.app import Application
    from pyattn_serving.asgi.body import Limits

    from .asgi_client import Client, tensor

    engine = make_engine(folder)
    client = Client(Application(engine, Limits(1 << 20, 30.0)))
    answer = client.infer("padded", {"inputs": [tensor("ids", "INT64", (1, 3), [1, 2, 3])]})
    assert answer.tensors()["total"] == [14]
    answer = client.infer("padded", {"inputs": [tensor("mask", "INT64", (1, 3), [1, 1, 1])]})
    assert (answer.status, answer.error) == (400, "missing input 'ids'")
    engine.close()
