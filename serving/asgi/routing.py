"""From a path and a method to an endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from .access import Access, Tokens
from .errors import HttpError
from .request import Request
from .responses import EventStream, Response

Endpoint = Callable[[Request, Mapping[str, str]], Awaitable[Response | EventStream]]


@dataclass(frozen=True)
class Route:
    """A path such as ``/v2/models/{model}`` and the endpoint of each method.

    A part in braces stands for one segment of the path. HEAD works wherever GET does.
    """

    path: str
    endpoints: Mapping[str, Endpoint]
    access: Access = Access.USER

    @cached_property
    def _parts(self) -> list[tuple[str, bool]]:
        """The segments, and which of them are names in braces."""
        parts = self.path.split("/")[1:]
        return [(part.strip("{}"), part.startswith("{")) for part in parts]

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """Return the values of the parts in braces, or None for another path of that length."""
        values = {}
        for (part, named), segment in zip(self._parts, segments, strict=True):
            if named:
                values[part] = segment
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
    """Routes, looked up by the number of segments and the last one first.

    Attributes
    ----------
    routes : list of Route
    """

    def __init__(self, routes: list[Route], tokens: Tokens) -> None:
        self._tokens = tokens
        self.routes = routes
        self._routes: dict[tuple[int, str], list[Route]] = {}
        for route in routes:
            last = route.path.rpartition("/")[2]
            key = route.path.count("/"), "" if last.startswith("{") else last
            self._routes.setdefault(key, []).append(route)

    async def __call__(self, request: Request) -> Response | EventStream:
        """Answer a request; raises 404 for a path that no route has, 401 and 403."""
        segments = request.segments
        for last in (*segments[-1:], ""):
            for route in self._routes.get((len(segments), last), ()):
                values = route.match(segments)
                if values is not None:
                    self._tokens.check(request, route.access)
                    return await route.endpoint(request.method)(request, values)
        raise HttpError(404, f"there is nothing at {request.path[:200]}")
