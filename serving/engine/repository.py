"""Which models lie on disk: a single file, or a folder of models with versions.

::

    REPOSITORY/
        NAME/
            model.serving.toml      settings, optional
            model.onnx              version 1
            VERSION/model.onnx      a whole number from 1 on

A folder with a ``model.onnx`` of its own is one model, and so is one of versions that is given a
name. What is called otherwise is passed over. Names are looked up among those that were found, and
never joined to a path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .failures import ModelError
from .model_settings import ModelSettings, read_settings, settings_file

NAME_RULE = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
MODEL_FILE = "model.onnx"
_NAME = re.compile(NAME_RULE)
_VERSION = re.compile("[1-9][0-9]{0,17}")

Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on disk: the name to serve it under and its ONNX file, or its folder."""

    name: str
    path: Path

    @classmethod
    def of(cls, path: Path, name: str | None = None) -> ModelSource:
        """Return a source named `name`, by default after the file; checks the name."""
        chosen = path.stem if name is None else name
        if not _NAME.fullmatch(chosen):
            hint = "; give another one with --name" if name is None else ""
            raise ModelError(f"model name {chosen[:200]!r} must match {NAME_RULE}{hint}")
        return cls(chosen, path)

    @property
    def folder(self) -> Path:
        """The folder that everything of the model lies in."""
        return self.path if _is_folder(self.path) else self.path.parent

    def versions(self) -> dict[int, Path]:
        """Return the file of each version."""
        if not _is_folder(self.path):
            return {1: self.path}
        found = {}
        if (self.path / MODEL_FILE).is_file():
            found[1] = self.path / MODEL_FILE
        for folder in _folders(self.path):
            if _VERSION.fullmatch(folder.name) and (folder / MODEL_FILE).is_file():
                found[int(folder.name)] = folder / MODEL_FILE
        return found

    def settings(self, defaults: ModelSettings) -> ModelSettings:
        """Return the model's settings; raises `ModelError` where its file of them is wrong."""
        file = self._settings_file()
        return defaults if file is None else read_settings(file, defaults)

    def fingerprint(self, version: Path) -> Fingerprint:
        """Return what changes when the file of a version, its weights or its settings change."""
        files = {version, self._settings_file()}
        if _is_folder(self.path):
            own = version.parent != self.path
            files.update(version.parent.rglob("*") if own else version.parent.glob("*"))
        return tuple(sorted(mark for file in files if file is not None for mark in _mark(file)))

    def _settings_file(self) -> Path | None:
        return settings_file(self.path / MODEL_FILE if _is_folder(self.path) else self.path)


@dataclass(frozen=True, slots=True)
class Repository:
    """The models of a folder, or one model, called `name`."""

    path: Path
    name: str | None = None
    is_folder: bool = field(init=False)  # a folder that goes away does not become a file

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_folder", _is_folder(self.path))
        if not self.is_folder:
            ModelSource.of(self.path, self.name)  # a wrong name is told before anything is loaded

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folder that everything lies in."""
        return (self.path if self.is_folder else self.path.parent,)

    def scan(self) -> Mapping[str, ModelSource]:
        """Return the models that are there now, by name; raises `ModelError` for a wrong name."""
        if not self.is_folder:
            source = ModelSource.of(self.path, self.name)
            return {source.name: source}
        if (self.path / MODEL_FILE).is_file():
            name = self.path.resolve().name if self.name is None else self.name
            return {name: ModelSource.of(self.path, name)}
        if self.name is not None:
            source = ModelSource.of(self.path, self.name)
            if not source.versions():
                raise ModelError(f"{self.path} is a folder of models; --name is for one model")
            return {source.name: source}
        sources = [
            ModelSource(folder.name, folder)
            for folder in _folders(self.path)
            if _NAME.fullmatch(folder.name)
        ]
        return {source.name: source for source in sources if source.versions()}


@dataclass(frozen=True, slots=True)
class Sources:
    """Models that are listed."""

    sources: tuple[ModelSource, ...]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that they lie in."""
        return tuple({source.folder for source in self.sources})

    def scan(self) -> Mapping[str, ModelSource]:
        """Return them by name."""
        return {source.name: source for source in self.sources}


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except OSError as error:
        raise ModelError(f"the folder {path} cannot be read: {error.strerror}") from error


def _mark(file: Path) -> list[tuple[str, int, int, int]]:
    try:
        status = file.stat()
    except OSError:  # it went away meanwhile
        return []
    return [(str(file), status.st_mtime_ns, status.st_size, status.st_ino)]
