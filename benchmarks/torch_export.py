"""Files that ``torch.onnx.export`` makes, by its two exporters; they last as the process does."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

Axes = Mapping[str, Mapping[int, str]]  # the names of the dynamic axes of each input and output


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="pyattn-benchmarks-")


def path(name: str) -> str:
    """Where a file of that name may lie."""
    return str(Path(_folder().name) / name)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of the exporters, which would run into the progress bars."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def dynamo(
    name: str, module: Any, inputs: Mapping[str, Any], outputs: list[str], shapes: Any
) -> str:
    """The exporter built on torch.export, the default; ``shapes`` are its dynamic shapes."""
    return _export(f"{name}-dynamo", module, inputs, outputs, dynamo=True, dynamic_shapes=shapes)


def traced(
    name: str, module: Any, inputs: Mapping[str, Any], outputs: list[str], axes: Axes
) -> str:
    """The older exporter, built on TorchScript tracing."""
    return _export(f"{name}-traced", module, inputs, outputs, dynamo=False, dynamic_axes=axes)


@quiet()
def _export(
    name: str, module: Any, inputs: Mapping[str, Any], outputs: list[str], **how: Any
) -> str:
    target = path(f"{name}.onnx")
    import_module("torch").onnx.export(
        module, tuple(inputs.values()), target, input_names=list(inputs), output_names=outputs,
        verbose=False, **how,
    )  # fmt: skip
    return target
