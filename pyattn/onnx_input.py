"""The inputs of an exported model: an example of each, and what their dimensions are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyattn.tensor import Array


@dataclass(frozen=True)
class Input:
    """An input of the exported model: an example array and the names of its dynamic dimensions.

    Parameters
    ----------
    example:
        An array of the dtype and rank of the input.
    dims:
        One entry for each axis: a string names a dynamic dimension (axes with the same name always
        have the same size), None keeps the example's size.
    at_most:
        The dimension that bounds the values of an input of lengths: verification, which repeats and
        cuts the example to other sizes, then keeps within it.
    offsets_of:
        The dimension of packed sequences that an input of offsets cuts up: verification then lets
        it rise from 0 to that size.
    mask_of:
        The dimension of padded sequences whose real places this input ``(batch, dimension)`` marks:
        1 for a real place, 0 for padding.
    pad:
        What fills this input where a sequence is shorter than others of its batch.

    Notes
    -----
    ``offsets_of``, ``mask_of`` and ``pad`` go into the metadata of the file, so that a server can
    put requests together; see ``docs/onnx.md``.
    """

    example: Array
    dims: tuple[str | None, ...] = ()
    at_most: str | None = None
    offsets_of: str | None = None
    mask_of: str | None = None
    pad: float = 0

    def __post_init__(self) -> None:
        if not isinstance(self.example, np.ndarray):
            raise TypeError(f"Input: example must be an array; got {type(self.example).__name__}")
        if not isinstance(self.dims, tuple) or not all(
            name is None or isinstance(name, str) for name in self.dims
        ):
            raise TypeError(f"Input: dims must be a tuple of names and None; got {self.dims!r}")
        if self.dims and len(self.dims) != self.example.ndim:
            raise ValueError(
                f"Input: dims {self.dims} name {len(self.dims)} axes; the example has shape "
                f"{self.example.shape}"
            )
        if self.offsets_of is not None and (self.example.ndim != 1 or self.example.size < 2):
            raise ValueError(
                f"Input: offsets must be a vector of 2 or more; got shape {self.example.shape}"
            )
        if self.mask_of is not None and (
            len(self.dims) != 2 or None in self.dims or self.dims[1] != self.mask_of
        ):
            raise ValueError(
                f"Input: a mask of {self.mask_of!r} must have dims (batch, {self.mask_of!r}); got "
                f"{self.dims}"
            )
        if isinstance(self.pad, bool) or not isinstance(self.pad, (int, float, np.number)):
            raise TypeError(f"Input: pad must be a number; got {self.pad!r}")
        if any(self.dims) and self.example.size == 0:
            raise ValueError(f"Input: the example is empty; got shape {self.example.shape}")

    @property
    def shape(self) -> tuple[int | str, ...]:
        """The sizes, names for the dynamic ones."""
        names = self.dims or (None,) * self.example.ndim
        return tuple(
            size if name is None else name
            for name, size in zip(names, self.example.shape, strict=True)
        )

    def resized(self, sizes: Mapping[str, int]) -> Array:
        """Return the example repeated or cut along each dynamic dimension to the given sizes."""
        if self.offsets_of is not None:
            count = sizes.get((*self.dims, None)[0] or "", len(self.example))
            return np.linspace(0, sizes[self.offsets_of], count).astype(self.example.dtype)
        array = self.example
        for axis, name in enumerate(self.dims):
            if name is not None:
                array = array.take(np.arange(sizes[name]) % array.shape[axis], axis=axis)
        if self.at_most is not None:
            array = np.minimum(array, sizes[self.at_most]).astype(array.dtype)
        return np.ascontiguousarray(array).reshape(array.shape)  # NumPy makes rank 0 rank 1


def check_inputs(inputs: Any) -> dict[str, Input]:
    """Return every input as an Input; raise where names and sizes contradict each other."""
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"export: inputs must map names to arrays or Inputs; got {type(inputs).__name__}"
        )
    if not inputs:
        raise ValueError("export: expected one input or more; got none")
    given = {k: v if isinstance(v, Input) else Input(v) for k, v in inputs.items()}
    sizes = traced_sizes(given)
    for name, i in given.items():
        for what, dim in (("is at most", i.at_most), ("has offsets of", i.offsets_of)):
            if dim is not None and dim not in sizes:
                raise ValueError(f"export: input {name!r} {what} {dim!r}, which is no dim")
        if any(sizes[d] != n for d, n in zip(i.dims, i.example.shape, strict=False) if d):
            raise ValueError(
                f"export: input {name!r} of shape {i.example.shape} with dims {i.dims} contradicts "
                f"the sizes {sizes} of the inputs"
            )
    return given


def traced_sizes(given: Mapping[str, Input]) -> dict[str, int]:
    """Return the size of each dynamic dimension in the examples; the first counts."""
    sizes: dict[str, int] = {}
    for i in given.values():
        for name, size in zip(i.dims, i.example.shape, strict=False):
            if name is not None:
                sizes.setdefault(name, size)
    return sizes


def other_sizes(given: Mapping[str, Input]) -> list[dict[str, int]]:
    """Return three choices of the dynamic sizes, small and unlike the example's."""
    traced = traced_sizes(given)
    if not traced:
        return [{}]
    # One sequence has two offsets.
    offsets = {name for i in given.values() if i.offsets_of is not None for name in i.dims}
    return [
        {
            name: [n for n in (3, 1, 7, 2, 5, 4) if n != size][(k + 2 * j) % 5] + (name in offsets)
            for j, (name, size) in enumerate(traced.items())
        }
        for k in range(3)
    ]
