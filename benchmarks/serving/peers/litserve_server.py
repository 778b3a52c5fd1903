"""LitServe: an API for each model, with its batching; requests are JSON of nested lists."""

from __future__ import annotations

import os
from typing import Any

import litserve
import numpy as np
from numpy.typing import NDArray
from session import session

Arrays = dict[str, NDArray[Any]]


class OnnxRuntime(litserve.LitAPI):  # type: ignore[misc]
    """Any ONNX model, whose inputs are (rows, ...)."""

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(api_path=f"/{model}", **options)
        self._model = model

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Open the model, in the worker."""
        self._session = session(self._model)
        self._types = {
            one.name: np.int64 if "int64" in one.type else np.float32
            for one in self._session.get_inputs()
        }
        self._outputs = [output.name for output in self._session.get_outputs()]

    def decode_request(self, request) -> Arrays:  # type: ignore[no-untyped-def]
        """Arrays of a request, whose annotation LitServe would take for a field of a form."""
        return {name: np.array(request[name], dtype) for name, dtype in self._types.items()}

    def batch(self, inputs: list[Arrays]) -> Arrays:
        """One array of many; tokens are filled up to the longest, which the mask hides."""
        return {name: _stack([one[name] for one in inputs]) for name in self._types}

    def predict(self, x: Arrays) -> list[NDArray[Any]]:
        """Run the model."""
        return list(self._session.run(self._outputs, x))

    def unbatch(self, output: list[NDArray[Any]]) -> list[list[NDArray[Any]]]:
        """The rows of each request, which is one row here."""
        return [[array[i : i + 1] for array in output] for i in range(len(output[0]))]

    def encode_response(self, output: list[NDArray[Any]]) -> dict[str, Any]:
        """Lists for JSON."""
        return {name: array.tolist() for name, array in zip(self._outputs, output, strict=True)}


def _stack(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    if arrays[0].ndim != 2 or len({array.shape[1] for array in arrays}) == 1:
        return np.concatenate(arrays)
    filled = np.zeros((len(arrays), max(array.shape[1] for array in arrays)), arrays[0].dtype)
    for row, array in zip(filled, arrays, strict=True):
        row[: array.shape[1]] = array[0]
    return filled


if __name__ == "__main__":
    batching = {"max_batch_size": 16, "batch_timeout": 0.002}
    server = litserve.LitServer(
        [OnnxRuntime(name, **batching) for name in ("small", "image", "minilm")],
        accelerator="cpu",
        workers_per_device=1,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PEER_PORT"]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
