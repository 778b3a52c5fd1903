"""A thread that writes all texts of a model side by side.

Between two steps texts come and go: a text that waits is read into a free slot, one whose end is
there or whose client is gone leaves its slot. A step adds a token to each of the others. While
texts are written, a bounded number of tokens is read between two steps, so that neither a crowd nor
a long prompt stops them: such a prompt is read piece by piece, in the slot behind those in use.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..engine.failures import InferenceError, QueueFullError, ServingError, UnavailableError
from ..engine.layout import Array
from ..engine.model import Model
from ..engine.queue import DEFAULT_PRIORITY
from ..engine.statistics import Timing
from ..engine.tokenizer import Tokenizer
from .cache import Cache
from .detokenizer import Detokenizer, StopStrings
from .sampling import Sampler, Sampling

_numbers = itertools.count()
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
    priority : int
        Where it waits: 1 is the highest, 0 the usual.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        most: int,
        sampling: Sampling,
        stop: Sequence[str],
        tokenizer: Tokenizer,
        deliver: Callable[[Piece], None],
        priority: int = 0,
    ) -> None:
        self.prompt = prompt
        self.order = (priority or DEFAULT_PRIORITY, next(_numbers))
        self.read = 0  # tokens of the prompt that are in the cache
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
        self._read_tokens = model.settings.read_tokens
        self._statistics = model.statistics
        self._waiting: list[Job] = []  # by their order
        self._active: list[Job] = []  # by slot
        self._reading: Job | None = None  # in the slot behind them
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def capacity(self) -> int:
        """Most tokens of a text, prompt included."""
        return self._cache.capacity

    @property
    def busy(self) -> int:
        """How many texts are being read or written."""
        return len(self._active) + (self._reading is not None)

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
            for job in jobs:
                bisect.insort(self._waiting, job, key=lambda each: each.order)
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
                if self._stopping:
                    self._end_all()
                if not (self._active or self._reading or self._waiting):
                    self._thread = None
                    return
            try:
                self._read()
                self._leave()
                self._step()
            except Exception as error:  # the thread must outlive whatever happens
                logger.exception("writing failed")
                reading = [] if self._reading is None else [self._reading]
                failed = {id(job): job for job in (*self._active, *reading)}
                self._active.clear()
                self._reading = None
                for job in failed.values():
                    job.fail(InferenceError(f"writing failed: {type(error).__name__}"))

    def _end_all(self) -> None:
        reading = [] if self._reading is None else [self._reading]
        for job in (*self._waiting, *reading, *self._active):
            job.fail(UnavailableError("the server is stopping"))
        self._waiting.clear()
        self._active.clear()
        self._reading = None

    def _read(self) -> None:
        """Read prompts: the first of all as a whole, then so many tokens until the next step."""
        left = self._read_tokens
        while left > 0 and (job := self._next()) is not None:
            slot, rest = len(self._active), len(job.prompt) - job.read
            count = min(rest, left) if self._active else rest
            left -= count if self._active else 0
            try:
                logits = self._cache.read(slot, job.prompt[job.read : job.read + count])
                job.read += count
                if count < rest:
                    return
                self._reading = None
                goes_on = job.take(logits)
            except ServingError as error:
                self._reading = None
                self._failed(slot, job, error)
                continue
            if goes_on:
                self._active.append(job)
            else:
                self._done(job)

    def _next(self) -> Job | None:
        """Return the text to read on, or else the next one for which there is a slot."""
        with self._lock:
            if self._reading is not None and self._reading.cancelled:
                self._reading = None
            if self._reading is None and self._waiting and len(self._active) < self._cache.slots:
                self._reading = self._waiting.pop(0)
                self._reading.taken = time.perf_counter_ns()
                self._cache.begin(len(self._active))
            return self._reading

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
        """Free a slot; the last text moves there, and the one that is read behind the rest."""
        last = self._active.pop()
        end = len(self._active)
        if slot < end:
            self._cache.move(end, slot)
            self._active[slot] = last
        if self._reading is not None:
            self._cache.move(end + 1, end)

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
