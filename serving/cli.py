"""The command ``pyattn-serve``."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .asgi.app import Application, create_app
from .engine.failures import ModelError
from .protocol.metadata import server_version
from .server import Server
from .settings import Settings

PROGRAM = "pyattn-serve"
_BACKLOG = 2048
_MOST_THREADS = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve a model until a signal comes; return the exit code.

    0 after a drain that finished every request, 1 when the model or the address cannot be used or
    requests were cut off, 2 for wrong arguments.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr,
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        return _serve(options)
    except (ModelError, _AddressError) as error:
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
        )
    )
    with _bind(options.host, options.port) as listener:
        application.engine.load()
        try:
            listener.listen(_BACKLOG)
        except OSError as error:
            raise _address_error(options.host, options.port, error) from error
        server = Server(application, options.drain_timeout, _announcement(application, listener))
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


def _announcement(application: Application, listener: socket.socket) -> Callable[[], None]:
    """Return a function that prints where the models are, once they can be reached."""

    def announce() -> None:
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
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
    add("--port", type=_port, default=8000, help="0 takes a free one (default: %(default)s)")
    add(
        "--threads",
        type=_threads,
        help="threads of ONNX Runtime for one inference (default: the processors allowed)",
    )
    add(
        "--concurrency",
        type=_positive,
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
        type=_positive,
        default=Settings.max_body,
        metavar="BYTES",
        help="largest request body (default: %(default)s)",
    )
    add(
        "--body-timeout",
        type=_seconds,
        default=Settings.body_timeout,
        metavar="S",
        help="seconds to wait for a request body that does not come (default: %(default)s)",
    )
    add(
        "--drain-timeout",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="seconds that requests in flight have after SIGTERM (default: %(default)s)",
    )
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    add("--version", action="version", version=f"{PROGRAM} {server_version()}")
    return parser


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text} is not a port")
    return int(text)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _threads(text: str) -> int:
    if _positive(text) > _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is more than {_MOST_THREADS}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds
