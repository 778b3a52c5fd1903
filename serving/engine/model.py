"""One model: what it takes, what it gives, and how it is run."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from .datatypes import BY_ONNXRUNTIME, Datatype
from .failures import InferenceError, ModelError
from .model_file import ModelFile, inspect
from .session import ORT_ERRORS, open_session, translate

Array = np.ndarray[Any, np.dtype[Any]]
VERSION = "1"
PLATFORM = "onnxruntime_onnx"
_ONNX_BFLOAT16 = 16


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a model.

    Attributes
    ----------
    name : str
    datatype : Datatype
    shape : tuple of (int, str or None), or None
        Size, name or nothing known of each dimension; None when not even the rank is known.
    """

    name: str
    datatype: Datatype
    shape: tuple[int | str | None, ...] | None

    @property
    def wire_shape(self) -> list[int]:
        """Shape as the protocol writes it, -1 for a free dimension; an unknown rank is ``[-1]``."""
        if self.shape is None:
            return [-1]
        return [size if isinstance(size, int) else -1 for size in self.shape]


class Model:
    """A loaded model.

    Parameters
    ----------
    name : str
        The name it is served under.
    path : Path
        The ONNX file.
    threads : int
        Threads of ONNX Runtime for one run.
    spin : bool
        Whether idle threads of ONNX Runtime spin.

    Raises
    ------
    ModelError
        The file is missing, corrupt, foreign or unsafe, or has inputs or outputs that are not
        tensors of a datatype of the protocol.
    """

    def __init__(self, name: str, path: Path, *, threads: int, spin: bool = False) -> None:
        self.name = name
        self.version = VERSION
        self.platform = PLATFORM
        file = inspect(path)
        self._session = open_session(path, threads, spin)
        self.inputs = _specs(self._session.get_inputs(), "input", file)
        self.outputs = _specs(self._session.get_outputs(), "output", file)
        self._by_value = _needs_values(self.inputs, self.outputs, file)

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], options: ort.RunOptions
    ) -> list[Array]:
        """Run the model and return the named outputs in that order.

        Raises
        ------
        InvalidRequestError
            ONNX Runtime finds the inputs at fault.
        InferenceError
            The model fails otherwise.
        UnavailableError
            The run was terminated through `options`.
        """
        try:
            if self._by_value:
                arrays = self._run_by_value(feeds, outputs, options)
            else:
                arrays = self._session.run(list(outputs), dict(feeds), options)
        except (*ORT_ERRORS, UnicodeDecodeError) as error:
            raise translate(error, feeds) from error
        if any(array is None for array in arrays):
            raise InferenceError("the model left an optional output empty")
        return [np.asarray(array) for array in arrays]

    def _run_by_value(
        self, feeds: Mapping[str, Array], outputs: Sequence[str], options: ort.RunOptions
    ) -> list[Array]:
        """Run with ONNX Runtime's own values, the only way in and out for bfloat16."""
        values = {name: _to_value(array) for name, array in feeds.items()}
        results = self._session.run_with_ort_values(list(outputs), values, options)
        return [_from_value(result) for result in results]


def _specs(declared: Sequence[ort.NodeArg], kind: str, file: ModelFile) -> dict[str, TensorSpec]:
    specs = {}
    for arg in declared:
        datatype = BY_ONNXRUNTIME.get(arg.type)
        if datatype is None:
            raise ModelError(
                f"model file {file.path}: {kind} {arg.name!r} is {arg.type}, "
                "which the protocol cannot carry"
            )
        shape = None if arg.name in file.unranked else tuple(arg.shape)
        specs[arg.name] = TensorSpec(arg.name, datatype, shape)
    return specs


def _needs_values(
    inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec], file: ModelFile
) -> bool:
    names = {spec.datatype.name for spec in (*inputs.values(), *outputs.values())}
    if {"BF16", "BYTES"} <= names:
        raise ModelError(
            f"model file {file.path}: bfloat16 and string tensors in one model are not supported"
        )
    return "BF16" in names


def _to_value(array: Array) -> ort.OrtValue:
    if array.dtype.name == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), _ONNX_BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: ort.OrtValue) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    dtype = BY_ONNXRUNTIME["tensor(bfloat16)"].dtype
    shape = value.shape()
    count = int(np.prod(shape, dtype=np.int64))
    content = ctypes.string_at(value.data_ptr(), count * dtype.itemsize) if count else b""
    return np.frombuffer(content, dtype).reshape(shape)
