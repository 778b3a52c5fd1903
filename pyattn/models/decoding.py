"""Forms of a decoder for export: a step with its cache, and a whole decode in one graph."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pyattn.export import Input
from pyattn.nn.cache import KeyValueCache, LayerCache
from pyattn.nn.module import Module
from pyattn.nn.search import beam_search, greedy_search
from pyattn.ops import expand_dims
from pyattn.tensor import Value


class Decoder(Protocol):
    """What a decoder with a cache can do; :class:`GPT2` for example."""

    def __call__(
        self, input_ids: Value, *, lengths: Value | None = None, cache: KeyValueCache
    ) -> tuple[Any, KeyValueCache]: ...

    def empty_cache(self, input_ids: Value, room: int = 0) -> KeyValueCache: ...


def _described(decoder: Decoder, **facts: Any) -> dict[str, Any]:
    """Return what the metadata of a file tells of a decoder; one need not know its limits."""
    known = {"positions": getattr(decoder, "max_positions", None), **facts}
    return {"decoder": {key: value for key, value in known.items() if value is not None}}


class CachedStep(Module):
    """A step of a decoder, or a prefill, with the cache as inputs and outputs.

    The exported file has the inputs ``input_ids (B, T)``, ``lengths (B,)``, how many of the T are
    real, ``past_lengths (B,)``, how many tokens the cache holds, and for each layer
    ``past.0.key`` and ``past.0.value (B, G, C, D)``; the outputs are ``logits (B, V)`` behind the
    last real token and ``present.0.key``, ... of the same shapes. With T > 1 it is a prefill, with
    T = 1 a step. Where an input and its output are bound to one buffer, the new rows alone are
    written; :class:`pyattn.ort.Decoder` does that. The metadata ``pyattn.decoder`` tells the
    decoder's ``max_positions`` and ``end_token``, where it has such.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def __call__(
        self, input_ids: Value, lengths: Value, past_lengths: Value, **past: Value
    ) -> dict[str, Any]:
        """Return logits and the cache with the new tokens in it, by name."""
        layers = tuple(
            LayerCache(past[f"past.{i}.key"], past[f"past.{i}.value"])
            for i in range(len(past) // 2)
        )
        logits, cache = self.decoder(
            input_ids, lengths=lengths, cache=KeyValueCache(layers, past_lengths)
        )
        named = {"logits": logits}
        for i, layer in enumerate(cache.layers):
            named |= {f"present.{i}.key": layer.key, f"present.{i}.value": layer.value}
        return named

    def example_inputs(self, room: int = 8) -> dict[str, Input]:
        """Return inputs for :func:`pyattn.export`: ``room`` is the example's capacity."""
        ids = np.array([[1, 2, 0], [3, 1, 2]])
        dims = ("batch", None, "capacity", None)
        inputs = {
            "input_ids": Input(ids, ("batch", "time")),
            "lengths": Input(np.array([2, 3]), ("batch",), at_most="time"),
            "past_lengths": Input(np.array([3, 1]), ("batch",), at_most="time"),
        }
        cache = self.decoder.empty_cache(ids, room - ids.shape[1])
        for i, layer in enumerate(cache.layers):
            inputs[f"past.{i}.key"] = Input(layer.key, dims)
            inputs[f"past.{i}.value"] = Input(layer.value, dims)
        return inputs

    def file_metadata(self) -> dict[str, Any]:
        """Return what :func:`pyattn.export` writes into the file's metadata."""
        return _described(self.decoder, end=getattr(self.decoder, "end_token", None))

    @staticmethod
    def verification_sizes() -> list[dict[str, int]]:
        """Return sizes at which the cache has room for all tokens."""
        return [
            {"batch": 1, "time": 5, "capacity": 10},
            {"batch": 3, "time": 1, "capacity": 4},
            {"batch": 2, "time": 2, "capacity": 33},
        ]


class GreedyDecode(Module):
    """A whole greedy decode: ``input_ids (B, T)`` and ``lengths (B,)`` to ``tokens (B, steps)``.

    Parameters
    ----------
    decoder:
        The decoder.
    end:
        The token that ends a sequence.
    steps:
        How many tokens are written at most; fewer where all have ended before.
    """

    def __init__(self, decoder: Decoder, *, end: int, steps: int) -> None:
        self.decoder, self.end, self.steps = decoder, end, steps

    def __call__(self, input_ids: Value, lengths: Value) -> dict[str, Any]:
        """Write behind the first ``lengths (B,)`` tokens of ``input_ids (B, T)``."""
        logits, cache = self._read(input_ids, lengths)
        return {"tokens": greedy_search(self._step, cache, logits, end=self.end, steps=self.steps)}

    def _read(self, input_ids: Value, lengths: Value) -> tuple[Any, KeyValueCache]:
        cache = self.decoder.empty_cache(input_ids, self.steps)
        return self.decoder(input_ids, lengths=lengths, cache=cache)

    def _step(self, tokens: Value, cache: KeyValueCache) -> tuple[Any, KeyValueCache]:
        logits, cache = self.decoder(expand_dims(tokens, 1), cache=cache)
        return logits[:, 0], cache

    def file_metadata(self) -> dict[str, Any]:
        """Return what :func:`pyattn.export` writes into the file's metadata."""
        return _described(self.decoder, end=self.end, steps=self.steps)

    def example_inputs(self) -> dict[str, Input]:
        """Return inputs for :func:`pyattn.export`."""
        ids = np.array([[1, 2, 0], [3, 1, 2]])
        return {
            "input_ids": Input(ids, ("batch", "time")),
            "lengths": Input(np.array([2, 3]), ("batch",), at_most="time"),
        }


class BeamDecode(GreedyDecode):
    """A whole beam search: to ``tokens (B, beams, steps)``, best first, and ``scores (B, beams)``.

    ``beams`` and ``length_penalty`` are those of :func:`pyattn.nn.beam_search`, the rest as for
    :class:`GreedyDecode`.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        end: int,
        steps: int,
        beams: int,
        length_penalty: float = 0.0,
    ) -> None:
        super().__init__(decoder, end=end, steps=steps)
        self.beams, self.length_penalty = beams, length_penalty

    def __call__(self, input_ids: Value, lengths: Value) -> dict[str, Any]:
        """Write behind the first ``lengths (B,)`` tokens of ``input_ids (B, T)``."""
        logits, cache = self._read(input_ids, lengths)
        tokens, scores = beam_search(
            self._step, cache, logits, end=self.end, steps=self.steps, beams=self.beams,
            length_penalty=self.length_penalty,
        )  # fmt: skip
        return {"tokens": tokens, "scores": scores}

    def file_metadata(self) -> dict[str, Any]:
        """Return what :func:`pyattn.export` writes into the file's metadata."""
        return _described(self.decoder, end=self.end, steps=self.steps, beams=self.beams)
