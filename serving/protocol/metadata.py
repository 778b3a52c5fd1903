"""What the server and its models say about themselves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from ..engine.model import Model, TensorSpec

SERVER_NAME = "pyattn-serve"
EXTENSIONS = (
    "binary_tensor_data",
    "generate",
    "logging",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
    "trace",
)


def server_version() -> str:
    """Return the version of the installed distribution, or "source" when run from a folder."""
    try:
        return metadata.version("pyattn")
    except metadata.PackageNotFoundError:
        return "source"


def server_metadata() -> dict[str, Any]:
    """Return the answer to ``GET /v2``."""
    return {"name": SERVER_NAME, "version": server_version(), "extensions": list(EXTENSIONS)}


def model_metadata(model: Model, versions: Sequence[str]) -> dict[str, Any]:
    """Return the answer to ``GET /v2/models/{name}``."""
    return {
        "name": model.name,
        "versions": list(versions),
        "platform": model.platform,
        "inputs": _tensors(model.inputs),
        "outputs": _tensors(model.outputs),
    }


def log_settings(level: int) -> dict[str, Any]:
    """Return the answer to ``GET /v2/logging`` for a level of Python's logging."""
    return {
        "log_file": "",
        "log_info": level <= logging.INFO,
        "log_warning": level <= logging.WARNING,
        "log_error": level <= logging.ERROR,
        "log_verbose_level": int(level <= logging.DEBUG),
        "log_format": "default",
    }


def trace_settings() -> dict[str, Any]:
    """Return the answer to ``GET /v2/trace/setting``: there are no traces."""
    return {
        "trace_level": ["OFF"],
        "trace_rate": "1000",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_file": "",
        "trace_mode": "triton",
    }


def _tensors(specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    return [
        {"name": spec.name, "datatype": spec.datatype.name, "shape": spec.wire_shape}
        for spec in specs.values()
    ]
