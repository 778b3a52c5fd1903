"""How requests become a batch and a batch becomes answers.

A model says what its axes are in its metadata, under the key ``pyattn.batching``, as JSON; its
settings may say the same. There are two kinds:

``padded``
    ``{"kind": "padded", "inputs": {NAME: {"batch": 0, "sequence": 1, "pad": 0}}, "mask": NAME,
    "outputs": {NAME: {"batch": 0, "sequence": 1}}}``. Requests are put one below the other along
    the axis ``batch``. Shorter ones are filled up along ``sequence`` with ``pad``, and their
    answers are cut back. That is done only where an input is the ``mask`` that hides the padding;
    without one, requests of equal length go together. ``sequence`` may be null, or a list of axes.
``packed``
    ``{"kind": "packed", "offsets": NAME, "inputs": {NAME: {"axis": 0}}, "outputs": {NAME: {"axis":
    0, "per": "sequence"}}}``. Requests are put one behind the other along ``axis``; the input
    ``offsets`` tells where each sequence begins and the last one ends. An output has an entry for
    each ``"sequence"`` or each ``"token"``.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .failures import InferenceError, ModelError

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Extent:
    """The size of a request in a batch.

    Attributes
    ----------
    rows : int
        Entries along the batch; sequences of a packed request.
    length : int
        Length of each row, to which others are padded; 0 where nothing is padded.
    tokens : int
        Positions that are no padding.
    key : hashable
        What requests must have in common to run together.
    """

    rows: int
    length: int
    tokens: int
    key: Hashable

    def padded(self, rows: int, length: int, tokens: int) -> int:
        """Return the positions of a batch of `rows` rows, `length` long, with `tokens` in all."""
        return rows * length if self.length else tokens


class Layout(Protocol):
    """The axes of a model's tensors."""

    def measure(self, feeds: Feeds, outputs: Sequence[str]) -> Extent | None:
        """Return the extent of a request; None for one that must run by itself."""

    def assemble(self, parts: Sequence[Feeds]) -> dict[str, Array]:
        """Return the inputs of one run for several requests."""

    def split(
        self, parts: Sequence[Extent], names: Sequence[str], arrays: Sequence[Array]
    ) -> list[dict[str, Array]]:
        """Return the outputs of each request; raises `InferenceError` where the sizes are wrong."""


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of one tensor of a padded model, and what fills it up."""

    batch: int
    sequence: tuple[int, ...]
    pad: Any = 0

    def rest(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes of the other axes."""
        own = (self.batch, *self.sequence)
        return tuple(size for axis, size in enumerate(shape) if axis not in own)


@dataclass(frozen=True, slots=True)
class Padded:
    """One request below the other, filled up to the longest."""

    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]
    mask: str | None

    def mask_shape(self, feeds: Feeds, shape: Sequence[int]) -> list[int]:
        """Return the shape of a mask that hides nothing in a request that came without it.

        `shape` is that of the input, with -1 for what is free; the request has the sizes.
        """
        sizes = [max(size, 1) for size in shape]
        own = self.inputs[str(self.mask)]
        for name, array in feeds.items():
            axes = self.inputs[name]
            if axes.sequence and array.ndim > max(axes.batch, axes.sequence[0]):
                sizes[own.batch] = array.shape[axes.batch]
                for axis in own.sequence:
                    sizes[axis] = array.shape[axes.sequence[0]]
        return sizes

    def measure(self, feeds: Feeds, outputs: Sequence[str]) -> Extent | None:
        """Return the extent; None where rows or lengths of the inputs differ, or are 0."""
        if any(name not in self.outputs for name in outputs):
            return None
        rows: set[int] = set()
        lengths: set[int] = set()
        rest = []
        for name, axes in self.inputs.items():
            array = feeds[name]
            if array.ndim <= max(axes.batch, *axes.sequence, 0):
                return None
            rows.add(array.shape[axes.batch])
            lengths.update(array.shape[axis] for axis in axes.sequence)
            rest.append((array.dtype.num, axes.rest(array.shape)))
        if len(rows) != 1 or len(lengths) > 1 or 0 in rows or 0 in lengths:
            return None
        row, length = rows.pop(), lengths.pop() if lengths else 1
        same = None if self.mask is not None else length
        return Extent(row, length, row * length, (same, *rest))

    def assemble(self, parts: Sequence[Feeds]) -> dict[str, Array]:
        """Return the inputs, each in one array."""
        return {
            name: _stack([part[name] for part in parts], axes) for name, axes in self.inputs.items()
        }

    def split(
        self, parts: Sequence[Extent], names: Sequence[str], arrays: Sequence[Array]
    ) -> list[dict[str, Array]]:
        """Return views of the rows of each request, cut to its length."""
        rows, length = sum(part.rows for part in parts), max(part.length for part in parts)
        for name, array in zip(names, arrays, strict=True):
            axes = self.outputs[name]
            wanted = [(axes.batch, rows), *((axis, length) for axis in axes.sequence)]
            _check_output(name, array, wanted)
        answers, start = [], 0
        for part in parts:
            answer = {}
            for name, array in zip(names, arrays, strict=True):
                axes = self.outputs[name]
                index = [slice(None)] * array.ndim
                index[axes.batch] = slice(start, start + part.rows)
                for axis in axes.sequence:
                    index[axis] = slice(part.length)
                answer[name] = array[tuple(index)]
            answers.append(answer)
            start += part.rows
        return answers


@dataclass(frozen=True, slots=True)
class Packed:
    """One request behind the other, without padding.

    `outputs` maps a name to its axis and whether that counts tokens rather than sequences.
    """

    offsets: str
    inputs: Mapping[str, int]
    outputs: Mapping[str, tuple[int, bool]]

    def measure(self, feeds: Feeds, outputs: Sequence[str]) -> Extent | None:
        """Return the extent; None for offsets that are not those of the tokens."""
        offsets = feeds[self.offsets]
        if any(name not in self.outputs for name in outputs):
            return None
        if offsets.ndim != 1 or offsets.size < 2 or offsets[0] != 0:
            return None
        if (np.diff(offsets.astype(np.int64)) < 0).any():
            return None
        tokens, rest = int(offsets[-1]), []
        for name, axis in self.inputs.items():
            array = feeds[name]
            if array.ndim <= axis or array.shape[axis] != tokens:
                return None
            rest.append((array.dtype.num, array.shape[:axis], array.shape[axis + 1 :]))
        return Extent(offsets.size - 1, 0, tokens, tuple(rest)) if tokens else None

    def assemble(self, parts: Sequence[Feeds]) -> dict[str, Array]:
        """Return the inputs, each in one array, and the offsets of all sequences."""
        feeds = {
            name: np.concatenate([part[name] for part in parts], axis)
            for name, axis in self.inputs.items()
        }
        offsets, end = [parts[0][self.offsets][:1]], 0
        for part in parts:
            own = part[self.offsets]
            offsets.append(own[1:] + own.dtype.type(end))
            end += int(own[-1])
        feeds[self.offsets] = np.concatenate(offsets)
        return feeds

    def split(
        self, parts: Sequence[Extent], names: Sequence[str], arrays: Sequence[Array]
    ) -> list[dict[str, Array]]:
        """Return views of the sequences or tokens of each request."""
        answers: list[dict[str, Array]] = [{} for _ in parts]
        for name, array in zip(names, arrays, strict=True):
            axis, per_token = self.outputs[name]
            sizes = [part.tokens if per_token else part.rows for part in parts]
            _check_output(name, array, [(axis, sum(sizes))])
            ends = np.cumsum(sizes)
            for answer, piece in zip(answers, np.split(array, ends[:-1], axis), strict=True):
                answer[name] = piece
        return answers


def _stack(arrays: Sequence[Array], axes: Axes) -> Array:
    longest = max(array.shape[axis] for array in arrays for axis in axes.sequence or (axes.batch,))
    if all(array.shape[axis] == longest for array in arrays for axis in axes.sequence):
        return np.concatenate(arrays, axes.batch)
    shape = list(arrays[0].shape)
    shape[axes.batch] = sum(array.shape[axes.batch] for array in arrays)
    for axis in axes.sequence:
        shape[axis] = longest
    stacked = np.full(shape, axes.pad, arrays[0].dtype)
    start = 0
    for array in arrays:
        index = [slice(size) for size in array.shape]
        index[axes.batch] = slice(start, start + array.shape[axes.batch])
        stacked[tuple(index)] = array
        start += array.shape[axes.batch]
    return stacked


def _check_output(name: str, array: Array, wanted: Sequence[tuple[int, int]]) -> None:
    for axis, size in wanted:
        if array.ndim <= axis or array.shape[axis] != size:
            raise InferenceError(
                f"output {name!r} has shape {list(array.shape)}; "
                f"the model's batching says that axis {axis} is {size}"
            )


def parse(table: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Layout:
    """Return the layout that `table` describes, for a model of these inputs and outputs.

    Raises `ModelError` for a table of another form, and for an input that it leaves out.
    """
    _keys(table, "it", {"kind", "inputs", "outputs", "mask", "offsets"})
    described = _tensors(table, "inputs", inputs)
    given = _tensors(table, "outputs", outputs)
    kind = table.get("kind")
    if kind == "padded":
        return _padded(table, described, given, inputs)
    if kind == "packed":
        return _packed(table, described, given, inputs)
    raise _error(f"'kind' must be 'padded' or 'packed'; got {kind!r}")


def _padded(
    table: Mapping[str, Any],
    described: Mapping[str, Any],
    given: Mapping[str, Any],
    inputs: Sequence[str],
) -> Padded:
    if "offsets" in table:
        raise _error("'offsets' does not belong to kind 'padded'")
    axes = {name: _axes(name, entry) for name, entry in described.items()}
    _check_complete(axes, inputs)
    mask = table.get("mask")
    if mask is not None and (mask not in axes or not axes[mask].sequence):
        raise _error(f"the mask {mask!r} must be an input with a 'sequence'")
    return Padded(axes, {name: _axes(name, entry) for name, entry in given.items()}, mask)


def _packed(
    table: Mapping[str, Any],
    described: Mapping[str, Any],
    given: Mapping[str, Any],
    inputs: Sequence[str],
) -> Packed:
    if "mask" in table:
        raise _error("'mask' does not belong to kind 'packed'")
    offsets = table.get("offsets")
    if not isinstance(offsets, str) or offsets not in inputs or offsets in described:
        raise _error(f"'offsets' must name an input that 'inputs' does not; got {offsets!r}")
    axes = {name: _packed_axis(name, entry, {"axis"}) for name, entry in described.items()}
    _check_complete({*axes, offsets}, inputs)
    return Packed(
        offsets,
        axes,
        {
            name: (_packed_axis(name, entry, {"axis", "per"}), _per_token(name, entry))
            for name, entry in given.items()
        },
    )


def _check_complete(described: Container[str], inputs: Sequence[str]) -> None:
    for name in inputs:
        if name not in described:
            raise _error(f"the input {name!r} is not described")


def _tensors(table: Mapping[str, Any], key: str, known: Sequence[str]) -> Mapping[str, Any]:
    tensors = table.get(key)
    if not isinstance(tensors, Mapping):
        raise _error(f"{key!r} must be a table of names")
    for name in tensors:
        if name not in known:
            raise _error(f"the model has no {key[:-1]} {name!r}")
    return tensors


def _axes(name: str, entry: Any) -> Axes:
    _keys(entry, repr(name), {"batch", "sequence", "pad"})
    sequence = entry.get("sequence")
    axes = sequence if isinstance(sequence, list) else [] if sequence is None else [sequence]
    batch = entry.get("batch")
    own = [_axis(name, "batch", batch), *(_axis(name, "sequence", axis) for axis in axes)]
    if len(set(own)) != len(own):
        raise _error(f"{name!r} names one axis twice")
    pad = entry.get("pad", 0)
    if not isinstance(pad, (bool, int, float, str)):
        raise _error(f"{name!r}: 'pad' must be a value; got {pad!r}")
    return Axes(own[0], tuple(own[1:]), pad)


def _packed_axis(name: str, entry: Any, keys: set[str]) -> int:
    _keys(entry, repr(name), keys)
    return _axis(name, "axis", entry.get("axis"))


def _per_token(name: str, entry: Mapping[str, Any]) -> bool:
    per = entry.get("per")
    if per not in ("sequence", "token"):
        raise _error(f"{name!r}: 'per' must be 'sequence' or 'token'; got {per!r}")
    return bool(per == "token")


def _axis(name: str, key: str, axis: Any) -> int:
    if type(axis) is not int or not 0 <= axis < 32:
        raise _error(f"{name!r}: {key!r} must be an axis from 0 on; got {axis!r}")
    return axis


def _keys(entry: Any, what: str, known: set[str]) -> None:
    if not isinstance(entry, Mapping):
        raise _error(f"{what} must be a table; got {entry!r}")
    unknown = sorted(set(entry) - known)
    if unknown:
        raise _error(f"{what} has the unknown entry {unknown[0]!r}")


def _error(problem: str) -> ModelError:
    return ModelError(f"batching: {problem}")
