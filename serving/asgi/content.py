"""What an infer request says about its body: type, encoding and the length of its JSON."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .compression import ENCODINGS
from .errors import HttpError
from .request import Request

JSON = "application/json"
BINARY = "application/octet-stream"
LENGTH_HEADER = "Inference-Header-Content-Length"

_DIGITS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Content:
    """What the headers say about a body.

    Attributes
    ----------
    json_length : int or None
        Length of the JSON before the tensors in binary; None when the body is all JSON.
    encoding : str or None
        ``"gzip"``, ``"deflate"`` or None.
    """

    json_length: int | None
    encoding: str | None


def check_content(request: Request) -> Content:
    """Return what the headers say about the body.

    A missing Content-Type is accepted, as clients of the protocol send none. Other types than the
    two of the protocol are refused, which also keeps web pages of other origins from posting here:
    a browser sends those types only after a preflight request, which is refused.

    Raises
    ------
    HttpError
        415 for another type or encoding, 400 for a length that is not plain digits.
    """
    content = Content(_json_length(request), _encoding(request))
    content_type = request.header("content-type")
    if content_type is None:
        return content
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == JSON or (media_type == BINARY and content.json_length is not None):
        return content
    if media_type == BINARY:
        raise HttpError(400, f"a body of type {BINARY} needs the header {LENGTH_HEADER}")
    raise HttpError(
        415,
        f"Content-Type {media_type[:50]!r} is not supported; send {JSON}, "
        f"or {BINARY} with the header {LENGTH_HEADER}",
        {"accept": f"{JSON}, {BINARY}"},
    )


def _encoding(request: Request) -> str | None:
    text = request.header("content-encoding")
    encoding = "identity" if text is None else text.strip().lower()
    if encoding in ("", "identity"):
        return None
    encoding = encoding.removeprefix("x-")  # x-gzip is gzip (RFC 9110, 8.4.1.3)
    if encoding in ENCODINGS:
        return encoding
    raise HttpError(
        415,
        f"Content-Encoding {encoding[:50]!r} is not supported; use gzip or deflate, or none",
        {"accept-encoding": "gzip, deflate, identity"},
    )


def _json_length(request: Request) -> int | None:
    text = request.header(LENGTH_HEADER.lower())
    if text is None:
        return None
    if not _DIGITS.fullmatch(text):
        raise HttpError(400, f"{LENGTH_HEADER} must be digits; got {text[:50]!r}")
    return int(text)
