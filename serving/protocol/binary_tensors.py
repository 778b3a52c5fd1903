"""Tensors as bytes: little-endian, row-major, without padding.

``BOOL`` is one byte of 0 or 1. An element of ``BYTES`` is a 4-byte length and that many bytes,
which must be UTF-8 because ONNX Runtime's Python interface has strings only as text.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from ..engine.datatypes import Datatype
from ..engine.failures import InvalidRequestError
from ..engine.model import Array

_LENGTH = struct.Struct("<I")


def decode(
    name: str, content: memoryview, shape: Sequence[int], count: int, datatype: Datatype
) -> Array:
    """Return the array in `content`, a view of it where alignment allows.

    Raises `InvalidRequestError` unless the bytes are exactly those of `count` elements.
    """
    if datatype.kind == "s":
        return _strings(name, content, count).reshape(shape)
    expected = count * datatype.itemsize
    if len(content) != expected:
        raise InvalidRequestError(
            f"input {name!r}: {datatype.name} of shape {list(shape)} takes {expected} bytes; "
            f"got {len(content)}"
        )
    if datatype.kind == "b" and count and np.frombuffer(content, np.uint8).max() > 1:
        raise InvalidRequestError(f"input {name!r}: BOOL has a byte other than 0 and 1")
    array = np.frombuffer(content, datatype.dtype, count)
    return np.require(array, requirements="A").reshape(shape)


def encode(array: Array, datatype: Datatype) -> memoryview:
    """Return the bytes of `array`."""
    if datatype.kind == "s":
        parts = []
        for value in array.reshape(-1).tolist():
            text = value.encode()
            parts += [_LENGTH.pack(len(text)), text]
        return memoryview(b"".join(parts))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def whole_string(name: str, content: memoryview) -> Array:
    """Return an array of one string that is all of `content`, without a length before it."""
    return _one_dimensional([_text(name, content)])


def _strings(name: str, content: memoryview, count: int) -> Array:
    if count * _LENGTH.size > len(content):
        raise _wrong_bytes(name, content, count)
    values, position = [], 0
    for _ in range(count):
        if position + _LENGTH.size > len(content):
            raise _wrong_bytes(name, content, count)
        (size,) = _LENGTH.unpack_from(content, position)
        position += _LENGTH.size
        if size > len(content) - position:
            raise _wrong_bytes(name, content, count)
        values.append(_text(name, content[position : position + size]))
        position += size
    if position != len(content):
        raise _wrong_bytes(name, content, count)
    return _one_dimensional(values)


def _one_dimensional(values: list[str]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _text(name: str, content: memoryview) -> str:
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError:
        raise InvalidRequestError(
            f"input {name!r}: BYTES has an element that is not UTF-8"
        ) from None


def _wrong_bytes(name: str, content: memoryview, count: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"input {name!r}: {len(content)} bytes are not {count} elements of BYTES, "
        "each a 4-byte length and that many bytes"
    )
