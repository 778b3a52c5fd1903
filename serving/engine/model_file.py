"""Look into an ONNX file before ONNX Runtime does.

A model may keep weights in other files and name them by path. A hostile model can so make the
server read any file that it may read, and a model may also carry ONNX Runtime's marker for "the
weights are at this address of the process" (CVE-2022-25882, CVE-2024-27318, CVE-2024-5187,
CVE-2025-51480 and later ones). So every location is checked here first: it must be a relative path
to a regular file inside the model's folder, with one hard link and no symbolic link on the way out.

Functions of a model that call each other in a circle are not refused by every version of ONNX
Runtime, and those that double with each call by none, until all memory is taken. Here they are.

The file is read with the small wire-format walker of ``protobuf.py``. The ``onnx`` package is not
needed, and the weights inside the file are never touched. The message and field numbers are those
of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import itertools
import mmap
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .failures import ModelError
from .protobuf import BYTES, VARINT, WireError, fields

# Where a TensorProto or a node can be, by message: field number -> message of its payload.
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 8, 13, 14
_MODEL_GRAPH, _GRAPH_INPUT, _GRAPH_OUTPUT = 7, 11, 12
_MODEL_METADATA = 14
_NODE_NAME, _FUNCTION_NAME = (7, 4), (10, 1)  # domain and operator
_PYATTN = "pyattn"
_MAX_NESTING = 64  # subgraphs inside subgraphs; ONNX Runtime's own parser stops at 100 messages
_MAX_CALLS = 64  # functions in functions
_MAX_NODES = 1 << 20  # when each call is replaced by the function's body
_IN_MEMORY = "_ORT_MEM_ADDR_"


Name = tuple[str, str]  # of an operator or a function: domain and name


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A checked model file.

    Attributes
    ----------
    path : Path
        The file.
    external : frozenset of str
        Locations of the external data files, relative to the folder of `path`.
    unranked : frozenset of str
        Inputs and outputs declared without a shape. ONNX Runtime reports these like scalars.
    operators : frozenset of str
        Operators of the domain ``pyattn`` that its nodes call.
    metadata : mapping of str to str
        The model's ``metadata_props``.
    """

    path: Path
    external: frozenset[str]
    unranked: frozenset[str]
    operators: frozenset[str] = frozenset()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Found:
    """What a walk over a model has met."""

    external: set[str] = field(default_factory=set)
    calls: list[Name] = field(default_factory=list)  # by the main graph
    functions: dict[Name, list[Name]] = field(default_factory=dict)  # what each of them calls


def inspect(path: Path) -> ModelFile:
    """Read and check a model file; raises `ModelError` when it must not be loaded."""
    try:
        if not path.is_file():
            there = "is not a regular file" if os.path.lexists(path) else "does not exist"
            raise ModelError(f"model file {path} {'is a folder' if path.is_dir() else there}")
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ModelError(f"model file {path} is empty")
            # Not closed by hand: the map goes when the last view of it does.
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ModelError(f"model file {path} cannot be read: {error.strerror}") from error
    if bytes(content[4:8]) == b"ORTM":
        raise ModelError(f"model file {path} is in ORT format, not ONNX")
    try:
        found = _Found()
        _walk(content, "Model", 0, found, found.calls)
        _check_functions(found)
        unranked = frozenset(_unranked(content))
        metadata = dict(_entry(prop) for prop in _messages(content, _MODEL_METADATA))
    except WireError as error:
        raise ModelError(f"model file {path} is not an ONNX model ({error})") from error
    for location in found.external:
        beside(path, location)
    called = itertools.chain(found.calls, *found.functions.values())
    operators = frozenset(name for domain, name in called if domain == _PYATTN)
    return ModelFile(path, frozenset(found.external), unranked, operators, metadata)


def _walk(buffer: memoryview, message: str, depth: int, found: _Found, calls: list[Name]) -> None:
    """Collect what is in one message and below it; nodes add what they call to `calls`."""
    if depth > _MAX_NESTING:
        raise WireError("nested too deeply")
    if message == "Tensor":
        found.external.update(_tensor_location(buffer))
        return
    if message == "Node":
        calls.append(_name(buffer, _NODE_NAME))
    elif message == "Function":
        calls = found.functions.setdefault(_name(buffer, _FUNCTION_NAME), [])
    children = _CHILDREN[message]
    for number, wire_type, payload in fields(buffer):
        child = children.get(number)
        if child is not None and wire_type == BYTES and isinstance(payload, memoryview):
            _walk(payload, child, depth + 1, found, calls)


def _name(buffer: memoryview, numbers: tuple[int, int]) -> Name:
    # Of a field that stands twice the last one counts.
    domain, name = ([b"", *map(bytes, _messages(buffer, number))][-1] for number in numbers)
    return "" if domain == b"ai.onnx" else _text(domain), _text(name)


def _check_functions(found: _Found) -> None:
    """Raise `WireError` where functions call each other in a circle, or grow without end."""
    known: dict[Name, tuple[int, int]] = {}

    def measure(calls: Iterable[Name], above: int) -> tuple[int, int]:
        """Return the nodes of calls with the bodies in their place, and how deep they go."""
        nodes = depth = 0
        for name in calls:
            if name in found.functions and name not in known:
                if above == _MAX_CALLS:
                    raise WireError(f"the function {name[1][:200]!r} calls itself")
                known[name] = measure(found.functions[name], above + 1)
            inside, below = known.get(name, (0, 0))
            nodes, depth = nodes + 1 + inside, max(depth, 1 + below)
        return nodes, depth

    nodes, depth = measure([*found.functions, *found.calls], 0)
    if depth > _MAX_CALLS + 1:  # a node that is no function is the last
        raise WireError(f"functions call each other {depth - 1} deep")
    if nodes > _MAX_NODES:
        raise WireError(f"functions that call each other make {nodes} nodes")


def _tensor_location(buffer: memoryview) -> Iterator[str]:
    name, external, locations = "", False, []
    for number, wire_type, payload in fields(buffer):
        if number == _TENSOR_DATA_LOCATION and wire_type == VARINT:
            external = payload == 1
        elif isinstance(payload, int):
            continue
        elif number == _TENSOR_NAME and wire_type == BYTES:
            name = _text(payload)
        elif number == _TENSOR_EXTERNAL_DATA and wire_type == BYTES:
            key, value = _entry(payload)
            if key == "location":
                locations.append(value)
    if external and not locations:
        raise WireError(f"tensor {name[:200]!r} has external data without a location")
    yield from locations


def _entry(buffer: memoryview) -> tuple[str, str]:
    entry = {1: "", 2: ""}
    for number, wire_type, payload in fields(buffer):
        if number in entry and wire_type == BYTES and isinstance(payload, memoryview):
            entry[number] = _text(payload)
    return entry[1], entry[2]


def _text(payload: bytes | memoryview) -> str:
    try:
        return bytes(payload).decode()
    except UnicodeDecodeError:
        raise WireError("a name that is not UTF-8") from None


def _unranked(model: memoryview) -> Iterator[str]:
    """Yield the names of graph inputs and outputs whose tensor type has no shape."""
    for graph in _messages(model, _MODEL_GRAPH):
        for kind in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            for value in _messages(graph, kind):
                tensor_types = [t for v in _messages(value, 2) for t in _messages(v, 1)]
                if not any(True for t in tensor_types for _ in _messages(t, 2)):
                    yield from (_text(name) for name in _messages(value, 1))


def _messages(buffer: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, wire_type, payload in fields(buffer):
        if number == wanted and wire_type == BYTES and isinstance(payload, memoryview):
            yield payload


def beside(model: Path, location: str, what: str = "external data") -> Path:
    """Return the file at `location`; raises `ModelError` unless it is in the folder of `model`.

    It must be a regular file with one hard link, named by a relative path.
    """
    refused = f"model file {model}: {what} {location[:200]!r}"
    if not location or "\0" in location or _IN_MEMORY in location:
        raise ModelError(f"{refused} is not a file name")
    relative = Path(location)
    if relative.is_absolute() or ".." in relative.parts or "\\" in location:
        raise ModelError(f"{refused} is not a path inside the model's folder")
    folder = model.parent.resolve()
    try:
        resolved = (folder / relative).resolve(strict=True)
        status = resolved.stat()
    except (OSError, RuntimeError):
        raise ModelError(f"{refused} does not exist") from None
    if not resolved.is_relative_to(folder):
        raise ModelError(f"{refused} leads out of the model's folder")
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise ModelError(f"{refused} is not a regular file with one link")
    return resolved
