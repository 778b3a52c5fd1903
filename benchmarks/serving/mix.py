"""What a server meets in a long day: requests of many lengths, wrong ones, clients that leave."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyattn_serving.bench.client import Address, Connection
from pyattn_serving.bench.requests import infer_body, post_head

Arrays = Mapping[str, NDArray[Any]]

DATATYPES = {"float32": "FP32", "int64": "INT64"}
SHARES = {"json": 0.44, "binary": 0.44, "wrong": 0.04, "cut": 0.04, "left": 0.02, "gone": 0.02}
_TYPES = {name: dtype for dtype, name in DATATYPES.items()}
_DECODER = json.JSONDecoder()
_TIMEOUT = 60.0
_KEPT = 100  # failures that are told, not only counted


@dataclass(frozen=True, slots=True)
class Question:
    """Inputs of a model, and the outputs that are right; none for inputs that are wrong."""

    inputs: Arrays
    outputs: Arrays | None


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer other than the right one, and when its request was under way."""

    kind: str
    what: str
    begin: float
    end: float


def message(address: Address, model: str, inputs: Arrays, *, binary: bool) -> bytes:
    """A request of the Open Inference Protocol as it is sent."""
    datatypes = {name: DATATYPES[str(array.dtype)] for name, array in inputs.items()}
    body, headers = infer_body(datatypes, inputs, binary)
    return bytes(post_head(f"/v2/models/{model}/infer", address, len(body), headers) + body)


def read(content: bytes) -> dict[str, NDArray[Any]]:
    """The outputs of an answer, whose tensors are in its JSON or follow it."""
    # A header tells how long the JSON is, but the client keeps no headers; JSON shows its own end.
    fields, place = _DECODER.raw_decode(content.decode("latin-1"))
    outputs = {}
    for entry in fields["outputs"]:
        dtype = _TYPES[entry["datatype"]]
        size = entry.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(entry["data"], dtype)
        else:
            array = np.frombuffer(content[place : place + size], dtype)
            place += size
        outputs[entry["name"]] = array.reshape(entry["shape"])
    return outputs


def differences(outputs: Arrays, expected: Arrays, tolerance: float) -> list[str]:
    """The names of outputs that are not as expected; an answer of one may leave out its name."""
    if list(outputs) == [""] and len(expected) == 1:
        outputs = dict.fromkeys(expected, outputs[""])
    return [
        name
        for name, array in expected.items()
        if name not in outputs
        or outputs[name].shape != array.shape
        or not np.allclose(outputs[name], array, rtol=tolerance, atol=tolerance)
    ]


@dataclass(slots=True, kw_only=True)
class Mix:
    """Clients that send a mix of requests for one model, and check every answer.

    Of the kinds "json" and "binary" are right requests; "wrong" has inputs that the model cannot
    work on; "cut" is JSON that ends too early; "left" is a client that leaves in the middle of its
    request, and "gone" one that leaves before its answer.
    """

    address: Address
    model: str
    good: Sequence[Question]
    wrong: Sequence[Question]
    tolerance: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)

    async def run(
        self, clients: int, more: Callable[[], bool], rate: float | None = None, seed: int = 0
    ) -> None:
        """Send while there is `more`; `rate` bounds the requests a second of all together."""
        generators = np.random.default_rng(seed).spawn(clients)
        pause = 0.0 if rate is None else clients / rate
        async with asyncio.TaskGroup() as group:
            for generator in generators:
                group.create_task(self._client(generator, more, pause))

    async def _client(
        self, generator: np.random.Generator, more: Callable[[], bool], pause: float
    ) -> None:
        connection = Connection(self.address, keep_content=True)
        kinds, shares = list(SHARES), list(SHARES.values())
        try:
            while more():
                if pause:
                    await asyncio.sleep(generator.exponential(pause))
                kind = str(generator.choice(kinds, p=shares))
                begin = time.monotonic()
                what = await self._send(kind, generator, connection)
                self.counts[kind] += 1
                if what:
                    self.failed += 1
                    if len(self.failures) < _KEPT:
                        self.failures.append(Failure(kind, what, begin, time.monotonic()))
        finally:
            connection.close()

    async def _send(
        self, kind: str, generator: np.random.Generator, connection: Connection
    ) -> str | None:
        """Send one request; return what was wrong about the answer."""
        questions = self.wrong if kind == "wrong" else self.good
        question = questions[int(generator.integers(len(questions)))]
        binary = kind == "binary" or (kind != "json" and bool(generator.integers(2)))
        if kind == "cut":
            binary = False
        data = message(self.address, self.model, question.inputs, binary=binary)
        if kind in ("left", "gone"):
            return await self._leave(data if kind == "gone" else data[: len(data) // 2])
        if kind == "cut":
            body = data.partition(b"\r\n\r\n")[2]
            half = body[: len(body) // 2]
            headers = {"Content-Type": "application/json"}
            path = f"/v2/models/{self.model}/infer"
            data = post_head(path, self.address, len(half), headers) + half
        try:
            async with asyncio.timeout(_TIMEOUT):
                answer = await connection.exchange(data)
        except (OSError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"
        expected = 200 if kind in ("json", "binary") else 400
        if answer.status != expected:
            return f"{answer.status}: {answer.content[:500].decode(errors='replace')}"
        if question.outputs is None or expected != 200:
            return None
        wrong = differences(read(answer.content), question.outputs, self.tolerance)
        return f"wrong answer: {', '.join(wrong)}" if wrong else None

    async def _leave(self, data: bytes) -> str | None:
        """Send what there is and close the connection without waiting for an answer."""
        try:
            _, writer = await asyncio.open_connection(self.address.host, self.address.port)
            writer.write(data)
            await writer.drain()
            writer.transport.abort()
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        return None
