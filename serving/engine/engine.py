"""The models of a server and the threads that run them.

Two small pools: one runs models, the other turns large bodies into arrays and back. They are apart
so that an answer that is ready is never encoded behind inferences that have not started, and both
are apart from the event loop so that health requests are answered while they work.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import ParamSpec, TypeVar

from .cpus import available_cpus
from .failures import DeadlineError, ModelError, NotAllowedError, QueueFullError
from .layout import Array
from .model import Model
from .model_settings import ModelSettings
from .operators import Operators
from .queue import Work
from .repository import NAME_RULE, ModelSource, Repository, Sources
from .scheduler import Scheduler
from .session import SessionSettings
from .store import IndexEntry, Store

__all__ = ["NAME_RULE", "Engine", "Mode", "ModelSource"]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Mode(StrEnum):
    """When models are loaded: all at the start, when the disk changes, or when one is asked to."""

    FIXED = "fixed"
    POLLING = "polling"
    EXPLICIT = "explicit"


class Engine:
    """Loads models and runs them in a bounded number of threads.

    Parameters
    ----------
    models : sequence of ModelSource, or Repository
        The models, under different names.
    threads : int, optional
        Threads of ONNX Runtime for each run; by default the processors this process may use.
    concurrency : int
        Inferences that run at the same time; more wait for their turn.
    spin : bool
        Whether idle threads of ONNX Runtime spin: faster for a steady stream, wasteful otherwise.
    operators : bool
        Whether pyattn's operators are used, where the package is installed.
    mode : Mode
    poll_seconds : float
        How often the disk is looked at in the mode ``polling``.
    startup : sequence of str
        Models to load at the start in the mode ``explicit``.
    settings : ModelSettings, optional
        For models whose own settings do not say.
    """

    def __init__(
        self,
        models: Sequence[ModelSource] | Repository,
        *,
        threads: int | None = None,
        concurrency: int = 2,
        spin: bool = False,
        operators: bool = True,
        mode: Mode = Mode.FIXED,
        poll_seconds: float = 5.0,
        startup: Sequence[str] = (),
        settings: ModelSettings | None = None,
    ) -> None:
        self._disk = models if isinstance(models, Repository) else Sources(tuple(models))
        session = SessionSettings(
            threads=threads or available_cpus(),
            spin=spin,
            operators=Operators.installed(self._disk.folders) if operators else None,
        )
        self.mode = mode
        self._startup = tuple(startup)
        self._poll_seconds = poll_seconds
        self._store = Store(self._disk, session, settings or ModelSettings())
        self._scheduler = Scheduler(concurrency)
        self._coders = ThreadPoolExecutor(2, thread_name_prefix="codec")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._closed = threading.Event()
        self._at_end: list[Callable[[], None]] = []
        self.loaded = False

    def load(self) -> None:
        """Load the models of the start; raises `ModelError`. A second call does nothing."""
        if self.loaded:
            return
        if self.mode is Mode.POLLING:
            self._store.refresh()
            threading.Thread(target=self._poll, name="poll", daemon=True).start()
        else:
            for name in self._names_at_start():
                self._store.load(name)
        self.loaded = True

    def _names_at_start(self) -> Sequence[str]:
        found = self._disk.scan()
        if self.mode is Mode.EXPLICIT:
            for name in self._startup:
                if name not in found:
                    raise ModelError(f"there is no model {name!r} to load")
            return self._startup
        if not found:
            raise ModelError(f"there is no model in the folder {self._disk.folders[0]}")
        return list(found)

    def _poll(self) -> None:
        while not self._closed.wait(self._poll_seconds):
            self._store.refresh()

    @property
    def names(self) -> list[str]:
        """Names of the models that are served."""
        return self._store.names

    @property
    def models(self) -> list[Model]:
        """Every version that is served."""
        return self._store.models()

    def model(self, name: str, version: str | None = None) -> Model:
        """Return a version of a model, by default the highest that is served.

        Who has it may run it to the end, whatever is loaded and unloaded meanwhile. Raises
        `UnknownModelError` for a name or version that is not there, `UnavailableError` for one that
        is not loaded.
        """
        return self._store.model(name, version)

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that are served."""
        return self._store.versions(name)

    async def index(self) -> list[IndexEntry]:
        """Return the state of every version, loaded or on disk."""
        return await self.offload(self._store.index)

    async def load_model(self, name: str) -> None:
        """Load or reload a model; what was served goes on until it is ready, and if it fails.

        Raises
        ------
        NotAllowedError
            The mode is not ``explicit``.
        UnknownModelError, ModelError
        """
        self._check_explicit()
        try:
            await asyncio.get_running_loop().run_in_executor(self._loader, self._store.load, name)
        except ModelError as error:
            text = str(error)
            for folder in self._disk.folders:  # the client need not know where they lie
                text = text.replace(f"{folder}/", "")
            raise ModelError(text) from None

    async def unload_model(self, name: str) -> None:
        """Serve a model no more; requests that have it are answered. Raises like `load_model`."""
        self._check_explicit()
        await asyncio.get_running_loop().run_in_executor(self._loader, self._store.unload, name)

    def _check_explicit(self) -> None:
        if self.mode is not Mode.EXPLICIT:
            raise NotAllowedError(
                f"models are loaded and unloaded in the mode {Mode.EXPLICIT}; "
                f"this server has the mode {self.mode}"
            )

    def check(self) -> Iterator[tuple[str, bool]]:
        """Load every version that would be served, one at a time; yield a line and "is wrong"."""
        found = self._disk.scan()
        if not found:
            yield "there is no model", True
        for name in self._startup:
            if name not in found:
                yield f"{name}: there is no such model", True
        for name in found:
            yield from self._store.check(name)

    async def infer(
        self,
        model: Model,
        feeds: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> list[Array]:
        """Run `model`, perhaps together with other requests, and return the named outputs.

        Cancelling the caller takes the inference out of the queue, or ends it at its next node when
        no other request is in the same run.

        Parameters
        ----------
        model : Model
        feeds : mapping of str to array
            The inputs; the mask of a padded model may be left out.
        outputs : sequence of str
        priority : int
            1 is the highest; 0 stands for 100.
        timeout : float, optional
            Seconds until the answer; by default those of the model's settings.

        Raises
        ------
        QueueFullError
            Too many requests wait already.
        DeadlineError
            The time was over.
        InvalidRequestError, InferenceError, UnavailableError
            As `Model.run`.
        """
        work = Work(model, model.complete(feeds), outputs, priority)
        try:
            self._scheduler.submit(work)
        except QueueFullError:
            model.statistics.left("rejected")
            raise
        seconds = model.settings.timeout if timeout is None else timeout
        try:
            if seconds is None:
                return await work.future
            async with asyncio.timeout(seconds):
                return await work.future
        except TimeoutError:
            self._give_up(work, "expired")
            raise DeadlineError(f"the timeout of {seconds:g} seconds is over") from None
        except asyncio.CancelledError:
            self._give_up(work, "cancelled")
            raise

    def _give_up(self, work: Work, reason: str) -> None:
        self._scheduler.cancel(work)
        work.model.statistics.left(reason)

    async def offload(
        self,
        function: Callable[Parameters, Result],
        /,
        *args: Parameters.args,
        **kwargs: Parameters.kwargs,
    ) -> Result:
        """Call `function` in a thread that is neither the event loop nor one that runs models."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._coders, lambda: function(*args, **kwargs))

    def at_end(self, function: Callable[[], None]) -> None:
        """Call `function` too when the running inferences are ended."""
        self._at_end.append(function)

    def terminate(self) -> None:
        """Refuse new inferences and end the running ones at their next node."""
        self._scheduler.terminate()
        for function in self._at_end:
            function()

    def close(self) -> None:
        """End everything and let the threads go; they end with what they are doing."""
        self._closed.set()
        self.terminate()
        self._scheduler.close()
        self._coders.shutdown(wait=False, cancel_futures=True)
        self._loader.shutdown(wait=False, cancel_futures=True)
