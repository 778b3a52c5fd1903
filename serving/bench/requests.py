"""Requests of random values for a model, made before the load begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..engine.datatypes import DATATYPES, Datatype
from ..protocol import binary_tensors
from .client import Address

LENGTH = "L"  # the word for a drawn length in a shape
_MOST_BYTES = 256 << 20  # of all requests together

Lengths = Callable[[np.random.Generator], int]
Draw = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Message:
    """One request as it is sent, and the tokens in it that are not masked."""

    data: bytes
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What requests are made of.

    Attributes
    ----------
    shapes : mapping of str to list
        Sizes of inputs, whole numbers or `LENGTH`; others have those of the metadata.
    lengths : function or None
        Draws the length of a request.
    values : mapping of str to (float, float)
        Bounds of the values of inputs; integers include the upper one.
    mask : str or None
        The input that is all ones and is counted as tokens; by default one with "mask" in its name.
    binary : bool
    seed : int
    distinct : int
        How many different requests there are. They are sent in turn.
    headers : mapping of str to str
    """

    shapes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)
    lengths: Lengths | None = None
    values: Draw = field(default_factory=dict)
    mask: str | None = None
    binary: bool = False
    seed: int = 0
    distinct: int = 256
    headers: Mapping[str, str] = field(default_factory=dict)


def read_shape(text: str) -> tuple[str, list[int | str]]:
    """Read ``NAME=1x3xL``; the shape of a scalar is empty. Raises `ValueError`."""
    name, equals, sizes = text.partition("=")
    if not (name and equals and re.fullmatch(r"((\d+|L)(x(\d+|L))*)?", sizes)):
        raise ValueError(f"{text} is not NAME=SIZExSIZE..., such as input_ids=1xL")
    parts = sizes.split("x") if sizes else []
    return name, [part if part == LENGTH else int(part) for part in parts]


def read_values(text: str) -> tuple[str, tuple[float, float]]:
    """Read ``NAME=LOW:HIGH``; raises `ValueError`."""
    name, _, bounds = text.partition("=")
    low, _, high = bounds.partition(":")
    try:
        pair = (float(low), float(high))
    except ValueError:
        pair = (1.0, 0.0)
    if not name or not pair[0] <= pair[1]:
        raise ValueError(f"{text} is not NAME=LOW:HIGH, such as input_ids=0:30521")
    return name, pair


def read_lengths(text: str) -> Lengths:
    """Read ``N``, ``uniform:LOW:HIGH`` or a file of a length a line; raises `ValueError`."""
    if text.isdecimal():
        return lambda _generator: int(text)
    if found := re.fullmatch(r"uniform:(\d+):(\d+)", text):
        low, high = map(int, found.groups())
        if low <= high:
            return lambda generator: int(generator.integers(low, high, endpoint=True))
    try:
        words = Path(text).read_text(encoding="utf-8").split()
    except (OSError, UnicodeError):
        words = []
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"{text} is not N, uniform:LOW:HIGH or a file of whole numbers")
    return lambda generator: int(words[generator.integers(len(words))])


def make_requests(
    metadata: Mapping[str, Any], path: str, address: Address, plan: Plan
) -> list[Message]:
    """Return requests for the model that `metadata` describes.

    Raises `ValueError` for what the model does not have.
    """
    inputs = {entry["name"]: entry for entry in metadata["inputs"]}
    mask = plan.mask or next((name for name in inputs if "mask" in name), None)
    for name in (*plan.shapes, *plan.values, *([mask] if mask else [])):
        if name not in inputs:
            raise ValueError(f"the model has no input {name}; it has {', '.join(inputs) or 'none'}")
    generator = np.random.default_rng(plan.seed)
    messages: list[Message] = []
    size = 0
    while len(messages) < plan.distinct and size < _MOST_BYTES:
        length = None if plan.lengths is None else plan.lengths(generator)
        arrays = {
            name: _array(
                DATATYPES[entry["datatype"]],
                _sizes(name, entry["shape"], plan, length),
                (1, 1) if name == mask else plan.values.get(name),
                generator,
            )
            for name, entry in inputs.items()
        }
        datatypes = {name: entry["datatype"] for name, entry in inputs.items()}
        body, headers = infer_body(datatypes, arrays, plan.binary)
        data = post_head(path, address, len(body), {**headers, **plan.headers}) + body
        messages.append(Message(data, arrays[mask].size if mask else 0))
        size += len(data)
    return messages


def _sizes(name: str, declared: Sequence[int], plan: Plan, length: int | None) -> list[int]:
    """Return the shape of an input: as asked for, else a batch of 1 and the length elsewhere."""
    asked = plan.shapes.get(name)
    if asked is None:
        free = 1 if length is None else length
        return [
            size if size >= 0 else 1 if axis == 0 else free for axis, size in enumerate(declared)
        ]
    if LENGTH in asked and length is None:
        raise ValueError(f"the shape of {name} has a length, and --lengths does not say which")
    return [length if size == LENGTH else size for size in asked]  # type: ignore[misc]


def _array(
    datatype: Datatype,
    shape: Sequence[int],
    bounds: tuple[float, float] | None,
    generator: np.random.Generator,
) -> NDArray[Any]:
    """Return random values. Without bounds integers are 0 and 1: those are in every table."""
    low, high = bounds or (0, 1)
    if datatype.kind == "s":
        array = np.empty(shape, object)
        array.reshape(-1)[:] = [f"{n:08x}" for n in generator.integers(1 << 32, size=array.size)]
        return array
    if datatype.kind == "f":
        return generator.uniform(low, high, shape).astype(datatype.dtype)
    return generator.integers(int(low), int(high), shape, endpoint=True).astype(datatype.dtype)


def infer_body(
    datatypes: Mapping[str, str], arrays: Mapping[str, NDArray[Any]], binary: bool
) -> tuple[bytes, dict[str, str]]:
    """Return the content of a request for an inference, and the headers that tell its form."""
    entries, tail = [], []
    for name, array in arrays.items():
        datatype = DATATYPES[datatypes[name]]
        entry: dict[str, Any] = {"name": name, "datatype": datatype.name}
        entry["shape"] = list(array.shape)
        if binary:
            content = bytes(binary_tensors.encode(array, datatype))
            entry["parameters"] = {"binary_data_size": len(content)}
            tail.append(content)
        elif datatype.name == "BF16":
            raise ValueError(f"input {name} is BF16, which travels in binary only: use --binary")
        else:
            entry["data"] = array.reshape(-1).tolist()
        entries.append(entry)
    if not binary:
        return orjson.dumps({"inputs": entries}), {"Content-Type": "application/json"}
    text = orjson.dumps({"inputs": entries, "parameters": {"binary_data_output": True}})
    return b"".join((text, *tail)), {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(text)),
    }


def post_head(path: str, address: Address, length: int, headers: Mapping[str, str]) -> bytes:
    """Return what comes before the content of a POST of `length` bytes."""
    lines = [
        f"POST {address.path}{path} HTTP/1.1",
        f"Host: {address.authority}",
        *(f"{name}: {value}" for name, value in headers.items()),
        f"Content-Length: {length}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
