"""Loads models, each named by a line of the standard input, and tells what came of it.

A process of its own, for a crash, a hang or too much memory must end this one and not the tests.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys

import onnxruntime

import pyattn as pa

MOST_SECONDS = 20  # for one model
MOST_BYTES = 8 << 30  # of address space, of which the libraries take a part
LOADERS = {"session": pa.ort.session, "accelerate": pa.accelerate}


def load(how: str, path: str) -> tuple[str, str]:
    """Return the class of the error, of those that are documented, and what it says."""
    try:
        LOADERS[how](path)
    except (FileNotFoundError, ValueError, pa.VerificationError) as error:
        return type(error).__name__, str(error)
    return "", ""


def main() -> None:
    onnxruntime.set_default_logger_severity(4)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for line in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.alarm(MOST_SECONDS)
        with contextlib.redirect_stdout(sys.stderr):  # ONNX Runtime 1.20 writes to it
            kind, message = load(sys.argv[1], line.rstrip("\n"))
        signal.alarm(0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps([kind, message, peak >> 10]), flush=True)


if __name__ == "__main__":
    main()
