"""Recurrent layers; their parameters have PyTorch's names, layouts and order of gates."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn.nn.module import Module, uniform
from pyattn.ops import concat, getitem, gru, gru_cell, lstm, lstm_cell, stack
from pyattn.tensor import Value, rank_of

# PyTorch's names, and those of the arguments of our functions.
_KINDS = {
    "weight_ih": "weight_input",
    "weight_hh": "weight_hidden",
    "bias_ih": "bias_input",
    "bias_hh": "bias_hidden",
}


class _Weights(Module):
    """Parameters of one or more recurrent layers, uniform in ``+-1 / sqrt(hidden_size)``.

    They start at zero when ``rng`` is None.
    """

    def _add(self, place: str, rows: int, size_in: int, size: int, bias: bool, rng: Any) -> None:
        shapes = ((rows, size_in), (rows, size), (rows,), (rows,))
        for kind, shape in zip(_KINDS, shapes, strict=True):
            absent = len(shape) == 1 and not bias
            setattr(self, kind + place, None if absent else uniform(rng, shape, size))

    def _of(self, place: str) -> dict[str, Any]:
        return {argument: getattr(self, kind + place) for kind, argument in _KINDS.items()}


class _Layers(_Weights):
    """Layers of one kind on top of each other, each in one direction or in both."""

    def __init__(
        self,
        gates: int,
        input_size: int,
        hidden_size: int,
        layers: int,
        bidirectional: bool,
        bias: bool,
        rng: np.random.Generator | None,
    ) -> None:
        if layers < 1:
            raise ValueError(f"{type(self).__name__}: layers must be positive; got {layers}")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.layers, self.bidirectional = layers, bidirectional
        for layer, directions in enumerate(self._places()):
            size_in = len(directions) * hidden_size if layer else input_size
            for place in directions:
                self._add(place, gates * hidden_size, size_in, hidden_size, bias, rng)

    def _places(self) -> list[list[str]]:
        """Return what the names of parameters end in, for each layer and direction."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [[f"_l{layer}{end}" for end in directions] for layer in range(self.layers)]

    def _split(self, name: str, state: Value | None) -> list[Any]:
        """Return the first state of each layer and direction."""
        count = self.layers * (2 if self.bidirectional else 1)
        if state is None:
            return [None] * count
        if rank_of(type(self).__name__, state) != 3 or state.shape[0] != count:
            raise ValueError(
                f"{type(self).__name__}: {name} must be ({count}, B, H) for {count} layers and "
                f"directions; got {tuple(state.shape)}"
            )
        return [getitem(state, i) for i in range(count)]

    def _run(self, step: Any, x: Value, firsts: list[Any]) -> tuple[Any, list[Any]]:
        """Return the last layer's output and the last states, ``step`` being one direction."""
        lasts: list[Any] = []
        for directions in self._places():
            outputs = []
            for direction, place in enumerate(directions):
                output, *last = step(x, firsts[len(lasts)], self._of(place), bool(direction))
                outputs.append(output)
                lasts.append(last)
            x = concat(outputs, -1) if len(outputs) > 1 else outputs[0]
        return x, [stack(states, 0) for states in zip(*lasts, strict=True)]


class GRUCell(_Weights):
    """One step of a gated recurrent unit (arXiv:1406.1078); see :func:`pyattn.ops.gru_cell`.

    ``weight_ih (3H, I)``, ``weight_hh (3H, H)``, ``bias_ih`` and ``bias_hh (3H,)`` are named and
    laid out as in ``torch.nn.GRUCell``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        reset_after: bool = True,
        rng: np.random.Generator | None,
    ) -> None:
        self.input_size, self.hidden_size = input_size, hidden_size
        self.reset_after = reset_after
        self._add("", 3 * hidden_size, input_size, hidden_size, bias, rng)

    def __call__(self, x: Value, h: Value) -> Any:
        """Return the state after ``x (B, I)`` from ``h (B, H)``."""
        return gru_cell(x, h, **self._of(""), reset_after=self.reset_after)


class LSTMCell(_Weights):
    """One step of long short-term memory; see :func:`pyattn.ops.lstm_cell`.

    ``weight_ih (4H, I)``, ``weight_hh (4H, H)``, ``bias_ih`` and ``bias_hh (4H,)`` are named and
    laid out as in ``torch.nn.LSTMCell``.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        rng: np.random.Generator | None,
    ) -> None:
        self.input_size, self.hidden_size = input_size, hidden_size
        self._add("", 4 * hidden_size, input_size, hidden_size, bias, rng)

    def __call__(self, x: Value, state: tuple[Value, Value]) -> tuple[Any, Any]:
        """Return the state (h, c) after ``x (B, I)`` from ``state``, both ``(B, H)``."""
        h, c = state
        return lstm_cell(x, h, c, **self._of(""))


class GRU(_Layers):
    """Layers of gated recurrent units over sequences; see :func:`pyattn.ops.gru`.

    Parameters are named and laid out as in ``torch.nn.GRU`` (``weight_ih_l0``,
    ``weight_hh_l0_reverse``, ...), so its ``state_dict`` loads as it is. The second layer reads the
    outputs of both directions of the first, and so on.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        bias: bool = True,
        reset_after: bool = True,
        rng: np.random.Generator | None,
    ) -> None:
        super().__init__(3, input_size, hidden_size, layers, bidirectional, bias, rng)
        self.reset_after = reset_after

    def __call__(
        self, x: Value, h0: Value | None = None, *, lengths: Value | None = None
    ) -> tuple[Any, Any]:
        """Return ``output (B, T, directions * H)`` and ``h_n (layers * directions, B, H)``.

        ``x`` is ``(B, T, I)``, ``h0`` has the shape of ``h_n``, and ``lengths (B,)`` says how many
        steps each sequence has: the output behind them is 0.
        """

        def step(x: Value, first: tuple[Any], weights: dict[str, Any], reverse: bool) -> Any:
            after = self.reset_after
            return gru(
                x, **weights, h0=first[0], lengths=lengths, reverse=reverse, reset_after=after
            )

        output, (h_n,) = self._run(step, x, [(h,) for h in self._split("h0", h0)])
        return output, h_n


class LSTM(_Layers):
    """Layers of long short-term memory over sequences; see :func:`pyattn.ops.lstm`.

    Parameters are named and laid out as in ``torch.nn.LSTM`` (``weight_ih_l0``,
    ``weight_hh_l0_reverse``, ...), so its ``state_dict`` loads as it is. The second layer reads the
    outputs of both directions of the first, and so on.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        bias: bool = True,
        rng: np.random.Generator | None,
    ) -> None:
        super().__init__(4, input_size, hidden_size, layers, bidirectional, bias, rng)

    def __call__(
        self,
        x: Value,
        state: tuple[Value, Value] | None = None,
        *,
        lengths: Value | None = None,
    ) -> tuple[Any, tuple[Any, Any]]:
        """Return ``output (B, T, directions * H)`` and the last states ``(h_n, c_n)``.

        ``x`` is ``(B, T, I)``; ``h_n`` and ``c_n`` are ``(layers * directions, B, H)``, as are
        the first states (h0, c0) in ``state``; ``lengths (B,)`` says how many steps each sequence
        has: the output behind them is 0.
        """

        def step(x: Value, first: tuple[Any, Any], weights: dict[str, Any], reverse: bool) -> Any:
            h, c = first
            return lstm(x, **weights, h0=h, c0=c, lengths=lengths, reverse=reverse)

        h0, c0 = state or (None, None)
        firsts = list(zip(self._split("h0", h0), self._split("c0", c0), strict=True))
        output, (h_n, c_n) = self._run(step, x, firsts)
        return output, (h_n, c_n)
