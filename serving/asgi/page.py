"""The page: its files, beside which a browser loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from .access import Access
from .request import Request
from .responses import Response
from .routing import Route

FOLDER = Path(__file__).parent.parent / "page"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/attention.js": ("attention.js", "text/javascript; charset=utf-8"),
}
# Scripts, styles and requests of this origin only, nothing inline, and no frame around the page.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """Return the routes; the files tell nothing of the server, so they need no token."""
    return [Route(path, {"GET": page}, Access.OPEN) for path in FILES]


async def page(request: Request, _path: Mapping[str, str]) -> Response:
    """Answer with a file of the page."""
    name, kind = FILES["/" + "/".join(request.segments)]
    return Response(200, _content(name), {"content-type": kind, **HEADERS})


@cache
def _content(name: str) -> bytes:
    return (FOLDER / name).read_bytes()
