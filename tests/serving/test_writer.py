"""Texts that are written side by side are those that would be written alone."""

from __future__ import annotations

import gc
import queue
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyattn_serving.engine.engine import Engine, ModelSource
from pyattn_serving.engine.failures import QueueFullError, ServingError, UnavailableError
from pyattn_serving.engine.model import Model
from pyattn_serving.engine.model_settings import ModelSettings
from pyattn_serving.engine.session import SessionSettings
from pyattn_serving.text.cache import Cache
from pyattn_serving.text.sampling import Sampling
from pyattn_serving.text.writer import Job, Writer

pytest.importorskip("tokenizers")

from . import text_models

PATIENCE = 60
POSITIONS = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("writer")


@pytest.fixture(scope="module")
def decoder(folder):
    decoder, _ = text_models.gpt2(folder / "gpt2.onnx", positions=POSITIONS)
    return decoder


@pytest.fixture(scope="module", params=[True, False], ids=["operators", "plain"])
def engine(request, folder, decoder):
    engine = Engine([ModelSource.of(folder / "gpt2.onnx")], threads=1, operators=request.param)
    engine.load()
    assert bool(engine.model("gpt2").operators) == request.param
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def model(engine):
    return engine.model("gpt2")


class Reader:
    """Takes the pieces of a text."""

    def __init__(self, model, prompt, most, stop=(), sampling=None, priority=0):
        self.pieces = queue.Queue()
        self.prompt = prompt
        self.begun = None
        self.job = Job(
            prompt, most, sampling or Sampling(), stop, model.tokenizer, self.pieces.put, priority
        )

    def first(self):
        return self.pieces.get(timeout=PATIENCE)

    def result(self, piece=None):
        text = "" if piece is None else piece.text
        while piece is None or piece.finish is None:
            piece = self.first()
            text += piece.text
        return text, piece


def expected(decoder, model, prompt, most):
    tokens = text_models.alone(decoder, prompt, most, model.tokenizer.ends)
    ended = tokens[-1] in model.tokenizer.ends
    before = model.tokenizer.decode(prompt)
    text = model.tokenizer.decode([*prompt, *tokens]).removeprefix(before)
    return text, len(tokens), "stop" if ended else "length"


def test_numbers_that_are_none_stay_with_their_text(model, decoder):
    """A text whose cache has NaN fails; what is written in its slot afterwards is right."""
    cache = Cache(model, 2, POSITIONS)
    writer = Writer(model, cache)
    one, other = Reader(model, [4, 5], 9), Reader(model, [6], 9)
    step = cache.step

    left = [3]

    def poisoned(first, tokens):
        left[0] -= 1
        if left[0] == 0:
            for array in cache._arrays.values():
                array[0, :, 0] = np.nan
        return step(first, tokens)

    cache.step = poisoned
    writer.submit([one.job, other.job])
    _, piece = one.result()
    assert "no numbers" in str(piece.error)
    text, last = other.result()
    assert (text, last.tokens, last.finish) == expected(decoder, model, [6], 9)
    for prompt in ([1, 2], [3]):
        again = Reader(model, prompt, 9)
        writer.submit([again.job])
        text, last = again.result()
        assert (text, last.tokens, last.finish) == expected(decoder, model, prompt, 9)


def test_steps_are_those_of_the_whole_text(model, decoder):
    """Prefill, steps on some slots, and a text that moves, against the model without a cache."""
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 256, size).tolist() for size in (5, 1, 33)]
    cache = Cache(model, 4, 64)
    for array in cache._arrays.values():
        # What was not written may not be seen; the plain graph multiplies it by 0.
        array[:] = np.nan if model.operators else 1e3
    found = []
    for slot, text in enumerate(texts):
        cache.begin(slot)
        if len(text) > 1:
            cache.read(slot, text[: len(text) // 2])
        found.append(cache.read(slot, text[len(text) // 2 :]))
    for logits, text in zip(found, texts, strict=True):
        np.testing.assert_allclose(logits, decoder(np.array([text]))[0, -1], atol=2e-3)
    cache.move(2, 0)
    texts = [texts[2], texts[1]]
    for _ in range(5):
        added = rng.integers(0, 256, 2).tolist()
        texts = [[*text, token] for text, token in zip(texts, added, strict=True)]
        for logits, text in zip(cache.step(0, added), texts, strict=True):
            np.testing.assert_allclose(logits, decoder(np.array([text]))[0, -1], atol=2e-3)
    assert cache.lengths[:2].tolist() == [38, 6]


PROMPTS = st.lists(
    st.tuples(
        st.text(st.sampled_from("the attention Жж日🙂"), min_size=1, max_size=30),
        st.integers(1, 30),
        st.booleans(),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=9,
)


@given(texts=PROMPTS, slots=st.integers(1, 4), read_tokens=st.sampled_from([1, 2, 7, 256]))
@settings(max_examples=20, deadline=None)
def test_texts_are_those_written_alone(model, decoder, texts, slots, read_tokens):
    """They come at different times, some are given up, and there are fewer slots than texts."""
    writer = Writer(model, Cache(model, slots, POSITIONS))
    writer._read_tokens = read_tokens
    readers = []
    prompts = model.tokenizer.encode([text for text, *_ in texts])
    for prompt, (_, most, given_up, pause) in zip(prompts, texts, strict=True):
        reader = Reader(model, prompt, most)
        writer.submit([reader.job])
        readers.append((reader, most, given_up))
        if pause == 0:
            reader.begun = reader.first()  # the others come when it is under way
        if given_up:
            writer.cancel(reader.job)
    for reader, most, given_up in readers:
        if given_up:
            continue
        text, last = reader.result(reader.begun)
        assert (text, last.tokens, last.finish) == expected(decoder, model, reader.prompt, most)
    wait_until_idle(writer)


def wait_until_idle(writer):
    end = time.monotonic() + PATIENCE
    while writer._thread is not None:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert (writer.busy, writer.waiting) == (0, 0)


def test_a_text_joins_those_under_way_and_leaves_them(model, decoder):
    writer = Writer(model, Cache(model, 2, POSITIONS))
    long = Reader(model, [1, 2, 3], 80)
    writer.submit([long.job])
    long.first()
    short = Reader(model, [7], 3)
    writer.submit([short.job])
    assert short.result()[1].tokens == 3
    assert writer.busy == 1 or long.job.tokens == 80
    assert long.result()[1].tokens == 80
    wait_until_idle(writer)
    before = model.statistics.success.count
    assert before >= 2


@pytest.fixture
def patient(folder, decoder):
    """A model whose prompts are read seven tokens at a time."""
    options = ModelSettings(read_tokens=7)
    return Model("gpt2", folder / "gpt2.onnx", SessionSettings(threads=1), options)


class Recorded(Cache):
    """Notes what is read, and when the others take a step."""

    def __init__(self, *args):
        super().__init__(*args)
        self.calls = []

    def read(self, slot, tokens):
        self.calls.append(len(tokens))
        return super().read(slot, tokens)

    def step(self, first, tokens):
        self.calls.append("step")
        return super().step(first, tokens)


def test_a_long_prompt_is_read_between_the_steps_of_others(patient, decoder):
    cache = Recorded(patient, 3, POSITIONS)
    writer = Writer(patient, cache)
    prompts = [list(range(20)), list(range(70, 40, -1)), [5, 6]]
    readers = [Reader(patient, p, m) for p, m in zip(prompts, (60, 9, 30), strict=True)]
    writer.submit([reader.job for reader in readers])
    for reader, prompt, most in zip(readers, prompts, (60, 9, 30), strict=True):
        text, last = reader.result()
        assert (text, last.tokens, last.finish) == expected(decoder, patient, prompt, most)
    wait_until_idle(writer)
    # The first stops nobody. The last one follows on the rest of the second.
    begin = [20, 7, "step", 7, "step", 7, "step", 7, "step", 2, 2, "step"]
    assert cache.calls[: len(begin)] == begin


def test_a_text_may_be_given_up_or_fail_while_its_prompt_is_read(patient, decoder):
    writer = Writer(patient, Cache(patient, 2, POSITIONS))
    first = Reader(patient, [1, 2, 3], 70)
    long = Reader(patient, list(range(60)), 9)
    foreign = Reader(patient, [*range(20), 10**6, *range(20)], 9)
    late = Reader(patient, list(range(90, 70, -1)), 9)
    step, turns = writer._cache.step, []

    def counted(*args):
        turns.append(long.job.read)
        if len(turns) == 4:
            assert 0 < long.job.read < 60
            assert writer.busy == 2
            writer.cancel(long.job)
        return step(*args)

    writer._cache.step = counted
    writer.submit([first.job, long.job, foreign.job, late.job])
    assert isinstance(foreign.result()[1].error, ServingError)
    for reader, most in ((first, 70), (late, 9)):
        text, last = reader.result()
        assert (text, last.tokens, last.finish) == expected(decoder, patient, reader.prompt, most)
    wait_until_idle(writer)
    assert long.pieces.empty()
    assert turns[3] < 60


def test_a_slot_that_is_read_moves_when_another_is_left(patient, decoder):
    """A text ends while a prompt is read behind it."""
    writer = Writer(patient, Cache(patient, 3, POSITIONS))
    readers = [Reader(patient, [n], most) for n, most in ((4, 5), (8, 40), (6, 3))]
    long = Reader(patient, list(range(70)), 9)
    writer.submit([reader.job for reader in readers[:2]])
    readers[0].begun, readers[1].begun = readers[0].first(), readers[1].first()
    writer.submit([long.job, readers[2].job])
    for reader, most in ((readers[0], 5), (readers[1], 40), (readers[2], 3), (long, 9)):
        text, last = reader.result(reader.begun)
        assert (text, last.tokens, last.finish) == expected(decoder, patient, reader.prompt, most)


def test_texts_wait_by_priority(model, decoder):
    writer = Writer(model, Cache(model, 1, POSITIONS))
    endless = Reader(model, [1], 10**9)
    writer.submit([endless.job])
    endless.first()
    order = []
    readers = []
    for number, priority in enumerate((0, 100, 101, 1, 7, 1)):
        reader = Reader(model, [number + 1], 2, priority=priority)
        deliver = reader.job._deliver

        def noted(piece, number=number, deliver=deliver):
            if piece.finish is not None:
                order.append(number)
            deliver(piece)

        reader.job._deliver = noted
        readers.append(reader)
    writer.submit([reader.job for reader in readers])
    writer.cancel(endless.job)
    for reader in readers:
        assert reader.result()[1].finish == "length"
    assert order == [3, 5, 4, 0, 1, 2]


def test_a_text_that_is_given_up_frees_its_slot(model, decoder):
    writer = Writer(model, Cache(model, 1, POSITIONS))
    endless, next_ = Reader(model, [1], 10**9), Reader(model, [5, 6], 4)
    writer.submit([endless.job, next_.job])
    endless.first()
    writer.cancel(endless.job)
    assert next_.result()[1].finish == "length"
    assert endless.job.tokens < 10**9


def test_a_text_that_fails_leaves_the_others(model, decoder):
    """One has a token that the model lacks, one reaches the last position."""
    writer = Writer(model, Cache(model, 3, POSITIONS + 50))
    foreign = Reader(model, [10**6], 5)
    far = Reader(model, [3] * (POSITIONS - 5), 40)
    near = Reader(model, [1, 2], 60)
    writer.submit([near.job, foreign.job, far.job])
    for failing in (foreign, far):
        _, piece = failing.result()
        assert piece.finish == "error"
        assert isinstance(piece.error, ServingError)
    assert far.job.tokens == 6
    text, last = near.result()
    assert (text, last.tokens, last.finish) == expected(decoder, model, [1, 2], 60)


def test_the_thread_outlives_what_nobody_foresaw(model, decoder, caplog):
    cache = Cache(model, 2, POSITIONS)
    writer, step = Writer(model, cache), cache.step

    def broken(_first, _tokens):
        raise ZeroDivisionError

    cache.step = broken
    readers = [Reader(model, [1, 2], 9), Reader(model, [3], 9)]
    writer.submit([reader.job for reader in readers])
    for reader in readers:
        assert str(reader.result()[1].error) == "writing failed: ZeroDivisionError"
    assert "writing failed" in caplog.text
    cache.step = step
    again = Reader(model, [1, 2], 9)
    writer.submit([again.job])
    text, last = again.result()
    assert (text, last.tokens, last.finish) == expected(decoder, model, [1, 2], 9)


def test_stop_strings_and_the_end_token_end_a_text(model, decoder):
    prompt = [1, 2, 3]
    whole, count, reason = expected(decoder, model, prompt, 40)
    assert reason == "length"
    stop = whole[12:14]
    writer = Writer(model, Cache(model, 1, POSITIONS))
    reader = Reader(model, prompt, 40, [stop])
    writer.submit([reader.job])
    text, last = reader.result()
    assert (text, last.finish) == (whole[: whole.index(stop)], "stop")
    assert last.tokens < count
    ended = Reader(model, prompt, 40)
    third = text_models.alone(decoder, prompt, 3)[2]
    ended.job._ends = {third}
    writer.submit([ended.job])
    assert ended.result()[1].finish == "stop"
    assert ended.job.tokens <= 3


def test_the_queue_is_bounded_and_the_end_is_told(folder, decoder):
    model = Model(
        "gpt2", folder / "gpt2.onnx", SessionSettings(threads=1), ModelSettings(max_queue=2)
    )
    writer = Writer(model, Cache(model, 1, POSITIONS))
    readers = [Reader(model, [1], 10**9) for _ in range(3)]
    writer.submit([readers[0].job])
    readers[0].first()
    writer.submit([reader.job for reader in readers[1:]])
    with pytest.raises(QueueFullError, match="2 texts wait"):
        writer.submit([Reader(model, [1], 1).job])
    assert model.statistics.rejected == 1
    writer.terminate()
    for reader in readers:
        assert isinstance(reader.result()[1].error, UnavailableError)
    with pytest.raises(UnavailableError, match="stopping"):
        writer.submit([Reader(model, [1], 1).job])
    wait_until_idle(writer)


def test_a_writer_does_not_keep_its_model(folder, decoder):
    model = Model("gpt2", folder / "gpt2.onnx", SessionSettings(threads=1))
    writer = Writer(model, Cache(model, 1, POSITIONS))
    reader = Reader(model, [1], 5)
    writer.submit([reader.job])
    reader.result()
    wait_until_idle(writer)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert not any(thread.name == "write" for thread in threading.enumerate())
