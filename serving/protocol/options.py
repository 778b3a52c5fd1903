"""What a request says about how it is to be run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..engine.failures import InvalidRequestError

_MICROSECONDS = 1e6
_LARGEST = 2**64 - 1


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options of one inference.

    Attributes
    ----------
    timeout : float or None
        Seconds from the arrival of the request to the end of the inference.
    priority : int
        1 is the highest; 0 is the model's default.
    """

    timeout: float | None = None
    priority: int = 0


def parse_options(parameters: Mapping[str, Any]) -> RequestOptions:
    """Return the options among the parameters of a request.

    ``timeout`` is in microseconds, 0 for none. Raises `InvalidRequestError` for a value that is
    not an integer of 0 or more.
    """
    timeout = _natural(parameters, "timeout")
    return RequestOptions(
        timeout=timeout / _MICROSECONDS if timeout else None,
        priority=_natural(parameters, "priority"),
    )


def _natural(parameters: Mapping[str, Any], key: str) -> int:
    value = parameters.get(key, 0)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise InvalidRequestError(f"parameter {key!r} must be an integer of 0 or more")
    return value
