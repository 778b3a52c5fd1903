"""Choosing tokens, and turning them into text as they come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyattn_serving.engine.failures import InferenceError
from pyattn_serving.text.detokenizer import Detokenizer, StopStrings
from pyattn_serving.text.sampling import Sampler, Sampling, distribution

pytest.importorskip("tokenizers")

from pyattn_serving.engine.tokenizer import Tokenizer
from tokenizers import Tokenizer as Library
from tokenizers import decoders, pre_tokenizers
from tokenizers import models as kinds

from . import text_models

BYTES = Tokenizer(text_models.byte_tokenizer(), None, (text_models.END,))


def metaspace():
    """Spaces are part of the words, and bytes stand for what is no word."""
    words = ["▁the", "▁cat", "s", "▁", "Ж"]
    vocabulary = [("<unk>", 0.0), *((f"<0x{i:02X}>", -9.0) for i in range(256))]
    vocabulary += [(word, -1.0) for word in words]
    library = Library(kinds.Unigram(vocabulary, 0, byte_fallback=True))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return Tokenizer(library)


def pieces(tokenizer, prompt, tokens):
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]


TOKENS = st.lists(st.integers(0, BYTES.size - 1), max_size=60)


@given(prompt=st.text(max_size=20), tokens=TOKENS)
@settings(max_examples=300, deadline=None)
def test_pieces_are_the_text_whatever_the_tokens_are(prompt, tokens):
    (before,) = BYTES.encode([prompt])
    found = pieces(BYTES, before, tokens)
    assert prompt + "".join(found) == BYTES.decode([*before, *tokens])


@given(text=st.text(st.sampled_from("the cats Жж日本🙂é"), max_size=40))
@settings(max_examples=200, deadline=None)
def test_no_piece_breaks_a_character(text):
    (tokens,) = BYTES.encode([text])
    for piece in pieces(BYTES, [], tokens):
        assert "\ufffd" not in piece


@given(
    words=st.lists(
        st.sampled_from(["the", "cat", "the cats", "Ж", "日本", "🙂"]), min_size=1, max_size=5
    )
)
@settings(max_examples=200, deadline=None)
def test_spaces_between_words_are_right(words):
    tokenizer, text = metaspace(), " ".join(words)
    (tokens,) = tokenizer.encode([text])
    for split in range(len(tokens)):
        first = Detokenizer(tokenizer)
        before = "".join(map(first.push, tokens[:split]))
        found = "".join(pieces(tokenizer, tokens[:split], tokens[split:]))
        assert before + found == text


@given(
    text=st.text(st.sampled_from("abc"), max_size=30),
    stops=st.lists(st.text(st.sampled_from("abc"), min_size=1, max_size=4), max_size=3),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_text_ends_before_the_first_stop_string(text, stops, data):
    stop, given_, at = StopStrings(stops), "", 0
    while at < len(text) and not stop.found:
        size = data.draw(st.integers(1, 5))
        given_ += stop.push(text[at : at + size])
        at += size
    if not stop.found:
        given_ += stop.finish()
    ends = [i for i in range(len(text)) if any(text.startswith(s, i) for s in stops)]
    assert stop.found == bool(ends)
    if not ends:
        assert given_ == text
    else:  # a longer one that began earlier may have come whole with the same piece, or later
        assert text.startswith(given_)
        assert any(len(given_) == i for i in ends)
        assert not any(s in given_ for s in stops)


def plain(logits, sampling):
    """Probabilities by the definition, in loops."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if sampling.top_k:
        order = order[: sampling.top_k]
    weights = [np.exp((logits[i] - max(logits)) / sampling.temperature) for i in order]
    chances = [weight / sum(weights) for weight in weights]
    kept, total = [], 0.0
    for i, chance in zip(order, chances, strict=True):
        if kept and total >= sampling.top_p < 1:
            break
        kept.append((i, chance))
        total += chance
    return {i: chance / total for i, chance in kept}


@given(
    logits=st.lists(st.integers(-40, 40), min_size=1, max_size=20),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 5.0]),
    top_k=st.integers(0, 25),
    top_p=st.sampled_from([0.0, 0.11, 0.53, 0.97, 1.0]),
)
def test_distribution_is_the_definition_s(logits, temperature, top_k, top_p):
    sampling = Sampling(temperature, top_k, top_p)
    tokens, chances = distribution(np.array(logits, np.float32) / 4, sampling)
    found = dict(zip(tokens.tolist(), chances.tolist(), strict=True))
    wanted = plain([logit / 4 for logit in logits], sampling)
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([found[i] for i in wanted], list(wanted.values()), rtol=1e-9)


def test_a_seed_gives_the_same_tokens_and_their_frequencies_are_right():
    logits = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    draw = [Sampler(Sampling(1.0, seed=7)) for _ in range(2)]
    first, second = ([sample(logits) for _ in range(4000)] for sample in draw)
    assert first == second
    shares = np.bincount(first, minlength=3) / 4000
    np.testing.assert_allclose(shares, [0.2, 0.5, 0.3], atol=0.03)  # 4 standard deviations
    assert Sampler(Sampling())(logits) == 1
    assert Sampler(Sampling(1e-300))(logits) == 1


@pytest.mark.parametrize("bad", [[np.nan, 1], [np.inf, 1], [-np.inf, -np.inf]])
def test_logits_that_are_no_numbers_fail(bad):
    for sampling in (Sampling(), Sampling(1.0)):
        with pytest.raises(InferenceError, match="logits that are no numbers"):
            Sampler(sampling)(np.array(bad, np.float32))
    assert Sampler(Sampling(1.0))(np.array([-np.inf, 0.0])) == 1
