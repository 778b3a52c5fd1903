"""Failures as HTTP answers: a status code and ``{"error": "..."}``, never a stack trace."""

from __future__ import annotations

from typing import Any

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
}

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class HttpError(Exception):
    """A failure of HTTP itself, with the status and the headers that belong to it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class ClientGoneError(Exception):
    """The client closed the connection; there is nobody to answer."""


def error_response(error: Exception, *, openai: bool = False) -> Response:
    """Return the answer for a failure; an error of an unforeseen type tells nothing of itself.

    With `openai` it has the form that clients of OpenAI's API read.
    """
    status, message, headers = 500, "internal server error", {}
    if isinstance(error, HttpError):
        status, message, headers = error.status, str(error), error.headers
    elif isinstance(error, ServingError):
        status, message = _STATUS.get(type(error), 500), str(error)
        headers = {"retry-after": "1"} if status in (429, 503) else {}
    elif isinstance(error, MemoryError):
        status, message = 503, "there is not enough memory for this request"
        headers = {"retry-after": "1"}
    content = openai_error(error, status, message) if openai else {"error": message}
    return json_response(content, status, headers)


def openai_error(error: Exception, status: int, message: str) -> dict[str, Any]:
    """Return a failure as OpenAI's API tells it."""
    kind = "server_error" if status >= 500 else _OPENAI_TYPES.get(status, "invalid_request_error")
    code = "model_not_found" if isinstance(error, UnknownModelError) else None
    param = "model" if code else getattr(error, "param", None)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
