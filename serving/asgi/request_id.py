"""The name of a request: the client's, or one of our own."""

from __future__ import annotations

import itertools
import re
import secrets

from .types import Scope

HEADER = b"x-request-id"
_FIT = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")

# Names are to differ from those of other processes, and need not be hard to guess.
_PREFIX = secrets.token_hex(4)
_NUMBERS = itertools.count()


def request_id(scope: Scope) -> str:
    """Return the client's ``x-request-id`` if it is fit for a header and a log, else a new one."""
    for name, value in scope["headers"]:
        if name.lower() == HEADER and _FIT.fullmatch(value):
            return str(value, "ascii")
    return f"{_PREFIX}{next(_NUMBERS):08x}"
