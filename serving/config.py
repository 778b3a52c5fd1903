"""The options of the command line, in a TOML file.

A key is the name of an option with ``_`` for ``-``, without the dashes before it; ``model`` is the
model or the folder. What the command line says goes first. A path counts from the file's folder.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ConfigError(Exception):
    """The file cannot be read or says what no option understands."""


def read_config(file: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return defaults for `parser` from a file; raises `ConfigError`."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    actions = {
        action.dest: action
        for action in parser._actions
        if action.dest not in ("help", "version", "config", "check")
    }
    return {key: _value(key, value, actions, file) for key, value in table.items()}


def _value(key: str, value: Any, actions: Mapping[str, argparse.Action], file: Path) -> Any:
    """Return a value as argparse takes it for a default: text, which it converts and checks."""
    action = actions.get(key)
    if action is None:
        raise ConfigError(f"{file}: there is no option {key!r}")
    if isinstance(action.const, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{file}: {key!r} must be true or false; got {value!r}")
        return value
    if isinstance(action, argparse._AppendAction):
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ConfigError(f"{file}: {key!r} must be a list of strings; got {value!r}")
        return value
    if isinstance(value, (bool, list, dict)):
        raise ConfigError(f"{file}: {key!r} must be a single value; got {value!r}")
    if action.choices is not None and value not in action.choices:
        raise ConfigError(f"{file}: {key!r} must be one of {', '.join(action.choices)}")
    if action.type is Path:
        return str(file.parent / str(value))
    return str(value)
