"""What can go wrong below HTTP. ``asgi/errors.py`` gives each kind its status code."""

from __future__ import annotations


class ServingError(Exception):
    """Base of every failure that has a message fit for the client."""


class ModelError(ServingError):
    """The model file cannot be served: missing, corrupt, foreign, unsafe or of an unknown type."""


class InvalidRequestError(ServingError):
    """The request contradicts the protocol or the model's inputs and outputs.

    `param` is the field at fault, where the protocol tells it apart from the message.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModelError(ServingError):
    """No model of that name, or no such version of it."""


class UnavailableError(ServingError):
    """The server does not take this request now: it is loading, draining or stopping."""


class InferenceError(ServingError):
    """The model failed on a request that was well formed."""


class QueueFullError(ServingError):
    """The model has as many waiting requests, or bytes of them, as it may."""


class DeadlineError(ServingError):
    """The request was not answered within the time that it has."""


class NotAllowedError(ServingError):
    """Models are not loaded and unloaded on demand here."""
