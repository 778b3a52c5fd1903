"""One model: what it takes, what it gives, and how it is run."""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from .datatypes import BY_ONNXRUNTIME, Datatype
from .decoder import decoder_facts
from .failures import InferenceError, ModelError, ServingError
from .layout import Array as Array
from .layout import Extent, Layout, Padded, parse
from .model_file import ModelFile, inspect
from .model_settings import ModelSettings
from .queue import Queue
from .session import ORT_ERRORS, SessionSettings, open_session, run_options, translate
from .statistics import Statistics
from .tokenizer import Tokenizer, find_tokenizer

PLATFORM = "onnxruntime_onnx"
BATCHING = "pyattn.batching"
SWITCH = "pyattn.attention"
_ONNX_BFLOAT16 = 16
_ATTENTION = re.compile("attention_weights_(0|[1-9][0-9]{0,5})")


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
    """A loaded version of a model.

    Parameters
    ----------
    name : str
        The name it is served under.
    path : Path
        The ONNX file.
    session : SessionSettings
    settings : ModelSettings, optional
    version : int
    statistics : Statistics, optional
        Counters to go on with, by default new ones.

    Attributes
    ----------
    inputs, outputs : dict of str to TensorSpec
    attention : dict of int to str
        The outputs with the attention weights of each layer, where the model has them.
    tokenizer : Path or None
        The file of the tokenizer that its metadata names.
    decoder : DecoderFacts
        What the file of a decoder says of itself.
    operators : tuple of str
        pyattn's operators that run as kernels.
    layout : Layout or None
        How requests are batched, where the model says so.
    loaded : int
        When it was, in seconds since 1970.
    queue : Queue
        The requests that wait for it.
    session : InferenceSession
    tokenizer : Tokenizer or str
        What turns text into its inputs, or why there is none.

    Raises
    ------
    ModelError
        The file is missing, corrupt, foreign or unsafe, or has inputs or outputs that are not
        tensors of a datatype of the protocol; what it says of batching is wrong; a run to warm it
        up fails.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        session: SessionSettings,
        settings: ModelSettings | None = None,
        *,
        version: int = 1,
        statistics: Statistics | None = None,
    ) -> None:
        self.name = name
        self.version = str(version)
        self.platform = PLATFORM
        self.settings = settings or ModelSettings()
        self.queue = Queue(self.settings)
        self.statistics = statistics or Statistics()
        file = inspect(path)
        self.session, self.operators = open_session(file, session)
        self.inputs = _specs(self.session.get_inputs(), "input", file)
        self.outputs = _specs(self.session.get_outputs(), "output", file)
        self.attention = _attention(self.outputs)
        self._weights = frozenset(filter(_ATTENTION.fullmatch, self.outputs))
        self._unwanted = _unwanted(self.session, file)
        self._by_value = _needs_values(self.inputs, self.outputs, file)
        self.batching = _batching(file, self.settings)
        self.layout = self._layout(path)
        self.decoder = decoder_facts(file)
        self.tokenizer: Tokenizer | str = find_tokenizer(
            file, self.settings, whole="past_lengths" in self.inputs, end=self.decoder.end
        )
        self._warm_up(path)
        self.loaded = int(time.time())

    @property
    def default_outputs(self) -> list[str]:
        """Outputs of a request that names none: all but the attention weights, if others are."""
        weights = set(self.attention.values())
        return [name for name in self.outputs if name not in weights] or list(self.outputs)

    @property
    def optional_inputs(self) -> frozenset[str]:
        """Inputs that a request may leave out: the mask of what is padding."""
        mask = self.layout.mask if isinstance(self.layout, Padded) else None
        return frozenset(() if mask is None else (mask,))

    def complete(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the inputs with a mask that hides nothing, where it was left out."""
        if not isinstance(self.layout, Padded):
            return feeds
        mask = self.layout.mask
        if mask is None or mask in feeds:
            return feeds
        shape = self.layout.mask_shape(feeds, self.inputs[mask].wire_shape)
        return {**feeds, mask: np.ones(shape, self.inputs[mask].datatype.dtype)}

    def measure(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> Extent | None:
        """Return the extent of a request in a batch, None where it runs by itself."""
        extent = self.layout.measure(feeds, outputs) if self.layout else None
        if extent is None or self._weights.isdisjoint(outputs):
            return extent
        # Requests without attention weights must not wait for those of others.
        return replace(extent, key=("attention", extent.key))

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
        given = {**feeds, **(self._unwanted if self._weights.isdisjoint(outputs) else {})}
        try:
            if self._by_value:
                arrays = self._run_by_value(given, outputs, options)
            else:
                arrays = self.session.run(list(outputs), given, options)
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
        results = self.session.run_with_ort_values(list(outputs), values, options)
        return [_from_value(result) for result in results]

    def _layout(self, path: Path) -> Layout | None:
        if self.batching is None:
            return None
        try:
            layout = parse(self.batching, tuple(self.inputs), tuple(self.outputs))
            if isinstance(layout, Padded):
                for name, axes in layout.inputs.items():
                    _check_pad(self.inputs[name], axes.pad)
            return layout
        except ModelError as error:
            raise ModelError(f"model file {path}: {error}") from None

    def _warm_up(self, path: Path) -> None:
        """Run the model as its settings say, so that the first request does not pay for it."""
        warmup = self.settings.warmup
        if isinstance(warmup, bool):
            if warmup:
                ones = {
                    name: tuple(1 if size == -1 else size for size in spec.wire_shape)
                    for name, spec in self.inputs.items()
                }
                with contextlib.suppress(ServingError):
                    self._run_zeros(ones)
            return
        for shapes in warmup:
            if set(shapes) != set(self.inputs):
                raise ModelError(
                    f"model file {path}: the warm-up has the inputs {sorted(shapes)}; "
                    f"the model has {sorted(self.inputs)}"
                )
            try:
                self._run_zeros(shapes)
            except ServingError as error:
                raise ModelError(f"model file {path}: the warm-up failed: {error}") from error

    def _run_zeros(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        feeds = {}
        for name, shape in shapes.items():
            datatype = self.inputs[name].datatype
            feeds[name] = np.full(shape, "" if datatype.kind == "s" else 0, datatype.dtype)
        self.run(feeds, tuple(self.outputs), run_options())


def _check_pad(spec: TensorSpec, pad: Any) -> None:
    """Raise `ModelError` unless an array of the input can hold `pad`."""
    try:
        fits = isinstance(pad, str) == (spec.datatype.kind == "s")
        fits = fits and np.array(pad, spec.datatype.dtype).item() == pad
    except (OverflowError, ValueError):
        fits = False
    if not fits:
        raise ModelError(
            f"batching: {spec.name!r} of {spec.datatype.name} cannot be filled up with {pad!r}"
        )


def _batching(file: ModelFile, settings: ModelSettings) -> Any:
    """Return the table of the model's axes, of the settings or of the file."""
    if settings.batching is not None or BATCHING not in file.metadata:
        return settings.batching
    try:
        return json.loads(file.metadata[BATCHING])
    except (ValueError, RecursionError):
        raise ModelError(f"model file {file.path}: {BATCHING!r} is not JSON") from None


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


def _attention(outputs: Mapping[str, TensorSpec]) -> dict[int, str]:
    """Return the outputs ``attention_weights_0``, ... of shape (B, H, T, S), by layer."""
    layers = {}
    for name, spec in outputs.items():
        found = _ATTENTION.fullmatch(name)
        if found and spec.datatype.kind == "f" and spec.shape is not None and len(spec.shape) == 4:
            layers[int(found[1])] = name
    return dict(sorted(layers.items()))


def _unwanted(session: ort.InferenceSession, file: ModelFile) -> dict[str, Array]:
    """Return what is fed to a model where no attention weights are wanted."""
    optional = {arg.name: arg.type for arg in session.get_overridable_initializers()}
    name = file.metadata.get(SWITCH)
    if name is None:
        return {}
    if optional.get(name) != "tensor(bool)":
        raise ModelError(f"model file {file.path}: {SWITCH!r} names no input with a value")
    return {name: np.array(False)}


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
