"""What a server must know of a model to put requests together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pyattn.onnx_input import Input
from pyattn.tensor import Array, Dim, Spec, Tensor

BATCH = "batch"  # the dimension of this name has entries that do not depend on each other


def batching(given: Mapping[str, Input], outputs: Mapping[str, Spec]) -> dict[str, Any] | None:
    """Return how requests are put together, as ``docs/onnx.md`` lists it; None where it is open.

    It is open where a dynamic dimension is neither that of the entries nor that of their
    sequences.
    """
    if any(i.offsets_of is not None for i in given.values()):
        return _packed(given, outputs)
    return _padded(given, outputs)


def _padded(given: Mapping[str, Input], outputs: Mapping[str, Spec]) -> dict[str, Any] | None:
    masks = [name for name, i in given.items() if i.mask_of is not None]
    mask = masks[0] if masks else None
    batch, sequence = (BATCH, None) if mask is None else given[mask].dims
    found: list[dict[str, Any]] = []
    shapes = [i.dims for i in given.values()], [_names(s) for s in outputs.values()]
    for names, dims in zip((given, outputs), shapes, strict=True):
        axes = [_axes(d, batch, sequence) for d in dims]
        if len(masks) > 1 or None in axes:
            return None
        found.append(dict(zip(names, axes, strict=True)))
    for name, entry in found[0].items():
        entry["pad"] = given[name].pad
    return {"kind": "padded", "inputs": found[0], "mask": mask, "outputs": found[1]}


def _axes(
    dims: tuple[str | None, ...], batch: str | None, sequence: str | None
) -> dict[str, Any] | None:
    """Return which axes are those of the entries and of the sequences."""
    known = [name for name in dims if name is not None]
    if known.count(batch or "") != 1 or set(known) - {batch, sequence}:
        return None
    found = [axis for axis, name in enumerate(dims) if name is not None and name == sequence]
    # Weights of attention have two: the queries and the keys.
    return {
        "batch": dims.index(batch),
        "sequence": found if len(found) > 1 else found[0] if found else None,
    }


def _listed(sequence: int | list[int] | None) -> list[int]:
    """Return the axes of the sequences."""
    return sequence if isinstance(sequence, list) else [] if sequence is None else [sequence]


def _names(spec: Spec) -> tuple[str | None, ...]:
    return tuple(str(size) if isinstance(size, Dim) else None for size in spec.shape)


def _packed(given: Mapping[str, Input], outputs: Mapping[str, Spec]) -> dict[str, Any] | None:
    (offsets, *others) = [name for name, i in given.items() if i.offsets_of is not None]
    tokens, ends = given[offsets].offsets_of, (*given[offsets].dims, None)[0]
    if others or ends is None:
        return None
    # The sizes that the offsets have without the last, or the first, of them.
    named = Tensor.symbolic((ends,), np.int64)
    counts = {str(named[1:].shape[0]), str(named[:-1].shape[0])}
    inputs: dict[str, Any] = {}
    for name, i in given.items():
        if name != offsets:
            if [d for d in i.dims if d is not None] != [tokens]:
                return None
            inputs[name] = {"axis": i.dims.index(tokens)}
    results: dict[str, Any] = {}
    for name, spec in outputs.items():
        dims = _names(spec)
        known = [d for d in dims if d is not None]
        if len(known) != 1 or known[0] not in {tokens, *counts}:
            return None
        results[name] = {
            "axis": dims.index(known[0]),
            "per": "token" if known[0] == tokens else "sequence",
        }
    return {"kind": "packed", "offsets": offsets, "inputs": inputs, "outputs": results}


LENGTHS = (4, 1, 3)  # of the sequences that are tried together and alone


def trial(
    how: Mapping[str, Any], given: Mapping[str, Input]
) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    """Return inputs of some sequences together, as a server would put them, and of each alone."""
    if how["kind"] == "packed":
        return _packed_trial(how, given)
    mask = how["mask"]
    dims = {name: i.dims for name, i in given.items()}
    batch, sequence = dims[mask] if mask else (BATCH, None)
    lengths = LENGTHS if mask else (1,) * len(LENGTHS)
    alone = []
    for row, length in enumerate(lengths):
        sizes = {str(batch): len(lengths), str(sequence): length}
        arrays = {name: i.resized(sizes) for name, i in given.items()}
        if mask:
            arrays[mask] = np.ones_like(arrays[mask])
        alone.append({n: a.take([row], how["inputs"][n]["batch"]) for n, a in arrays.items()})
    together = {}
    for name, axes in how["inputs"].items():
        along = _listed(axes["sequence"])
        rows = [_filled(feed[name], along, max(lengths), axes["pad"]) for feed in alone]
        together[name] = np.concatenate(rows, axes["batch"])
    return together, alone


def _filled(array: Array, along: Sequence[int], size: int, pad: float) -> Array:
    width = [(0, size - n if axis in along else 0) for axis, n in enumerate(array.shape)]
    return np.pad(array, width, constant_values=np.array(pad, array.dtype))


def _packed_trial(
    how: Mapping[str, Any], given: Mapping[str, Input]
) -> tuple[dict[str, Array], list[dict[str, Array]]]:
    offsets = how["offsets"]
    tokens, dtype = str(given[offsets].offsets_of), given[offsets].example.dtype
    ends = np.cumsum([0, *LENGTHS]).astype(dtype)
    together = {n: given[n].resized({tokens: int(ends[-1])}) for n in how["inputs"]}
    alone = []
    for first, last in itertools.pairwise(ends):
        rows = range(first, last)
        feed = {n: a.take(rows, how["inputs"][n]["axis"]) for n, a in together.items()}
        alone.append({**feed, offsets: np.array([0, last - first], dtype)})
    return {**together, offsets: ends}, alone


def parts(how: Mapping[str, Any], name: str, array: Array) -> Iterator[Array]:
    """Yield what each of the sequences of a trial gets of an output of all together."""
    axes = how["outputs"][name]
    if how["kind"] == "packed":
        sizes = LENGTHS if axes["per"] == "token" else (1,) * len(LENGTHS)
        yield from np.split(array, np.cumsum(sizes)[:-1], axes["axis"])
        return
    for row, length in enumerate(LENGTHS):
        part = array.take([row], axes["batch"])
        for axis in _listed(axes["sequence"]):
            part = part.take(range(length), axis)
        yield part
