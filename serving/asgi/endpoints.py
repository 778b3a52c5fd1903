"""The endpoints of the protocol."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast

from ..engine.engine import Engine
from ..engine.failures import DeadlineError, UnavailableError
from ..engine.model import Array, Model
from ..protocol.infer import InferRequest, decode_request, encode_response
from ..protocol.metadata import (
    log_settings,
    model_metadata,
    server_metadata,
    trace_settings,
)
from .access import Access
from .admission import Admission
from .body import Limits, collect
from .compression import accepted_encoding, compress
from .content import BINARY, JSON, LENGTH_HEADER, check_content
from .errors import ClientGoneError, HttpError
from .lifecycle import Lifecycle
from .openapi import document
from .request import Request
from .responses import Response, json_response
from .routing import Route

Result = TypeVar("Result")

# Up to this many bytes, decoding in the event loop takes less time than a change of thread.
INLINE_BYTES = 32 << 10
# Up to this many bytes, joining the parts of an answer takes less time than sending them apart.
JOINED_BYTES = 256 << 10

# From a model, a body, the length of its JSON and an encoding that the client takes, to the answer.
Work = Callable[[Model, memoryview, int | None, str | None], Coroutine[Any, Any, Response]]


class Endpoints:
    """The endpoints, over one engine."""

    def __init__(
        self, engine: Engine, lifecycle: Lifecycle, limits: Limits, admission: Admission
    ) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        self._limits = limits
        self._admission = admission

    def routes(self) -> list[Route]:
        """Return the routes; those of a model exist with and without a version."""
        routes = [
            Route("/v2", {"GET": self.server}),
            Route("/v2/health/live", {"GET": self.live}, Access.OPEN),
            Route("/v2/health/ready", {"GET": self.ready}, Access.OPEN),
            Route("/v2/openapi.json", {"GET": self.openapi}),
            Route("/v2/logging", {"GET": self.logging}),
            Route("/v2/trace/setting", {"GET": self.trace}),
            Route("/v2/models/{model}/trace/setting", {"GET": self.model_trace}),
        ]
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(model, {"GET": self.model}),
                Route(f"{model}/ready", {"GET": self.model_ready}),
                Route(f"{model}/infer", {"POST": self.infer}),
            ]
        return routes

    async def server(self, _request: Request, _path: Mapping[str, str]) -> Response:
        """Answer with the server's name, version and extensions."""
        return json_response(server_metadata())

    async def live(self, _request: Request, _path: Mapping[str, str]) -> Response:
        """Answer that the process works, whether or not it takes inferences."""
        return json_response({"live": True, "ready": self._refusal() is None})

    async def ready(self, _request: Request, _path: Mapping[str, str]) -> Response:
        """Answer whether inferences are taken: 200, or 503 with the reason."""
        return self._readiness({"live": True})

    async def model(self, _request: Request, path: Mapping[str, str]) -> Response:
        """Answer with the inputs and outputs of a model."""
        model = self.model_of(path)
        return json_response(model_metadata(model, self._engine.versions(model.name)))

    async def model_ready(self, _request: Request, path: Mapping[str, str]) -> Response:
        """Answer whether inferences of a model are taken."""
        return self._readiness({"name": self.model_of(path).name})

    async def openapi(self, _request: Request, _path: Mapping[str, str]) -> Response:
        """Answer with the description of all endpoints."""
        return Response(200, document(), {"content-type": JSON})

    async def logging(self, _request: Request, _path: Mapping[str, str]) -> Response:
        """Answer with what is logged."""
        return json_response(log_settings(logging.getLogger("pyattn_serving").getEffectiveLevel()))

    async def trace(self, _request: Request, _path: Mapping[str, str]) -> Response:
        """Answer with what is traced."""
        return json_response(trace_settings())

    async def model_trace(self, _request: Request, path: Mapping[str, str]) -> Response:
        """Answer with what is traced of a model."""
        self.model_of(path)
        return json_response(trace_settings())

    async def infer(self, request: Request, path: Mapping[str, str]) -> Response:
        """Run a model."""
        return await self.work(request, path, self._infer)

    async def work(self, request: Request, path: Mapping[str, str], work: Work) -> Response:
        """Receive a body and answer with what `work` makes of it, while the client is there."""
        self.check_open()
        model = self.model_of(path)
        content = check_content(request)
        json_length = content.json_length
        with self._admission.hold() as hold:
            body = await collect(request, self._limits, json_length, content.encoding, hold)
            hold.begin()
            if json_length is not None and json_length > len(body):
                raise HttpError(
                    400, f"{LENGTH_HEADER} is {json_length}, but the body has {len(body)} bytes"
                )
            encoding = accepted_encoding(request.listed("accept-encoding"))
            return await while_connected(request, work(model, body, json_length, encoding))

    async def _infer(
        self, model: Model, body: memoryview, json_length: int | None, encoding: str | None
    ) -> Response:
        arrived = asyncio.get_running_loop().time()
        if len(body) > INLINE_BYTES:
            request = await self._engine.offload(decode_request, model, body, json_length)
        else:
            request = decode_request(model, body, json_length)
        names = [choice.name for choice in request.outputs]
        arrays = await self.run(model, request, names, arrived)
        if sum(array.nbytes for array in arrays) > INLINE_BYTES:
            return await self._engine.offload(_response, model, request, arrays, encoding)
        return _response(model, request, arrays, encoding)

    async def run(
        self, model: Model, request: InferRequest, names: Sequence[str], arrived: float
    ) -> list[Array]:
        """Run a model; the time that the client gives counts from the arrival of its body."""
        options = request.options
        timeout = options.timeout
        if timeout is not None:
            timeout -= asyncio.get_running_loop().time() - arrived
        try:
            return await self._engine.infer(
                model, request.feeds, names, priority=options.priority, timeout=timeout
            )
        except DeadlineError:
            if options.timeout is None:
                raise
            raise DeadlineError(f"the timeout of {options.timeout:g} seconds is over") from None

    def check_open(self) -> None:
        """Raise `UnavailableError` while no inferences are taken."""
        refusal = self._refusal()
        if refusal is not None:
            raise UnavailableError(refusal)

    def model_of(self, path: Mapping[str, str]) -> Model:
        """Return the model that a path names."""
        return self._engine.model(path["model"], path.get("version"))

    def _refusal(self) -> str | None:
        """Return why inferences are not taken now, or None."""
        if self._lifecycle.draining:
            return "the server is shutting down"
        return None if self._engine.loaded else "the model is still being loaded"

    def _readiness(self, about: dict[str, Any]) -> Response:
        refusal = self._refusal()
        if refusal is None:
            return json_response({**about, "ready": True})
        content = {**about, "ready": False, "error": refusal}
        return json_response(content, 503, {"retry-after": "1"})


def _response(
    model: Model, request: InferRequest, arrays: Sequence[Array], encoding: str | None
) -> Response:
    """Encode the outputs of a run."""
    encoded = encode_response(model, request, arrays)
    headers = {"content-type": BINARY if encoded.binary else JSON}
    if encoded.binary:
        headers[LENGTH_HEADER.lower()] = str(len(encoded.json))
    return encoded_response((encoded.json, *encoded.tensors), headers, encoding)


def encoded_response(
    parts: Sequence[bytes | memoryview], headers: dict[str, str], encoding: str | None
) -> Response:
    """Return a response of `parts`, compressed if the client takes that and it is worthwhile."""
    if encoding is not None:
        headers["vary"] = "accept-encoding"
        compressed = compress(parts, encoding)
        if compressed is not None:
            headers["content-encoding"] = encoding
            parts = compressed
    if sum(map(len, parts)) <= JOINED_BYTES:
        parts = (b"".join(parts),)
    return Response(200, bytes(parts[0]), headers, parts[1:])


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, and cancel it when the client closes the connection.

    `work` runs in the task of the caller: a task of its own takes a tenth of a small request.
    """
    caller = cast("asyncio.Task[Any]", asyncio.current_task())
    left = False

    def leave(gone: asyncio.Task[None]) -> None:
        nonlocal left
        if not gone.cancelled():
            left = True
            caller.cancel()

    gone = asyncio.create_task(request.disconnected())
    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and caller.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        gone.remove_done_callback(leave)
        gone.cancel()
