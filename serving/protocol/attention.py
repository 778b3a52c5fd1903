"""The attention of a run as JSON: which layers and heads, how many keys, how many digits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from ..engine.failures import InvalidRequestError
from ..engine.model import Array, Model
from .infer import InferRequest, encode_outputs

LISTS = frozenset({"layers", "heads"})
MAX_WEIGHTS = 1 << 22  # in an answer: about 30 MB of JSON
DEFAULT_PRECISION, MAX_PRECISION = 4, 9


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What a request wants to see.

    Attributes
    ----------
    layers : tuple of int
    heads : tuple of int, or None
        None for all.
    top_k : int or None
        So many keys of each query, the strongest first; None for all keys in their order.
    precision : int
        Decimal digits of a weight.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...] | None
    top_k: int | None
    precision: int


def attention_options(model: Model, request: InferRequest) -> AttentionOptions:
    """Return the options among the parameters of a request.

    Raises
    ------
    InvalidRequestError
        The model has no attention outputs; a layer or head that is not there or comes twice; a
        value of another type or out of range; an output that is asked for in binary; more weights
        than an answer may have, as far as the shapes of the inputs tell.
    """
    if not model.attention:
        raise InvalidRequestError(
            f"model {model.name!r} has no attention outputs: export it with attention_outputs=True"
        )
    given = request.parameters
    layers = _indices(given, "layers")
    for layer in layers or ():
        if layer not in model.attention:
            raise InvalidRequestError(
                f"the model has no layer {layer}; it has {', '.join(map(str, model.attention))}"
            )
    for choice in request.outputs if request.named else ():
        if choice.binary:
            raise InvalidRequestError(f"output {choice.name!r}: this answer is JSON, not binary")
    options = AttentionOptions(
        layers=tuple(model.attention) if layers is None else layers,
        heads=_indices(given, "heads"),
        top_k=_integer(given, "top_k", 1, 1 << 31),
        precision=_integer(given, "precision", 1, MAX_PRECISION) or DEFAULT_PRECISION,
    )
    # Better refused now than after the model has run.
    _check_heads_and_size(options, _known_shapes(model, request, options))
    return options


def encode_attention(
    model: Model,
    request: InferRequest,
    options: AttentionOptions,
    arrays: Mapping[str, Array],
    tokens: Sequence[Sequence[str | None]] | None,
) -> bytes:
    """Return the answer for the outputs `arrays` of a run, by name.

    Raises `InvalidRequestError` for more weights than an answer may have, heads that are not there
    and weights that JSON cannot carry.
    """
    weights = [arrays[model.attention[layer]] for layer in options.layers]
    for array in weights:
        if array.ndim != 4:
            raise InvalidRequestError(f"attention must have 4 dimensions; got {array.ndim}")
    _check_heads_and_size(options, [array.shape for array in weights])
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        answer["id"] = request.id
    if tokens is not None:
        answer["tokens"] = tokens
    answer["layers"] = [
        _layer(layer, array, options) for layer, array in zip(options.layers, weights, strict=True)
    ]
    if request.named:
        answer["outputs"] = encode_outputs(
            model, request, [arrays[choice.name] for choice in request.outputs]
        )[0]
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _layer(layer: int, array: Array, options: AttentionOptions) -> dict[str, Any]:
    heads = range(array.shape[1]) if options.heads is None else options.heads
    weights = array[:, list(heads)].astype(np.float64)
    if not np.isfinite(weights).all():
        raise InvalidRequestError(
            f"the attention of layer {layer} holds NaN or infinity, which JSON cannot carry"
        )
    entry: dict[str, Any] = {"layer": layer, "heads": list(heads)}
    if options.top_k is not None:
        # Equal weights stay in the order of their keys.
        keys = np.argsort(-weights, axis=-1, kind="stable")[..., : options.top_k]
        weights = np.take_along_axis(weights, keys, -1)
        entry["keys"] = np.ascontiguousarray(keys).reshape(-1)
    entry["shape"] = list(weights.shape)
    # Zero is added because a weight just below it would be written "-0.0".
    entry["weights"] = (np.round(weights, options.precision) + 0.0).reshape(-1)
    return entry


def _known_shapes(
    model: Model, request: InferRequest, options: AttentionOptions
) -> list[tuple[int, ...]]:
    """Return the shapes of the weights that the names of the model's dimensions settle."""
    sizes: dict[str, int] = {}
    for name, array in request.feeds.items():
        for size, dim in zip(array.shape, model.inputs[name].shape or (), strict=False):
            if isinstance(dim, str):
                sizes[dim] = size
    shapes = []
    for layer in options.layers:
        dims = model.outputs[model.attention[layer]].shape or ()
        shape = [sizes.get(dim) if isinstance(dim, str) else dim for dim in dims]
        settled = tuple(size for size in shape if size is not None)
        if len(settled) == len(shape):
            shapes.append(settled)
    return shapes


def _check_heads_and_size(options: AttentionOptions, shapes: Sequence[Sequence[int]]) -> None:
    total = 0
    for rows, heads, queries, keys in shapes:
        for head in options.heads or ():
            if head >= heads:
                raise InvalidRequestError(f"there is no head {head}; a layer has {heads}")
        chosen = heads if options.heads is None else len(options.heads)
        kept = keys if options.top_k is None else min(options.top_k, keys)
        total += math.prod((rows, chosen, queries, kept))
    if total > MAX_WEIGHTS:
        raise InvalidRequestError(
            f"the answer would hold {total} weights, more than {MAX_WEIGHTS}; "
            "choose layers and heads, or give top_k"
        )


def _indices(parameters: Mapping[str, Any], key: str) -> tuple[int, ...] | None:
    value = parameters.get(key)
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or not value
        or not all(type(index) is int and index >= 0 for index in value)
        or len(set(value)) != len(value)
    ):
        raise InvalidRequestError(
            f"parameter {key!r} must be a list of different integers of 0 or more"
        )
    return tuple(value)


def _integer(parameters: Mapping[str, Any], key: str, least: int, most: int) -> int | None:
    value = parameters.get(key)
    if value is not None and (type(value) is not int or not least <= value <= most):
        raise InvalidRequestError(f"parameter {key!r} must be an integer from {least} to {most}")
    return value
