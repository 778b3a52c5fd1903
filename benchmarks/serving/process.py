"""A server in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

_START = 180.0  # seconds
_STOP = 15.0


class Server:
    """A command that listens on a port of the loopback interface, and all that it starts."""

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        ready: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.port = port
        self._ready = ready
        self._log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=folder,
                start_new_session=True,  # a group of processes that ends together
            )

    def wait(self) -> None:
        """Wait until it says that it is ready; raises `RuntimeError` with the end of its log."""
        over = time.monotonic() + _START
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > over:
                text = self._log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._log.stem} is not ready: {text}")
            time.sleep(0.2)

    def resident_memory(self) -> int:
        """Bytes in memory of all its processes; pages that they share count for each."""
        return sum(_resident(pid) for pid in self._members())

    def stop(self) -> int:
        """End it as an operator would, and by force if it does not; return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP)
        for pid in self._members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return self._process.wait()

    def _answers(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self.port}{self._ready}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _members(self) -> list[int]:
        """The processes of its session; some servers make groups of their own in it."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            if int(fields[3]) == self._process.pid:
                found.append(int(entry.parent.name))
        return found


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _resident(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found.group(1)) << 10 if found else 0
