"""Walk over the protocol-buffer wire format, enough to inspect a model without loading it.

The format (https://protobuf.dev/programming-guides/encoding/): a message is a run of fields, each a
varint key ``field_number << 3 | wire_type`` and a payload whose length the wire type gives. Nothing
is decoded that is not asked for: a megabyte of weights costs one addition.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not a protocol-buffer message."""


def fields(buffer: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """Yield ``(field number, wire type, payload)`` for each field of one message.

    The payload is an integer for ``VARINT`` and a view of the bytes otherwise. Raises `WireError`
    for a truncated field, for field number 0 and for groups, which no ONNX writer produces.
    """
    position, end = 0, len(buffer)
    while position < end:
        key, position = _varint(buffer, position)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise WireError("field number 0")
        if wire_type == VARINT:
            value, position = _varint(buffer, position)
            yield number, wire_type, value
            continue
        if wire_type == BYTES:
            size, position = _varint(buffer, position)
        elif wire_type in (FIXED64, FIXED32):
            size = 8 if wire_type == FIXED64 else 4
        else:
            raise WireError(f"wire type {wire_type}")
        if size > end - position:
            raise WireError("truncated field")
        yield number, wire_type, buffer[position : position + size]
        position += size


def _varint(buffer: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(buffer):
            raise WireError("truncated varint")
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise WireError("varint of more than ten bytes")
