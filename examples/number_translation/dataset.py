"""English number words and their German and French translations, as arrays of tokens.

The source is split into words. The target is split into characters, because German writes a number
below a million as one word; the token in front of the first character names its language.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from num2words import num2words
from numpy.typing import NDArray

LANGUAGES = ("de", "fr")
LARGEST = 99_999

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
PAD, END = 0, 1  # of the target; the source is padded with 0 too
WORDS = ("", *_UNITS.split(), *_TENS.split(), "hundred", "thousand", "and")
CHARACTERS = ("", "", *LANGUAGES, *" -abcdefghijklmnopqrstuvwxyzßéöü")

Integers = NDArray[np.int64]


def source_words(number: int) -> list[str]:
    """Return the English words of a number."""
    english: str = num2words(number, lang="en")
    return english.replace("-", " ").replace(",", "").split()


@dataclass(frozen=True)
class Batch:
    """Pairs of one batch: tokens, padded with 0 behind their lengths."""

    source: Integers  # (B, S)
    lengths: Integers  # (B,)
    language: Integers  # (B,), the token before the first of the target
    target: Integers  # (B, T), each ends with END


@dataclass(frozen=True)
class Pairs:
    """Source and target tokens of every number in every language."""

    sources: list[list[int]]
    languages: list[int]
    targets: list[list[int]]

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Pairs:
        words = {word: i for i, word in enumerate(WORDS)}
        characters = {character: i for i, character in enumerate(CHARACTERS)}
        pairs = [(int(number), language) for number in numbers for language in LANGUAGES]
        return cls(
            [[words[word] for word in source_words(number)] for number, _ in pairs],
            [characters[language] for _, language in pairs],
            [
                [*(characters[c] for c in num2words(number, lang=language)), END]
                for number, language in pairs
            ],
        )

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, rows: Any) -> Batch:
        sources, targets = ([part[row] for row in rows] for part in (self.sources, self.targets))
        lengths = np.array([len(source) for source in sources])
        languages = np.array([self.languages[row] for row in rows])
        return Batch(_padded(sources), lengths, languages, _padded(targets))

    def in_order(self, size: int) -> Iterator[Batch]:
        """Yield all pairs in batches."""
        for start in range(0, len(self), size):
            yield self.batch(range(start, min(start + size, len(self))))

    def shuffled(self, size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield whole batches without end, each of pairs of about the same length."""
        while True:
            rows = rng.permutation(len(self))[: len(self) // size * size]
            for start in range(0, len(rows), 16 * size):
                pool = rows[start : start + 16 * size]
                pool = np.array(sorted(pool, key=lambda row: len(self.targets[row])))
                for i in rng.permutation(len(pool) // size):
                    yield self.batch(pool[i * size : (i + 1) * size])


def split(training: int, held_out: int, rng: np.random.Generator) -> tuple[Integers, Integers]:
    """Return different numbers for training, those below 100 among them, and held-out ones."""
    small, larger = np.arange(100), 100 + rng.permutation(LARGEST + 1 - 100)
    return (
        np.concatenate([small, larger[: training - 100]]),
        larger[training - 100 : training - 100 + held_out],
    )


def text(tokens: Sequence[int] | Integers) -> str:
    """Return the characters of target tokens up to the end."""
    characters = []
    for token in tokens:
        if token == END:
            break
        characters.append(CHARACTERS[token])
    return "".join(characters)


def _padded(sequences: list[list[int]]) -> Integers:
    padded = np.full((len(sequences), max(map(len, sequences))), PAD, np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded
