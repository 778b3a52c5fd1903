"""Failures as HTTP answers: a status code and ``{"error": "..."}``, never a stack trace."""

from __future__ import annotations

from ..engine.failures import (
    DeadlineError,
    InferenceError,
    InvalidRequestError,
    ModelError,
    NotAllowedError,
    QueueFullError,
    ServingError,
    UnavailableError,
    UnknownModelError,
    UnsupportedError,
)
from .responses import Response, json_response

_STATUS: dict[type[ServingError], int] = {
    InvalidRequestError: 400,
    UnknownModelError: 404,
    ModelError: 400,  # the model that an administrator asked to load
    NotAllowedError: 403,
    QueueFullError: 429,
    DeadlineError: 504,
    UnavailableError: 503,
    InferenceError: 500,
    UnsupportedError: 501,
}


class HttpError(Exception):
    """A failure of HTTP itself, with the status and the headers that belong to it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class ClientGoneError(Exception):
    """The client closed the connection; there is nobody to answer."""


def error_response(error: Exception) -> Response:
    """Return the answer for a failure; an error of an unforeseen type tells nothing of itself."""
    if isinstance(error, HttpError):
        return json_response({"error": str(error)}, error.status, error.headers)
    if isinstance(error, ServingError):
        status = _STATUS.get(type(error), 500)
        headers = {"retry-after": "1"} if status in (429, 503) else {}
        return json_response({"error": str(error)}, status, headers)
    return json_response({"error": "internal server error"}, 500)
