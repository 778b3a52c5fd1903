"""MLServer: a custom runtime around a session, with its codecs for NumPy arrays."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from session import session


class OnnxRuntime(MLModel):  # type: ignore[misc]
    """Any ONNX model; the name of the model tells its file."""

    async def load(self) -> bool:
        """Open the model."""
        self._session = session(self.name)
        self._outputs = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run one request, or a batch that MLServer has put together."""
        inputs = {one.name: self.decode(one, default_codec=NumpyCodec) for one in payload.inputs}
        arrays = self._session.run(self._outputs, inputs)
        outputs = [
            NumpyCodec.encode_output(name, array)
            for name, array in zip(self._outputs, arrays, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)
