"""The models of a server and the threads that run them.

Two small pools: one runs models, the other turns large bodies into arrays and back. They are apart
so that an answer that is ready is never encoded behind inferences that have not started, and both
are apart from the event loop so that health requests are answered while they work.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import onnxruntime as ort

from .cpus import available_cpus
from .failures import ModelError, UnavailableError, UnknownModelError
from .model import Array, Model
from .session import run_options

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

NAME_RULE = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_NAME = re.compile(NAME_RULE)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to load: the name to serve it under and its ONNX file."""

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


class Engine:
    """Loads models and runs them in a bounded number of threads.

    Parameters
    ----------
    sources : sequence of ModelSource
        The models, under different names.
    threads : int, optional
        Threads of ONNX Runtime for each run; by default the processors this process may use.
    concurrency : int
        Inferences that run at the same time; more wait for their turn.
    spin : bool
        Whether idle threads of ONNX Runtime spin: faster for a steady stream, wasteful otherwise.
    """

    def __init__(
        self,
        sources: Sequence[ModelSource],
        *,
        threads: int | None = None,
        concurrency: int = 2,
        spin: bool = False,
    ) -> None:
        self._sources = tuple(sources)
        self._threads = threads or available_cpus()
        self._spin = spin
        self._models: dict[str, Model] = {}
        self._runners = ThreadPoolExecutor(concurrency, thread_name_prefix="infer")
        self._coders = ThreadPoolExecutor(2, thread_name_prefix="codec")
        self._running: set[ort.RunOptions] = set()
        self._stopping = False
        self.loaded = False

    def load(self) -> None:
        """Load every model; raises `ModelError`. A second call does nothing."""
        if not self.loaded:
            for source in self._sources:
                self._models[source.name] = Model(
                    source.name, source.path, threads=self._threads, spin=self._spin
                )
            self.loaded = True

    @property
    def names(self) -> list[str]:
        """Names of the models that are loaded."""
        return list(self._models)

    def model(self, name: str, version: str | None = None) -> Model:
        """Return a model; raises `UnknownModelError` for a name or version that is not served."""
        model = self._models.get(name)
        if model is None:
            raise UnknownModelError(f"no model {name[:200]!r} is served here")
        if version is not None and version != model.version:
            raise UnknownModelError(
                f"model {name!r} has no version {version[:200]!r}; it has {model.version!r}"
            )
        return model

    async def infer(
        self, model: Model, feeds: Mapping[str, Array], outputs: Sequence[str]
    ) -> list[Array]:
        """Run `model` in a worker thread and return the named outputs.

        Cancelling the caller takes the inference out of the queue, or ends it at its next node.
        """
        if self._stopping:
            raise UnavailableError("the server is stopping")
        options = run_options()
        self._running.add(options)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._runners, model.run, feeds, outputs, options)
        except asyncio.CancelledError:
            options.terminate = True
            raise
        finally:
            self._running.discard(options)

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

    def terminate(self) -> None:
        """Refuse new inferences and end the running ones at their next node."""
        self._stopping = True
        for options in self._running:
            options.terminate = True

    def close(self) -> None:
        """End everything and let the threads go; they end with what they are doing."""
        self.terminate()
        self._runners.shutdown(wait=False, cancel_futures=True)
        self._coders.shutdown(wait=False, cancel_futures=True)
