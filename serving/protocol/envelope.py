"""The JSON object of an infer request, checked field by field."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..engine.failures import InvalidRequestError
from .json_text import parse_request

MAX_RANK = 32
Scalar = str | int | float | bool
Entry = TypeVar("Entry")
Value = TypeVar("Value", str, list[Any], dict[str, Any])


@dataclass(frozen=True, slots=True)
class InputEntry:
    """One entry of ``inputs``: `data` and `binary_size` exclude each other.

    `data` is a `JsonArray`, or parsed JSON where there is no reader of arrays.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any = None
    binary_size: int | None = None


@dataclass(frozen=True, slots=True)
class OutputEntry:
    """One entry of ``outputs``; `binary` is None where the request does not say."""

    name: str
    binary: bool | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """An infer request without its binary part."""

    id: str | None = None
    inputs: Sequence[InputEntry] = ()
    outputs: Sequence[OutputEntry] = ()
    binary_output: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


def parse_envelope(
    text: memoryview, max_inputs: int, max_outputs: int, lists: Container[str] = ()
) -> Envelope:
    """Parse the JSON of an infer request.

    Parameters
    ----------
    text : memoryview
        The JSON, UTF-8. Arrays keep a reference to it until they are read.
    max_inputs, max_outputs : int
        Most entries of ``inputs`` and ``outputs``: what the model has.
    lists : container of str
        Parameters of the request that may also be lists.

    Raises
    ------
    InvalidRequestError
        Not JSON, deeper than 100, or a field that is missing or of the wrong type.
    """
    request = parse_request(text)
    if not isinstance(request, dict):
        raise InvalidRequestError(f"the request must be a JSON object; got {_kind(request)}")
    parameters = _parameters(request, "the request", lists)
    return Envelope(
        id=_optional(request, "id", str, "the request"),
        inputs=_entries(request, "inputs", max_inputs, _input_entry),
        outputs=_entries(request, "outputs", max_outputs, _output_entry),
        binary_output=_flag(parameters, "binary_data_output", "the request") or False,
        parameters=parameters,
    )


def _entries(
    request: dict[str, Any], key: str, limit: int, read: Callable[[Any, str], Entry]
) -> list[Entry]:
    entries = request.get(key)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise InvalidRequestError(f"{key!r} must be a list; got {_kind(entries)}")
    if len(entries) > limit:
        raise InvalidRequestError(f"the model has {limit} {key}; the request lists {len(entries)}")
    return [read(entry, f"{key}[{index}]") for index, entry in enumerate(entries)]


def _input_entry(entry: Any, where: str) -> InputEntry:
    entry = _object(entry, where)
    name = _required(entry, "name", str, where)
    where = f"input {name[:200]!r}"
    parameters = _parameters(entry, where)
    if "shared_memory_region" in parameters:
        raise InvalidRequestError(f"{where}: shared memory is not supported")
    size = parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise InvalidRequestError(f"{where}: 'binary_data_size' must be an integer of 0 or more")
    if ("data" in entry) == (size is not None):
        raise InvalidRequestError(
            f"{where} needs either 'data' or the parameter 'binary_data_size'"
        )
    return InputEntry(
        name=name,
        datatype=_required(entry, "datatype", str, where),
        shape=_shape(_required(entry, "shape", list, where), where),
        data=entry.get("data"),
        binary_size=size,
    )


def _output_entry(entry: Any, where: str) -> OutputEntry:
    entry = _object(entry, where)
    name = _required(entry, "name", str, where)
    where = f"output {name[:200]!r}"
    parameters = _parameters(entry, where)
    for unsupported in ("classification", "shared_memory_region"):
        if unsupported in parameters:
            raise InvalidRequestError(f"{where}: the parameter {unsupported!r} is not supported")
    return OutputEntry(name, _flag(parameters, "binary_data", where))


def _shape(sizes: list[Any], where: str) -> tuple[int, ...]:
    if len(sizes) > MAX_RANK:
        raise InvalidRequestError(
            f"{where}: 'shape' has {len(sizes)} dimensions, more than {MAX_RANK}"
        )
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise InvalidRequestError(f"{where}: 'shape' must be a list of integers of 0 or more")
    return tuple(sizes)


def _parameters(owner: dict[str, Any], where: str, lists: Container[str] = ()) -> dict[str, Any]:
    parameters = _optional(owner, "parameters", dict, where) or {}
    for key, value in parameters.items():
        if not isinstance(value, Scalar) and not (key in lists and isinstance(value, list)):
            raise InvalidRequestError(
                f"{where}: parameter {key[:200]!r} must be a string, number or boolean"
            )
    return parameters


def _flag(parameters: Mapping[str, Scalar], key: str, where: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequestError(f"{where}: parameter {key!r} must be true or false")
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{where} must be an object; got {_kind(value)}")
    return value


def _required(owner: dict[str, Any], key: str, kind: type[Value], where: str) -> Value:
    value = _optional(owner, key, kind, where)
    if value is None:
        raise InvalidRequestError(f"{where} has no {key!r}")
    return value


def _optional(owner: dict[str, Any], key: str, kind: type[Value], where: str) -> Value | None:
    value = owner.get(key)
    if value is not None and not isinstance(value, kind):
        raise InvalidRequestError(f"{where}: {key!r} must be {_NAMES[kind]}; got {_kind(value)}")
    return value


_NAMES: dict[type, str] = {
    str: "a string",
    list: "a list",
    dict: "an object",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def _kind(value: Any) -> str:
    return _NAMES[type(value)]
