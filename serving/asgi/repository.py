"""The endpoints that show and change which models are served."""

from __future__ import annotations

from collections.abc import Mapping

from ..engine.engine import Engine
from ..engine.failures import UnavailableError
from ..protocol.administration import (
    check_load,
    check_unload,
    index,
    model_config,
    parse_index,
    statistics,
)
from .access import Access
from .body import Limits, collect
from .lifecycle import Lifecycle
from .request import Request
from .responses import Response, json_response
from .routing import Route


class RepositoryEndpoints:
    """Configuration, statistics, index, load and unload, over one engine."""

    def __init__(self, engine: Engine, lifecycle: Lifecycle, limits: Limits) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        self._limits = limits

    def routes(self) -> list[Route]:
        """Return the routes; ``/v2/models/stats`` comes before a model of that name."""
        routes = [
            Route("/v2/models/stats", {"GET": self.all_statistics}),
            Route("/v2/repository/index", {"POST": self.index}),
            Route("/v2/repository/models/{model}/load", {"POST": self.load}, Access.ADMIN),
            Route("/v2/repository/models/{model}/unload", {"POST": self.unload}, Access.ADMIN),
        ]
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(f"{model}/config", {"GET": self.config}),
                Route(f"{model}/stats", {"GET": self.statistics}),
            ]
        return routes

    async def config(self, _request: Request, path: Mapping[str, str]) -> Response:
        """Answer with the settings of a model."""
        model = self._engine.model(path["model"], path.get("version"))
        return json_response(model_config(model))

    async def statistics(self, _request: Request, path: Mapping[str, str]) -> Response:
        """Answer with the counters of a version, or of all versions of a model."""
        chosen = self._engine.model(path["model"], path.get("version"))
        models = [
            model
            for model in self._engine.models
            if model.name == chosen.name and path.get("version") in (None, model.version)
        ]
        return json_response(statistics(models))

    async def all_statistics(self, _request: Request, _path: Mapping[str, str]) -> Response:
        """Answer with the counters of all models."""
        return json_response(statistics(self._engine.models))

    async def index(self, request: Request, _path: Mapping[str, str]) -> Response:
        """Answer with the state of every version."""
        only_ready = parse_index(bytes(await collect(request, self._limits)))
        return json_response(index(await self._engine.index(), only_ready))

    async def load(self, request: Request, path: Mapping[str, str]) -> Response:
        """Load or reload a model."""
        self._check_open()
        check_load(bytes(await collect(request, self._limits)))
        await self._engine.load_model(path["model"])
        return json_response({})

    async def unload(self, request: Request, path: Mapping[str, str]) -> Response:
        """Serve a model no more."""
        self._check_open()
        check_unload(bytes(await collect(request, self._limits)))
        await self._engine.unload_model(path["model"])
        return json_response({})

    def _check_open(self) -> None:
        if self._lifecycle.draining:
            raise UnavailableError("the server is shutting down")
