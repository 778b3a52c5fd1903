"""Do the tensors of a request fit the model? Checked before anything is allocated or run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..engine.datatypes import Datatype
from ..engine.failures import InvalidRequestError
from ..engine.model import TensorSpec

_MAX_BYTES = 2**63 - 1


def element_count(name: str, shape: Sequence[int], datatype: Datatype) -> int:
    """Return the number of elements; raises `InvalidRequestError` when no memory could hold them.

    A zero does not excuse the other dimensions: NumPy and ONNX Runtime multiply those too.
    """
    if math.prod(max(size, 1) for size in shape) * datatype.itemsize > _MAX_BYTES:
        raise InvalidRequestError(f"input {name!r}: shape {list(shape)} is too large")
    return math.prod(shape)


def check_names(kind: str, given: Sequence[str], known: Mapping[str, TensorSpec]) -> None:
    """Raise `InvalidRequestError` for a name that the model does not have or that comes twice."""
    seen = set()
    for name in given:
        if name not in known:
            raise InvalidRequestError(
                f"the model has no {kind} {name[:200]!r}; it has {_list(known)}"
            )
        if name in seen:
            raise InvalidRequestError(f"{kind} {name!r} is given twice")
        seen.add(name)


def check_complete(given: Sequence[str], known: Mapping[str, TensorSpec]) -> None:
    """Raise `InvalidRequestError` when an input of the model is missing."""
    missing = [name for name in known if name not in given]
    if missing:
        raise InvalidRequestError(f"missing input {_list(missing)}")


def check_datatype(spec: TensorSpec, datatype: str) -> None:
    """Raise `InvalidRequestError` unless the datatype is the model's."""
    if datatype != spec.datatype.name:
        raise InvalidRequestError(
            f"input {spec.name!r} has datatype {spec.datatype.name}; got {datatype[:200]!r}"
        )


def check_shape(spec: TensorSpec, shape: Sequence[int], sizes: dict[str, int]) -> None:
    """Raise `InvalidRequestError` unless `shape` agrees with the model's rank, sizes and names.

    `sizes` holds the size that each named dimension has had so far in the request: a name means
    one size (ONNX: dimension variables are scoped to the graph). It is extended here.
    """
    if spec.shape is None:
        return
    if len(shape) != len(spec.shape):
        raise InvalidRequestError(
            f"input {spec.name!r} has {len(spec.shape)} dimensions, {_dims(spec)}; "
            f"got shape {list(shape)}"
        )
    for axis, (size, expected) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(expected, str):
            expected = sizes.setdefault(expected, size)
        if expected is not None and size != expected:
            raise InvalidRequestError(
                f"input {spec.name!r}: dimension {axis} of {_dims(spec)} is {expected} here; "
                f"got shape {list(shape)}"
            )


def _dims(spec: TensorSpec) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in spec.shape or ()) + "]"


def _list(names: Mapping[str, TensorSpec] | Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
