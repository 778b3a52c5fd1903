"""The description of all endpoints, an OpenAPI document."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import orjson

FILE = Path(__file__).parent.parent / "openapi.json"


@cache
def document() -> bytes:
    """Return the document as JSON without white space."""
    return orjson.dumps(orjson.loads(FILE.read_bytes()))
