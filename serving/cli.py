"""The command ``pyattn-serve``."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import network
from .allocator import keep_freed_memory
from .asgi.app import Application, create_app
from .config import ConfigError, read_config
from .engine.cpus import available_cpus
from .engine.engine import Mode
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
from .workers import Worker, Workers, this_worker

PROGRAM = "pyattn-serve"
_BACKLOG = 2048
_MOST_THREADS = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve a model until a signal comes, or do what ``bench`` says; return the exit code.

    0 after a drain that finished every request, 1 when the model or the address cannot be used or
    requests were cut off, 2 for wrong arguments.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["bench"]:  # a model of this name is ./bench
        from .bench.command import main as bench

        return bench(words[1:])
    options = _options(words)
    start_logging(options.log_level, options.log_format)
    keep_freed_memory()
    try:
        if options.check:
            return check(_settings(options))
        worker = this_worker()
        if options.workers > 1 and worker is None:
            return _look_after_workers(options)
        return _serve(options, worker)
    except (ModelError, NetworkError, _AddressError) as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 1
    except KeyboardInterrupt:  # while the model is loaded; later the server handles the signal
        return 130


class _AddressError(Exception):
    """The host and port cannot be listened on."""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line says, then the file of ``--config``, then the defaults."""
    parser = _parser()
    first, _ = parser.parse_known_args(arguments)
    if first.config is not None:
        try:
            parser.set_defaults(**read_config(first.config, parser))
        except ConfigError as error:
            parser.error(str(error))
    options = parser.parse_args(arguments)
    if options.model is None:
        parser.error("the following arguments are required: MODEL")
    if options.workers > 1 and options.mode == Mode.EXPLICIT.value:
        parser.error("--mode explicit takes one worker: a request to load reaches one of them only")
    return options


def _settings(options: argparse.Namespace) -> Settings:
    given: dict[str, Any] = {
        field.name: getattr(options, field.name, None) for field in dataclasses.fields(Settings)
    }
    given["token"] = read_token(options.token_file, TOKEN_VARIABLE)
    given["admin_token"] = read_token(options.admin_token_file, ADMIN_TOKEN_VARIABLE)
    return Settings(**given)


def check(settings: Settings) -> int:
    """Load every model that would be served, say what was found, and return the exit code."""
    engine = create_app(settings).engine
    failed = False
    for line, error in engine.check():
        failed |= error
        sys.stdout.write(f"{PROGRAM}: {line}\n")
    engine.close()
    return int(failed)


def _look_after_workers(options: argparse.Namespace) -> int:
    with (
        _bind(options.host, options.port) as listener,
        tempfile.TemporaryDirectory(prefix=f"{PROGRAM}-") as folder,
    ):
        workers = Workers(options.workers, listener, Path(folder))
        asyncio.run(workers.run())
    return workers.exit_code


def _serve(options: argparse.Namespace, worker: Worker | None) -> int:
    if worker is not None:
        options.worker = worker.number
        options.threads = options.threads or max(1, available_cpus() // options.workers)
    application = create_app(_settings(options))
    if worker is not None:
        application.metrics.join(worker.folder, worker.number)
    tls = tls_of(options)
    limits = limits_of(options)
    with _bind(options.host, options.port) if worker is None else worker.listener() as listener:
        application.engine.load()
        try:
            listener.listen(_BACKLOG)
        except OSError as error:
            raise _address_error(options.host, options.port, error) from error
        server = Server(
            application,
            options.drain_timeout,
            _announcement(application, listener, "http" if tls is None else "https", worker),
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
    application: Application, listener: socket.socket, scheme: str, worker: Worker | None
) -> Callable[[], None]:
    """Return a function that tells where the models are, once they can be reached."""

    def announce() -> None:
        host, port = listener.getsockname()[:2]
        url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        lines = [
            f"{PROGRAM}: {name} is ready at {url}, try: curl {url}/v2/models/{name}\n"
            for name in application.engine.names
        ]
        text = "".join(lines) or f"{PROGRAM}: ready at {url}, with no model yet\n"
        if worker is not None:
            worker.say_ready(text)
        else:
            sys.stdout.write(text)
            sys.stdout.flush()

    return announce


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="Serve an ONNX model over HTTP with the Open Inference Protocol v2.",
        epilog=f"{PROGRAM} bench --help tells how to measure a server.",
    )
    add = parser.add_argument
    add(
        "model",
        type=Path,
        nargs="?",
        metavar="MODEL",
        help="the model to serve, MODEL.onnx, or a folder of models",
    )
    add("--config", type=Path, metavar="FILE", help="a TOML file with these options")
    add("--check", action="store_true", help="load everything, say what was found, and end")
    add("--name", help="name to serve it under (default: the file's, without its suffix)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add(
        "--port",
        type=port,
        default=os.environ.get("PORT", "8000"),
        help="0 takes a free one (default: $PORT, or 8000)",
    )
    add(
        "--workers",
        type=positive,
        default=1,
        metavar="N",
        help="processes that share the port, each with models, queues and threads of its own "
        "(default: %(default)s)",
    )
    add(
        "--threads",
        type=_threads,
        help="threads of ONNX Runtime for one inference (default: the processors allowed, shared "
        "among the workers)",
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
    _add_model_options(parser)
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


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--no-operators",
        dest="operators",
        action="store_false",
        help="do without pyattn's operators, where the package is installed",
    )
    add(
        "--mode",
        default=Settings.mode,
        choices=[mode.value for mode in Mode],
        help="load models at the start, when the folder changes, or when a client asks for it "
        "(default: %(default)s)",
    )
    add(
        "--poll-seconds",
        type=seconds,
        default=Settings.poll_seconds,
        metavar="S",
        help="how often --mode polling looks at the folder (default: %(default)s)",
    )
    add(
        "--load",
        action="append",
        default=[],
        metavar="NAME",
        help="a model that --mode explicit loads at the start; may come several times",
    )
    add(
        "--max-batch",
        type=positive,
        default=Settings.max_batch,
        help="most rows of a batch; 1 turns batching off (default: %(default)s)",
    )
    add(
        "--max-delay",
        type=_delay,
        default=Settings.max_delay,
        metavar="S",
        help="seconds that a request may wait for others while its model is busy "
        "(default: %(default)s)",
    )
    add(
        "--max-queue",
        type=positive,
        default=Settings.max_queue,
        help="most requests that wait for a model (default: %(default)s)",
    )
    add(
        "--max-queue-bytes",
        type=positive,
        default=Settings.max_queue_bytes,
        metavar="BYTES",
        help="most bytes of their inputs (default: %(default)s)",
    )
    add(
        "--timeout",
        type=seconds,
        metavar="S",
        help="seconds until the answer of a request that does not say (default: unlimited)",
    )


def _threads(text: str) -> int:
    if positive(text) > _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is more than {_MOST_THREADS}")
    return int(text)


def _delay(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else seconds(text)
