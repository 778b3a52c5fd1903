"""Which versions of which models are loaded, and how that changes while requests come."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from .failures import ModelError, UnavailableError, UnknownModelError
from .model import Model
from .model_settings import ModelSettings
from .repository import Fingerprint, ModelSource
from .session import SessionSettings
from .statistics import Statistics

logger = logging.getLogger("pyattn_serving")


class State(StrEnum):
    """States of a version, with the names of the protocol."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class Disk(Protocol):
    """Where models come from."""

    def scan(self) -> Mapping[str, ModelSource]:
        """Return the models that are there now, by name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A version: its `model` while it is served, and why it is not, or why no newer one is."""

    fingerprint: Fingerprint
    model: Model | None = None
    reason: str = ""
    gone: weakref.ref[Model] | None = None

    @property
    def state(self) -> State:
        """Its state; ``UNLOADING`` lasts as long as a request still runs on it."""
        if self.model is not None:
            return State.READY
        if self.gone is not None and self.gone() is not None:
            return State.UNLOADING
        return State.UNAVAILABLE


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of the repository's index."""

    name: str
    version: str
    state: State
    reason: str


class Store:
    """The versions that are served.

    Reading takes no lock: the entries of a model are a dictionary that is replaced as a whole.
    Loading and unloading happen one after the other, in any thread but the event loop's.
    """

    def __init__(self, disk: Disk, session: SessionSettings, defaults: ModelSettings) -> None:
        self._disk = disk
        self._session = session
        self._defaults = defaults
        self._entries: dict[str, Mapping[int, Entry]] = {}
        self._loading: str | None = None
        self._statistics: dict[tuple[str, int], Statistics] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the models that have a version to serve."""
        return [name for name, entries in list(self._entries.items()) if _ready(entries)]

    def models(self) -> list[Model]:
        """Return all versions that are served."""
        entries = list(self._entries.values())
        return [model for versions in entries for model in _ready(versions).values()]

    def model(self, name: str, version: str | None = None) -> Model:
        """Return a version, by default the highest.

        Raises
        ------
        UnknownModelError
            No such name or version.
        UnavailableError
            It is there, but not loaded.
        """
        entries = self._entries.get(name)
        if entries is None:
            raise UnknownModelError(f"no model {name[:200]!r} is served here")
        ready = _ready(entries)
        if version is None and ready:
            return ready[max(ready)]
        for number, entry in entries.items():
            if version is None or version == str(number):
                if entry.model is not None:
                    return entry.model
                raise UnavailableError(f"model {name!r} is not ready: {entry.reason}")
        has = ", ".join(map(str, ready)) or "none"
        raise UnknownModelError(
            f"model {name!r} has no version {(version or '')[:200]!r}; it has {has}"
        )

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that are served."""
        return [str(version) for version in _ready(self._entries.get(name, {}))]

    def load(self, name: str) -> None:
        """Load what the model's settings and the disk say; unchanged versions stay.

        The versions that are not wanted any more go when all others are there. Where one fails,
        what was served goes on.

        Raises
        ------
        UnknownModelError
            There is no such model on disk.
        ModelError
            It cannot be served.
        """
        with self._lock:
            source = self._disk.scan().get(name)
            if source is None:
                raise UnknownModelError(f"there is no model {name[:200]!r} to load")
            self._loading = name
            try:
                self._load(source)
            finally:
                self._loading = None

    def unload(self, name: str) -> None:
        """Serve a model no more; raises `UnknownModelError` for one that is not there.

        Requests that have it already are answered, then its memory is freed.
        """
        with self._lock:
            if name not in self._entries and name not in self._disk.scan():
                raise UnknownModelError(f"there is no model {name[:200]!r} to unload")
            if name in self._entries:
                entries = self._entries[name]
                self._entries[name] = {v: _unloaded(entry) for v, entry in entries.items()}

    def refresh(self) -> None:
        """Make what is served what is on disk; what fails is told in the log and the index."""
        try:
            sources = self._disk.scan()
        except ModelError as error:
            logger.warning("%s", error)
            return
        for name, source in sources.items():
            if self._changed(source):
                try:
                    self.load(name)
                except (ModelError, UnknownModelError) as error:
                    logger.warning("model %s was not loaded: %s", name, str(error))
        for name in [name for name in self._entries if name not in sources]:
            self.unload(name)
            if all(entry.state is State.UNAVAILABLE for entry in self._entries[name].values()):
                del self._entries[name]

    def index(self) -> list[IndexEntry]:
        """Return every version that is served, that failed, or that lies on disk."""
        lines = []
        sources = self._disk.scan()
        for name in sorted({*sources, *self._entries}):
            entries = self._entries.get(name, {})
            on_disk = sources[name].versions() if name in sources else {}
            for version in sorted({*entries, *on_disk}):
                entry = entries.get(version)
                state = entry.state if entry else State.UNAVAILABLE
                if self._loading == name and state is State.UNAVAILABLE:
                    state = State.LOADING
                reason = entry.reason if entry else "not loaded"
                lines.append(IndexEntry(name, str(version), state, reason))
        return lines

    def check(self, name: str) -> Iterator[tuple[str, bool]]:
        """Load what `load` would, keep nothing; yield a line and "is wrong" for each version."""
        source = self._disk.scan()[name]
        try:
            settings = source.settings(self._defaults)
            files = source.versions()
            wanted = settings.versions.choose(files)
            if not wanted:
                raise _no_version(name)
        except ModelError as error:
            yield f"{name}: {error}", True
            return
        for version in wanted:
            try:
                model = self._open(source, version, files[version], settings)
            except ModelError as error:
                yield f"{name} {version}: {error}", True
                continue
            kind = type(model.layout).__name__.lower() if model.layout else "no"
            yield (
                f"{name} {version}: ok, {kind} batching, pyattn's operators: "
                f"{', '.join(model.operators) or 'none'}",
                False,
            )

    def _changed(self, source: ModelSource) -> bool:
        """Whether a load could give something else than what is there."""
        entries = self._entries.get(source.name)
        if entries is None:
            return True
        files = source.versions()
        return any(
            version not in files for version, entry in entries.items() if entry.model
        ) or any(
            version not in entries or entries[version].fingerprint != source.fingerprint(path)
            for version, path in files.items()
        )

    def _load(self, source: ModelSource) -> None:
        files = source.versions()
        old = self._entries.get(source.name, {})
        marks = {version: source.fingerprint(path) for version, path in files.items()}
        opened: dict[int, Model] = {}
        # Messages, not exceptions: those would hold this frame, and with it the old models.
        failures: dict[int, str] = {}
        try:
            settings = source.settings(self._defaults)
            wanted = settings.versions.choose(files)
            if not wanted:
                raise _no_version(source.name)
        except ModelError as error:
            failures = dict.fromkeys(files, str(error))
            wanted = []
        for version in wanted:
            before = old.get(version)
            if before is not None and before.model and before.fingerprint == marks[version]:
                opened[version] = before.model
                continue
            try:
                opened[version] = self._open(source, version, files[version], settings)
            except ModelError as error:
                failures[version] = str(error)
        new = {}
        for version in sorted({*files, *old}):
            mark, before = marks.get(version, ()), old.get(version, Entry(()))
            reason = _reason(failures[version], source) if version in failures else before.reason
            if version in opened:
                new[version] = Entry(mark, opened[version])
            elif failures and before.model is not None:
                new[version] = Entry(mark, before.model, reason)
            elif version in files:
                reason = reason if version in failures else "not one of the versions to serve"
                new[version] = Entry(mark, None, reason, _gone(before))
            elif before.state is not State.UNAVAILABLE:
                new[version] = _unloaded(before)
        self._entries[source.name] = new
        for failure in failures.values():
            raise ModelError(failure)

    def _open(
        self, source: ModelSource, version: int, path: Path, settings: ModelSettings
    ) -> Model:
        statistics = self._statistics.setdefault((source.name, version), Statistics())
        return Model(
            source.name, path, self._session, settings, version=version, statistics=statistics
        )


def _no_version(name: str) -> ModelError:
    return ModelError(f"model {name!r} has none of the versions it shall have")


def _ready(entries: Mapping[int, Entry]) -> dict[int, Model]:
    return {v: entry.model for v, entry in entries.items() if entry.model is not None}


def _unloaded(entry: Entry) -> Entry:
    return Entry((), None, "unloaded", _gone(entry))


def _gone(entry: Entry) -> weakref.ref[Model] | None:
    return entry.gone if entry.model is None else weakref.ref(entry.model)


def _reason(message: str, source: ModelSource) -> str:
    """Return the message for clients: paths begin at the model's folder."""
    return message.replace(f"{source.folder}/", "")
