"""An infer request as a whole: bytes to arrays, and arrays to bytes."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ..engine.failures import InvalidRequestError
from ..engine.model import Array, Model, TensorSpec
from . import binary_tensors, json_tensors
from .envelope import Envelope, InputEntry, parse_envelope
from .options import RequestOptions, parse_options
from .shapes import check_complete, check_datatype, check_names, check_shape, element_count


@dataclass(frozen=True, slots=True)
class OutputChoice:
    """An output that the client wants, and how."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A checked request: arrays that fit the model, and the outputs to return.

    `named` says that the client named the outputs.
    """

    id: str | None
    feeds: Mapping[str, Array]
    outputs: Sequence[OutputChoice]
    parameters: Mapping[str, Any]
    options: RequestOptions
    named: bool = False


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """JSON, and the tensors in binary that follow it; `binary` says that there may be some."""

    json: bytes
    tensors: Sequence[memoryview]
    binary: bool


def decode_request(
    model: Model, body: memoryview, json_length: int | None, lists: Container[str] = ()
) -> InferRequest:
    """Decode and check an infer request.

    Parameters
    ----------
    model : Model
        The model that is asked.
    body : memoryview
        The whole body, as unsigned bytes.
    json_length : int or None
        Length of the JSON before the tensors in binary, not above ``len(body)``. None when the body
        is all JSON; 0 when it is the data of the model's only input, without any JSON.
    lists : container of str
        Parameters that may also be lists.

    Raises
    ------
    InvalidRequestError
        See `docs/serving.md` for the rules.
    """
    if json_length == 0:
        return _raw_request(model, body)
    split = len(body) if json_length is None else json_length
    envelope = parse_envelope(body[:split], len(model.inputs), len(model.outputs), lists)
    check_names("input", [entry.name for entry in envelope.inputs], model.inputs)
    given = [entry.name for entry in envelope.inputs]
    check_complete([*given, *model.optional_inputs], model.inputs)
    options = parse_options(envelope.parameters)
    feeds = _feeds(model, envelope.inputs, body[split:])
    return InferRequest(
        envelope.id,
        feeds,
        _outputs(model, envelope),
        envelope.parameters,
        options,
        bool(envelope.outputs),
    )


def encode_response(
    model: Model, request: InferRequest, arrays: Sequence[Array]
) -> EncodedResponse:
    """Encode the outputs of a run, in the order of ``request.outputs``."""
    outputs, binary = encode_outputs(model, request, arrays)
    response: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        response["id"] = request.id
    response["outputs"] = outputs
    header = orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)
    return EncodedResponse(header, binary, any(choice.binary for choice in request.outputs))


def encode_outputs(
    model: Model, request: InferRequest, arrays: Sequence[Array]
) -> tuple[list[dict[str, Any]], list[memoryview]]:
    """Return the entries of ``outputs``, for ``orjson``, and the tensors in binary."""
    outputs: list[dict[str, Any]] = []
    binary: list[memoryview] = []
    for choice, array in zip(request.outputs, arrays, strict=True):
        spec = model.outputs[choice.name]
        entry: dict[str, Any] = {
            "name": spec.name,
            "datatype": spec.datatype.name,
            "shape": list(array.shape),
        }
        if choice.binary:
            content = binary_tensors.encode(array, spec.datatype)
            entry["parameters"] = {"binary_data_size": len(content)}
            binary.append(content)
        else:
            entry["data"] = json_tensors.encode(spec, array)
        outputs.append(entry)
    return outputs, binary


def _feeds(model: Model, entries: Sequence[InputEntry], tail: memoryview) -> dict[str, Array]:
    sizes: dict[str, int] = {}
    feeds: dict[str, Array] = {}
    position = 0
    for entry in entries:
        spec = model.inputs[entry.name]
        check_datatype(spec, entry.datatype)
        check_shape(spec, entry.shape, sizes)
        count = element_count(spec.name, entry.shape, spec.datatype)
        if entry.binary_size is None:
            feeds[spec.name] = json_tensors.decode(
                spec.name, entry.data, entry.shape, count, spec.datatype
            )
            continue
        if entry.binary_size > len(tail) - position:
            raise InvalidRequestError(
                f"input {spec.name!r}: 'binary_data_size' is {entry.binary_size}, "
                f"but {len(tail) - position} bytes are left in the body"
            )
        content = tail[position : position + entry.binary_size]
        position += entry.binary_size
        feeds[spec.name] = binary_tensors.decode(
            spec.name, content, entry.shape, count, spec.datatype
        )
    if position != len(tail):
        raise InvalidRequestError(f"{len(tail) - position} bytes follow the last tensor in binary")
    return feeds


def _outputs(model: Model, envelope: Envelope) -> list[OutputChoice]:
    check_names("output", [entry.name for entry in envelope.outputs], model.outputs)
    if envelope.outputs:
        choices = [
            OutputChoice(e.name, envelope.binary_output if e.binary is None else e.binary)
            for e in envelope.outputs
        ]
    else:
        choices = [OutputChoice(name, envelope.binary_output) for name in model.default_outputs]
    for choice in choices:
        if not choice.binary:
            # Better refused now than after the model has run.
            json_tensors.check_representable(
                choice.name, model.outputs[choice.name].datatype, "output"
            )
    return choices


def _raw_request(model: Model, body: memoryview) -> InferRequest:
    """Decode a body that is nothing but the data of the model's only input.

    The shape is the model's own, with at most one free dimension, found from the number of bytes.
    For ``BYTES`` the body is one string. The outputs come back in binary.
    """
    if len(model.inputs) != 1:
        raise InvalidRequestError(
            f"a body without JSON needs a model of one input; this one has {len(model.inputs)}"
        )
    (spec,) = model.inputs.values()
    if spec.datatype.kind == "s":
        if any(size not in (1, -1) for size in spec.wire_shape):
            raise InvalidRequestError(
                f"input {spec.name!r} takes more than the one string of the body"
            )
        array = binary_tensors.whole_string(spec.name, body)
        array = array.reshape([1] * len(spec.wire_shape))
    else:
        shape = _raw_shape(spec, len(body))
        count = element_count(spec.name, shape, spec.datatype)
        array = binary_tensors.decode(spec.name, body, shape, count, spec.datatype)
    outputs = [OutputChoice(name, True) for name in model.default_outputs]
    return InferRequest(None, {spec.name: array}, outputs, {}, RequestOptions())


def _raw_shape(spec: TensorSpec, size: int) -> list[int]:
    shape = spec.wire_shape
    free = [axis for axis, length in enumerate(shape) if length == -1]
    if len(free) > 1:
        raise InvalidRequestError(
            f"input {spec.name!r} has {len(free)} free dimensions; "
            "a body without JSON can settle one"
        )
    if free:
        step = math.prod(n for n in shape if n != -1) * spec.datatype.itemsize
        if step == 0 or size % step:
            raise InvalidRequestError(
                f"input {spec.name!r}: {size} bytes are not a multiple of {step}, "
                f"one step of its free dimension"
            )
        shape[free[0]] = size // step
    return shape
