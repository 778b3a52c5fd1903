"""Attention weights cost what asks for them, and nobody else."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from onnx import TensorProto, helper
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.failures import ModelError
from pyattn_serving.engine.model_settings import ModelSettings

from . import models
from .test_attention import HEADS, LAYERS, encoder  # noqa: F401 -- a fixture
from .test_batching import held

pa = pytest.importorskip("pyattn")

WEIGHTS = tuple(f"attention_weights_{layer}" for layer in range(LAYERS))


def switched(*, name="wanted", told="wanted"):
    """A model whose attention weights cannot be computed: it looks behind the end of a table."""
    kind, shape = TensorProto.FLOAT, [1, 1, 1, 1]
    weights = [
        helper.make_node("Gather", ["table", "place"], ["found"]),
        helper.make_node("Unsqueeze", ["found", "axes"], ["then"]),
    ]
    branches = {
        "then_branch": helper.make_graph(weights, "then", [], [models.value("then", kind, None)]),
        "else_branch": helper.make_graph(
            [helper.make_node("Identity", ["none"], ["else"])],
            "else",
            [],
            [models.value("else", kind, None)],
        ),
    }
    proto = models.model(
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("If", [name], ["attention_weights_0"], **branches),
        ],
        [
            models.value("x", kind, ["N"]),
            models.value("place", TensorProto.INT64, []),
            models.value(name, TensorProto.BOOL, []),
        ],
        [models.value("y", kind, ["N"]), models.value("attention_weights_0", kind, shape)],
        [
            helper.make_tensor("table", kind, [1], [1.0]),
            helper.make_tensor("axes", TensorProto.INT64, [4], [0, 1, 2, 3]),
            helper.make_tensor("none", kind, [0, 0, 0, 0], []),
            helper.make_tensor(name, TensorProto.BOOL, [], [True]),
        ],
    )
    entry = proto.metadata_props.add()
    entry.key, entry.value = "pyattn.attention", told
    return proto


def make_engine(*paths):
    settings = ModelSettings(max_padding=1.0)
    sources = [ModelSource.of(path) for path in paths]
    engine = Engine(sources, threads=1, concurrency=1, settings=settings)
    engine.load()
    return engine


def infer(engine, name, feeds, outputs):
    return asyncio.run(engine.infer(engine.model(name), feeds, outputs))


def test_weights_that_nobody_asks_for_are_not_computed(tmp_path):
    engine = make_engine(models.save(switched(), tmp_path / "switched.onnx"))
    try:
        assert set(engine.model("switched").inputs) == {"x", "place"}
        feeds = {"x": np.ones(2, np.float32), "place": np.array(7)}
        (y,) = infer(engine, "switched", feeds, ["y"])
        assert y.tolist() == [1, 1]
        with pytest.raises(Exception, match="out of") as error:
            infer(engine, "switched", feeds, ["y", "attention_weights_0"])
        assert "wanted" not in str(error.value)
        feeds["place"] = np.array(0)
        _, weights = infer(engine, "switched", feeds, ["y", "attention_weights_0"])
        assert weights.shape == (1, 1, 1, 1)
    finally:
        engine.close()


@pytest.mark.parametrize("told", ["x", "nothing", ""])
def test_metadata_that_names_no_switch(tmp_path, told):
    path = models.save(switched(told=told), tmp_path / "wrong.onnx")
    with pytest.raises(ModelError, match=r"'pyattn\.attention' names no input"):
        make_engine(path)


@pytest.fixture(scope="module")
def engine(encoder, tmp_path_factory):  # noqa: F811 -- the fixture
    folder = tmp_path_factory.mktemp("outputs")
    path = folder / "maps.onnx"
    pa.export(encoder, encoder.example_inputs(), path, attention_outputs=True, verify=False)
    engine = make_engine(path, models.save(models.slow(), folder / "slow.onnx"))
    yield engine
    engine.close()


def test_requests_for_weights_run_together_and_apart_from_the_rest(engine):
    model = engine.model("maps")
    random = np.random.default_rng(0)
    asked = []
    for number, length in enumerate((5, 9, 2, 7, 6, 3, 8, 4)):
        ids = random.integers(1, 9, (1 + number % 3, length))
        outputs = ["sentence_embedding", *WEIGHTS] if number % 2 else ["sentence_embedding"]
        asked.append(({"input_ids": ids, "attention_mask": np.ones_like(ids)}, outputs))
    alone = [infer(engine, "maps", *each) for each in asked]
    before = model.statistics.executions

    async def run():
        async with held(engine):
            tasks = [asyncio.create_task(engine.infer(model, *each)) for each in asked]
            while len(model.queue) < len(asked):
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    for (feeds, _), found, right in zip(asked, asyncio.run(run()), alone, strict=True):
        rows, length = feeds["input_ids"].shape
        for array in right[1:]:
            assert array.shape == (rows, HEADS, length, length)
        for one, other in zip(found, right, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, atol=2e-6)
    # Those without weights were one run, those with them another.
    assert model.statistics.executions - before == 2
