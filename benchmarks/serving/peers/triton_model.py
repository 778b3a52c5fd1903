"""Triton: a model of its backend for Python, copied into its repository for each ONNX model."""

from __future__ import annotations

import os
import sys
from typing import Any

sys.path[:0] = [os.environ["PEER_FOLDER"], os.environ["PEER_PACKAGES"]]

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from session import session  # noqa: E402


class TritonPythonModel:
    """Any ONNX model whose inputs are (rows, ...)."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Open the model."""
        self._session = session(args["model_name"])
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._outputs = [one.name for one in self._session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run all requests of a batch, which Triton makes of requests with the same shapes."""
        columns = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            for name in self._inputs
        ]
        joined = {
            name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            for name, arrays in zip(self._inputs, columns, strict=True)
        }
        ends = np.cumsum([len(array) for array in columns[0]])[:-1]
        parts = [np.split(array, ends) for array in self._session.run(self._outputs, joined)]
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor(name, array)
                    for name, array in zip(self._outputs, arrays, strict=True)
                ]
            )
            for arrays in zip(*parts, strict=True)
        ]
