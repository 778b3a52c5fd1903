"""What an infer request says about its body: type, encoding and the length of its JSON."""

from __future__ import annotations

import re

from .errors import HttpError
from .request import Request

JSON = "application/json"
BINARY = "application/octet-stream"
LENGTH_HEADER = "Inference-Header-Content-Length"

_DIGITS = re.compile(r"[0-9]{1,18}")


def check_content(request: Request) -> int | None:
    """Return the length of the JSON in the body, None when the body is all JSON.

    A missing Content-Type is accepted, as clients of the protocol send none. Other types than the
    two of the protocol are refused, which also keeps web pages of other origins from posting here:
    a browser sends those types only after a preflight request, which is refused.

    Raises
    ------
    HttpError
        415 for another type or an encoding, 400 for a length that is not plain digits.
    """
    encoding = request.header("content-encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        raise HttpError(
            415,
            f"Content-Encoding {encoding[:50]!r} is not supported; send the body uncompressed",
            {"accept-encoding": "identity"},
        )
    length = _json_length(request)
    content_type = request.header("content-type")
    if content_type is None:
        return length
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == JSON or (media_type == BINARY and length is not None):
        return length
    if media_type == BINARY:
        raise HttpError(400, f"a body of type {BINARY} needs the header {LENGTH_HEADER}")
    raise HttpError(
        415,
        f"Content-Type {media_type[:50]!r} is not supported; send {JSON}, "
        f"or {BINARY} with the header {LENGTH_HEADER}",
        {"accept": f"{JSON}, {BINARY}"},
    )


def _json_length(request: Request) -> int | None:
    text = request.header(LENGTH_HEADER.lower())
    if text is None:
        return None
    if not _DIGITS.fullmatch(text):
        raise HttpError(400, f"{LENGTH_HEADER} must be digits; got {text[:50]!r}")
    return int(text)
