"""A thread that writes all texts of a model side by side.

Between two steps texts come and go: a text that waits is read into a free slot, one whose end is
there or whose client is gone leaves its slot. A step adds a token to each of the others. At most
one text is read between two steps while others are written, so that a crowd does not stop them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..engine.failures import InferenceError, QueueFullError, ServingError, UnavailableError
from ..engine.layout import Array
from ..engine.model import Model
from ..engine.statistics import Timing
from ..engine.tokenizer import Tokenizer
from .cache import Cache
from .detokenizer import Detokenizer, StopStrings
from .sampling import Sampler, Sampling

logger = logging.getLogger("pyattn_serving")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text.

    Attributes
    ----------
    text : str
    tokens : int
        How many tokens were written for the text so far.
    finish : str or None
        ``"stop"`` at a stop string or the end token, ``"length"`` at the limit, ``"error"``.
    error : Exception or None
    """

    text: str
    tokens: int
    finish: str | None = None
    error: Exception | None = None


class Job:
    """A text to write.

    Parameters
    ----------
    prompt : sequence of int
    most : int
        Tokens to write at most, 1 or more.
    sampling : Sampling
    stop : sequence of str
        The text ends before the first of them.
    tokenizer : Tokenizer
    deliver : callable
        Takes the pieces, in the writer's thread.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        most: int,
        sampling: Sampling,
        stop: Sequence[str],
        tokenizer: Tokenizer,
        deliver: Callable[[Piece], None],
    ) -> None:
        self.prompt = prompt
        self.cancelled = False
        self.last = 0
        self.tokens = 0
        self.arrival = self.taken = time.perf_counter_ns()
        self._most = most
        self._sample = Sampler(sampling)
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._ends = tokenizer.ends
        self._stop = StopStrings(stop)
        self._deliver = deliver

    def take(self, logits: Array) -> bool:
        """Choose the next token and deliver its text; return whether the text goes on."""
        self.last = self._sample(logits)
        self.tokens += 1
        if self.last in self._ends:
            return self._finish("stop")
        text = self._stop.push(self._detokenizer.push(self.last))
        if self._stop.found:
            self._deliver(Piece(text, self.tokens, "stop"))
            return False
        if self.tokens == self._most:
            return self._finish("length", text)
        self._deliver(Piece(text, self.tokens))
        return True

    def fail(self, error: Exception) -> None:
        """End the text with an error."""
        self._deliver(Piece("", self.tokens, "error", error))

    def _finish(self, reason: str, text: str = "") -> bool:
        text += self._stop.push(self._detokenizer.finish())
        if self._stop.found:
            reason = "stop"
        self._deliver(Piece(text + self._stop.finish(), self.tokens, reason))
        return False


class Writer:
    """Writes the texts of one model.

    The thread starts with a text and ends when there is none, so an idle model has none. The model
    is not kept, so that it may be unloaded.
    """

    def __init__(self, model: Model, cache: Cache) -> None:
        self._cache = cache
        self._max_queue = model.settings.max_queue
        self._statistics = model.statistics
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []  # by slot
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def capacity(self) -> int:
        """Most tokens of a text, prompt included."""
        return self._cache.capacity

    @property
    def busy(self) -> int:
        """How many texts are being written."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """How many texts wait."""
        return len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Let texts wait for a slot, all or none of them.

        Raises
        ------
        QueueFullError
            Too many wait already.
        UnavailableError
            The server ends.
        """
        with self._lock:
            if self._stopping:
                raise UnavailableError("the server is stopping")
            if len(self._waiting) + len(jobs) > self._max_queue:
                self._statistics.left("rejected")
                raise QueueFullError(f"{len(self._waiting)} texts wait for the model already")
            self._waiting.extend(jobs)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="write", daemon=True)
                self._thread.start()

    def cancel(self, job: Job) -> None:
        """Give a text up: it leaves the queue now, or its slot before the next step."""
        with self._lock:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def terminate(self) -> None:
        """Refuse new texts, and end those that wait or are written."""
        with self._lock:
            self._stopping = True
            self._cache.options.terminate = True

    def _work(self) -> None:
        while True:
            with self._lock:
                jobs = self._next()
                if not jobs and not self._active and not self._waiting:
                    self._thread = None
                    return
            try:
                self._read(jobs)
                self._leave()
                self._step()
            except Exception as error:  # the thread must outlive whatever happens
                logger.exception("writing failed")
                failed = {id(job): job for job in (*self._active, *jobs)}
                self._active.clear()
                for job in failed.values():
                    job.fail(InferenceError(f"writing failed: {type(error).__name__}"))

    def _next(self) -> list[Job]:
        """Take texts from the queue: as many as there are slots, one when others are written."""
        if self._stopping:
            for job in (*self._waiting, *self._active):
                job.fail(UnavailableError("the server is stopping"))
            self._waiting.clear()
            self._active.clear()
            return []
        free = self._cache.slots - len(self._active)
        count = min(free, len(self._waiting), 1 if self._active else free)
        return [self._waiting.popleft() for _ in range(count)]

    def _read(self, jobs: Sequence[Job]) -> None:
        """Read the prompts of texts, each into the first free slot."""
        for job in jobs:
            if job.cancelled:
                continue
            job.taken = time.perf_counter_ns()
            slot = len(self._active)
            try:
                logits = self._cache.read(slot, job.prompt)
                goes_on = job.take(logits)
            except ServingError as error:
                self._failed(slot, job, error)
                continue
            if goes_on:
                self._active.append(job)
            else:
                self._done(job)

    def _step(self) -> None:
        """Add a token to each text; where that fails, to one after the other."""
        jobs = self._active
        if not jobs:
            return
        try:
            rows = list(self._cache.step(0, [job.last for job in jobs]))
        except ServingError:
            rows = [self._single(slot, job) for slot, job in enumerate(jobs)]
        kept = [
            self._goes_on(slot, *each) for slot, each in enumerate(zip(jobs, rows, strict=True))
        ]
        for slot in reversed([slot for slot, goes_on in enumerate(kept) if not goes_on]):
            self._free(slot)

    def _single(self, slot: int, job: Job) -> Array | ServingError:
        try:
            logits: Array = self._cache.step(slot, [job.last])[0]
        except ServingError as error:
            return error
        return logits

    def _goes_on(self, slot: int, job: Job, logits: Array | ServingError) -> bool:
        try:
            if isinstance(logits, ServingError):
                raise logits
            goes_on = job.take(logits)
        except ServingError as error:
            self._failed(slot, job, error)
            return False
        if not goes_on:
            self._done(job)
        return goes_on

    def _leave(self) -> None:
        """Free the slots of texts that were given up."""
        for slot in reversed(range(len(self._active))):
            if self._active[slot].cancelled:
                self._free(slot)

    def _free(self, slot: int) -> None:
        """Free a slot; the last text moves there."""
        last = self._active.pop()
        if slot < len(self._active):
            self._cache.move(len(self._active), slot)
            self._active[slot] = last

    def _done(self, job: Job) -> None:
        now = time.perf_counter_ns()
        tokens = len(job.prompt) + job.tokens
        self._statistics.ran(
            Timing(0, now - job.taken, 0, 1, tokens, tokens),
            [job.taken - job.arrival],
            [now - job.arrival],
        )

    def _failed(self, slot: int, job: Job, error: ServingError) -> None:
        self._cache.clear(slot)
        self._statistics.failed(time.perf_counter_ns() - job.arrival)
        job.fail(error)
