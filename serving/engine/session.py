"""ONNX Runtime sessions with options that suit a server, and its errors put into ours.

The choices, and what they did on a two-core machine with a model of six attention layers:

- threads come from the affinity mask and the control group (``cpus.py``);
- no memory pattern and no arena on the processor: with dynamic shapes ONNX Runtime keeps one plan
  per shape and never gives memory back (after 150 random shapes the resident set was 175 MB,
  against 127 MB without them, in the same time);
- no spinning by default: it burns the cores that parse the requests. With it a lone client waited
  4 to 14 % less for short inputs, but four clients got 20 to 30 % fewer answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from .failures import (
    InferenceError,
    InvalidRequestError,
    ModelError,
    ServingError,
    UnavailableError,
)
from .model_file import ModelFile
from .operators import Operators

ORT_ERRORS = (
    state.EPFail,
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoModel,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
    RuntimeError,
    MemoryError,
)

_FATAL_ONLY = 4  # ONNX Runtime's log level; every error also comes as an exception
_TERMINATED = "terminate flag"
# Operands that do not fit together reach us as plain failures, not as invalid arguments.
_OPERAND_MISMATCH = (
    "Attempting to broadcast",
    "dimension mismatch",
    "dimensions must match",
    "cannot be reshaped to the requested shape",
    "must be greater than 0",
)
_CODE = re.compile(r"^(\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : )+")
_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'.*?' ")
_SOURCE = re.compile(r"\S+\.(?:cc|cpp|h|hpp):\d+ (?:[^()]{0,200}\([^()]*\) (?:const )?)?")
_ASSERTION = re.compile(r"Status Message: .* was false\. ")
_PATH = re.compile(r"(?:[A-Za-z]:\\|(?<![\w.])/)[^\s:'\"]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How models are run.

    Attributes
    ----------
    threads : int
        Threads of ONNX Runtime for one run.
    spin : bool
        Whether idle threads of ONNX Runtime spin.
    operators : Operators or None
        pyattn's kernels, for models that call its functions.
    """

    threads: int
    spin: bool = False
    operators: Operators | None = None


def open_session(
    file: ModelFile, settings: SessionSettings
) -> tuple[ort.InferenceSession, tuple[str, ...]]:
    """Return a session for a checked file, and the names of pyattn's operators that it runs.

    Raises `ModelError` with ONNX Runtime's reason on one line.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "1" if settings.spin else "0"
    )
    names: tuple[str, ...] = ()
    if settings.operators is not None and file.operators:
        names = settings.operators.kernels(file.operators)
        if names and not settings.operators.register(options, names, settings.threads):
            names = ()
    try:
        session = ort.InferenceSession(file.path, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise ModelError(f"model file {file.path}: {one_line(str(error))}") from error
    return session, names


def run_options() -> ort.RunOptions:
    """Return options for one run; setting ``terminate`` on them ends it at the next node."""
    options = ort.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    return options


def translate(error: BaseException, feeds: Mapping[str, Any]) -> ServingError:
    """Return the failure that the client is told for an error of ONNX Runtime.

    An invalid argument is the request's fault, and so are operands whose shapes do not fit
    together, and a size of 0 that an operator does not take. Everything else, such as memory that
    cannot be had, is the server's.
    """
    text = str(error)
    if _TERMINATED in text:
        return UnavailableError("the inference was stopped")
    if isinstance(error, state.InvalidArgument) or any(m in text for m in _OPERAND_MISMATCH):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        return InvalidRequestError(f"the model refused the inputs ({shapes}): {one_line(text)}")
    if isinstance(error, UnicodeDecodeError):
        return InferenceError("the model returned a string that is not UTF-8")
    return InferenceError(f"the model failed: {one_line(text)}")


def one_line(message: str, limit: int = 300) -> str:
    """Return the reason inside a message of ONNX Runtime: one line, no source or local paths.

    >>> one_line("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned "
    ...          "while running Gather node. Name:'g' Status Message: idx=7 is out of bounds")
    'Gather: idx=7 is out of bounds'
    """
    text = " ".join(message.split())
    text = _CODE.sub("", text)
    text = _ASSERTION.sub("Status Message: ", text)
    text = _NODE.sub(r"\1: ", text).replace("Status Message: ", "")
    text = _SOURCE.sub("", text)
    text = _CODE.sub("", text)
    text = _PATH.sub("(path)", text)
    return text if len(text) <= limit else text[: limit - 3] + "..."
