"""The endpoint that turns text into tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..engine.engine import Engine
from ..protocol.tokenize import tokenize
from .body import Limits, collect
from .content import check_content
from .endpoints import Endpoints
from .request import Request
from .responses import Response, json_response
from .routing import Route

MAX_TEXT = 1 << 20  # bytes of a request; a tokenizer takes about a second for so much


class TokenizeEndpoint:
    """``.../tokenize``: text in, token numbers out."""

    def __init__(self, engine: Engine, endpoints: Endpoints, limits: Limits) -> None:
        self._engine = engine
        self._endpoints = endpoints
        self._limits = dataclasses.replace(limits, max_body=min(MAX_TEXT, limits.max_body))

    def routes(self) -> list[Route]:
        """Return the routes, with and without a version."""
        return [
            Route(f"{model}/tokenize", {"POST": self.tokenize})
            for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        ]

    async def tokenize(self, request: Request, path: Mapping[str, str]) -> Response:
        """Answer with ids, tokens and offsets of each text."""
        self._endpoints.check_open()
        model = self._endpoints.model_of(path)
        encoding = check_content(request).encoding
        body = await collect(request, self._limits, encoding=encoding)
        return json_response(await self._engine.offload(tokenize, model, bytes(body)))
