"""What may be set for one model, by the command line or in a file beside the model.

The file has the name of the model's file with ``.serving.toml`` or ``.serving.json`` in the place
of ``.onnx``; in a repository it lies in the model's folder, above the versions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .failures import ModelError

_MIB = 1 << 20
_MOST = 1 << 62


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions are served: all, those of `specific`, or the `latest` so many."""

    latest: int | None = 1
    specific: tuple[int, ...] = ()

    def choose(self, versions: Iterable[int]) -> list[int]:
        """Return the versions to serve, in ascending order."""
        ordered = sorted(versions)
        if self.specific:
            return [version for version in ordered if version in self.specific]
        return ordered if self.latest is None else ordered[-self.latest :]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Settings of one model.

    Attributes
    ----------
    versions : VersionPolicy
    batching : mapping, optional
        The table of `layout.parse`, in the place of the model's own.
    max_batch : int
        Most rows of a run that is put together from several requests; 1 turns batching off.
    preferred_batch : int
        So many rows do not wait for more.
    max_delay : float
        Seconds that a request may wait for company while the model is busy.
    max_tokens : int
        Most positions of such a run, padding included. So many fill two processors; more let the
        numbers between two layers leave their caches, and make each request wait longer.
    max_padding : float
        Most of them, as a share, that may be padding.
    max_queue, max_queue_bytes : int
        Most requests that wait, and bytes of their inputs.
    timeout : float, optional
        Seconds that a request has which does not say.
    concurrency : int, optional
        Most runs of the model at the same time, of those that the server allows.
    warmup : bool or sequence of mapping
        Shapes of the inputs of runs before the model is ready. True means one run with every free
        dimension 1, whose failure does not matter; False none.
    tokenizer : str, optional
        The tokenizer's file, beside the model's, in the place of the one that the model names.
    max_length : int, optional
        Most tokens of a text to embed, in the place of the tokenizer's own truncation.
    slots : int
        Texts that a decoder writes at the same time.
    capacity : int
        Most tokens of each, prompt included, where the model has as many positions.
    read_tokens : int
        Tokens of prompts that it reads between two steps of other texts.
    end_tokens : tuple of str, optional
        The tokens that end a text, by their spelling, in the place of the usual ones.
    """

    versions: VersionPolicy = VersionPolicy()
    batching: Mapping[str, Any] | None = None
    max_batch: int = 32
    preferred_batch: int = 8
    max_delay: float = 0.0
    max_tokens: int = 512
    max_padding: float = 0.125
    max_queue: int = 1024
    max_queue_bytes: int = 256 * _MIB
    timeout: float | None = None
    concurrency: int | None = None
    warmup: bool | tuple[Mapping[str, tuple[int, ...]], ...] = True
    tokenizer: str | None = None
    max_length: int | None = None
    slots: int = 8
    capacity: int = 1024
    read_tokens: int = 128
    end_tokens: tuple[str, ...] | None = None

    def changed(self, table: Mapping[str, Any], where: object) -> ModelSettings:
        """Return these settings with those of `table`; raises `ModelError` for a wrong one."""
        values = {}
        for key, value in table.items():
            read = _READERS.get(key)
            if read is None:
                raise ModelError(f"{where}: there is no setting {key[:200]!r}")
            try:
                values[key] = read(value)
            except _WrongError as error:
                raise ModelError(f"{where}: {key!r} must be {error}; got {value!r}") from None
        return dataclasses.replace(self, **values)


class _WrongError(ValueError):
    """A value that is not what the message says."""


def _integer(least: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or not least <= value <= _MOST:
            raise _WrongError(f"a whole number of {least} or more")
        return value

    return read


def _number(least: float, most: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if type(value) not in (int, float) or not least <= value <= most:
            raise _WrongError(f"a number from {least:g} to {most:g}")
        return float(value)

    return read


def _versions(value: Any) -> VersionPolicy:
    if value == "all":
        return VersionPolicy(None)
    if isinstance(value, Mapping) and len(value) == 1:
        latest, specific = value.get("latest"), value.get("specific")
        if type(latest) is int and latest >= 1:
            return VersionPolicy(latest)
        if isinstance(specific, list) and specific and all(type(v) is int for v in specific):
            return VersionPolicy(None, tuple(specific))
    raise _WrongError("'all', {latest = n} or {specific = [n, ...]}")


def _warmup(value: Any) -> bool | tuple[Mapping[str, tuple[int, ...]], ...]:
    if isinstance(value, bool):
        return value
    if isinstance(value, list) and all(isinstance(run, Mapping) for run in value):
        shapes = [shape for run in value for shape in run.values()]
        if all(isinstance(shape, list) for shape in shapes) and all(
            type(size) is int and 0 <= size < 1 << 31 for shape in shapes for size in shape
        ):
            return tuple({name: tuple(shape) for name, shape in run.items()} for run in value)
    raise _WrongError("true, false or a list of tables from inputs to shapes")


def _string(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _WrongError("a string")
    return value


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _WrongError("a list of strings")
    return tuple(value)


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _WrongError("a table")
    return value


_READERS: dict[str, Callable[[Any], Any]] = {
    "versions": _versions,
    "batching": _table,
    "max_batch": _integer(1),
    "preferred_batch": _integer(1),
    "max_delay": _number(0, 60),
    "max_tokens": _integer(1),
    "max_padding": _number(0, 1),
    "max_queue": _integer(1),
    "max_queue_bytes": _integer(1),
    "timeout": _number(0.001, 86400),
    "concurrency": _integer(1),
    "warmup": _warmup,
    "tokenizer": _string,
    "max_length": _integer(1),
    "slots": _integer(1),
    "capacity": _integer(2),
    "read_tokens": _integer(1),
    "end_tokens": _strings,
}


def settings_file(path: Path) -> Path | None:
    """Return the file with the settings of a model whose file is, or would be, `path`."""
    for suffix in (".serving.toml", ".serving.json"):
        file = path.with_suffix(suffix)
        with contextlib.suppress(OSError):  # a name that is too long
            if file.is_file():
                return file
    return None


def read_settings(file: Path, defaults: ModelSettings) -> ModelSettings:
    """Return `defaults` changed by a file; raises `ModelError` where it is wrong."""
    try:
        text = file.read_text(encoding="utf-8")
        table = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise ModelError(f"{file} must hold a table")
    return defaults.changed(table, file)
