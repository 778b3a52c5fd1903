"""Texts that a model writes, for an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from weakref import WeakKeyDictionary

from ..engine.engine import Engine
from ..engine.failures import DeadlineError, InvalidRequestError
from ..engine.model import Model
from .cache import Cache, is_decoder, positions
from .encoding import tokenizer_of
from .requests import TextRequest
from .writer import Job, Piece, Writer


class Generation:
    """Texts under way. Iterating gives the number of a text and its next piece.

    It ends with the last text. Errors are raised: those of the model, and `DeadlineError`.
    """

    def __init__(
        self, model: Model, writer: Writer, prompts: Sequence[Sequence[int]], request: TextRequest
    ) -> None:
        self._model = model
        self._writer = writer
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._seconds = model.settings.timeout if request.timeout is None else request.timeout
        self._deadline = None if self._seconds is None else self._loop.time() + self._seconds
        self._jobs = {
            number: self._job(number, prompt, request) for number, prompt in enumerate(prompts)
        }
        writer.submit(list(self._jobs.values()))

    def _job(self, number: int, prompt: Sequence[int], request: TextRequest) -> Job:
        def deliver(piece: Piece) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, (number, piece))

        most = min(request.most, self._writer.capacity - len(prompt) + 1)
        tokenizer = tokenizer_of(self._model)
        return Job(
            prompt, most, request.sampling, request.stop, tokenizer, deliver, request.priority
        )

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        try:
            while self._jobs:
                async with asyncio.timeout_at(self._deadline):
                    number, piece = await self._pieces.get()
                if piece.finish is not None:
                    self._jobs.pop(number, None)
                if piece.error is not None:
                    raise piece.error
                yield number, piece
        except TimeoutError:
            self._give_up("expired")
            raise DeadlineError(f"the timeout of {self._seconds:g} seconds is over") from None
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give up the texts that are not complete."""
        self._give_up("cancelled")

    def _give_up(self, reason: str) -> None:
        for job in self._jobs.values():
            self._writer.cancel(job)
            self._model.statistics.left(reason)
        self._jobs = {}


class Writers:
    """The writers of the models of an engine; each is made with the first text of its model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writers: WeakKeyDictionary[Model, Writer] = WeakKeyDictionary()
        self._lock = threading.Lock()
        engine.at_end(self.terminate)

    async def write(
        self, model: Model, prompts: Sequence[Sequence[int]], request: TextRequest, name: str
    ) -> Generation:
        """Begin to write what follows each of some prompts.

        Raises
        ------
        InvalidRequestError
            The model writes no text, or a prompt is too long; `name` is the field it stands in.
        QueueFullError, UnavailableError
            As `Writer.submit`.
        """
        writer = self._writers.get(model)
        if writer is None:
            writer = await self._engine.offload(self._make, model)
        for prompt in prompts:
            if len(prompt) > writer.capacity:
                raise InvalidRequestError(
                    f"{name!r} has {len(prompt)} tokens; the model takes {writer.capacity}", name
                )
        return Generation(model, writer, prompts, request)

    def terminate(self) -> None:
        """End all texts and refuse new ones."""
        with self._lock:
            for writer in self._writers.values():
                writer.terminate()

    def _make(self, model: Model) -> Writer:
        if not is_decoder(model):
            raise InvalidRequestError(
                f"model {model.name!r} writes no text: it is no step of a decoder with a cache",
                "model",
            )
        with self._lock:
            writer = self._writers.get(model)
            if writer is None:
                most, told = model.settings.capacity, model.decoder.positions
                capacity = positions(model, most) if told is None else min(told, most)
                if capacity < 1:
                    raise InvalidRequestError(f"model {model.name!r} fails on a single token")
                writer = Writer(model, Cache(model, model.settings.slots, capacity))
                self._writers[model] = writer
        return writer
