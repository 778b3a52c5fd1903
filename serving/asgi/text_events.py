"""Texts as JSON and as server-sent events."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import orjson

from ..engine.failures import ServingError
from ..text.generation import Generation
from .errors import error_response

logger = logging.getLogger("pyattn_serving")

_DONE = b"data: [DONE]\n\n"


async def text_events(generation: Generation, about: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """Yield an event of the generate extension for each piece; `about` is in each of them."""
    try:
        async for _, piece in generation:
            if piece.text or piece.finish:
                yield event({**about, "text_output": piece.text})
    except Exception as error:  # noqa: BLE001 - the status is sent already
        yield _failure(error, openai=False)


class Completion:
    """The answer to a request for completions, in the form of OpenAI's API."""

    def __init__(self, model: str, prompts: Sequence[Sequence[int]]) -> None:
        self._prompts = prompts
        self._written: Counter[int] = Counter()
        self._about = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    async def answer(self, generation: Generation) -> dict[str, Any]:
        """Return the answer when all texts are complete."""
        texts = [""] * len(self._prompts)
        reasons: list[str | None] = [None] * len(self._prompts)
        async for number, piece in generation:
            texts[number] += piece.text
            reasons[number] = piece.finish
            self._written[number] = piece.tokens
        choices = [_choice(i, *each) for i, each in enumerate(zip(texts, reasons, strict=True))]
        return {**self._about, "choices": choices, "usage": self._usage()}

    async def events(self, generation: Generation, with_usage: bool) -> AsyncIterator[bytes]:
        """Yield an event for each piece, and the end."""
        try:
            async for number, piece in generation:
                self._written[number] = piece.tokens
                if piece.text or piece.finish:
                    choices = [_choice(number, piece.text, piece.finish)]
                    usage = {"usage": None} if with_usage else {}
                    yield event({**self._about, "choices": choices, **usage})
            if with_usage:
                yield event({**self._about, "choices": [], "usage": self._usage()})
        except Exception as error:  # noqa: BLE001 - the status is sent already
            yield _failure(error, openai=True)
        yield _DONE

    def _usage(self) -> dict[str, int]:
        read, written = sum(map(len, self._prompts)), self._written.total()
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        }


def event(content: Mapping[str, Any]) -> bytes:
    """Return an event; JSON has no line break, so it is one line."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


def _failure(error: Exception, *, openai: bool) -> bytes:
    if not isinstance(error, ServingError):
        logger.error("a text failed", exc_info=error)
    return b"data: " + error_response(error, openai=openai).body + b"\n\n"


def _choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
