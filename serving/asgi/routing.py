"""From a path and a method to an endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from .access import Access, Tokens
from .errors import HttpError
from .request import Request
from .responses import EventStream, Response

Endpoint = Callable[[Request, Mapping[str, str]], Awaitable[Response | EventStream]]


@dataclass(frozen=True, slots=True)
class Route:
    """A path such as ``/v2/models/{model}`` and the endpoint of each method.

    A part in braces stands for one segment of the path. HEAD works wherever GET does.
    """

    path: str
    endpoints: Mapping[str, Endpoint]
    access: Access = Access.USER

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """Return the values of the parts in braces, or None for another path."""
        parts = self.path.split("/")[1:]
        if len(parts) != len(segments):
            return None
        values = {}
        for part, segment in zip(parts, segments, strict=True):
            if part.startswith("{"):
                values[part[1:-1]] = segment
            elif part != segment:
                return None
        return values

    def endpoint(self, method: str) -> Endpoint:
        """Return the endpoint; raises 405 with ``Allow`` for a method that is not there."""
        found = self.endpoints.get("GET" if method == "HEAD" else method)
        if found is None:
            allowed = sorted({*self.endpoints, *(["HEAD"] if "GET" in self.endpoints else [])})
            raise HttpError(
                405, f"{method[:20]} is not possible here", {"allow": ", ".join(allowed)}
            )
        return found


class Router:
    """Routes, looked up by the number of segments first.

    Attributes
    ----------
    routes : list of Route
    """

    def __init__(self, routes: list[Route], tokens: Tokens) -> None:
        self._tokens = tokens
        self.routes = routes
        self._routes: dict[int, list[Route]] = {}
        for route in routes:
            self._routes.setdefault(route.path.count("/"), []).append(route)

    async def __call__(self, request: Request) -> Response | EventStream:
        """Answer a request; raises 404 for a path that no route has, 401 and 403."""
        for route in self._routes.get(len(request.segments), ()):
            values = route.match(request.segments)
            if values is not None:
                self._tokens.check(request, route.access)
                return await route.endpoint(request.method)(request, values)
        raise HttpError(404, f"there is nothing at {request.path[:200]}")
