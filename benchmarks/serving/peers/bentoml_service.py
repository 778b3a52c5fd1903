"""BentoML: a service with an endpoint for each model, with its adaptive batching."""

from __future__ import annotations

import bentoml
import numpy as np
from numpy.typing import NDArray
from session import session

BATCHING = {"batchable": True, "max_batch_size": 16, "max_latency_ms": 10_000}


QUIET = {"access": {"enabled": False}}


@bentoml.service(workers=1, traffic={"timeout": 60}, logging=QUIET)
class OnnxRuntime:
    """Three ONNX models. Requests are JSON of nested lists."""

    def __init__(self) -> None:
        self._small, self._image = session("small"), session("image")
        self._minilm = session("minilm")

    @bentoml.api(**BATCHING)  # type: ignore[untyped-decorator]
    def small(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of numbers."""
        return self._small.run(None, {"x": x.astype(np.float32, copy=False)})[0]  # type: ignore[no-any-return]

    @bentoml.api(**BATCHING)  # type: ignore[untyped-decorator]
    def image(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images."""
        return self._image.run(None, {"x": x.astype(np.float32, copy=False)})[0]  # type: ignore[no-any-return]

    @bentoml.api(batch_dim=0, **BATCHING)  # type: ignore[untyped-decorator]
    def minilm(self, input_ids: list[list[int]]) -> NDArray[np.float32]:
        """Sentences, filled up to the longest of them."""
        ids = np.zeros((len(input_ids), max(map(len, input_ids))), np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(input_ids):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        return self._minilm.run(None, inputs)[0]  # type: ignore[no-any-return]
