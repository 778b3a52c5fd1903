"""One measurement: the load generator of ``pyattn-serve bench`` against one server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from pyattn_serving.bench.client import Address, Connection
from pyattn_serving.bench.load import Generator, Load
from pyattn_serving.bench.requests import Message

from benchmarks.serving.forms import Form
from benchmarks.serving.mix import Question, differences

TOLERANCE = 1e-4  # batches of other sizes are added up in another order
_CHECKED = 8
_TIMEOUT = 60.0


class WrongAnswerError(Exception):
    """A server answers, but not what ONNX Runtime does."""


async def check(address: Address, model: str, form: Form, questions: Sequence[Question]) -> None:
    """Ask some questions, alone and then all at once; raises `WrongAnswerError`."""
    asked = questions[:_CHECKED]
    for question in asked[:2]:
        await _ask(address, model, form, question)
    await asyncio.gather(*(_ask(address, model, form, question) for question in asked))


async def _ask(address: Address, model: str, form: Form, question: Question) -> None:
    connection = Connection(address, keep_content=True)
    try:
        async with asyncio.timeout(_TIMEOUT):
            answer = await connection.exchange(form.write(address, model, question.inputs))
    finally:
        connection.close()
    if answer.status != 200:
        text = answer.content[:500].decode(errors="replace")
        raise WrongAnswerError(f"status {answer.status}: {text}")
    if wrong := differences(form.read(answer.content), question.outputs or {}, TOLERANCE):
        raise WrongAnswerError(f"{', '.join(wrong)} differ from those of ONNX Runtime")


async def measure(
    address: Address, messages: Sequence[Message], clients: int, seconds: float
) -> dict[str, Any]:
    """Load a server that is warm already: each client sends when it has its last answer.

    Without a warm-up, as requests of it that are still under way would slow those that count.
    """
    load = Load(clients=clients, warmup=0.0, duration=seconds, timeout=_TIMEOUT)
    result = await Generator(load, address, messages).run(lambda _: None)
    if result.errors:
        name, count = result.errors.most_common(1)[0]
        raise WrongAnswerError(f"{count} of {name}: {result.messages[name]}")
    milliseconds = np.asarray(result.latencies) * 1e3
    taken = result.end - result.begin
    p50, p99 = np.percentile(milliseconds, (50, 99)).tolist()
    return {
        "requests": result.count,
        "requests_per_second": result.count / taken,
        "tokens_per_second": result.tokens / taken,
        "p50_ms": p50,
        "p99_ms": p99,
        "generator_processor": result.processor / taken,
    }
