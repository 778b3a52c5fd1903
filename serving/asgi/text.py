"""The endpoints for text: the generate extension of the protocol, and OpenAI's API."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from ..engine.engine import Engine
from ..engine.layout import Array
from ..engine.model import Model
from ..protocol.json_text import parse_json
from ..text.embedding import embed
from ..text.encoding import encode
from ..text.fields import Fields
from ..text.generation import Generation, Writers
from ..text.requests import TextRequest, check_completion
from .admission import Admission
from .body import Limits, collect
from .content import JSON, check_content
from .endpoints import INLINE_BYTES, Endpoints, while_connected
from .errors import HttpError
from .request import Request
from .responses import EventStream, Response
from .routing import Route
from .text_events import Completion, text_events


class TextEndpoints:
    """The endpoints, over one engine."""

    def __init__(
        self, engine: Engine, endpoints: Endpoints, limits: Limits, admission: Admission
    ) -> None:
        self._engine = engine
        self._endpoints = endpoints
        self._limits = limits
        self._admission = admission
        self._writers = Writers(engine)

    def routes(self) -> list[Route]:
        """Return the routes."""
        routes = [
            Route("/v1/models", {"GET": self.models}),
            Route("/v1/models/{model}", {"GET": self.model}),
            Route("/v1/embeddings", {"POST": self.embeddings}),
            Route("/v1/completions", {"POST": self.completions}),
        ]
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(f"{model}/generate", {"POST": self.generate}),
                Route(f"{model}/generate_stream", {"POST": self.generate_stream}),
            ]
        return routes

    async def models(self, _request: Request, _path: Mapping[str, str]) -> Response:
        """Answer with the models that are served."""
        ordered = sorted(self._engine.models, key=lambda model: (model.name, int(model.version)))
        newest = {model.name: model for model in ordered}
        listed = [_listed(model) for model in newest.values()]
        return _json({"object": "list", "data": listed})

    async def model(self, _request: Request, path: Mapping[str, str]) -> Response:
        """Answer with one of them."""
        return _json(_listed(self._engine.model(path["model"])))

    async def generate(self, request: Request, path: Mapping[str, str]) -> Response:
        """Answer with the text that follows another one."""
        self._endpoints.check_open()
        with self._admission.hold() as hold:
            fields = await self._fields(request, hold)
            hold.begin()
            return await while_connected(request, self._generate(fields, path))

    async def generate_stream(self, request: Request, path: Mapping[str, str]) -> EventStream:
        """Answer with the pieces of the text as they come."""
        self._endpoints.check_open()
        with self._admission.hold() as hold:
            fields = await self._fields(request, hold)
            answer, generation = await self._begin_generate(fields, path)
        return EventStream(text_events(generation, answer), generation.cancel)

    async def completions(
        self, request: Request, _path: Mapping[str, str]
    ) -> Response | EventStream:
        """Answer with the texts that follow some prompts, at once or as they come."""
        self._endpoints.check_open()
        with self._admission.hold() as hold:
            fields = await self._fields(request, hold)
            if not fields.flag("stream"):
                hold.begin()
                return await while_connected(request, self._completions(fields))
            completion, generation = await self._begin_completion(fields)
            with_usage = Fields(fields.get("stream_options") or {}, "'stream_options'").flag(
                "include_usage"
            )
        return EventStream(completion.events(generation, with_usage), generation.cancel)

    async def _generate(self, fields: Fields, path: Mapping[str, str]) -> Response:
        answer, generation = await self._begin_generate(fields, path)
        text = "".join([piece.text async for _, piece in generation])
        return _json({**answer, "text_output": text})

    async def _begin_generate(
        self, fields: Fields, path: Mapping[str, str]
    ) -> tuple[dict[str, Any], Generation]:
        model = self._engine.model(path["model"], path.get("version"))
        parameters = fields.get("parameters")
        request = TextRequest.parse(Fields({} if parameters is None else parameters, "parameters"))
        prompts = await self._engine.offload(
            encode, model, [fields.string("text_input")], "text_input"
        )
        answer = {"model_name": model.name, "model_version": model.version}
        if fields.get("id") is not None:
            answer["id"] = fields.string("id")
        return answer, await self._writers.write(model, prompts, request, "text_input")

    async def _completions(self, fields: Fields) -> Response:
        completion, generation = await self._begin_completion(fields)
        return _json(await completion.answer(generation))

    async def _begin_completion(self, fields: Fields) -> tuple[Completion, Generation]:
        model = self._engine.model(fields.string("model"))
        check_completion(fields)
        request = TextRequest.parse(fields, temperature=1.0)
        prompts = await self._engine.offload(encode, model, fields.texts("prompt"), "prompt")
        generation = await self._writers.write(model, prompts, request, "prompt")
        return Completion(model.name, prompts), generation

    async def embeddings(self, request: Request, _path: Mapping[str, str]) -> Response:
        """Answer with the vectors of texts."""
        self._endpoints.check_open()
        with self._admission.hold() as hold:
            fields = await self._fields(request, hold)
            hold.begin()
            return await while_connected(request, self._embeddings(fields))

    async def _embeddings(self, fields: Fields) -> Response:
        model = self._engine.model(fields.string("model"))
        fields.only("encoding_format", "float", "base64")
        fields.only("dimensions")
        given = fields.texts("input")
        texts = await self._engine.offload(encode, model, given, "input")
        vectors = await embed(self._engine, model, texts)
        as_text = fields.get("encoding_format") == "base64"
        count = sum(map(len, texts))
        return await self._engine.offload(_vectors, model, vectors, count, as_text)

    async def _fields(self, request: Request, hold: Any) -> Fields:
        """Return the JSON object of a request, and count its bytes."""
        content = check_content(request)
        if content.json_length is not None:
            raise HttpError(400, "tensors in binary have no place in a request for text")
        body = await collect(request, self._limits, None, content.encoding, hold)
        if len(body) > INLINE_BYTES:
            return Fields(await self._engine.offload(parse_json, bytes(body)))
        return Fields(parse_json(bytes(body)))


def _listed(model: Model) -> dict[str, Any]:
    """Return a model as OpenAI's API lists it."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.loaded,
        "owned_by": "pyattn-serve",
    }


def _vectors(model: Model, vectors: list[Array], tokens: int, as_text: bool) -> Response:
    data = [
        {"object": "embedding", "index": i, "embedding": _vector(vector, as_text)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _json({"object": "list", "model": model.name, "data": data, "usage": usage})


def _vector(vector: Array, as_text: bool) -> Any:
    numbers = np.ascontiguousarray(vector, np.float32)
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode() if as_text else numbers


def _json(content: Any) -> Response:
    return Response(
        200, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), {"content-type": JSON}
    )
