"""The command ``pyattn-serve``."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import network
from .allocator import keep_freed_memory
from .asgi.app import Application, create_app
from .engine.failures import ModelError
from .logs import start_logging
from .network import (
    ADMIN_TOKEN_VARIABLE,
    TOKEN_VARIABLE,
    NetworkError,
    limits_of,
    read_token,
    tls_of,
)
from .protocol.metadata import server_version
from .server import Server
from .settings import Settings
from .values import port, positive, seconds

PROGRAM = "pyattn-serve"
_BACKLOG = 2048
_MOST_THREADS = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve a model until a signal comes; return the exit code.

    0 after a drain that finished every request, 1 when the model or the address cannot be used or
    requests were cut off, 2 for wrong arguments.
    """
    options = _parser().parse_args(arguments)
    start_logging(options.log_level, options.log_format)
    keep_freed_memory()
    try:
        return _serve(options)
    except (ModelError, NetworkError, _AddressError) as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 1
    except KeyboardInterrupt:  # while the model is loaded; later the server handles the signal
        return 130


class _AddressError(Exception):
    """The host and port cannot be listened on."""


def _serve(options: argparse.Namespace) -> int:
    application = create_app(
        Settings(
            model=options.model,
            name=options.name,
            threads=options.threads,
            concurrency=options.concurrency,
            spin=options.spin,
            max_body=options.max_body,
            body_timeout=options.body_timeout,
            max_pending=options.max_pending,
            token=read_token(options.token_file, TOKEN_VARIABLE),
            admin_token=read_token(options.admin_token_file, ADMIN_TOKEN_VARIABLE),
        )
    )
    tls = tls_of(options)
    limits = limits_of(options)
    with _bind(options.host, options.port) as listener:
        application.engine.load()
        try:
            listener.listen(_BACKLOG)
        except OSError as error:
            raise _address_error(options.host, options.port, error) from error
        server = Server(
            application,
            options.drain_timeout,
            _announcement(application, listener, "http" if tls is None else "https"),
            limits,
            {} if tls is None else tls.uvicorn_options(),
        )
        server.run(sockets=[listener])
    if server.cut_off:
        plural = "" if server.cut_off == 1 else "s"
        sys.stderr.write(f"{PROGRAM}: {server.cut_off} request{plural} cut off\n")
        # A thread may still be inside a long operator; the interpreter would wait for it.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    return 0


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # the latter for a name that DNS cannot hold
        raise _address_error(host, port, error) from error
    try:
        # Lets a new server take the port while old connections time out; a port that something
        # listens on is still refused.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _address_error(host, port, error) from error
    return listener


def _address_error(host: str, port: int, error: Exception) -> _AddressError:
    reason = getattr(error, "strerror", None) or error
    return _AddressError(f"cannot listen on {host} port {port}: {reason}")


def _announcement(
    application: Application, listener: socket.socket, scheme: str
) -> Callable[[], None]:
    """Return a function that prints where the models are, once they can be reached."""

    def announce() -> None:
        host, port = listener.getsockname()[:2]
        url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        for name in application.engine.names:
            sys.stdout.write(
                f"{PROGRAM}: {name} is ready at {url}, try: curl {url}/v2/models/{name}\n"
            )
        sys.stdout.flush()

    return announce


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM, description="Serve an ONNX model over HTTP with the Open Inference Protocol v2."
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL.onnx", help="the model to serve")
    add("--name", help="name to serve it under (default: the file's, without its suffix)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=port, default=8000, help="0 takes a free one (default: %(default)s)")
    add(
        "--threads",
        type=_threads,
        help="threads of ONNX Runtime for one inference (default: the processors allowed)",
    )
    add(
        "--concurrency",
        type=positive,
        default=Settings.concurrency,
        help="inferences that run at the same time (default: %(default)s)",
    )
    add(
        "--spin",
        action="store_true",
        help="let idle threads of ONNX Runtime spin: may lower latency, costs processor time",
    )
    add(
        "--max-body",
        type=positive,
        default=Settings.max_body,
        metavar="BYTES",
        help="largest request body (default: %(default)s)",
    )
    add(
        "--body-timeout",
        type=seconds,
        default=Settings.body_timeout,
        metavar="S",
        help="seconds to wait for a request body that does not come (default: %(default)s)",
    )
    add(
        "--drain-timeout",
        type=seconds,
        default=30.0,
        metavar="S",
        help="seconds that requests in flight have after SIGTERM (default: %(default)s)",
    )
    add(
        "--max-pending",
        type=positive,
        default=Settings.max_pending,
        metavar="N",
        help="requests that are decoded, wait or run at the same time (default: %(default)s)",
    )
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    add("--log-format", default="text", choices=["text", "json"])
    network.add_arguments(parser)
    add("--version", action="version", version=f"{PROGRAM} {server_version()}")
    return parser


def _threads(text: str) -> int:
    if positive(text) > _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is more than {_MOST_THREADS}")
    return int(text)
