"""What has to be known of a model before ONNX Runtime sees it, read without its weights.

A model may come from anybody. ONNX Runtime refuses most of what is wrong with one; looked for here
is what some version from 1.20 on does not refuse: weights in files outside the model's folder,
functions that call themselves or double without end, gigabytes made from a few numbers.

The bytes are walked field by field (https://protobuf.dev/programming-guides/encoding/), and a field
that nobody asks for costs one addition, weights too. The numbers are those of onnx.proto.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# Where nodes and tensors can be: message -> number of a field -> message of its payload.
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 11: "Value", 12: "Value", 15: "SparseTensor"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
}
_FIXED = {1: 8, 5: 4}  # bytes of a payload, by wire type
_INT64, _EXTERNAL = 7, 1
_IN_MEMORY = "_ORT_MEM_ADDR_"  # ONNX Runtime's mark of an address in its own process

MOST_NESTING = 64  # messages in messages; ONNX Runtime's own parser stops at 100
MOST_CALLS = 64  # of functions in functions
MOST_FIELDS = 1 << 23  # that are looked at: seconds here, a gigabyte or two in ONNX Runtime
MOST_NODES = 1 << 20  # when each call is replaced by the function's body
MOST_ENTRIES = 1 << 28  # of a tensor that constants give its size
MOST_MESSAGE = 1000  # characters

# Operators whose result is as large as the numbers of an input say, and the place of that input.
_GROWING = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}

Name = tuple[str, str]  # of a function: domain and operator


class ModelError(ValueError):
    """A model that is damaged, or that must not be loaded."""


class _WireError(ValueError):
    """The bytes are not a protocol-buffer message of ONNX."""


class Call(NamedTuple):
    """A node: its name, or that of its first output where it has none, and what it calls."""

    node: str
    function: Name


@dataclass
class Contents:
    """What was found in a model."""

    calls: list[Call] = field(default_factory=list)  # by the main graph
    bodies: dict[Name, list[Call]] = field(default_factory=dict)  # the calls by functions
    locations: set[str] = field(default_factory=set)  # of files with weights
    sizes: dict[str, int] = field(default_factory=dict)  # products of the numbers in constants
    grown: list[str] = field(default_factory=list)  # constants that give a tensor its size


def mapped(path: Path, caller: str) -> memoryview:
    """Return the content of a file, of which only what is looked at is read."""
    if not path.exists():
        raise FileNotFoundError(f"{caller}: there is no file {path}")
    if not path.is_file():
        raise ModelError(f"{caller}: {path} is not a regular file")
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ModelError(f"{caller}: {path} is empty")
        # Not closed by hand: the map goes when the last view of it does.
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def inspect(content: bytes | memoryview, folder: Path | None, caller: str) -> Contents:
    """Read and check a model whose weights, where they are in other files, lie in ``folder``.

    Raises ModelError for one that must not be loaded, and FileNotFoundError where a file with
    weights is missing.
    """
    reader = _Reader()
    try:
        reader.message(memoryview(content), "Model", 0)
    except _WireError as error:
        raise ModelError(f"{caller}: this is not a readable ONNX model: {error}") from None
    found = reader.found
    _check_functions(found, caller)
    for name in found.grown:
        if (size := found.sizes.get(name, 0)) > MOST_ENTRIES:
            raise ModelError(
                f"{caller}: constants make a tensor of {size} entries; at most {MOST_ENTRIES} "
                "are allowed"
            )
    for location in sorted(found.locations):
        _check_location(location, folder, caller)
    return found


def one_line(error: Exception) -> str:
    """Return what somebody else's error says, without its line breaks and not endless."""
    return " ".join(str(error).split())[:MOST_MESSAGE]


def _check_functions(found: Contents, caller: str) -> None:
    """Raise where functions call each other in a circle, or make the model grow without end."""
    known: dict[Name, tuple[int, int]] = {}

    def measure(calls: list[Call], depth: int) -> tuple[int, int]:
        """Return how many nodes the calls are with the bodies in place, and how deep they go."""
        nodes = height = 0
        for _, function in calls:
            nodes += 1
            if function not in found.bodies:
                continue
            if depth + known.get(function, (0, 1))[1] > MOST_CALLS:
                raise ModelError(
                    f"{caller}: the function {function[1][:200]!r} calls itself, or calls go more "
                    f"than {MOST_CALLS} deep"
                )
            if function not in known:
                known[function] = measure(found.bodies[function], depth + 1)
            nodes, height = nodes + known[function][0], max(height, known[function][1])
        return nodes, height + 1

    nodes, _ = measure(found.calls, 0)
    if nodes > MOST_NODES:
        raise ModelError(
            f"{caller}: functions that call each other make {nodes} nodes; at most {MOST_NODES} "
            "are allowed"
        )


def _check_location(location: str, folder: Path | None, caller: str) -> None:
    """Raise unless a location is a plain file within the folder."""
    relative, shown = Path(location), repr(location[:200])
    if (
        not location
        or not location.isprintable()
        or _IN_MEMORY in location
        or relative.is_absolute()
        or ".." in relative.parts
        or "\\" in location
    ):
        raise ModelError(f"{caller}: weights lie outside the model's folder: {shown}")
    if folder is None:
        raise ModelError(
            f"{caller}: the weights are in the file {shown}; give the model's path instead of its "
            "content"
        )
    try:
        folder = folder.resolve()
        file = (folder / relative).resolve(strict=True)
        status = file.stat()
    except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
        raise FileNotFoundError(
            f"{caller}: the file with weights {str(folder / relative)[-300:]} is missing"
        ) from None
    if not file.is_relative_to(folder):
        raise ModelError(f"{caller}: weights lie outside the model's folder: {shown}")
    # Another name of the file may be one outside the folder.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise ModelError(f"{caller}: weights must lie in a plain file with one name; got {shown}")


class _Reader:
    """Walks over a model."""

    def __init__(self) -> None:
        self.found = Contents()
        self._calls = self.found.calls  # of the graph or function that is read
        self._left = MOST_FIELDS
        self._constant = ""  # what the node that is read calls its result, if it is a constant

    def message(self, buffer: memoryview, kind: str, depth: int) -> None:
        if depth > MOST_NESTING:
            raise _WireError("nested too deeply")
        self._spend(8)  # what a message costs, in fields
        if kind in _CHILDREN:
            children = _CHILDREN[kind]
            for number, payload in self._fields(buffer):
                if number in children:
                    self.message(_view(payload), children[number], depth + 1)
        elif kind == "Node":
            self._node(buffer, depth)
        elif kind == "Tensor":
            self._tensor(buffer)
        elif kind == "Function":
            self._function(buffer, depth)
        elif kind == "SparseTensor":
            self._sparse(buffer)
        else:
            self._texts(buffer, 1)  # of an input or output of the graph: its name

    def _node(self, buffer: memoryview, depth: int) -> None:
        names: dict[int, memoryview] = {}
        attributes = []
        for number, payload in self._fields(buffer):
            if number == 5:
                attributes.append(_view(payload))
            elif number in (3, 4, 7):
                names[number] = _view(payload)
            elif number == 2:
                names.setdefault(2, _view(payload))
        node, operator, domain, output = (_text(names.get(n, _NOTHING)) for n in (3, 4, 7, 2))
        self._calls.append(Call(node or output, (domain, operator)))
        if operator in _GROWING:
            self.found.grown += self._texts(buffer, 1)[_GROWING[operator] :][:1]
        self._constant = output if operator == "Constant" else ""
        for attribute in attributes:
            self.message(attribute, "Attribute", depth + 1)

    def _function(self, buffer: memoryview, depth: int) -> None:
        name, domain = (self._texts(buffer, number)[-1:] for number in (1, 10))
        function = ("".join(domain), "".join(name))
        self._calls = self.found.bodies.setdefault(function, [])
        for number, payload in self._fields(buffer):
            if number in (7, 11):
                self.message(_view(payload), "Node" if number == 7 else "Attribute", depth + 1)
        self._calls = self.found.calls

    def _tensor(self, buffer: memoryview) -> None:
        name, external, locations = self._constant, False, []
        data_type, product = 0, 0
        for number, payload in self._fields(buffer):
            if number == 2:
                data_type = _number(payload)
            elif number in (7, 9) and len(_view(payload)) <= 64:
                product = _product((_packed if number == 7 else _raw)(_view(payload)))
            elif number == 8:
                name = _text(_view(payload)) or name
            elif number == 13:
                key, value = (self._texts(_view(payload), n)[-1:] for n in (1, 2))
                locations += value if key == ["location"] else []
            elif number == 14:
                external = payload == _EXTERNAL
        if external and not locations:
            raise _WireError(f"the weights {name[:200]!r} are in a file without a name")
        self.found.locations.update(locations)
        if data_type == _INT64:
            self.found.sizes[name] = product

    def _sparse(self, buffer: memoryview) -> None:
        sizes: list[int] = []
        for number, payload in self._fields(buffer):
            if number in (1, 2):
                self._tensor(_view(payload))
            elif number == 3:
                sizes += [payload] if isinstance(payload, int) else _packed(payload[:640])
        if _product(sizes[:64]) > MOST_ENTRIES:
            raise _WireError(f"a sparse tensor of more than {MOST_ENTRIES} entries")

    def _fields(self, buffer: memoryview) -> Iterator[tuple[int, memoryview | int]]:
        """Yield the number and the payload of each field; of numbers of fixed size the bytes."""
        position, end = 0, len(buffer)
        while position < end:
            self._spend(1)
            key = buffer[position]
            if key < 0x80:
                position += 1
            else:
                key, position = _varint(buffer, position)
            kind = key & 7
            if kind == 2:
                size, position = _varint(buffer, position)
            elif kind == 0:
                value, position = _varint(buffer, position)
                yield key >> 3, value
                continue
            elif kind in _FIXED:
                size = _FIXED[kind]
            else:
                raise _WireError(f"wire type {kind}")
            if size > end - position or key < 8:
                raise _WireError("a field without a number, or longer than its message")
            yield key >> 3, buffer[position : position + size]
            position += size

    def _spend(self, fields: int) -> None:
        self._left -= fields
        if self._left < 0:
            raise _WireError("too many parts")

    def _texts(self, buffer: memoryview, wanted: int) -> list[str]:
        fields = self._fields(buffer)
        return [_text(_view(payload)) for number, payload in fields if number == wanted]


_NOTHING = memoryview(b"")


def _varint(buffer: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    for byte in buffer[position : position + 10]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position + shift // 7
    raise _WireError("a number that does not end")


def _packed(buffer: memoryview) -> list[int]:
    values, position = [], 0
    while position < len(buffer):
        value, position = _varint(buffer, position)
        values.append(value)
    return values


def _raw(buffer: memoryview) -> list[int]:
    return [int.from_bytes(buffer[i : i + 8], "little") for i in range(0, len(buffer), 8)]


def _product(numbers: list[int]) -> int:
    """Return the product, in which -1, that means "as it was", counts as 1."""
    return math.prod(1 if number >> 63 else number for number in numbers)


def _view(payload: memoryview | int) -> memoryview:
    if isinstance(payload, int):
        raise _WireError("a number in the place of bytes")
    return payload


def _number(payload: memoryview | int) -> int:
    if not isinstance(payload, int):
        raise _WireError("bytes in the place of a number")
    return payload


def _text(buffer: memoryview) -> str:
    try:
        return str(buffer, "utf-8")
    except UnicodeDecodeError:
        raise _WireError("a name that is not UTF-8") from None
