"""The endpoint that shows the attention of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ..engine.engine import Engine
from ..engine.model import Model
from ..protocol.attention import LISTS, attention_options, encode_attention
from ..protocol.infer import InferRequest, decode_request
from ..protocol.tokenize import ids_input, tokens_of
from .content import JSON
from .endpoints import Endpoints, encoded_response
from .request import Request
from .responses import Response
from .routing import Route


class AttentionEndpoint:
    """``.../attention``: the request of an inference, answered with weights of attention."""

    def __init__(self, engine: Engine, endpoints: Endpoints) -> None:
        self._engine = engine
        self._endpoints = endpoints

    def routes(self) -> list[Route]:
        """Return the routes, with and without a version."""
        return [
            Route(f"{model}/attention", {"POST": self.attention})
            for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        ]

    async def attention(self, request: Request, path: Mapping[str, str]) -> Response:
        """Run a model and answer with its attention."""
        return await self._endpoints.work(request, path, self._attention)

    async def _attention(
        self, model: Model, body: memoryview, json_length: int | None, encoding: str | None
    ) -> Response:
        arrived = asyncio.get_running_loop().time()
        offload = self._engine.offload
        request = await offload(decode_request, model, body, json_length, LISTS)
        options = attention_options(model, request)
        asked = [choice.name for choice in request.outputs] if request.named else []
        # An output that is asked for may be one of the weights.
        names = list(dict.fromkeys([*(model.attention[i] for i in options.layers), *asked]))
        arrays = await self._endpoints.run(model, request, names, arrived)
        found = dict(zip(names, arrays, strict=True))

        def answer() -> Response:
            tokens = _tokens(model, request)
            content = encode_attention(model, request, options, found, tokens)
            return encoded_response((content,), {"content-type": JSON}, encoding)

        return await offload(answer)


def _tokens(model: Model, request: InferRequest) -> list[list[str | None]] | None:
    """Return the tokens of the input; without a tokenizer the answer has none."""
    name = ids_input(model)
    return None if name is None else tokens_of(model, request.feeds[name])
