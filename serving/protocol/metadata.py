"""What the server and its models say about themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from ..engine.model import Model, TensorSpec

SERVER_NAME = "pyattn-serve"
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
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


def _tensors(specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    return [
        {"name": spec.name, "datatype": spec.datatype.name, "shape": spec.wire_shape}
        for spec in specs.values()
    ]
