"""Loops: what a traced one shares with its surroundings, where it stops, what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyattn as pa
from pyattn import nn, ops


class Reader(nn.Module):
    """Looks at the source again and again, until every row has met its number."""

    def __init__(self, rng: Any) -> None:
        self.attention = nn.AdditiveAttention(4, 4, 8, rng=rng)
        self.linear = nn.Linear(8, 4, rng=rng)

    def __call__(self, source: Any, lengths: Any, steps: Any) -> Any:
        doubled = source * 2.0

        def step(state: Any) -> Any:
            h, finished = state
            context = self.attention(ops.expand_dims(h, 1), doubled, kv_lengths=lengths)[:, 0]
            h = ops.tanh(self.linear(ops.concat([h, context], -1)))
            token = ops.argmax(h)
            finished = ops.logical_or(finished, ops.equal(token, 2))
            return (h, finished), (token, h), ops.all(finished)

        start = ops.max(source, 1)
        unfinished = ops.less(ops.arange_like(source, 0), 0)
        (last, _), (tokens, states) = ops.loop(step, (start, unfinished), steps)
        return last, tokens, states


@pytest.fixture
def reader(rng: Any) -> Reader:
    return Reader(rng)


@pytest.fixture
def inputs(rng: Any) -> dict[str, pa.Input]:
    return {
        "source": pa.Input(rng.standard_normal((3, 6, 4)).astype(np.float32), ("B", "S", None)),
        "lengths": pa.Input(np.array([6, 3, 2]), ("B",), at_most="S"),
        "steps": pa.Input(np.array(7)),
    }


@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize("target", ["functions", "primitive"])
def test_a_traced_loop_is_one_node(reader: Any, inputs: Any, opset: int, target: Any) -> None:
    proto = pa.export(reader, inputs, opset=opset, target=target)  # runs it at other sizes
    (node,) = [node for node in proto.graph.node if node.op_type == "Loop"]
    (body,) = [attribute.g for attribute in node.attribute]
    calls = [node.op_type for node in body.node if node.domain == "pyattn"]
    assert calls == (["AdditiveAttentionLengths"] if target == "functions" else [])
    # Parameters are read from outside by their names, and U h is computed there, once.
    names = {tensor.name for tensor in proto.graph.initializer}
    assert {"attention.query.weight.T", "attention.key.weight.T", "linear.bias"} <= names
    assert not body.initializer
    read = [name for node in body.node for name in node.input]
    assert "attention.query.weight.T" in read
    assert "attention.key.weight.T" not in read


def test_every_number_of_steps_in_one_file(reader: Any, inputs: Any, session: Any) -> None:
    run = session(pa.export(reader, inputs))
    source, lengths = inputs["source"].example, inputs["lengths"].example
    for steps in (1, 2, 11):
        found = run.run(
            None, {"source": source, "lengths": lengths, "steps": np.array(steps, np.int64)}
        )
        for f, e in zip(found, reader(source, lengths, np.array(steps)), strict=True):
            np.testing.assert_allclose(f, e, atol=1e-6)
        assert found[1].shape[1] <= steps


def test_it_stops_in_the_step_that_says_so(inputs: Any, session: Any) -> None:
    def model(source: Any) -> Any:
        last, counts = ops.loop(
            lambda n: (n + 1, n, ops.all(ops.greater(n, 3))), ops.arange_like(source, 0), 50
        )
        return last, counts

    source = inputs["source"]
    run = session(pa.export(model, {"source": source}))
    for rows in (1, 3):
        array = source.resized({"B": rows, "S": 2})
        for last, counts in (model(array), run.run(None, {"source": array})):
            assert counts.tolist() == [list(range(row, row + 5)) for row in range(rows)]
            assert last.tolist() == [row + 5 for row in range(rows)]


def test_weights_of_each_step_are_outputs_on_request(
    reader: Any, inputs: Any, session: Any
) -> None:
    proto = pa.export(reader, inputs, attention_outputs=True)
    *_, shown = proto.graph.output
    assert shown.name == "attention_weights_0"
    given = {name: value.example for name, value in inputs.items()}
    *_, states, weights = session(proto).run(None, given)
    before = np.concatenate([given["source"].max(1)[:, None], states[:, :-1]], 1)
    _, exact = reader.attention(
        before, given["source"] * 2, kv_lengths=given["lengths"], aux=("weights",)
    )
    np.testing.assert_allclose(weights[:, :, 0, 0].swapaxes(0, 1), exact, atol=1e-6)


class TwoReaders(nn.Module):
    """Reads a source twice, with two decoders that stop when they like."""

    def __init__(self, rng: Any) -> None:
        self.first, self.second = Reader(rng), Reader(rng)

    def __call__(self, source: Any, lengths: Any, steps: Any) -> dict[str, Any]:
        _, tokens, _ = self.first(source, lengths, steps)
        _, others, states = self.second(source, lengths, steps + 3)
        return {"tokens": tokens, "others": others, "states": states}


def test_two_decodes_in_one_graph(inputs: Any, rng: Any, session: Any) -> None:
    model = TwoReaders(rng)
    proto = pa.export(model, inputs)
    sizes = {output.name: output.type.tensor_type.shape.dim for output in proto.graph.output}
    names = [sizes[name][1].dim_param for name in ("tokens", "others", "states")]
    assert names == ["steps", "steps_1", "steps_1"]
    run, ended = session(proto), set()
    for seed in range(6):
        source = np.random.default_rng(seed).standard_normal((2, 5, 4)).astype(np.float32)
        given = {"source": source, "lengths": np.array([5, 2]), "steps": np.array(9)}
        exact = model(**given)
        for found, expected in zip(run.run(None, given), exact.values(), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-6)
        ended.add((exact["tokens"].shape[1], exact["others"].shape[1]))
    assert any(first != second for first, second in ended)


def test_names_of_steps(inputs: Any) -> None:
    def counted(source: Any, dim: str | None = None) -> Any:
        def step(n: Any) -> Any:
            return n + 1, n, ops.all(ops.greater(n, 3))

        return ops.loop(step, ops.arange_like(source, 0), 50, dim=dim)[1]

    source = pa.Input(inputs["source"].example, ("B", "steps", None))
    proto = pa.export(
        lambda source: (counted(source), counted(source, "count")), {"source": source}
    )
    shapes = [output.type.tensor_type.shape.dim for output in proto.graph.output]
    assert [shape[1].dim_param for shape in shapes] == ["steps_1", "count"]

    def summed(source: Any, dim: str | None = None) -> Any:
        return counted(source, dim) + counted(source, dim)

    pa.export(lambda source: summed(source, "count"), {"source": source})  # said to be equal
    with pytest.raises(ValueError, match="sizes steps and steps do not broadcast"):
        pa.export(summed, {"source": source})


def test_a_loop_within_a_loop(inputs: Any) -> None:
    def model(source: Any) -> Any:
        start = ops.mean(source, 1)

        def inner(state: Any) -> Any:
            return state * 0.5 + ops.max(source, 1), state

        def outer(state: Any) -> Any:
            last, seen = ops.loop(lambda x: inner(x + state), state, 3)
            return last, ops.sum(seen, 1)

        return ops.loop(outer, start, 2)

    pa.export(model, {"source": inputs["source"]})


def test_a_state_that_is_known_with_a_source_that_is_not(inputs: Any) -> None:
    weight = np.eye(4, dtype=np.float32)[:1]

    def model(source: Any) -> Any:
        total = ops.sum(source, (0, 1))

        def step(state: Any) -> Any:
            return state + total, state

        return ops.loop(step, weight, 2)

    pa.export(model, {"source": inputs["source"]})


def test_the_gradient_goes_back_through_every_step(reader: Any, inputs: Any, rng: Any) -> None:
    source, lengths = inputs["source"].example, inputs["lengths"].example
    wide = reader.replace({k: v.astype(np.float64) for k, v in reader.parameters().items()})

    def call(source: Any, weight: Any) -> Any:
        last, _, states = wide.replace({"linear.weight": weight})(source, lengths, 4)
        return last, states

    pa.check_grad(call, source.astype(np.float64), wide.linear.weight, rng=rng)


@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_adding_and_looking_up_along_an_axis_are_adjoint(data: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    leading = tuple(data.draw(st.lists(st.integers(1, 4), max_size=2)))
    size, count = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 9))
    x, updates = (rng.standard_normal((*leading, n)) for n in (size, count))
    places = rng.integers(0, size, (*leading, count)).astype(
        data.draw(st.sampled_from([np.int32, np.int64, np.uint8]))
    )
    added = ops.scatter_add(x, places, updates)
    for at in np.ndindex(leading):
        for i in range(size):
            exact = x[(*at, i)] + sum(updates[at][places[at] == i])
            assert added[(*at, i)] == pytest.approx(exact, abs=1e-12)
    taken = ops.take_along(x, places)
    found = np.vdot(updates, taken)
    assert found == pytest.approx(np.vdot(added - x, x), abs=1e-9)


@pytest.mark.parametrize("outside", [-1, 4])
def test_indices_outside_are_refused_in_onnx_too(outside: int, session: Any) -> None:
    x = np.ones((2, 4), np.float32)
    places = pa.Input(np.array([[0, 1], [3, 2]]), ("B", None))
    inputs = {"x": pa.Input(x, ("B", None)), "places": places}
    for call in (ops.take_along, lambda x, places: ops.scatter_add(x, places, x[:, :2])):
        run = session(pa.export(lambda x, places, call=call: call(x, places), inputs))
        given = {"x": x, "places": np.array([[0, outside], [1, 1]])}
        with pytest.raises(ValueError, match=r"indices must lie in 0\.\.3"):
            call(*given.values())
        with pytest.raises(Exception, match=r"(?i)out of|range|bounds"):
            run.run(None, given)


X = np.ones((2, 3))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "steps must be positive; got 0", lambda: ops.loop(lambda x: (x, x), X, 0)),
        (TypeError, "steps must be an integer", lambda: ops.loop(lambda x: (x, x), X, True)),
        (
            TypeError,
            "steps must be an integer",
            lambda: ops.loop(lambda x: (x, x), X, np.array(1.0)),
        ),
        (
            ValueError,
            r"steps must have rank 0; got shape \(1,\)",
            lambda: ops.loop(lambda x: (x, x), X, np.array([1])),
        ),
        (TypeError, "step must return .*; got ndarray", lambda: ops.loop(lambda x: x, X, 2)),
        (
            ValueError,
            r"must keep its shapes and dtypes; got float64\(2, 3, 1\) for float64\(2, 3\)",
            lambda: ops.loop(lambda x: (x[..., None], x), X, 2),
        ),
        (
            ValueError,
            r"outputs must be \(B, ...\) to be stacked",
            lambda: ops.loop(lambda x: (x, ops.sum(x)), X, 2),
        ),
        (
            TypeError,
            r"done must be a boolean of rank 0; got bool\(2, 3\)",
            lambda: ops.loop(lambda x: (x, x, ops.greater(x, 0.0)), X, 2),
        ),
        (TypeError, "dtypes must be equal", lambda: ops.scatter_add(X, X, np.ones(3, int))),
        (TypeError, "expected integer indices", lambda: ops.take_along(X, X)),
        (
            ValueError,
            r"indices must lie in 0\.\.2; got -1\.\.-1",
            lambda: ops.take_along(X, np.full((2, 1), -1)),
        ),
        (
            ValueError,
            "all axes but the last must be the same",
            lambda: ops.take_along(X, np.ones((3, 1), int)),
        ),
        (
            ValueError,
            "the shapes must be equal",
            lambda: ops.scatter_add(X, np.ones((2, 1), int), X),
        ),
        (ValueError, "count of 0 or more", lambda: ops.pad(X, -1)),
        (ValueError, "is empty", lambda: ops.argmax(X[:, :0])),
        (TypeError, "expected booleans", lambda: ops.logical_not(X)),
    ],
)
def test_bad_arguments(error: Any, message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()
