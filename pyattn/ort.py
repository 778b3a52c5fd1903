"""ONNX Runtime sessions: settings that suit attention models, and pyattn's kernels inside them.

A file that pyattn exported calls functions of the domain ``pyattn``, whose bodies it carries. The
library of :func:`custom_ops_library` has operators of the same names, which run the fused kernels
of this package on the session's threads; ONNX Runtime prefers them to the bodies.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyattn import runtime
from pyattn.extras import needs
from pyattn.model_file import Contents, ModelError, inspect, mapped, one_line
from pyattn.onnx_graph import DOMAIN
from pyattn.ort_decoder import Decoder as Decoder

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    Model = onnx.ModelProto | bytes | str | os.PathLike[str]

__all__ = [
    "ModelError",
    "Placement",
    "custom_ops_library",
    "describe",
    "has_kernel",
    "session",
]

LIBRARY = "pyattn_ort"


@dataclass(frozen=True)
class Placement:
    """Where a node that calls an attention function runs."""

    node: str
    operator: str
    accelerated: bool  # by pyattn's kernel; else the function's body runs

    def __str__(self) -> str:
        where = "pyattn's kernel" if self.accelerated else "the function's body"
        return f"{self.node}: {DOMAIN}::{self.operator} runs {where}"


def custom_ops_library() -> Path:
    """Return the path of the library with pyattn's operators for ONNX Runtime.

    Any binding of ONNX Runtime 1.20 or later can load it, as
    ``SessionOptions.register_custom_ops_library`` does in Python. It then has the operators of the
    usual variants. The entry ``"pyattn.operators"`` of the session's configuration, names with
    commas between them, asks for others; :func:`session` reads them from the model. The entry
    ``"pyattn.threads"`` bounds how many of the session's threads a kernel uses.

    Raises
    ------
    FileNotFoundError
        When pyattn was built without the library.
    """
    for suffix in (".so", ".dylib", ".dll"):
        path = _folder() / f"{LIBRARY}{suffix}"
        if path.exists():
            return path
    raise FileNotFoundError(f"pyattn was built without {LIBRARY}, its operators for ONNX Runtime")


def session(
    model: Model,
    *,
    accelerate: bool = True,
    threads: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> onnxruntime.InferenceSession:
    """Return a CPU session for a model in memory or in a file.

    Parameters
    ----------
    model:
        A ModelProto, its bytes, or the path of a file.
    accelerate:
        Whether pyattn's kernels run where the model calls a function of the domain ``pyattn``;
        :func:`describe` tells where they do. Otherwise the bodies of the functions run; also where
        ONNX Runtime takes the model with them only, because somebody changed its types to float16,
        for example.
    threads:
        How many, by default :func:`pyattn.runtime.threads`, which heeds the affinity mask and the
        container's limit; ONNX Runtime by itself heeds neither.
    folder:
        Where the files with the weights of a model in memory lie, if it has such.

    Returns
    -------
    onnxruntime.InferenceSession
        Its memory arena grows by what is asked for, because sequence lengths differ from call to
        call.

    Raises
    ------
    ValueError
        For a number of threads below 1.
    ModelError
        A ValueError: when the model is damaged, when its weights are not in plain files inside its
        folder, when its functions call each other without end or constants make it a tensor of
        more than 2**28 entries, and when ONNX Runtime refuses it.
    TypeError
        When ``model`` is nothing of the above.
    FileNotFoundError
        When there is no such file, when one of its weights is missing, or when the model is to be
        accelerated and pyattn was built without the library.

    Notes
    -----
    Of the model itself only what says which nodes there are is read here, not its weights. What a
    run computes, and how much memory that takes, is up to the model.
    """
    needs("onnxruntime", "onnx")
    count = runtime.threads() if threads is None else threads
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"session: threads must be an integer of 1 or more; got {threads!r}")
    source = _content(model)
    if isinstance(source, Path):
        contents = inspect(mapped(source, "session"), source.parent, "session")
    else:
        contents = inspect(source, Path(folder) if folder else None, "session")
    placements = [
        Placement(node, operator, accelerate and has_kernel(operator))
        for node, operator in _calls(contents)
    ]
    names = {x.operator for x in placements if x.accelerated}
    try:
        made = _started(source, folder, count, names)
    except ModelError as refused:
        # A kernel is for the types that its name tells; a body may be for others, too.
        if not names:
            raise
        try:
            made = _started(source, folder, count, set())
        except ModelError:
            raise refused from None
        placements = [replace(x, accelerated=False) for x in placements]
    made._pyattn_placements = tuple(placements)
    return made


def _started(
    source: bytes | Path, folder: str | os.PathLike[str] | None, threads: int, names: set[str]
) -> onnxruntime.InferenceSession:
    """Return a session in which the operators ``names`` have kernels."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if names:
        options.add_session_config_entry("pyattn.operators", ",".join(sorted(names)))
        options.add_session_config_entry("pyattn.threads", str(threads))
        options.register_custom_ops_library(str(custom_ops_library()))
    if folder:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(folder))
    provider = ("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})
    try:
        return onnxruntime.InferenceSession(
            source, options, providers=[provider], enable_fallback=0
        )
    except Exception as error:  # its classes have no other one in common
        raise ModelError(f"session: ONNX Runtime refuses the model: {one_line(error)}") from error


def describe(session: onnxruntime.InferenceSession) -> tuple[Placement, ...]:
    """Return where the attention nodes of a session of :func:`session` run, in their order.

    Raises
    ------
    TypeError
        For a session that was made elsewhere.
    """
    placements = getattr(session, "_pyattn_placements", None)
    if placements is None:
        raise TypeError(f"describe: session must come from pyattn.ort.session; got {session!r}")
    found: tuple[Placement, ...] = placements
    return found


def has_kernel(operator: str) -> bool:
    """Return whether the library has a kernel for a function of the domain ``pyattn``."""
    if "\0" in operator:  # which would end it there
        return False
    known: bool = _library().pyattn_has_operator(operator.encode())
    return known


def _folder() -> Path:
    """Return where the compiled parts are; not beside this file where it was installed editable."""
    core = importlib.util.find_spec("pyattn._core")
    return Path(core.origin if core and core.origin else __file__).parent


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(os.fspath(custom_ops_library()))
    library.pyattn_has_operator.argtypes = [ctypes.c_char_p]
    library.pyattn_has_operator.restype = ctypes.c_bool
    return library


def _content(model: Model) -> bytes | Path:
    """Return what ONNX Runtime is to load: bytes, or the path of a file."""
    if isinstance(model, bytes):
        return model
    if isinstance(model, (str, os.PathLike)):
        return Path(model)
    if not hasattr(model, "SerializeToString"):
        raise TypeError(
            f"session: model must be a path, bytes or a ModelProto; got {type(model).__name__}"
        )
    try:
        content: bytes = model.SerializeToString()
    except Exception as error:  # of protobuf, whose classes differ between its versions
        raise ModelError(f"session: the model cannot be written as bytes: {error}") from error
    return content


def _calls(contents: Contents) -> Iterator[tuple[str, str]]:
    """Yield the name and the operator of each node that calls a function of the domain."""
    for calls in (contents.calls, *contents.bodies.values()):
        for node, (domain, operator) in calls:
            if domain == DOMAIN:
                yield node, operator
