"""How tensors travel to each server and back: requests as they are sent, answers as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pyattn_serving.bench.client import Address
from pyattn_serving.bench.requests import post_head

from benchmarks.serving import mix
from benchmarks.serving.mix import Arrays

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Form:
    """Makes a request of the inputs for a model, and reads the outputs of an answer."""

    write: Callable[[Address, str, Arrays], bytes]
    read: Callable[[bytes], Outputs]


def _post(wrap: Callable[[Arrays], Any], address: Address, model: str, inputs: Arrays) -> bytes:
    body = orjson.dumps(wrap(inputs))
    headers = {"Content-Type": "application/json"}
    return bytes(post_head(f"/{model}", address, len(body), headers) + body)


def _nested(inputs: Arrays) -> dict[str, Any]:
    return {name: array.tolist() for name, array in inputs.items()}


def _without_mask(inputs: Arrays) -> dict[str, Any]:
    """For an endpoint that fills up its sentences itself and knows what it has filled."""
    return {name: array.tolist() for name, array in inputs.items() if "mask" not in name}


def _named(content: bytes) -> Outputs:
    return {name: np.array(values) for name, values in orjson.loads(content).items()}


def _lone(content: bytes) -> Outputs:
    return {"": np.array(orjson.loads(content))}


PROTOCOL_JSON = Form(partial(mix.message, binary=False), mix.read)
PROTOCOL_BINARY = Form(partial(mix.message, binary=True), mix.read)
NESTED_JSON = Form(partial(_post, _nested), _named)  # names and nested lists, there and back
LONE_JSON = Form(partial(_post, _without_mask), _lone)  # the answer is one nested list
