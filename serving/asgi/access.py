"""Who may call what: bearer tokens."""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum

from .errors import HttpError
from .request import Request


class Access(Enum):
    """What an endpoint asks of its caller."""

    OPEN = "open"  # nothing: probes have no token
    USER = "user"  # the token, if there is one
    ADMIN = "admin"  # the admin token, if there is one, else the token


class Tokens:
    """The tokens of a server. The admin token opens everything that the other one does.

    Tokens are compared by their hashes, in a time that tells neither length nor contents.
    """

    def __init__(self, token: str | None = None, admin_token: str | None = None) -> None:
        user = [_digest(t) for t in (token, admin_token) if t is not None]
        self._accepted: dict[Access, list[bytes]] = {
            Access.OPEN: [],
            Access.USER: user if token is not None else [],
            Access.ADMIN: user[-1:],
        }

    def check(self, request: Request, access: Access) -> None:
        """Raise 401 without a token, 403 for one that is not enough."""
        accepted = self._accepted[access]
        if not accepted:
            return
        scheme, _, given = (request.header("authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise _unauthorized("this needs a token: send Authorization: Bearer")
        digest = _digest(given.strip())
        if any(hmac.compare_digest(digest, each) for each in accepted):
            return
        if any(hmac.compare_digest(digest, each) for each in self._accepted[Access.USER]):
            raise HttpError(403, "this needs the admin token")
        raise _unauthorized("the token is not valid")


def _unauthorized(message: str) -> HttpError:
    return HttpError(401, message, {"www-authenticate": "Bearer"})


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
