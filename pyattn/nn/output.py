"""From a decoder's state to words: the deep output layer with maxout, and copying."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn.nn.layers import Linear
from pyattn.nn.module import Module
from pyattn.ops import concat, maximum, pad, reshape, scatter_add, sigmoid
from pyattn.tensor import Value, rank_of


class MaxoutOutput(Module):
    """Bahdanau's deep output layer: ``t_j = max(u_2j, u_2j+1)``, ``u = U s + V y + C c``.

    A :class:`Linear` layer of the vocabulary's size behind it gives the logits. In the paper s is
    the state *before* the step, y the word before and c the context.

    Parameters
    ----------
    hidden_size, input_size, source_size:
        The sizes of s, y and c.
    size:
        l, the size of t.
    rng:
        Draws the initial parameters; None leaves them at zero, to be loaded.

    References
    ----------
    Bahdanau, Cho and Bengio 2014, arXiv:1409.0473, appendix A.2.2; Goodfellow et al. 2013, "Maxout
    Networks", arXiv:1302.4389.
    """

    def __init__(
        self,
        hidden_size: int,
        input_size: int,
        source_size: int,
        size: int,
        *,
        rng: np.random.Generator | None,
    ) -> None:
        self.size = size
        self.linear = Linear(hidden_size + input_size + source_size, 2 * size, rng=rng)

    def __call__(self, s: Value, y: Value, c: Value) -> Any:
        """Return t ``(..., l)`` of s, y and c ``(..., their size)``, one step or several."""
        both = self.linear(concat([s, y, c], -1))
        leading = (0,) * (rank_of("MaxoutOutput", s) - 1)
        pairs = reshape(both, (*leading, self.size, 2))
        return maximum(pairs[..., 0], pairs[..., 1])  # NumPy reduces so short an axis slowly


class PointerOutput(Module):
    """Copying from the source: ``P(w) = p P_vocabulary(w) + (1 - p) sum of a_j over x_j = w``.

    a are the attention weights on the source words x, and ``p = sigmoid(w . [c; s; y] + b)``, the
    probability of generating, follows from the context c, the state s and the input y of the step.
    The vocabulary is extended by numbers for the words that only the source has.

    Parameters
    ----------
    hidden_size, input_size, source_size:
        The sizes of s, y and c.
    rng:
        Draws the initial parameters; None leaves them at zero, to be loaded.

    References
    ----------
    See, Liu and Manning 2017, "Get To The Point: Summarization with Pointer-Generator Networks",
    arXiv:1704.04368, section 2.2.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> pointer = pa.nn.PointerOutput(2, 1, 2, rng=None)   # p is sigmoid(0) = 0.5
    >>> state, word, context = np.zeros((1, 2), "f"), np.zeros((1, 1), "f"), np.zeros((1, 2), "f")
    >>> vocabulary = np.array([[0.25, 0.75]], "f")
    >>> weights, ids = np.array([[0.5, 0.25, 0.25]], "f"), np.array([[2, 0, 2]])
    >>> pointer(vocabulary, weights, ids, state, word, context, extra=1).tolist()
    [[0.25, 0.375, 0.375]]
    """

    def __init__(
        self,
        hidden_size: int,
        input_size: int,
        source_size: int,
        *,
        rng: np.random.Generator | None,
    ) -> None:
        self.gate = Linear(source_size + hidden_size + input_size, 1, rng=rng)

    def __call__(
        self,
        vocabulary: Value,
        weights: Value,
        source_ids: Value,
        s: Value,
        y: Value,
        c: Value,
        *,
        extra: int = 0,
    ) -> Any:
        """Return the probabilities ``(..., V + extra)`` of generating or copying each word.

        ``vocabulary (..., V)`` are probabilities, ``weights (..., S)`` those of the attention,
        ``source_ids (..., S)`` the source words as integers below ``V + extra``; s, y and c are
        ``(..., their size)``. ValueError for an id outside.
        """
        p = sigmoid(self.gate(concat([c, s, y], -1)))
        return scatter_add(pad(p * vocabulary, extra), source_ids, (1.0 - p) * weights)
