"""Decoder cells against the papers, step by step; coverage, copying; gradients and exports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyattn as pa
from pyattn import nn, ops
from tests import reference_decoder
from tests.draws import draw_layout

LENGTHS = np.array([6, 3, 1])


def problem(rng: Any, dtype: Any = np.float32) -> tuple[Any, Any]:
    """Words (B, T, 4) and source states (B, S, 8), NaN behind their lengths."""
    words = rng.standard_normal((3, 5, 4)).astype(dtype)
    states = rng.standard_normal((3, 6, 8)).astype(dtype)
    states[np.arange(6) >= LENGTHS[:, None]] = np.nan
    return words, states


def widened(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: array.astype(np.float64) for name, array in parameters.items()}


def decode(cell: Any, words: Any, state: Any, source: Any, aux: Any) -> list[Any]:
    """Return the outputs and what aux names, of all steps, (B, T, ...)."""
    found = []
    for t in range(words.shape[1]):
        state, *results = cell(words[:, t], state, source, aux=aux)
        found.append(results)
    return [ops.stack(values, 1) for values in zip(*found, strict=True)]


def bahdanau(rng: Any, **options: Any) -> nn.BahdanauDecoderCell:
    return nn.BahdanauDecoderCell(4, 5, 8, 7, rng=rng, **options)


VARIANTS = [
    {},
    {"reset_after": True},
    {"maxout": 3},
    {"coverage": True},
    {"coverage": True, "maxout": 2},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_bahdanau_is_the_paper_s(options: Any, rng: Any) -> None:
    cell = bahdanau(rng, **options)
    words, states = problem(rng)
    exact = reference_decoder.bahdanau(
        words, states, LENGTHS.tolist(), cell.parameters(),
        reset_after=options.get("reset_after", False),
    )  # fmt: skip
    source = cell.prepare(states, LENGTHS)
    aux = ("context", "weights", *(["coverage_loss"] if "coverage" in options else []))
    outputs, contexts, weights, *loss = decode(cell, words, cell.initial_state(source), source, aux)
    np.testing.assert_allclose(outputs, exact.outputs, atol=1e-5)
    np.testing.assert_allclose(weights, exact.weights, atol=1e-5)
    expected = np.einsum("bts,bse->bte", exact.weights, np.nan_to_num(states))
    np.testing.assert_allclose(contexts, expected, atol=1e-5)
    if loss:
        assert (exact.coverage_loss[:, 0] == 0).all()
        np.testing.assert_allclose(loss[0], exact.coverage_loss, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_bahdanau_of_any_size_and_layout(data: Any, seed: int) -> None:
    draw, rng = data.draw, np.random.default_rng(seed)
    batch, steps, words_size = (draw(st.integers(1, 4)) for _ in range(3))
    length, hidden, units = (draw(st.sampled_from([1, 2, 7, 9, 16, 17])) for _ in range(3))
    half = draw(st.integers(1, 9))
    lengths = rng.integers(1, length + 1, batch)
    options = {"coverage": draw(st.booleans()), "maxout": draw(st.sampled_from([None, 1, 4]))}
    cell = nn.BahdanauDecoderCell(words_size, hidden, 2 * half, units, rng=rng, **options)
    words = rng.standard_normal((batch, steps, words_size)).astype(np.float32)
    states = rng.standard_normal((batch, length, 2 * half)).astype(np.float32)
    states[np.arange(length) >= lengths[:, None]] = np.nan
    exact = reference_decoder.bahdanau(
        words, states, lengths.tolist(), cell.parameters(), reset_after=False
    )
    source = cell.prepare(draw_layout(draw, states), lengths)
    state = cell.initial_state(source)
    outputs, weights = decode(cell, draw_layout(draw, words), state, source, ("weights",))
    np.testing.assert_allclose(outputs, exact.outputs, atol=2e-5)
    np.testing.assert_allclose(weights, exact.weights, atol=2e-5)


def test_states_of_bahdanau(rng: Any) -> None:
    cell = bahdanau(rng, coverage=True)
    words, states = problem(rng)
    exact = reference_decoder.bahdanau(
        words, states, LENGTHS.tolist(), cell.parameters(), reset_after=False
    )
    source = cell.prepare(states, LENGTHS)
    state = cell.initial_state(source)
    assert state.coverage.shape == (3, 6)
    assert not state.coverage.any()
    first = reference_decoder.bahdanau_start(states, cell.parameters())
    np.testing.assert_allclose(state.hidden, first, atol=1e-6)
    for t in range(5):
        state, _ = cell(words[:, t], state, source)
        np.testing.assert_allclose(state.hidden, exact.states[:, t], atol=1e-5)
        np.testing.assert_allclose(state.coverage, exact.weights[:, : t + 1].sum(1), atol=1e-5)
    assert bahdanau(rng).initial_state(source).coverage is None


@pytest.mark.parametrize("recurrent", ["lstm", "gru"])
@pytest.mark.parametrize("score", ["dot", "general"])
@pytest.mark.parametrize("half_width", [None, 2])
def test_luong_is_the_paper_s(recurrent: Any, score: Any, half_width: Any, rng: Any) -> None:
    align: Any = "global" if half_width is None else "local-m"
    attention = nn.LuongAttention(8, score=score, align=align, half_width=half_width, rng=rng)
    cell = nn.LuongDecoderCell(4, attention, recurrent=recurrent, rng=rng)
    words, states = problem(rng)
    start: Any = tuple(rng.standard_normal((2, 3, 8)).astype(np.float32))
    start = start if recurrent == "lstm" else start[0]
    exact = reference_decoder.luong(
        words, states, LENGTHS.tolist(), cell.parameters(), start, score, half_width
    )
    source = cell.prepare(states, LENGTHS)
    found = decode(cell, words, cell.initial_state(start), source, ("weights",))
    np.testing.assert_allclose(found[0], exact.outputs, atol=1e-5)
    np.testing.assert_allclose(found[1], exact.weights, atol=1e-5)


def test_a_concat_score_in_the_luong_cell(rng: Any) -> None:
    attention = nn.LuongAttention(8, score="concat", units=6, rng=rng)
    cell = nn.LuongDecoderCell(4, attention, recurrent="gru", rng=rng)
    words, states = problem(rng)
    state = cell.initial_state(np.zeros((3, 8), np.float32))
    state, vector = cell(words[:, 0], state, cell.prepare(states, LENGTHS))
    expected = attention(state.recurrent[:, None], states, kv_lengths=LENGTHS)
    np.testing.assert_array_equal(vector, expected[:, 0])
    np.testing.assert_array_equal(vector, state.vector)


@pytest.mark.parametrize("half_width", [None, 2])
def test_a_concat_score_projects_a_source_once(rng: Any, half_width: Any) -> None:
    align: Any = "global" if half_width is None else "local-m"
    attention = nn.LuongAttention(
        8, score="concat", align=align, half_width=half_width, units=6, rng=rng
    )
    cell: Any = nn.LuongDecoderCell(4, attention, recurrent="gru", rng=rng)
    words, states = problem(rng)
    start = cell.initial_state(np.zeros((3, 8), np.float32))
    source = cell.prepare(states, LENGTHS)
    assert source.projected.shape == (*states.shape[:2], 6)
    expected = decode(cell, words, start, source._replace(projected=None), ("weights",))
    weight = attention.weight.copy()
    weight[:, 8:] = np.nan  # what only the projection of the keys reads
    again = cell.replace({"attention.weight": weight})
    for f, e in zip(decode(again, words, start, source, ("weights",)), expected, strict=True):
        np.testing.assert_array_equal(f, e)


def test_the_gradient_of_keys_that_are_projected_once(rng: Any) -> None:
    attention: Any = nn.LuongAttention(8, score="concat", units=6, rng=rng)
    cell = nn.LuongDecoderCell(4, attention, recurrent="gru", rng=rng)
    words, states = (np.nan_to_num(a) for a in problem(rng, np.float64))
    weights = {k: v.astype(np.float64) for k, v in cell.parameters().items()}

    def call(states: Any, weights: Any) -> Any:
        decoder = cell.replace(weights)
        state = decoder.initial_state(np.zeros((3, 8)))
        return decode(decoder, words, state, decoder.prepare(states, LENGTHS), ())[0]

    pa.check_grad(call, states, weights, rng=rng)


def test_copying_is_the_paper_s(rng: Any) -> None:
    pointer = nn.PointerOutput(5, 4, 8, rng=rng)
    s, y, c = (rng.standard_normal((3, n)).astype(np.float32) for n in (5, 4, 8))
    vocabulary = ops.softmax(rng.standard_normal((3, 9)).astype(np.float32))
    weights = ops.softmax(rng.standard_normal((3, 6)).astype(np.float32))
    ids = rng.integers(0, 12, (3, 6))
    ids[:, 3] = ids[:, 1]
    joined = np.concatenate([c, s, y], 1).astype(np.float64)
    p = 1 / (1 + np.exp(-(joined @ pointer.gate.weight[0] + pointer.gate.bias)))
    exact = reference_decoder.pointer(vocabulary, weights, ids, p.tolist(), 3)
    found = pointer(vocabulary, weights, ids, s, y, c, extra=3)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def bahdanau_model(cell: nn.BahdanauDecoderCell, pointer: nn.PointerOutput) -> Any:
    def model(words: Any, states: Any, ids: Any, lengths: Any) -> Any:
        source = cell.prepare(states, lengths)
        state = cell.initial_state(source)
        probabilities, losses = [], []
        for t in range(3):
            y = words[:, t]
            before = state.hidden
            aux = ("weights", "context", "coverage_loss")
            state, output, weights, context, loss = cell(y, state, source, aux=aux)
            vocabulary = ops.softmax(output)
            probabilities.append(pointer(vocabulary, weights, ids, before, y, context, extra=2))
            losses.append(loss)
        return ops.stack(probabilities, 1), ops.stack(losses, 1)

    return model


@pytest.mark.parametrize("maxout", [None, 3])
def test_gradient_and_export_of_coverage_and_copying(maxout: Any, rng: Any) -> None:
    cell = bahdanau(rng, coverage=True, maxout=maxout, normalize=True)
    pointer = nn.PointerOutput(5, 4, 8, rng=rng)
    words, states = problem(rng, np.float64)
    states = np.nan_to_num(states)
    size = 5 + 8 if maxout is None else maxout
    ids = rng.integers(0, size + 2, (3, 6))

    def call(words: Any, states: Any, of_cell: Any, of_pointer: Any) -> Any:
        model = bahdanau_model(cell.replace(of_cell), pointer.replace(of_pointer))
        return model(words, states, ids, LENGTHS)

    weights = widened(cell.parameters()), widened(pointer.parameters())
    pa.check_grad(call, words, states, *weights, rng=rng)
    inputs = {
        "words": pa.Input(words.astype(np.float32), ("B", None, None)),
        "states": pa.Input(states.astype(np.float32), ("B", "S", None)),
        "ids": pa.Input(ids, ("B", "S")),
        "lengths": pa.Input(LENGTHS, ("B",), at_most="S"),
    }
    pa.export(bahdanau_model(cell, pointer), inputs)


@pytest.mark.parametrize(
    ("recurrent", "options"),
    [
        ("lstm", {}),
        ("gru", {"score": "concat"}),
        ("gru", {"align": "local-m", "half_width": 2}),
        ("lstm", {"align": "local-p", "half_width": 2}),
    ],
    ids=str,
)
def test_gradient_and_export_of_luong(recurrent: Any, options: Any, rng: Any) -> None:
    attention = nn.LuongAttention(8, **options, rng=rng)
    cell = nn.LuongDecoderCell(4, attention, recurrent=recurrent, rng=rng)
    words, states = problem(rng, np.float64)
    states = np.nan_to_num(states)

    def run(cell: Any, words: Any, states: Any, lengths: Any) -> Any:
        last = ops.tanh(states[:, 0])
        state = cell.initial_state((last, last) if recurrent == "lstm" else last)
        return tuple(decode(cell, words, state, cell.prepare(states, lengths), ("weights",)))

    pa.check_grad(
        lambda words, states, weights: run(cell.replace(weights), words, states, LENGTHS),
        words, states, widened(cell.parameters()), rng=rng,
    )  # fmt: skip
    inputs = {
        "words": pa.Input(words.astype(np.float32), ("B", None, None)),
        "states": pa.Input(states.astype(np.float32), ("B", "S", None)),
        "lengths": pa.Input(LENGTHS, ("B",), at_most="S"),
    }
    pa.export(lambda **given: run(cell, **given), inputs)


@pytest.mark.parametrize("align", ["local-m", "local-p"])
def test_local_alignments_in_a_loop(align: Any, rng: Any) -> None:
    attention = nn.LuongAttention(8, align=align, half_width=1, rng=rng)
    cell = nn.LuongDecoderCell(8, attention, rng=rng)
    _, states = problem(rng)
    states = np.nan_to_num(states)

    def model(states: Any, lengths: Any) -> Any:
        source = cell.prepare(states, lengths)
        first = states[:, 0]

        def step(state: Any) -> Any:
            return cell(state.vector, state, source)

        _, vectors = ops.loop(step, cell.initial_state((first, first)), 4)
        return vectors

    inputs = {
        "states": pa.Input(states, ("B", "S", None)),
        "lengths": pa.Input(LENGTHS, ("B",), at_most="S"),
    }
    pa.export(model, inputs)


@pytest.mark.parametrize("coverage", [False, True])
def test_a_whole_greedy_decode_is_one_file(coverage: bool, rng: Any) -> None:
    cell = bahdanau(rng, coverage=coverage, maxout=6)
    embedding, words = nn.Embedding(9, 4, rng=rng), nn.Linear(6, 9, rng=rng)
    _, states = problem(rng)

    def model(states: Any, lengths: Any, steps: Any) -> Any:
        source = cell.prepare(states, lengths)

        def step(carried: Any) -> Any:
            state, token = carried
            state, output, weights = cell(embedding(token), state, source, aux=("weights",))
            token = ops.argmax(words(output))
            return (state, token), (token, weights), ops.all(ops.equal(token, 3))

        start = ops.zeros_like(lengths, np.int64)
        _, results = ops.loop(step, (cell.initial_state(source), start), steps)
        return results

    inputs = {
        "states": pa.Input(np.nan_to_num(states), ("B", "S", None)),
        "lengths": pa.Input(LENGTHS, ("B",), at_most="S"),
        "steps": pa.Input(np.array(6)),
    }
    proto = pa.export(model, inputs)
    assert [node.op_type for node in proto.graph.node].count("Loop") == 1


FLOATS = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("source_size must be even", lambda: nn.BahdanauDecoderCell(2, 3, 5, 4, rng=None)),
        (
            r"aux may name each of \('weights', 'context'\) once; got \('coverage_loss',\)",
            lambda: bahdanau(None)(FLOATS, nn.BahdanauState(FLOATS), nn.Source(FLOATS),
                                   aux="coverage_loss"),
        ),
        (
            r"states must be \(B, S, size\); got shape \(2, 3\)",
            lambda: bahdanau(None).prepare(FLOATS),
        ),
        (
            r"y must be \(B, size\); got shape \(2, 3, 1\)",
            lambda: bahdanau(None)(FLOATS[..., None], nn.BahdanauState(FLOATS), nn.Source(FLOATS)),
        ),
        (
            "recurrent must be one of",
            lambda: nn.LuongDecoderCell(
                4, nn.LuongAttention(8, rng=None), recurrent="rnn", rng=None  # type: ignore[arg-type]
            ),
        ),
        ("must be positive", lambda: nn.MaxoutOutput(2, 3, 4, 0, rng=None)),
        (
            r"indices must lie in 0\.\.3; got 0\.\.4",
            lambda: nn.PointerOutput(3, 3, 3, rng=None)(
                FLOATS, FLOATS, np.array([[0, 1, 2], [0, 1, 4]]), FLOATS, FLOATS, FLOATS, extra=1
            ),
        ),
    ],
)  # fmt: skip
def test_bad_arguments(message: str, make: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make()
