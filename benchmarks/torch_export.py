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


@quiet()
def dynamo(
    name: str, module: Any, inputs: Mapping[str, Any], outputs: list[str], shapes: Any
) -> str:
    """The exporter built on torch.export, the default; ``shapes`` are its dynamic shapes."""
    target = path(f"{name}-dynamo.onnx")
    import_module("torch").onnx.export(
        module, tuple(inputs.values()), target, dynamo=True, input_names=list(inputs),
        output_names=outputs, dynamic_shapes=shapes, verbose=False,
    )  # fmt: skip
    return target


@quiet()
def traced(
    name: str, module: Any, inputs: Mapping[str, Any], outputs: list[str], axes: Axes
) -> str:
    """The older exporter, built on TorchScript tracing."""
    target = path(f"{name}-traced.onnx")
    import_module("torch").onnx.export(
        module, tuple(inputs.values()), target, dynamo=False, input_names=list(inputs),
        output_names=outputs, dynamic_axes=axes,
    )  # fmt: skip
    return target
