"""``pyattn-serve bench``: its options, and what it does."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson

from ..network import TOKEN_VARIABLE, NetworkError, read_token
from ..values import positive, seconds
from . import requests
from .client import Address, Connection
from .load import Generator, Load, Measurement
from .report import summary, table, write_json

PROGRAM = "pyattn-serve bench"
T = TypeVar("T")


class _ServerError(Exception):
    """The server does not answer as the protocol says."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a server; return 0, 1 if no request succeeded, or 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            report = runner.run(_measure(options))
        if options.json is not None:
            write_json(report, options.json)
    except (ValueError, NetworkError) as error:
        return _failed(error, 2)
    except (OSError, _ServerError) as error:
        return _failed(error, 1)
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(table(report["result"]) + "\n")
    return 0 if report["result"]["succeeded"] else 1


def _failed(error: Exception, code: int) -> int:
    sys.stderr.write(f"{PROGRAM}: error: {error}\n")
    return code


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    address = Address.of(options.url, options.tls_ca)
    token = read_token(options.token_file, TOKEN_VARIABLE)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    base = f"/v2/models/{options.model}"
    if options.model_version:
        base += f"/versions/{options.model_version}"
    server = await _get(address, "/v2", headers)
    metadata = await _get(address, base, headers)
    plan = requests.Plan(
        shapes=dict(options.shape),
        lengths=options.lengths,
        values=dict(options.values),
        mask=options.mask,
        binary=options.binary,
        seed=options.seed,
        distinct=options.distinct,
        headers=headers,
    )
    messages = requests.make_requests(metadata, f"{base}/infer", address, plan)
    await _try(address, messages[0], options.timeout)
    load = Load(
        clients=options.clients or (1 if options.rate is None else 256),
        rate=options.rate,
        warmup=options.warmup,
        duration=options.duration,
        count=options.requests,
        timeout=options.timeout,
        seed=options.seed,
    )
    started = datetime.now(UTC).isoformat(timespec="seconds")
    result = await Generator(load, address, messages).run(_progress(options.quiet))
    given = {name: _plain(value) for name, value in vars(options).items() if name != "lengths"}
    return {
        "server": server,
        "model": metadata,
        "started": started,
        "options": {**given, "clients": load.clients},
        "distinct_requests": len(messages),
        "result": summary(result, with_tokens=any(message.tokens for message in messages)),
    }


async def _get(address: Address, path: str, headers: dict[str, str]) -> Any:
    lines = [f"GET {address.path}{path} HTTP/1.1", f"Host: {address.authority}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    connection = Connection(address, keep_content=True)
    try:
        answer = await connection.exchange(("\r\n".join(lines) + "\r\n\r\n").encode())
        content = orjson.loads(answer.content)
    except OSError as error:
        where = f"{address.host} port {address.port}"
        raise _ServerError(f"{where}: {error.strerror or error}") from error
    except orjson.JSONDecodeError as error:
        raise _ServerError(f"{path}: the answer is not JSON") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise _ServerError(f"{path}: {answer.status} {content}")
    return content


async def _try(address: Address, message: requests.Message, timeout: float) -> None:
    """Send one request and see that it is answered, before thousands fail in the same way."""
    connection = Connection(address)
    try:
        async with asyncio.timeout(timeout):
            answer = await connection.exchange(message.data)
    except TimeoutError as error:
        raise _ServerError(f"the first request was not answered within {timeout:g} s") from error
    finally:
        connection.close()
    if answer.status != 200:
        text = answer.content.decode(errors="replace")[:500]
        raise _ServerError(f"the first request was answered with {answer.status}: {text}")


def _progress(quiet: bool) -> Callable[[Measurement], None]:
    last = 0

    def show(result: Measurement) -> None:
        nonlocal last
        if not quiet:
            errors = f", {result.errors.total()} errors" if result.errors else ""
            sys.stderr.write(
                f"{PROGRAM}: {result.count} requests, {result.count - last} a second{errors}\n"
            )
        last = result.count

    return show


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _read(reader: Callable[[str], T]) -> Callable[[str], T]:
    """Make the ValueError of `reader` the parser's error."""

    def read(text: str) -> T:
        try:
            return reader(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _not_negative(text: str) -> float:
    return 0.0 if text in ("0", "0.0") else seconds(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        PROGRAM,
        description="Send random requests to a server of the Open Inference Protocol v2, and tell "
        "how fast it answers.",
        epilog="example: pyattn-serve bench minilm --clients 8 --lengths uniform:8:128",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="name of the model")
    add("--model-version", metavar="V", help="version of the model (default: the server's choice)")
    add("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    add("--tls-ca", metavar="FILE", help="certificate of the authority to trust, PEM")
    add("--token-file", type=Path, metavar="FILE", help=f"token to send; or ${TOKEN_VARIABLE}")
    load = parser.add_argument_group("load").add_argument
    load(
        "--clients",
        type=positive,
        metavar="N",
        help="connections, each of which sends its next request after its last answer "
        "(default: 1); with --rate the most that are open (default: 256)",
    )
    load(
        "--rate",
        type=seconds,
        metavar="R",
        help="requests a second, which come at random (Poisson) and whose time counts from when "
        "they were due",
    )
    load("--duration", type=seconds, default=10.0, metavar="S", help="seconds (default: 10)")
    load("--requests", type=positive, metavar="N", help="so many requests, however long it takes")
    load(
        "--warmup",
        type=_not_negative,
        default=1.0,
        metavar="S",
        help="seconds of load before that, which do not count (default: 1)",
    )
    load("--timeout", type=seconds, default=60.0, metavar="S", help="for one answer (default: 60)")
    content = parser.add_argument_group("requests").add_argument
    content("--binary", action="store_true", help="send and ask for tensors in binary, not JSON")
    content(
        "--shape",
        type=_read(requests.read_shape),
        action="append",
        default=[],
        metavar="NAME=1xL",
        help="shape of an input, L is the drawn length; by default what the model says, with 1 for "
        "a free first dimension and L (or 1) for other free ones",
    )
    content(
        "--lengths",
        type=_read(requests.read_lengths),
        metavar="WHICH",
        help="length of each request: N, uniform:LOW:HIGH, or a file of whole numbers to draw from",
    )
    content(
        "--values",
        type=_read(requests.read_values),
        action="append",
        default=[],
        metavar="NAME=LOW:HIGH",
        help="bounds of random values; by default 0 and 1, the upper one included for integers",
    )
    content("--mask", metavar="NAME", help="input of ones whose size counts as tokens")
    content(
        "--distinct",
        type=positive,
        default=256,
        metavar="N",
        help="different requests, made beforehand and sent in turn (default: %(default)s)",
    )
    content("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write a report")
    add("--quiet", action="store_true", help="no progress on standard error")
    return parser
