"""Workers: processes that share one listening socket, and the parent that looks after them.

The parent binds the address and hands the socket on; each worker is the same command anew, with
the socket and its number in its environment, and loads, serves and drains as a lone server does.
As the parent and all workers hold the one socket, clients that have connected to it and are not
yet accepted lose nothing when a worker dies: another accepts them. A socket for each worker
(SO_REUSEPORT) would spread them more evenly, and drop those that wait at the one that died.

The first worker loads alone, so that a model that cannot be loaded is told of once; the others
follow together. A worker that dies later comes back after a pause, which doubles while it dies
young.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("pyattn_serving")

VARIABLE = "PYATTN_SERVE_WORKER"
FIRST_PAUSE = 0.5  # seconds before a worker comes back
LONGEST_PAUSE = 30.0
_YOUNG = 30.0  # seconds
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1  # of prctl.h


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker knows of its place.

    Attributes
    ----------
    number : int
        From 1 on.
    descriptor : int
        The listening socket.
    parent : int
        The process that looks after it.
    folder : Path
        Where the workers find each other.
    """

    number: int
    descriptor: int
    parent: int
    folder: Path

    def listener(self) -> socket.socket:
        """Return the socket, and end with the parent from now on."""
        if sys.platform == "linux":
            # A worker without a parent would hold the port, and nobody could end it by name.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != self.parent:
            raise SystemExit(1)
        return socket.socket(fileno=self.descriptor)

    @staticmethod
    def say_ready(text: str) -> None:
        """Tell the parent what it may announce; standard output is for nothing else."""
        sys.stdout.write(text)
        sys.stdout.flush()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def this_worker() -> Worker | None:
    """Return the worker that this process is, or None if it is none."""
    # Taken away, or a command that this process starts would be a worker as well.
    words = os.environ.pop(VARIABLE, "").split(":", 3)
    if len(words) != 4:
        return None
    number, descriptor, parent = map(int, words[:3])
    return Worker(number, descriptor, parent, Path(words[3]))


class Workers:
    """The parent's side.

    Attributes
    ----------
    exit_code : int
        0 unless a worker could not start or cut requests off.
    """

    def __init__(self, count: int, listener: socket.socket, folder: Path) -> None:
        self.exit_code = 0
        self._count = count
        self._listener = listener
        self._folder = folder
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Start the workers and keep them until a signal comes and they have drained."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop)
        announcement = await self._start(1)
        keepers = []
        if announcement:
            await asyncio.gather(*(self._start(n) for n in range(2, self._count + 1)))
            sys.stdout.write(announcement)
            sys.stdout.flush()
            keepers = [asyncio.create_task(self._keep(n)) for n in range(1, self._count + 1)]
        else:
            self.exit_code = await self._processes[1].wait() or 1
        await asyncio.gather(*keepers)

    def _stop(self) -> None:
        """Pass the signal on: the first starts the drain of the workers, a second ends it."""
        self._stopping.set()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

    async def _start(self, number: int) -> str:
        """Start a worker; return its announcement, or "" when it ended before it had one."""
        descriptor = self._listener.fileno()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *sys.orig_argv[1:],
            stdout=subprocess.PIPE,
            pass_fds=[descriptor],
            env={**os.environ, VARIABLE: f"{number}:{descriptor}:{os.getpid()}:{self._folder}"},
            process_group=0,  # else Ctrl-C would reach it twice, and the second time hurries it
        )
        self._processes[number] = process
        if self._stopping.is_set():  # the signal came while it was started
            process.terminate()
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        return (await process.stdout.read()).decode()

    async def _keep(self, number: int) -> None:
        """Wait for the end of a worker and start it again, until the workers are stopped."""
        loop = asyncio.get_running_loop()
        pause, since = FIRST_PAUSE / 2, loop.time()
        while True:
            code = await self._processes[number].wait()
            if self._stopping.is_set():
                self.exit_code = self.exit_code or int(code not in (0, -signal.SIGTERM))
                return
            lived = loop.time() - since
            pause = FIRST_PAUSE if lived > _YOUNG else min(2 * pause, LONGEST_PAUSE)
            logger.error("worker %d ended with %d, and comes back in %.1f s", number, code, pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            if self._stopping.is_set():
                return
            since = loop.time()
            if await self._start(number):
                logger.warning("worker %d is back", number)
