"""A decoder in ONNX Runtime whose cache is written in place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from pyattn.tensor import Array

if TYPE_CHECKING:
    import onnxruntime

_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}


class Decoder:
    """A cache of fixed capacity and a session of an exported :class:`pyattn.models.CachedStep`.

    Parameters
    ----------
    session:
        From :func:`pyattn.ort.session`, or any other session of such a file.
    batch:
        B, how many sequences are decoded side by side.
    capacity:
        C, how many tokens each may have.

    Raises
    ------
    ValueError
        For a file of another form, and sizes below 1.

    Notes
    -----
    The cache is memory of this object, which each run reads and writes: the inputs ``past...`` and
    the outputs ``present...`` are bound to the same buffers. One thread at a time.
    """

    def __init__(self, session: onnxruntime.InferenceSession, *, batch: int, capacity: int) -> None:
        if batch < 1 or capacity < 1:
            raise ValueError(f"Decoder: sizes must be positive; got batch {batch}, {capacity}")
        inputs = {x.name: x for x in session.get_inputs()}
        pasts = [name for name in inputs if name.startswith("past.")]
        given = {"input_ids", "lengths", "past_lengths", *pasts}
        made = {"logits", *(name.replace("past.", "present.", 1) for name in pasts)}
        outputs = {x.name for x in session.get_outputs()}
        if not pasts or inputs.keys() != given or outputs != made:
            raise ValueError(
                f"Decoder: the file must be that of a CachedStep; it has inputs {list(inputs)}, "
                f"outputs {sorted(outputs)}"
            )
        self.batch, self.capacity = batch, capacity
        told = session.get_modelmeta().custom_metadata_map.get("pyattn.decoder", "{}")
        facts = json.loads(told)
        self.positions: int | None = facts.get("positions")
        """Most tokens of a sequence that the model knows, where the file says so."""
        self.end: int | None = facts.get("end")
        """The token that ends a sequence, where the file says so."""
        self.lengths: Array = np.zeros(batch, np.int64)
        """How many tokens of each sequence the cache holds."""
        self._session, self._binding = session, session.io_binding()
        self._cache = {}
        for name in pasts:
            _, groups, _, size = inputs[name].shape
            dtype = np.dtype(_DTYPES[inputs[name].type])
            self._cache[name] = np.zeros((batch, groups, capacity, size), dtype)
        self._bind()

    def _bind(self) -> None:
        self._binding.bind_output("logits", "cpu")  # first, hence the first of the outputs
        for name, array in self._cache.items():
            where: dict[str, Any] = {
                "device_type": "cpu", "device_id": 0, "element_type": array.dtype.type,
                "shape": array.shape, "buffer_ptr": array.ctypes.data,
            }  # fmt: skip
            self._binding.bind_input(name, **where)
            self._binding.bind_output(name.replace("past.", "present.", 1), **where)

    def __call__(self, input_ids: Array, lengths: Array | None = None) -> Array:
        """Read tokens ``(B, T)`` and return the logits ``(B, V)`` of what follows.

        ``lengths (B,)`` tells how many of the T of each sequence are real, all by default; the
        others stand behind them.

        Raises
        ------
        TypeError, ValueError
            For tokens that are not integers ``(B, T)``, lengths outside 1..T, and more tokens than
            the cache has room for or the model has positions.
        """
        if input_ids.dtype.kind not in "iu":
            raise TypeError(f"Decoder: input_ids must be integers; got {input_ids.dtype}")
        if input_ids.ndim != 2 or input_ids.shape[0] != self.batch or input_ids.shape[1] < 1:
            raise ValueError(
                f"Decoder: input_ids must be ({self.batch}, T); got shape {input_ids.shape}"
            )
        count = input_ids.shape[1]
        real = np.full(self.batch, count) if lengths is None else np.asarray(lengths)
        if real.shape != (self.batch,) or real.min() < 1 or real.max() > count:
            raise ValueError(
                f"Decoder: lengths must be ({self.batch},) in 1..{count}; got {lengths}"
            )
        if self.lengths.max() + count > self.capacity:
            raise ValueError(
                f"Decoder: the cache has room for {self.capacity} tokens; it holds "
                f"{self.lengths.max()} and {count} more were given"
            )
        longest = int((self.lengths + real).max())
        if self.positions is not None and longest > self.positions:
            raise ValueError(
                f"Decoder: the model has {self.positions} positions; a sequence would have "
                f"{longest}"
            )
        self._binding.bind_cpu_input("input_ids", np.ascontiguousarray(input_ids, np.int64))
        self._binding.bind_cpu_input("lengths", real.astype(np.int64))
        self._binding.bind_cpu_input("past_lengths", self.lengths)
        self._binding.bind_output("logits", "cpu")  # new memory each time
        self._session.run_with_iobinding(self._binding)
        logits: Array = self._binding.get_outputs()[0].numpy()
        self.lengths = self.lengths + real
        return logits

    def reset(self) -> None:
        """Forget all tokens."""
        self.lengths = np.zeros(self.batch, np.int64)
