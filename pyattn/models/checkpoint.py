"""Reading Hugging Face checkpoints: a folder with ``config.json`` and safetensors weights."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pyattn.io import load
from pyattn.nn import Module
from pyattn.tensor import Array

Config = TypeVar("Config")
Model = TypeVar("Model", bound=Module)
_KINDS: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "int | None": (int, type(None)),
    "float": (int, float),
    "str": str,
}


def read_json(path: str | os.PathLike[str], kind: type = dict) -> Any:
    """Read a JSON file that holds a ``kind``; ValueError with the path where it does not."""
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path} must hold a {kind.__name__}; got {type(value).__name__}")
    return value


def read_config(
    cls: type[Config], path: str | os.PathLike[str], required: Mapping[str, Any]
) -> Config:
    """Read the fields of a dataclass from ``config.json``.

    ValueError where an entry of ``required`` is there with another value, or a field is missing or
    of another type.
    """
    given = read_json(path)
    for key, wanted in required.items():
        if given.get(key, wanted) != wanted:
            raise ValueError(f"{path}: {key} must be {wanted!r}; got {given[key]!r}")
    listed: Any = cls
    known = {field.name for field in fields(listed)}
    try:
        config = cls(**{key: value for key, value in given.items() if key in known})
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None
    for field in fields(listed):
        value = getattr(config, field.name)
        if not isinstance(value, _KINDS[str(field.type)]) or isinstance(value, bool):
            raise ValueError(f"{path}: {field.name} must be {field.type}; got {value!r}")
    return config


def load_weights(folder: str | os.PathLike[str]) -> dict[str, Array]:
    """Read ``model.safetensors``, or the shards that ``model.safetensors.index.json`` lists."""
    base = Path(folder)
    index = base / "model.safetensors.index.json"
    if (base / "model.safetensors").is_file() or not index.is_file():
        return load(base / "model.safetensors")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, Mapping):
        raise ValueError(f"{index} has no weight_map")
    return dict(_read_shards(base, index, shards))


def _read_shards(base: Path, index: Path, shards: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    for shard in sorted(set(shards.values())):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{index}: {shard!r} is not a file name")
        yield from load(base / shard).items()


def fill(
    module: Model,
    names: Mapping[str, str],
    found: Mapping[str, Array],
    folder: str | os.PathLike[str],
    *,
    strict: bool,
) -> Model:
    """Set the parameters of a module, in float32, to the arrays found under their ``names``.

    ValueError that lists what is missing and, with ``strict``, what is unexpected; a warning
    otherwise.
    """
    missing = [name for name in names.values() if name not in found]
    unexpected = sorted(found.keys() - set(names.values()))
    report = f"{folder}: missing {missing or 'none'}, unexpected {unexpected or 'none'}"
    if missing or (unexpected and strict):
        raise ValueError(report)
    if unexpected:
        warnings.warn(report, stacklevel=4)
    return module.load({ours: _float32(found[theirs]) for ours, theirs in names.items()})


def _float32(array: Array) -> Array:
    return array if array.dtype == np.float32 else array.astype(np.float32)
