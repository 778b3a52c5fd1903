"""What an operator may set about the network: options of the command, and what they become."""

from __future__ import annotations

import argparse
import os
import re
import resource
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .values import positive, seconds

TOKEN_VARIABLE = "PYATTN_SERVE_TOKEN"  # noqa: S105, the name of it
ADMIN_TOKEN_VARIABLE = "PYATTN_SERVE_ADMIN_TOKEN"  # noqa: S105
_TOKEN = re.compile(r"[\x21-\x7e]{8,4096}")
_OTHER_FILES = 64  # descriptors that connections leave to models, logs and the event loop


class NetworkError(Exception):
    """A token, certificate or limit that cannot be used."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of the connections of a server.

    Attributes
    ----------
    connections : int
        Further ones are answered with 503 and closed.
    header_bytes, headers, url_bytes : int
        Size of the head of a request, number of its headers, size of its target. What comes
        between and behind the chunks of a body is bounded as the head is.
    pipelined : int
        Requests on one connection that wait for the answer to the first.
    header_timeout : float
        Seconds for the head of a request, from its first byte; and for the first byte of the first.
    idle_timeout : float
        Seconds between an answer and the next request.
    send_timeout : float
        Seconds in which a client reads at least 8 KiB for each of them, or is cut off.
    """

    connections: int = 10_000
    header_bytes: int = 64 << 10
    headers: int = 128
    url_bytes: int = 8 << 10
    pipelined: int = 100
    header_timeout: float = 10.0
    idle_timeout: float = 75.0
    send_timeout: float = 30.0


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificate and key, and whose certificates clients must have."""

    certificate: Path
    key: Path | None
    client_ca: Path | None

    def uvicorn_options(self) -> dict[str, Any]:
        """Return the options of ``uvicorn.Config``; raises `NetworkError` for unusable files."""
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "strerror", None) or error
            raise NetworkError(f"cannot use the TLS files: {reason}") from error
        return {
            "ssl_certfile": self.certificate,
            "ssl_keyfile": self.key,
            "ssl_ca_certs": None if self.client_ca is None else str(self.client_ca),
            "ssl_cert_reqs": ssl.CERT_NONE if self.client_ca is None else ssl.CERT_REQUIRED,
        }


_DEFAULTS = ConnectionLimits()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument_group("network").add_argument
    add("--token-file", type=Path, metavar="FILE", help=f"token of clients; or ${TOKEN_VARIABLE}")
    add(
        "--admin-token-file",
        type=Path,
        metavar="FILE",
        help=f"token of what changes the server; or ${ADMIN_TOKEN_VARIABLE}",
    )
    add("--tls-certificate", type=Path, metavar="FILE", help="certificate chain, PEM: use HTTPS")
    add("--tls-key", type=Path, metavar="FILE", help="its key, if it is not in the same file")
    add("--tls-client-ca", type=Path, metavar="FILE", help="ask clients for certificates of it")
    add(
        "--max-connections",
        type=positive,
        default=_DEFAULTS.connections,
        metavar="N",
        help="connections at the same time (default: %(default)s)",
    )
    add(
        "--header-timeout",
        type=seconds,
        default=_DEFAULTS.header_timeout,
        metavar="S",
        help="seconds for the headers of a request (default: %(default)s)",
    )
    add(
        "--idle-timeout",
        type=seconds,
        default=_DEFAULTS.idle_timeout,
        metavar="S",
        help="seconds that a connection is kept for a next request (default: %(default)s)",
    )
    add(
        "--send-timeout",
        type=seconds,
        default=_DEFAULTS.send_timeout,
        metavar="S",
        help="seconds without progress after which a slow reader is cut off (default: %(default)s)",
    )


def limits_of(options: argparse.Namespace) -> ConnectionLimits:
    """Return the limits of the command line, as far as the process may have so many files."""
    return ConnectionLimits(
        connections=_raise_file_limit(options.max_connections),
        header_timeout=options.header_timeout,
        idle_timeout=options.idle_timeout,
        send_timeout=options.send_timeout,
    )


def tls_of(options: argparse.Namespace) -> Tls | None:
    """Return the TLS files of the command line; raises `NetworkError`."""
    if options.tls_certificate is None:
        if options.tls_key is not None or options.tls_client_ca is not None:
            raise NetworkError("--tls-key and --tls-client-ca need --tls-certificate")
        return None
    return Tls(options.tls_certificate, options.tls_key, options.tls_client_ca)


def read_token(file: Path | None, variable: str) -> str | None:
    """Return a token from a file, or from the environment; raises `NetworkError`.

    Never from the command line itself, which every process of the machine can read.
    """
    if file is None:
        text, origin = os.environ.get(variable), f"${variable}"
    else:
        origin = str(file)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise NetworkError(f"cannot read the token in {file}: {reason}") from error
    if text is None:
        return None
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise NetworkError(
            f"the token in {origin} must be 8 or more characters of ASCII, without spaces"
        )
    return token


def _raise_file_limit(connections: int) -> int:
    """Raise the process's soft limit on files; return how many connections fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - _OTHER_FILES))


def _no_password() -> str:
    # Without this OpenSSL would ask at the terminal.
    raise ValueError("the key is encrypted")
