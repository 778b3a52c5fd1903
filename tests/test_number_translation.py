"""The example that learns to translate numbers, in a few seconds instead of minutes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyattn as pa

FOLDER = Path(__file__).parent.parent / "examples" / "number_translation"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the example's command; its folder is on the path as when it is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import train

    return train


def test_tokens_of_a_number(example: Any) -> None:
    pairs = example.Pairs.of([21, 0])
    assert len(pairs) == 4
    assert example.source_words(21) == ["twenty", "one"]
    assert [example.text(target) for target in pairs.targets] == [
        "einundzwanzig", "vingt et un", "null", "zéro",
    ]  # fmt: skip
    batch = pairs.batch([0, 3])
    assert batch.lengths.tolist() == [2, 1]
    assert batch.language.tolist() == [2, 3]
    assert batch.source[1, 1] == 0
    assert (batch.target[1, 5:] == 0).all()


def test_training_and_held_out_numbers_differ(example: Any, rng: Any) -> None:
    training, held_out = example.split(500, 200, rng)
    assert (len(training), len(held_out)) == (500, 200)
    together = np.concatenate([training, held_out])
    assert len(set(together.tolist())) == 700
    assert set(range(100)) <= set(training.tolist())
    assert together.max() < 100_000


def test_it_learns_the_numbers_below_a_hundred(example: Any) -> None:
    rng = np.random.default_rng(0)
    pairs = example.Pairs.of(range(100))
    translator = example.Translator(embedded=16, hidden=48, rng=rng)
    assert example.train(translator, pairs, steps=120, rate=0.015, rng=rng) < 0.05
    found = example.translations(lambda *batch: translator(*batch)["tokens"], pairs, "eager")
    right = sum(a == example.text(b) for a, b in zip(found, pairs.targets, strict=True))
    assert right >= 0.95 * len(pairs)


def test_the_command(example: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    arguments = "--steps 12 --numbers 150 --held-out 30 --hidden 24 --number 45"
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path), *arguments.split()])
    example.main()
    printed = capsys.readouterr().out
    assert re.search(r"; \d+ of 60 translations of 30 .*; 60 of 60 are the same", printed)
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")

    translator = example.Translator(hidden=24, rng=None)
    translator.load(pa.load(tmp_path / "translator.safetensors"))
    run = pa.ort.session(tmp_path / "translator.onnx")
    batch = example.Pairs.of([7, 45_001, 99_999]).batch(range(6))
    inputs = {"source": batch.source, "lengths": batch.lengths, "language": batch.language}
    tokens, alignment = run.run(None, inputs)
    eager = translator(**inputs)
    np.testing.assert_array_equal(tokens, eager["tokens"])
    np.testing.assert_allclose(alignment, eager["alignment"], atol=1e-5)
    np.testing.assert_allclose(alignment.sum(-1), 1, atol=1e-5)
