"""Decoder steps with attention: Bahdanau's, with coverage, and Luong's, with input feeding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from pyattn.attention._checks import normalize_aux
from pyattn.nn.attention import AdditiveAttention
from pyattn.nn.layers import Linear
from pyattn.nn.luong import LuongAttention
from pyattn.nn.module import Module, uniform
from pyattn.nn.output import MaxoutOutput
from pyattn.nn.recurrent import GRUCell, LSTMCell
from pyattn.ops import concat, expand_dims, linear, minimum, sum, tanh, zeros_like
from pyattn.tensor import Array, Value, rank_of

BAHDANAU_AUX = ("weights", "context", "coverage_loss")
Recurrent = Literal["lstm", "gru"]


class Source(NamedTuple):
    """What a decoder attends to; a cell's ``prepare`` makes it, once for all steps."""

    states: Any
    """The source states h ``(B, S, source_size)``."""
    projected: Any = None
    """``U h`` ``(B, S, units)``, where the scores of the cell take it, None elsewhere."""
    lengths: Any = None
    """How many source states of each entry are valid, ``(B,)``; None is all."""


class BahdanauState(NamedTuple):
    """The state of :class:`BahdanauDecoderCell`."""

    hidden: Any
    """s ``(B, hidden_size)``."""
    coverage: Any = None
    """The sum of the weights so far ``(B, S)``, for a cell with coverage."""


class LuongState(NamedTuple):
    """The state of :class:`LuongDecoderCell`."""

    recurrent: Any
    """h ``(B, hidden_size)`` of a GRU, (h, c) of an LSTM."""
    vector: Any
    """The attentional vector of the step before, ``(B, hidden_size)``."""
    position: Any = None
    """How many steps there were, ``(B,)``, where the attention is local-m."""


class BahdanauDecoderCell(Module):
    """One step of Bahdanau's decoder: align with the state before, then renew the state.

    From the word before, y, the state before, s, and the source states h_1, ..., h_S::

        e_j = v . tanh(W s + U h_j)        a = softmax(e)        c = sum_j a_j h_j
        s' = GRU([y; c], s)                s_0 = tanh(W_s h_1), its backward half

    With ``coverage``, of See et al., ``w_c k_j`` stands inside the tanh too, where k is the sum of
    the weights a of all steps before.

    Parameters
    ----------
    input_size:
        The size of y, an embedded word.
    hidden_size:
        The size of s.
    source_size:
        The size of h, both directions of the encoder: even.
    units:
        A, the size of the alignment model.
    maxout:
        l: the output of a step is the deep output layer of the paper (:class:`MaxoutOutput`), of
        size l. None: it is ``[s'; c]``, of size ``hidden_size + source_size``.
    coverage:
        Whether the state has a coverage vector.
    normalize:
        As for :class:`AdditiveAttention`.
    reset_after:
        As for :class:`GRUCell`. The paper's gate comes before the product.
    rng:
        Draws the initial parameters; None leaves them at zero, to be loaded.

    References
    ----------
    Bahdanau, Cho and Bengio 2014, arXiv:1409.0473, section 3 and appendix A; See, Liu and Manning
    2017, "Get To The Point", arXiv:1704.04368, section 2.3, for coverage.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> rng = np.random.default_rng(0)
    >>> cell = pa.nn.BahdanauDecoderCell(8, 16, 20, 12, rng=rng)
    >>> states = rng.standard_normal((2, 7, 20), dtype=np.float32)
    >>> source = cell.prepare(states, np.array([7, 4]))
    >>> state = cell.initial_state(source)
    >>> word = rng.standard_normal((2, 8), dtype=np.float32)
    >>> state, output, weights = cell(word, state, source, aux=("weights",))
    >>> state.hidden.shape, output.shape, weights.shape
    ((2, 16), (2, 36), (2, 7))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        source_size: int,
        units: int,
        *,
        maxout: int | None = None,
        coverage: bool = False,
        normalize: bool = False,
        reset_after: bool = False,
        rng: np.random.Generator | None,
    ) -> None:
        if source_size < 2 or source_size % 2:
            raise ValueError(
                f"BahdanauDecoderCell: source_size must be even, two directions; got {source_size}"
            )
        self.attention = AdditiveAttention(
            hidden_size, source_size, units, normalize=normalize, rng=rng
        )
        self.coverage: Array | None = uniform(rng, (units, 1), units) if coverage else None
        self.first = Linear(source_size // 2, hidden_size, rng=rng)
        self.cell = GRUCell(input_size + source_size, hidden_size, reset_after=reset_after, rng=rng)
        self.output: MaxoutOutput | None = None
        if maxout is not None:
            self.output = MaxoutOutput(hidden_size, input_size, source_size, maxout, rng=rng)

    def prepare(self, states: Value, lengths: Value | None = None) -> Source:
        """Return the source of states ``(B, S, source_size)`` with U h computed."""
        _require_rank(self, 3, states=states)
        return Source(states, self.attention.project_key(states), lengths)

    def initial_state(self, source: Source) -> BahdanauState:
        """Return s_0, made of the backward state of the first source word, and no coverage."""
        backward = source.states[:, 0, -self.first.weight.shape[1] :]
        covered = None if self.coverage is None else zeros_like(source.states[..., 0])
        return BahdanauState(tanh(self.first(backward)), covered)

    def __call__(
        self, y: Value, state: BahdanauState, source: Source, *, aux: Sequence[str] = ()
    ) -> Any:
        """Return the next state and the output ``(B, l)`` of one step from ``y (B, input_size)``.

        ``aux`` names what else to return behind these: ``"weights"`` ``(B, S)``, ``"context"``
        ``(B, source_size)``, and, with coverage, ``"coverage_loss"`` ``(B,)``:
        ``sum_j min(a_j, k_j)``.
        """
        known = BAHDANAU_AUX if self.coverage is not None else BAHDANAU_AUX[:2]
        names = normalize_aux(type(self).__name__, aux, known)
        _require_rank(self, 2, y=y)
        s, covered = state
        key = source.projected
        if self.coverage is not None:
            key = key + linear(expand_dims(covered, 2), self.coverage)
        with_weights = "weights" in names or self.coverage is not None
        context, *weights = _first_row(
            self.attention(
                expand_dims(s, 1),
                source.states,
                projected_key=key,
                kv_lengths=source.lengths,
                aux=("weights",) if with_weights else (),
            )
        )
        after = self.cell(concat([y, context], -1), s)
        if self.output is None:
            output = concat([after, context], -1)
        else:
            output = self.output(s, y, context)
        extra = {"context": context}
        if weights:
            extra["weights"] = weights[0]
        if covered is not None and self.coverage is not None:
            if "coverage_loss" in names:
                extra["coverage_loss"] = sum(minimum(extra["weights"], covered), 1)
            covered = covered + extra["weights"]
        return (BahdanauState(after, covered), output, *(extra[name] for name in names))


class LuongDecoderCell(Module):
    """One step of Luong's decoder with input feeding: renew the state, then align with it.

    From the word before, y, the attentional vector before, u, and the source states h_s::

        h_t = RNN([y; u], h_{t-1})        c_t = sum_s a_ts h_s        u' = tanh(W_c [c_t; h_t])

    Parameters
    ----------
    input_size:
        The size of y, an embedded word.
    attention:
        A :class:`LuongAttention`, with any score and alignment, whose ``query_size`` is the size of
        h and u. For local-m, step t looks around the source state t.
    recurrent:
        "lstm", as in the paper, or "gru".
    rng:
        Draws the initial parameters of the recurrent cell; None leaves them at zero, to be loaded.

    References
    ----------
    Luong, Pham and Manning 2015, arXiv:1508.04025, sections 3 and 3.3.

    Examples
    --------
    >>> import numpy as np, pyattn as pa
    >>> rng = np.random.default_rng(0)
    >>> attention = pa.nn.LuongAttention(16, score="general", rng=rng)
    >>> cell = pa.nn.LuongDecoderCell(8, attention, recurrent="gru", rng=rng)
    >>> states = rng.standard_normal((2, 7, 16), dtype=np.float32)
    >>> source = cell.prepare(states, np.array([7, 4]))
    >>> state = cell.initial_state(states[:, -1])
    >>> state, vector = cell(rng.standard_normal((2, 8), dtype=np.float32), state, source)
    >>> vector.shape
    (2, 16)
    """

    def __init__(
        self,
        input_size: int,
        attention: LuongAttention,
        *,
        recurrent: Recurrent = "lstm",
        rng: np.random.Generator | None,
    ) -> None:
        if recurrent not in get_args(Recurrent):
            raise ValueError(
                f"LuongDecoderCell: recurrent must be one of {get_args(Recurrent)}; got "
                f"{recurrent!r}"
            )
        hidden_size = attention.output.weight.shape[0]
        self.attention = attention
        kind = LSTMCell if recurrent == "lstm" else GRUCell
        self.cell: Any = kind(input_size + hidden_size, hidden_size, rng=rng)

    def prepare(self, states: Value, lengths: Value | None = None) -> Source:
        """Return the source of states ``(B, S, key_size)``, for score "concat" projected."""
        _require_rank(self, 3, states=states)
        return Source(states, self.attention.project_key(states), lengths)

    def initial_state(self, recurrent: Any) -> LuongState:
        """Return the state from h ``(B, hidden_size)``, or (h, c), of the encoder; u is zero."""
        h = recurrent[0] if isinstance(recurrent, tuple) else recurrent
        counted = self.attention.align == "local-m"
        return LuongState(
            recurrent, zeros_like(h), zeros_like(h[:, 0], np.int64) if counted else None
        )

    def __call__(
        self, y: Value, state: LuongState, source: Source, *, aux: Sequence[str] = ()
    ) -> Any:
        """Return the next state and u' ``(B, hidden_size)`` of one step from ``y (B, input_size)``.

        ``aux=("weights",)`` returns the weights ``(B, S)`` behind these.
        """
        names = normalize_aux(type(self).__name__, aux, ("weights",))
        _require_rank(self, 2, y=y)
        recurrent = self.cell(concat([y, state.vector], -1), state.recurrent)
        h = recurrent[0] if isinstance(recurrent, tuple) else recurrent
        vector, *extra = _first_row(
            self.attention(
                expand_dims(h, 1),
                source.states,
                projected_key=source.projected,
                kv_lengths=source.lengths,
                query_start=state.position,
                aux=names,
            )
        )
        position = None if state.position is None else state.position + 1
        return (LuongState(recurrent, vector, position), vector, *extra)


def _first_row(result: Any) -> list[Any]:
    """Return the results ``(B, 1, ...)`` of a single query without the axis of queries."""
    return [part[:, 0] for part in (result if isinstance(result, tuple) else (result,))]


def _require_rank(module: Module, rank: int, **given: Value) -> None:
    name = type(module).__name__
    for key, x in given.items():
        if rank_of(name, x) != rank:
            layout = "(B, size)" if rank == 2 else "(B, S, size)"
            raise ValueError(f"{name}: {key} must be {layout}; got shape {x.shape}")
