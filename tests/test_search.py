"""Greedy search and beam search against searches that look at every sequence there is."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pyattn as pa
from pyattn import nn, ops
from pyattn.ort import session

WORDS, END, STEPS = 4, 3, 4


class Chain(nn.Module):
    """A language model whose next word depends on the last one and on how many there are."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.first = rng.standard_normal((5, WORDS)).astype(np.float32)
        self.table = rng.standard_normal((STEPS * WORDS, WORDS)).astype(np.float32) * 2

    def step(self, tokens: Any, state: Any) -> Any:
        """The state is a vector (B, 1), and None beside it."""
        place, nothing = state
        return ops.take(self.table, place[:, 0] * WORDS + tokens), (place + 1, nothing)

    def start(self, entries: Any) -> Any:
        """The state before any word, and the logits of the first."""
        zeros = ops.expand_dims(ops.zeros_like(entries), 1)
        return (zeros, None), ops.take(self.first, entries)

    def log_probability(self, entry: int, tokens: tuple[int, ...]) -> float:
        """Of a sequence that ends with END or has all words."""
        total, logits = 0.0, self.first[entry].astype(np.float64)
        for place, token in enumerate(tokens):
            total += logits[token] - math.log(sum(math.exp(x) for x in logits))
            logits = self.table[place * WORDS + token].astype(np.float64)
        return total

    def sequences(self) -> list[tuple[int, ...]]:
        whole = set()
        for tokens in itertools.product(range(WORDS), repeat=STEPS):
            end = tokens.index(END) + 1 if END in tokens else STEPS
            whole.add(tokens[:end])
        return sorted(whole)


def by_hand(chain: Chain, entry: int, beams: int) -> list[tuple[tuple[int, ...], float]]:
    """Keep the best ``beams`` of all continuations, one word at a time."""
    kept: list[tuple[int, ...]] = [()]
    for _ in range(STEPS):
        longer = []
        for tokens in kept:
            ended = bool(tokens) and tokens[-1] == END
            longer += [tokens] if ended else [(*tokens, word) for word in range(WORDS)]
        kept = sorted(longer, key=lambda t: -chain.log_probability(entry, t))[:beams]
    return [(tokens, chain.log_probability(entry, tokens)) for tokens in kept]


def words(row: Any) -> tuple[int, ...]:
    listed = tuple(int(word) for word in row)
    if END not in listed:
        return listed
    end = listed.index(END) + 1
    assert set(listed[end:]) <= {END}
    return listed[:end]


@given(st.integers(0, 2**32 - 1), st.integers(1, WORDS))
def test_beam_search_keeps_the_best_at_each_step(seed: int, beams: int) -> None:
    chain = Chain(np.random.default_rng(seed))
    entries = np.array([0, 4, 2])
    state, logits = chain.start(entries)
    found, scores = nn.beam_search(chain.step, state, logits, end=END, steps=STEPS, beams=beams)
    assert found.shape == (3, beams, STEPS)
    for b, entry in enumerate(entries):
        expected = by_hand(chain, entry, beams)
        assert [words(row) for row in found[b]] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose(scores[b], [score for _, score in expected], atol=1e-5)
    if beams == 1:
        greedy = nn.greedy_search(chain.step, state, logits, end=END, steps=STEPS)
        np.testing.assert_array_equal(found[:, 0, : greedy.shape[1]], greedy)


def test_the_best_of_all_sequences_is_found_with_enough_beams(rng: Any) -> None:
    chain = Chain(rng)
    chain.table *= 0.3  # flat, so that the best may come late
    state, logits = chain.start(np.arange(5))
    (found, scores) = nn.beam_search(chain.step, state, logits, end=END, steps=2, beams=WORDS)
    for entry in range(5):
        pairs = [(END,), *((a, b) for a in range(WORDS - 1) for b in range(WORDS))]
        best = max(pairs, key=lambda t: chain.log_probability(entry, t))
        assert words(found[entry, 0]) == best
        assert scores[entry, 0] == pytest.approx(chain.log_probability(entry, best), abs=1e-5)


def test_the_penalty_orders_by_length(rng: Any) -> None:
    chain = Chain(rng)
    state, logits = chain.start(np.arange(5))
    for penalty in (0.0, 0.6, 2.0):
        found, scores = nn.beam_search(
            chain.step, state, logits, end=END, steps=STEPS, beams=3, length_penalty=penalty
        )
        for b in range(5):
            exact = [
                chain.log_probability(b, words(row)) / ((5 + len(words(row))) / 6) ** penalty
                for row in found[b]
            ]
            np.testing.assert_allclose(scores[b], exact, atol=1e-5)
            assert exact == sorted(exact, reverse=True)


@pytest.mark.parametrize("steps", [1, STEPS])
def test_searches_are_one_graph(steps: int, rng: Any) -> None:
    chain = Chain(rng)

    def search(entries: Any) -> Any:
        state, logits = chain.start(entries)
        tokens, scores = nn.beam_search(chain.step, state, logits, end=END, steps=steps, beams=2)
        greedy = nn.greedy_search(chain.step, state, logits, end=END, steps=steps, dim="written")
        return {"tokens": tokens, "scores": scores, "greedy": greedy}

    inputs = {"entries": pa.Input(np.array([0, 1, 2]), ("batch",))}
    proto = pa.export(search, inputs, opset=18)
    assert [n.op_type for n in proto.graph.node].count("Loop") == (2 if steps > 1 else 0)
    entries = np.array([4, 3, 2, 0])
    eager, run = search(entries), session(proto)
    for name, found in zip(eager, run.run(list(eager), {"entries": entries}), strict=True):
        np.testing.assert_allclose(found, eager[name], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros(4, np.float32)}, r"logits must be \(B, V\)"),
        ({"end": 4}, r"end must lie in 0\.\.3; got 4"),
        ({"steps": 0}, "steps must be positive; got 0"),
        ({"beams": 0}, "beams must be positive; got 0"),
        ({"beams": 5}, "k must be at most 4"),
    ],
)
def test_bad_options(change: Any, message: str, rng: Any) -> None:
    chain = Chain(rng)
    state, logits = chain.start(np.arange(2))
    given: dict[str, Any] = {"logits": logits, "end": END, "steps": 2, "beams": 2} | change
    with pytest.raises(ValueError, match=message):
        nn.beam_search(chain.step, state, **given)
    if "beams" not in change:
        del given["beams"]
        with pytest.raises(ValueError, match=f"greedy_search: {message}"):
            nn.greedy_search(chain.step, state, **given)
