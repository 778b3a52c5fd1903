"""What the compiled core runs on: the instruction set and the threads."""

from __future__ import annotations

from pyattn._core import (
    available_isas,
    build_info,
    isa,
    set_isa,
    set_threads,
    threads,
)

__all__ = ["available_isas", "build_info", "isa", "set_isa", "set_threads", "threads"]
