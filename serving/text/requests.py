"""What a request for text says."""

from __future__ import annotations

from dataclasses import dataclass

from .fields import Fields
from .sampling import Sampling

MOST_STOPS = 16
DEFAULT_TOKENS = 16  # of OpenAI's API
_MICROSECONDS = 1e6


@dataclass(frozen=True, slots=True)
class TextRequest:
    """How texts are written.

    Attributes
    ----------
    most : int
        Tokens to write at most.
    sampling : Sampling
    stop : tuple of str
        Each text ends before the first of them.
    timeout : float or None
        Seconds until the end of the last text.
    priority : int
        1 is the highest, 0 the usual.
    """

    most: int
    sampling: Sampling
    stop: tuple[str, ...]
    timeout: float | None = None
    priority: int = 0

    @classmethod
    def parse(cls, fields: Fields, *, temperature: float = 0.0) -> TextRequest:
        """Return what the fields say; `temperature` is the default.

        Raises `InvalidRequestError` for a value of another type or out of range.
        """
        timeout = fields.integer("timeout", 0)
        return cls(
            fields.integer("max_tokens", 1, DEFAULT_TOKENS) or DEFAULT_TOKENS,
            Sampling(
                fields.number("temperature", 0, 100, temperature),
                fields.integer("top_k", 0) or 0,
                fields.number("top_p", 0, 1, 1.0),
                fields.integer("seed", 0),
            ),
            fields.strings("stop", MOST_STOPS),
            timeout / _MICROSECONDS if timeout else None,
            fields.integer("priority", 0) or 0,
        )


def check_completion(fields: Fields) -> None:
    """Refuse what OpenAI's API has for completions and this server has not."""
    fields.only("n", 1)
    fields.only("best_of", 1)
    fields.only("echo", False)
    fields.only("logprobs", 0)
    fields.only("suffix", "")
    fields.only("logit_bias", {})
    for penalty in ("presence_penalty", "frequency_penalty"):
        fields.only(penalty, 0)
