"""The fields of a JSON request, each checked; an error names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..engine.failures import InvalidRequestError

LARGEST = (1 << 63) - 1
MOST_TEXTS = 2048


class Fields:
    """An object of a request; a field that is null counts as left out."""

    def __init__(self, content: Any, what: str = "the request") -> None:
        if not isinstance(content, Mapping):
            raise InvalidRequestError(f"{what} must be a JSON object")
        self._content = content

    def get(self, name: str) -> Any:
        """Return a field as it is, None where it is left out."""
        return self._content.get(name)

    def string(self, name: str) -> str:
        """Return a string that must be there."""
        value = self.get(name)
        if not isinstance(value, str):
            raise wrong(name, "a string", value)
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean, by default false."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise wrong(name, "true or false", value)
        return bool(value)

    def integer(self, name: str, least: int, default: int | None = None) -> int | None:
        """Return a whole number of `least` or more."""
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not int or not least <= value <= LARGEST:
            raise wrong(name, f"a whole number of {least} or more", value)
        return value

    def number(self, name: str, least: float, most: float, default: float) -> float:
        """Return a number from `least` to `most`."""
        value = self.get(name)
        if value is None:
            return default
        if type(value) not in (int, float) or not least <= value <= most or math.isnan(value):
            raise wrong(name, f"a number from {least:g} to {most:g}", value)
        return float(value)

    def strings(self, name: str, most: int) -> tuple[str, ...]:
        """Return a string, or up to `most` of them, none of which is empty."""
        value = self.get(name)
        if value is None:
            return ()
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or len(listed) > most:
            raise wrong(name, f"a string or a list of up to {most}", value)
        for each in listed:
            if not isinstance(each, str) or not each:
                raise wrong(name, "strings that are not empty", each)
        return tuple(listed)

    def only(self, name: str, *values: Any) -> None:
        """Refuse a field unless it is left out or one of `values`."""
        value = self.get(name)
        if value is not None and not any(value is v or value == v for v in values):
            raise InvalidRequestError(f"{name!r} is not supported", name)

    def texts(self, name: str) -> list[str] | list[list[int]]:
        """Return the texts of a field, as strings or as tokens.

        It is a string, a list of strings, a list of tokens, or a list of lists of tokens.
        """
        value = self.get(name)
        if isinstance(value, str):
            return [value]
        form = "a string, a list of strings, of tokens or of lists of tokens, not empty"
        if not isinstance(value, list) or not value:
            raise wrong(name, form, value)
        if all(type(token) is int for token in value):
            return [value]
        if len(value) > MOST_TEXTS:
            raise InvalidRequestError(
                f"{name!r} has {len(value)} texts, more than {MOST_TEXTS}", name
            )
        if all(isinstance(text, str) for text in value):
            return value
        for tokens in value:
            if not isinstance(tokens, list) or not tokens:
                raise wrong(name, form, tokens)
            if not all(type(token) is int for token in tokens):
                raise wrong(name, form, tokens)
        return value


def wrong(name: str, wanted: str, value: Any) -> InvalidRequestError:
    """Return the error for a field that is not what it must be."""
    if value is None:
        return InvalidRequestError(f"{name!r} must be {wanted}; it is missing", name)
    return InvalidRequestError(f"{name!r} must be {wanted}; got {str(value)[:50]!r}", name)
