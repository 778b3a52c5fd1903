"""Threads that take batches from the queues of the models and run them."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Mapping

from .failures import InferenceError, ServingError, UnavailableError
from .layout import Array
from .queue import Queue, Run, Work
from .session import run_options
from .statistics import Timing

_STOPPED = "the inference was stopped"
logger = logging.getLogger("pyattn_serving")


class Scheduler:
    """Runs what waits, in `concurrency` threads, which start with the first request.

    One lock guards the queues of all models; a condition on it wakes the threads. Nothing that
    takes long is done under it.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._changed = threading.Condition(threading.Lock())
        self._threads: list[threading.Thread] = []
        self._waiting: set[Queue] = set()
        self._running: dict[Work, Run] = {}
        self.stopping = False
        self._closed = False

    def submit(self, work: Work) -> None:
        """Let a request wait for its turn.

        Raises
        ------
        QueueFullError
            Too many wait already.
        UnavailableError
            The scheduler ends.
        """
        queue = work.model.queue
        with self._changed:
            if self.stopping:
                raise UnavailableError("the server is stopping")
            queue.push(work)
            self._waiting.add(queue)
            self._changed.notify()
            if not self._threads:
                self._start()

    def _start(self) -> None:
        for number in range(self._concurrency):
            # A daemon: a long operator must not keep the interpreter from its end.
            thread = threading.Thread(target=self._work, name=f"infer_{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def cancel(self, work: Work) -> None:
        """Take a request out of its queue, or end its run if nobody else waits for that."""
        with self._changed:
            work.cancelled = True
            queue = work.model.queue
            if queue.remove(work):
                if not queue:
                    self._waiting.discard(queue)
            elif work in self._running:
                self._running[work].end_if_unwanted()

    def terminate(self) -> None:
        """Refuse new requests, fail those that wait and end those that run at their next node."""
        with self._changed:
            self.stopping = True
            left = [work for queue in self._waiting for work in queue.clear()]
            self._waiting.clear()
            for run in self._running.values():
                run.options.terminate = True
        for work in left:
            work.fail(UnavailableError(_STOPPED))

    def close(self) -> None:
        """End everything; the threads end with what they are doing."""
        self.terminate()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        """Run batches until the scheduler closes."""
        while (run := self._next()) is not None:
            works = run.works
            try:
                self._execute(run)
            except Exception as error:  # the thread must outlive whatever happens
                logger.exception("a run failed")
                _fail(works, InferenceError(f"the run failed: {type(error).__name__}"))
            self._finish(works)
            # A model that was unloaded meanwhile goes with its last request, not with the next run.
            del run, works

    def _finish(self, works: list[Work]) -> None:
        with self._changed:
            works[0].model.queue.running -= 1
            for work in works:
                self._running.pop(work, None)

    def _next(self) -> Run | None:
        """Wait for a queue that is due and take a run from it; None when the scheduler closes."""
        with self._changed:
            while not self._closed:
                queue, wake = self._choose()
                if queue is not None:
                    return self._take(queue)
                self._changed.wait(wake)
        return None

    def _choose(self) -> tuple[Queue | None, float | None]:
        """Return the queue that is due and whose head comes first, or seconds until one is."""
        now = time.perf_counter()
        best: Queue | None = None
        first = float("inf")
        for queue in self._waiting:
            due = queue.due()
            if due > now:
                first = min(first, due)
            elif best is None or queue.head.order < best.head.order:
                best = queue
        return best, None if first == float("inf") else first - now

    def _take(self, queue: Queue) -> Run:
        run = Run(queue.take(), run_options())
        if not queue:
            self._waiting.discard(queue)
        if self._waiting:
            self._changed.notify()
        queue.running += 1
        self._running.update((work, run) for work in run.works)
        return run

    def _execute(self, run: Run) -> None:
        """Run a batch; when it fails, run its requests singly, so that each gets its own error."""
        if len(run.works) == 1:
            self._single(run)
            return
        try:
            answers, timing = run_batch(run)
        except Exception as error:  # noqa: BLE001 - whatever it is, one of them may be at fault
            logger.debug("a batch of %d failed: %s", len(run.works), error)
            for work in run.works:
                single = Run([work], run_options())
                with self._changed:
                    if work.cancelled:
                        continue
                    single.options.terminate = self.stopping
                    self._running[work] = single
                self._single(single)
            return
        _answer(run.works, answers, timing)

    def _single(self, run: Run) -> None:
        try:
            answers, timing = run_single(run)
        except ServingError as error:
            _fail(run.works, error)
        else:
            _answer(run.works, answers, timing)


def run_single(run: Run) -> tuple[list[list[Array]], Timing]:
    """Run one request as it is."""
    (work,) = run.works
    start = time.perf_counter_ns()
    arrays = work.model.run(work.feeds, work.outputs, run.options)
    tokens = work.extent.tokens if work.extent else 0
    ns = time.perf_counter_ns() - start
    return [arrays], Timing(0, ns, 0, work.rows, tokens, tokens)


def run_batch(run: Run) -> tuple[list[list[Array]], Timing]:
    """Run several requests as one; raises `ServingError` when that fails."""
    works, model = run.works, run.works[0].model
    layout = model.layout
    extents = [work.extent for work in works if work.extent is not None]
    if layout is None or len(extents) != len(works):
        raise InferenceError("requests that cannot run together")
    start = time.perf_counter_ns()
    feeds = layout.assemble([work.feeds for work in works])
    assembled = time.perf_counter_ns()
    names = list(dict.fromkeys(itertools.chain.from_iterable(work.outputs for work in works)))
    arrays = model.run(feeds, names, run.options)
    ran = time.perf_counter_ns()
    parts = layout.split(extents, names, arrays)
    answers = [_chosen(part, work) for part, work in zip(parts, works, strict=True)]
    rows, real = (
        sum(values) for values in zip(*((e.rows, e.tokens) for e in extents), strict=True)
    )
    padded = extents[0].padded(rows, max(extent.length for extent in extents), real)
    done = time.perf_counter_ns()
    return answers, Timing(assembled - start, ran - assembled, done - ran, rows, real, padded)


def _chosen(part: Mapping[str, Array], work: Work) -> list[Array]:
    return [part[name] for name in work.outputs]


def _answer(works: list[Work], answers: list[list[Array]], timing: Timing) -> None:
    now = time.perf_counter_ns()
    works[0].model.statistics.ran(
        timing,
        [work.taken - work.arrival for work in works],
        [now - work.arrival for work in works],
    )
    for work, arrays in zip(works, answers, strict=True):
        work.succeed(arrays)


def _fail(works: list[Work], error: Exception) -> None:
    now = time.perf_counter_ns()
    for work in works:
        if not work.cancelled:
            work.model.statistics.failed(now - work.arrival)
        work.fail(error)
