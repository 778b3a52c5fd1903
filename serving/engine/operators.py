"""The operators of the package pyattn for ONNX Runtime, where that package is installed.

A file exported by pyattn calls functions of the domain ``pyattn`` and carries their bodies. The
library ``pyattn_ort`` has kernels of the same names, and ONNX Runtime prefers them. The library is
looked for in the installed package only, whose Python is never imported, and it is refused where it
lies in a folder of models: such a folder may come from anybody.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

PACKAGE = "pyattn"
LIBRARY = "pyattn_ort"

logger = logging.getLogger("pyattn_serving")


@dataclass(frozen=True, slots=True)
class Operators:
    """The library at `path`."""

    path: Path

    @classmethod
    def installed(cls, outside: Iterable[Path] = ()) -> Operators | None:
        """Return the library of the installed package, or None where there is none.

        Parameters
        ----------
        outside : iterable of Path
            Folders of models; a library below one of them is not used. Python's path may well lead
            there, as ``python -m`` puts the current folder on it.
        """
        path = _find()
        if path is None:
            return None
        resolved = path.resolve()
        for folder in outside:
            if resolved.is_relative_to(folder.resolve()):
                logger.warning("%s lies in a folder of models and is not used", path)
                return None
        return cls(resolved)

    def kernels(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of `names`, functions of the domain ``pyattn``, that have a kernel."""
        try:
            known = _library(self.path).pyattn_has_operator
        except (OSError, AttributeError) as error:
            logger.warning("%s cannot be used: %s", self.path, error)
            return ()
        return tuple(sorted(name for name in set(names) if known(name.encode())))

    def register(self, options: ort.SessionOptions, names: Iterable[str], threads: int) -> bool:
        """Let a session run the kernels `names`; return False where ONNX Runtime refuses."""
        options.add_session_config_entry("pyattn.operators", ",".join(names))
        options.add_session_config_entry("pyattn.threads", str(threads))
        try:
            options.register_custom_ops_library(str(self.path))
        except (state.Fail, state.InvalidArgument, RuntimeError) as error:
            logger.warning("ONNX Runtime refuses %s: %s", self.path, error)
            return False
        return True


def _find() -> Path | None:
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except (ImportError, ValueError):  # ValueError for a module without a spec
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        for suffix in (".so", ".dylib", ".dll"):
            path = Path(folder) / f"{LIBRARY}{suffix}"
            if path.is_file():
                return path
    return None


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.pyattn_has_operator.argtypes = [ctypes.c_char_p]
    library.pyattn_has_operator.restype = ctypes.c_bool
    return library
