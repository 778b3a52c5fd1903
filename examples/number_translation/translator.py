"""Bahdanau's encoder and decoder (arXiv:1409.0473), trained with the right words before."""

from __future__ import annotations

from typing import Any

import numpy as np
from dataset import CHARACTERS, END, PAD, WORDS, Batch

from pyattn import nn, ops
from pyattn.tensor import Value

LONGEST = 72  # characters of a translation, the end included


class Translator(nn.Module):
    """A bidirectional GRU reads the words, a decoder with attention writes the characters."""

    def __init__(
        self, *, embedded: int = 32, hidden: int = 128, rng: np.random.Generator | None
    ) -> None:
        self.words = nn.Embedding(len(WORDS), embedded, rng=rng)
        self.encoder = nn.GRU(embedded, hidden, bidirectional=True, reset_after=False, rng=rng)
        self.characters = nn.Embedding(len(CHARACTERS), embedded, rng=rng)
        self.decoder = nn.BahdanauDecoderCell(
            embedded, hidden, 2 * hidden, hidden, maxout=hidden // 2, rng=rng
        )
        self.output = nn.Linear(hidden // 2, len(CHARACTERS), rng=rng)

    def encode(self, source: Value, lengths: Value) -> nn.Source:
        """Return what the decoder attends to, of tokens ``(B, S)`` with ``lengths (B,)``."""
        states, _ = self.encoder(self.words(source), lengths=lengths)
        return self.decoder.prepare(states, lengths)

    def loss(self, batch: Batch) -> Any:
        """Return the mean of ``-ln p`` over the characters of the right translations."""
        source = self.encode(batch.source, batch.lengths)
        state = self.decoder.initial_state(source)
        before, outputs = batch.language, []
        for now in batch.target.T:
            state, output = self.decoder(self.characters(before), state, source)
            outputs.append(output)
            before = now
        logits = self.output(ops.stack(outputs, 1))
        right = ops.take_along(ops.log_softmax(logits), batch.target[:, :, None])[:, :, 0]
        counts = (batch.target != PAD).astype(np.float32)
        return ops.sum(right * (-counts / counts.sum()))

    def __call__(self, source: Value, lengths: Value, language: Value) -> dict[str, Any]:
        """Translate tokens ``(B, S)`` greedily, in one loop that ends when all translations have.

        ``lengths (B,)`` are those of the sources, ``language (B,)`` the tokens of the languages.

        Returns ``tokens (B, T)``, END behind the end of each, and the ``alignment (B, T, S)`` of
        each character with the source words.
        """
        attended = self.encode(source, lengths)

        def step(state: Any) -> Any:
            hidden, before, ended = state
            hidden, output, weights = self.decoder(
                self.characters(before), hidden, attended, aux=("weights",)
            )
            token = ops.where(ended, END, ops.argmax(self.output(output)))
            ended = ops.equal(token, END)
            return (hidden, token, ended), (token, weights), ops.all(ended)

        none_ended = ops.less(language, 0)
        first = (self.decoder.initial_state(attended), language, none_ended)
        _, (tokens, alignment) = ops.loop(step, first, LONGEST, dim="characters")
        return {"tokens": tokens, "alignment": alignment}
