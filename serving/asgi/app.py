"""The ASGI application: one request in, one answer out, whatever happens between."""

from __future__ import annotations

import asyncio
import logging
import time

from ..engine.engine import Engine, Mode
from ..engine.failures import DeadlineError, ModelError, UnavailableError
from ..engine.model_settings import ModelSettings
from ..engine.repository import Repository
from ..settings import Settings
from .access import Tokens
from .admission import Admission
from .attention import AttentionEndpoint
from .body import Limits, discard
from .endpoints import Endpoints, while_connected
from .errors import ClientGoneError, HttpError, error_response
from .lifecycle import Lifecycle
from .metrics import MetricsEndpoint
from .page import page_routes
from .repository import RepositoryEndpoints
from .request import Request
from .request_id import request_id
from .responses import EventStream, Response, send_body, send_start
from .routing import Router
from .text import TextEndpoints
from .tokenize import TokenizeEndpoint
from .types import Receive, Scope, Send

logger = logging.getLogger("pyattn_serving")
access = logging.getLogger("pyattn_serving.access")


class Application:
    """An ASGI application that serves the models of one engine.

    The models are loaded when the server starts the application, or before by `Engine.load`.

    Attributes
    ----------
    engine : Engine
    lifecycle : Lifecycle
        For the server around the application: it starts the drain and waits for the end of it.
    admission : Admission
        The requests that the server has taken on, and the bytes of their bodies.
    metrics : MetricsEndpoint
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        tokens: Tokens | None = None,
        worker: int | None = None,
    ) -> None:
        self.engine = engine
        self.lifecycle = Lifecycle()
        self._limits = limits
        self.admission = Admission(limits.max_pending, limits.max_pending_bytes)
        self.metrics = MetricsEndpoint(engine, self.lifecycle, worker)
        endpoints = Endpoints(engine, self.lifecycle, limits, self.admission)
        self._router = Router(
            [
                *RepositoryEndpoints(engine, self.lifecycle, limits).routes(),
                *self.metrics.routes(),
                *endpoints.routes(),
                *AttentionEndpoint(engine, endpoints).routes(),
                *TokenizeEndpoint(engine, endpoints, limits).routes(),
                *TextEndpoints(engine, endpoints, limits, self.admission).routes(),
                *page_routes(),
            ],
            tokens or Tokens(),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI server."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        status: int | str = "gone"
        name = request_id(scope)
        with self.lifecycle.request():
            try:
                request = Request(scope, receive, name)
                response = await self._answer(request)
                await self._send(request, response, send)
                status = response.status
            except HttpError as error:  # headers that cannot be read at all
                response = error_response(error)
                await send_start(response, send, name, close=True)
                await send_body(response.body, send)
                status = response.status
            except (ClientGoneError, OSError):
                logger.debug("the client closed the connection")
            self.lifecycle.answered[str(status)] += 1
        if access.isEnabledFor(logging.INFO):
            _log(scope, name, status, time.perf_counter() - start)

    async def _answer(self, request: Request) -> Response | EventStream:
        """Return the answer to a request, also when its handling fails or is cut off."""
        try:
            return await self._router(request)
        except ClientGoneError:
            raise
        except asyncio.CancelledError:
            return error_response(
                UnavailableError("the server is shutting down"),
                openai=request.segments[:1] == ["v1"],
            )
        except Exception as error:
            response = error_response(error, openai=request.segments[:1] == ["v1"])
            if response.status >= 500 and not isinstance(error, (UnavailableError, DeadlineError)):
                logger.exception(
                    "%s %s failed",
                    request.method,
                    ascii(request.path[:500]),
                    extra={"request": {"request_id": request.id}},
                )
            return response

    async def _send(self, request: Request, response: Response | EventStream, send: Send) -> None:
        if isinstance(response, EventStream):
            await self._stream(request, response, send)
            return
        unread = not request.body_read
        close = unread or self.lifecycle.draining
        await send_start(response, send, request.id, close=close)
        *parts, last = (b"",) if request.method == "HEAD" else (response.body, *response.tensors)
        for part in parts:
            await send_body(request.sendable(part), send, more=True)
        if unread:
            await send_body(request.sendable(last), send, more=True)
            await discard(request, self._limits)
            last = b""
        await send_body(request.sendable(last), send)

    async def _stream(self, request: Request, response: EventStream, send: Send) -> None:
        """Send events as they come; raises `ClientGoneError` when the client goes."""

        async def send_events() -> None:
            await send_start(response, send, request.id, close=self.lifecycle.draining)
            async for event in response.events:
                await send_body(event, send, more=True)
            await send_body(b"", send)

        try:
            await while_connected(request, send_events())
        finally:
            response.cancel()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await asyncio.to_thread(self.engine.load)
        except ModelError as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await self.metrics.open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.lifecycle.drain()
        self.engine.close()
        await send({"type": "lifespan.shutdown.complete"})


def _log(scope: Scope, name: str, status: int | str, seconds: float) -> None:
    path = scope.get("raw_path") or scope["path"].encode()
    about = {
        "request_id": name,
        "client": (scope.get("client") or "-")[0],
        "method": scope["method"],
        "path": ascii(path.decode("latin-1"))[1:-1][:500],
        "status": status,
        "milliseconds": round(seconds * 1e3, 1),
    }
    access.info(
        "%s %s %s %s %.1fms %s",
        about["client"],
        about["method"],
        about["path"],
        status,
        about["milliseconds"],
        name,
        extra={"request": about},
    )


def create_app(settings: Settings) -> Application:
    """Return the application for `settings`; raises `ModelError` for a model name out of rule.

    Examples
    --------
    >>> from pathlib import Path
    >>> app = create_app(Settings(model=Path("model.onnx")))
    >>> app.engine.loaded
    False
    """
    engine = Engine(
        Repository(settings.model, settings.name),
        threads=settings.threads,
        concurrency=settings.concurrency,
        spin=settings.spin,
        operators=settings.operators,
        mode=Mode(settings.mode),
        poll_seconds=settings.poll_seconds,
        startup=settings.load,
        settings=ModelSettings(
            max_batch=settings.max_batch,
            max_delay=settings.max_delay,
            max_queue=settings.max_queue,
            max_queue_bytes=settings.max_queue_bytes,
            timeout=settings.timeout,
        ),
    )
    limits = Limits(
        settings.max_body,
        settings.body_timeout,
        settings.max_pending,
        8 * settings.max_body,
    )
    tokens = Tokens(settings.token, settings.admin_token)
    return Application(engine, limits, tokens, settings.worker)
