"""From logits to a token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..engine.failures import InferenceError
from ..engine.layout import Array


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen.

    Attributes
    ----------
    temperature : float
        The logits are divided by it; 0 takes the likeliest token.
    top_k : int
        Only so many of the likeliest tokens are drawn from; 0 stands for all.
    top_p : float
        Only the likeliest tokens are drawn from whose probabilities together reach it.
    seed : int, optional
        Of the random numbers.

    References
    ----------
    Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration", arXiv:1904.09751, for
    `top_p`; Fan et al. 2018, "Hierarchical Neural Story Generation", arXiv:1805.04833, for `top_k`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


class Sampler:
    """Chooses the tokens of one text."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def __call__(self, logits: Array) -> int:
        """Return a token for ``logits (V,)``; raises `InferenceError` for NaN among them."""
        likeliest = int(logits.argmax())  # of NaN, where there is one
        if not logits[likeliest] < np.inf or logits[likeliest] == -np.inf:
            raise InferenceError("the model gave logits that are no numbers")
        if self._sampling.temperature == 0:
            return likeliest
        tokens, chances = distribution(logits, self._sampling)
        return int(self._random.choice(tokens, p=chances))


def distribution(logits: Array, sampling: Sampling) -> tuple[Array, Array]:
    """Return the tokens that may be drawn, the likeliest first, and their probabilities.

    >>> tokens, chances = distribution(np.log([0.1, 0.6, 0.3]), Sampling(1.0, top_p=0.8))
    >>> tokens.tolist(), chances.round(3).tolist()
    ([1, 2], [0.667, 0.333])
    """
    exact = logits.astype(np.float64)
    # The largest is 0 before the division, which then cannot overflow but to no chance at all.
    with np.errstate(over="ignore"):
        scaled = (exact - exact.max()) / sampling.temperature
    tokens = np.argsort(-scaled, kind="stable")
    if sampling.top_k:
        tokens = tokens[: sampling.top_k]
    chances = np.exp(scaled[tokens])
    chances /= chances.sum()
    if sampling.top_p < 1:
        kept = int(np.searchsorted(np.cumsum(chances), sampling.top_p)) + 1
        tokens, chances = tokens[:kept], chances[:kept] / chances[:kept].sum()
    return tokens, chances
