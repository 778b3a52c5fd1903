"""The JSON object of an infer request: parsed, bounded in depth, and checked field by field."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import orjson

from ..engine.failures import InvalidRequestError

MAX_DEPTH = 100
MAX_RANK = 32
Scalar = str | int | float | bool
Entry = TypeVar("Entry")
Value = TypeVar("Value", str, list[Any], dict[str, Any])

# Every string literal, also one that the text ends in, so that the scan is linear in any text.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_SCAN = 1 << 16  # brackets looked at in one step
_NON_FINITE = re.compile(r"(?:NaN|Inf(?:inity)?)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class InputEntry:
    """One entry of ``inputs``: `data` and `binary_size` exclude each other."""

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
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


def parse_envelope(text: bytes, max_inputs: int, max_outputs: int) -> Envelope:
    """Parse the JSON of an infer request.

    Parameters
    ----------
    text : bytes
        The JSON, UTF-8.
    max_inputs, max_outputs : int
        Most entries of ``inputs`` and ``outputs``: what the model has.

    Raises
    ------
    InvalidRequestError
        Not JSON, deeper than 100, or a field that is missing or of the wrong type.
    """
    request = parse_json(text)
    if not isinstance(request, dict):
        raise InvalidRequestError(f"the request must be a JSON object; got {_kind(request)}")
    parameters = _parameters(request, "the request")
    return Envelope(
        id=_optional(request, "id", str, "the request"),
        inputs=_entries(request, "inputs", max_inputs, _input_entry),
        outputs=_entries(request, "outputs", max_outputs, _output_entry),
        binary_output=_flag(parameters, "binary_data_output", "the request") or False,
        parameters=parameters,
    )


def parse_json(text: bytes) -> Any:
    """Parse JSON that is at most 100 deep; raises `InvalidRequestError`."""
    _check_depth(text)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(_json_problem(text, error)) from None


def _check_depth(text: bytes) -> None:
    """Refuse text deeper than `MAX_DEPTH` before anything recursive sees it."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return
    brackets = np.frombuffer(_STRING.sub(b"", text).translate(None, _NOT_BRACKETS), np.uint8)
    depth = 0
    for start in range(0, brackets.size, _SCAN):
        part = brackets[start : start + _SCAN]
        opening = (part == ord("[")) | (part == ord("{"))
        depths = depth + np.cumsum(np.where(opening, 1, -1))
        if depths.max() > MAX_DEPTH:
            raise InvalidRequestError(f"the JSON is nested more than {MAX_DEPTH} deep")
        depth = int(depths[-1])


def _json_problem(text: bytes, error: orjson.JSONDecodeError) -> str:
    # The position counts characters of the decoded text.
    position = error.pos
    if _NON_FINITE.match(error.doc, position) or "infinity" in error.msg:
        return (
            "JSON has no NaN, no infinity and no number beyond double precision; "
            "send the tensor in binary"
        )
    if not text:
        return "the request has no JSON body"
    return f"malformed JSON at character {position}: {error.msg}"


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


def _parameters(owner: dict[str, Any], where: str) -> dict[str, Scalar]:
    parameters = _optional(owner, "parameters", dict, where) or {}
    for key, value in parameters.items():
        if not isinstance(value, Scalar):
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
