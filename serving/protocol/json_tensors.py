"""Tensors as JSON: ``data`` lists, nested or flat, to arrays and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.datatypes import Datatype
from ..engine.failures import InvalidRequestError
from ..engine.model import Array, TensorSpec
from .json_text import NOT_JSON, JsonArray

# Exact types: a boolean is not a number here, though it is an int in Python.
_ALLOWED: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
    "s": frozenset({str}),
}
_EXPECTED = {"b": "true or false", "i": "integers", "f": "numbers", "s": "strings"}


def decode(name: str, data: Any, shape: Sequence[int], count: int, datatype: Datatype) -> Array:
    """Return the array for ``data``.

    Parameters
    ----------
    name : str
        Name of the input, for messages.
    data : object
        A `JsonArray` or parsed JSON: a list of `count` values in row-major order, or lists nested
        as `shape` says.
    shape : sequence of int
    count : int
        Product of `shape`.
    datatype : Datatype
        Not ``BF16``, which travels in binary only.

    Raises
    ------
    InvalidRequestError
        Wrong count or nesting, a value of another type, out of range or not finite.
    """
    check_representable(name, datatype, "input")
    if isinstance(data, JsonArray):
        if datatype.kind != "s":
            return _read(name, data, shape, count, datatype)
        data = data.parse()
    values = _flatten(name, data, shape, count)
    allowed = _ALLOWED[datatype.kind]
    if not allowed.issuperset(map(type, values)):
        index = next(i for i, value in enumerate(values) if type(value) not in allowed)
        raise _wrong_element(name, datatype, index, values[index])
    try:
        # A value too large for the type becomes an infinity, which is looked for below.
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=datatype.dtype)
    except OverflowError:
        raise _out_of_range(name, datatype) from None
    return _finite(name, array, datatype).reshape(shape)


def encode(spec: TensorSpec, array: Array) -> Any:
    """Return `array`, flat, in a form that ``orjson`` with ``OPT_SERIALIZE_NUMPY`` writes.

    Raises `InvalidRequestError` for NaN and infinity: JSON has no word for them, ``null`` would
    lose which it was, and the client can have them by asking for binary.
    """
    if spec.datatype.kind == "s":
        return array.reshape(-1).tolist()
    if spec.datatype.kind == "f" and not np.isfinite(array).all():
        raise InvalidRequestError(
            f"output {spec.name!r} holds NaN or infinity, which JSON cannot carry; "
            "ask for it in binary (parameter 'binary_data' or 'binary_data_output')"
        )
    return np.ascontiguousarray(array).reshape(-1)


def check_representable(name: str, datatype: Datatype, kind: str) -> None:
    """Raise `InvalidRequestError` for a datatype that travels in binary only."""
    if datatype.name == "BF16":
        raise InvalidRequestError(f"{kind} {name!r}: BF16 travels in binary only")


def _read(
    name: str, data: JsonArray, shape: Sequence[int], count: int, datatype: Datatype
) -> Array:
    """Read the numbers from the text into the array."""
    # The double nearest to a number is what NumPy makes a half of, in one rounding.
    dtype = np.dtype(np.float64) if datatype.name == "FP16" else datatype.dtype
    # Each element takes a byte and a comma: no memory is taken for more than can come.
    enough = 2 * count < data.end - data.begin
    array = np.empty(count, dtype) if enough else None
    outcome, found, element, (begin, end) = data.read(shape, array)
    if array is not None and outcome == "done":
        with np.errstate(over="ignore"):
            array = array.astype(datatype.dtype, copy=False)
        return (_finite(name, array, datatype) if datatype.name == "FP16" else array).reshape(shape)
    if outcome == "no list":
        raise _no_list(name, data.parse())
    if outcome == "type":
        raise _wrong_element(name, datatype, element, JsonArray(data.text, begin, end).parse())
    if outcome == "nesting":
        raise _nesting(name, shape)
    if outcome == "range":
        raise _out_of_range(name, datatype)
    if outcome == "too large":
        raise _too_large(name, datatype)
    if outcome == "beyond double":
        raise InvalidRequestError(NOT_JSON)
    raise _wrong_count(name, shape, count, found)


def _finite(name: str, array: Array, datatype: Datatype) -> Array:
    if datatype.kind == "f" and not np.isfinite(array).all():
        raise _too_large(name, datatype)
    return array


def _flatten(name: str, data: Any, shape: Sequence[int], count: int) -> list[Any]:
    """Return the values in row-major order, checking the count or, if nested, every length."""
    if not isinstance(data, list):
        raise _no_list(name, data)
    level = data
    if len(shape) > 1 and level and isinstance(level[0], list):
        for axis in range(len(shape) - 1):
            if axis == 0 and len(level) != shape[0]:
                raise _nesting(name, shape)
            if set(map(type, level)) - {list} or set(map(len, level)) - {shape[axis + 1]}:
                raise _nesting(name, shape)
            level = [value for row in level for value in row]
    if len(level) != count:
        raise _wrong_count(name, shape, count, len(level))
    return level


def _no_list(name: str, data: Any) -> InvalidRequestError:
    return InvalidRequestError(f"input {name!r}: 'data' must be a list; got {_show(data)}")


def _wrong_count(name: str, shape: Sequence[int], count: int, found: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"input {name!r}: shape {list(shape)} has {count} elements; 'data' has {found}"
    )


def _wrong_element(name: str, datatype: Datatype, index: int, value: Any) -> InvalidRequestError:
    return InvalidRequestError(
        f"input {name!r}: 'data' for {datatype.name} must hold {_EXPECTED[datatype.kind]}; "
        f"element {index} is {_show(value)}"
    )


def _out_of_range(name: str, datatype: Datatype) -> InvalidRequestError:
    return InvalidRequestError(
        f"input {name!r}: 'data' holds a value out of range for {datatype.name}"
    )


def _too_large(name: str, datatype: Datatype) -> InvalidRequestError:
    return InvalidRequestError(
        f"input {name!r}: 'data' holds a value too large for {datatype.name}; "
        "to send infinity, send the tensor in binary"
    )


def _nesting(name: str, shape: Sequence[int]) -> InvalidRequestError:
    return InvalidRequestError(
        f"input {name!r}: 'data' is nested otherwise than shape {list(shape)}"
    )


def _show(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
