"""The memory of a decoder, and its steps.

The model is a file of ``pyattn.models.CachedStep``: inputs ``input_ids (B, T)``, ``lengths (B,)``,
``past_lengths (B,)`` and for each layer ``past.N.key`` and ``past.N.value (B, G, C, D)``; outputs
``logits (B, V)`` and the cache with the new tokens in it, ``present.N.key``, ...

A text has a slot: a row of each cache. The slots in use are the first ones, so that a step reads
and writes views of them and computes nothing for the others: when a text ends, the last one moves
to its slot. Inputs and outputs of the cache are bound to the same memory, so with pyattn's
operators a step writes its own rows and copies nothing. The memory is mapped as it is first used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from ..engine.layout import Array
from ..engine.model import Model
from ..engine.session import ORT_ERRORS, run_options, translate

_CACHES = ("float32", "float64", "float16")


def is_decoder(model: Model) -> bool:
    """Whether a model is a step of a decoder with its cache."""
    pasts = [name for name in model.inputs if name.startswith("past.")]
    given = {"input_ids", "lengths", "past_lengths", *pasts}
    made = {"logits", *(_present(name) for name in pasts)}
    shapes = [model.inputs[name].shape or () for name in pasts]
    return (
        bool(pasts)
        and model.inputs.keys() == given
        and model.outputs.keys() == made
        and all(len(s) == 4 and isinstance(s[1], int) and isinstance(s[3], int) for s in shapes)
        and all(model.inputs[name].datatype.dtype.name in _CACHES for name in pasts)
    )


class Cache:
    """The cache of a model, for one thread.

    Parameters
    ----------
    model : Model
        A decoder; not kept, so that it may be unloaded.
    slots, capacity : int
        Texts, and the most tokens of each.
    """

    def __init__(self, model: Model, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.lengths = np.zeros(slots, np.int64)
        self._session = model.session
        self._dtypes = {name: model.inputs[name].datatype.dtype for name in _SMALL}
        self._arrays: dict[str, Array] = {}
        for name, spec in model.inputs.items():
            if name not in _SMALL and spec.shape is not None:
                _, groups, _, size = spec.shape
                shape: Any = (slots, groups, capacity, size)
                self._arrays[name] = np.zeros(shape, spec.datatype.dtype)
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self.options = run_options()

    def begin(self, slot: int) -> None:
        """Begin a text in a slot."""
        self.lengths[slot] = 0

    def read(self, slot: int, tokens: Sequence[int]) -> Array:
        """Add tokens to a slot; return the logits ``(V,)`` of what follows them."""
        (logits,) = self._run(slot, np.array([tokens], np.int64))
        return np.asarray(logits)

    def step(self, first: int, tokens: Sequence[int]) -> Array:
        """Add a token to each slot from `first` on; return the logits of what follows them."""
        return self._run(first, np.array(tokens, np.int64)[:, None])

    def move(self, source: int, target: int) -> None:
        """Put the text of one slot into another."""
        length = self.lengths[target] = self.lengths[source]
        for array in self._arrays.values():
            array[target, :, :length] = array[source, :, :length]

    def clear(self, slot: int) -> None:
        """Forget the text of a slot whose numbers are not to be trusted: NaN spreads."""
        for array in self._arrays.values():
            array[slot] = 0

    def _run(self, first: int, ids: Array) -> Array:
        """Run the model on slots; raises `ServingError`, and then no text has changed."""
        rows, count = ids.shape
        binding = self._binding(first, rows)
        feeds = {
            "input_ids": ids,
            "lengths": np.full(rows, count),
            "past_lengths": self.lengths[first : first + rows],
        }
        try:
            for name, array in feeds.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array, self._dtypes[name]))
            binding.bind_output("logits", "cpu")  # new memory each time
            self._session.run_with_iobinding(binding, self.options)
            logits: Array = binding.get_outputs()[0].numpy()
        except ORT_ERRORS as error:
            raise translate(error, {"input_ids": ids}) from error
        self.lengths[first : first + rows] += count
        return logits

    def _binding(self, first: int, rows: int) -> ort.IOBinding:
        """Return a binding to the memory of some slots."""
        if (first, rows) in self._bindings:
            return self._bindings[first, rows]
        binding = self._session.io_binding()
        binding.bind_output("logits", "cpu")  # first, hence the first of the outputs
        for name, array in self._arrays.items():
            part = array[first : first + rows]
            where: Any = {
                "device_type": "cpu",
                "device_id": 0,
                "element_type": array.dtype.type,
                "shape": part.shape,
                "buffer_ptr": part.ctypes.data,
            }
            binding.bind_input(name, **where)
            binding.bind_output(_present(name), **where)
        self._bindings[first, rows] = binding
        return binding


def positions(model: Model, most: int) -> int:
    """Return how many tokens a text may have, at most `most`: found by trial.

    For a file that does not say how many positions the model knows; a token behind the last one
    fails.
    """

    def works(length: int) -> bool:
        trial = Cache(model, 1, length)
        trial.lengths[0] = length - 1
        try:
            trial.step(0, [0])
        except Exception:  # noqa: BLE001 - whatever it is, so many do not work
            return False
        return True

    if works(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low


_SMALL = ("input_ids", "lengths", "past_lengths")


def _present(past: str) -> str:
    return past.replace("past.", "present.", 1)
