"""The cases of recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyattn import nn, ops
from tests import reference_recurrent
from tests.case import Case, In


def _inputs(gates: int, size: int, states: tuple[str, ...]) -> dict[str, In]:
    rows = gates * size
    return {
        "x": In(("B", "T", 5)),
        "weight_input": In((rows, 5), "weight"),
        "weight_hidden": In((rows, size), "weight"),
        "bias_input": In((rows,)),
        "bias_hidden": In((rows,)),
        **{state: In(("B", size)) for state in states},
        "lengths": In(("B",), "T"),
    }


def _recurrent(
    op: str, name: str, without: tuple[str, ...] = (), size: int = 6, **options: Any
) -> Case:
    """A case of a layer with every input but some."""
    gates, states = (3, ("h0",)) if op == "gru" else (4, ("h0", "c0"))
    inputs = {k: v for k, v in _inputs(gates, size, states).items() if k not in without}
    function, oracle = getattr(ops, op), getattr(reference_recurrent, op)
    return Case(
        f"{op}/{name}",
        op,
        inputs,
        lambda **arrays: function(**arrays, **options),
        lambda **arrays: oracle(**arrays, **options),
    )


def _cell(op: str, **options: Any) -> Case:
    gates, states = (3, ("h",)) if op == "gru" else (4, ("h", "c"))
    inputs = _inputs(gates, 6, states) | {"x": In(("B", 5))}
    del inputs["lengths"]
    function, oracle = getattr(ops, f"{op}_cell"), getattr(reference_recurrent, op)

    def exact(x: Any, **arrays: Any) -> Any:
        before = {f"{state}0": arrays.pop(state) for state in states}
        last = oracle(x[:, None], **arrays, **before, **options)[1:]
        return last if op == "lstm" else last[0]

    return Case(f"{op}/cell", op, inputs, lambda **a: function(**a, **options), exact)


def _two_layers(x: Any, lengths: Any) -> Any:
    """Two layers of both directions with constant weights, whose rows ONNX has in its order."""
    layers = nn.GRU(5, 4, layers=2, bidirectional=True, rng=np.random.default_rng(3))
    if x.dtype == np.float64:
        layers = layers.replace({k: v.astype(x.dtype) for k, v in layers.parameters().items()})
    return layers(x, lengths=lengths)


def _two_layers_oracle(x: Any, lengths: Any) -> Any:
    weights = nn.GRU(5, 4, layers=2, bidirectional=True, rng=np.random.default_rng(3)).parameters()
    lasts = []
    for layer in range(2):
        outputs = []
        for end in ("", "_reverse"):
            kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            given = [weights[f"{kind}_l{layer}{end}"] for kind in kinds]
            output, last = reference_recurrent.gru(x, *given, None, lengths, reverse=bool(end))
            outputs.append(output)
            lasts.append(last)
        x = np.concatenate(outputs, -1)
    return x, np.stack(lasts)


RECURRENT = [
    _recurrent("gru", "all"),
    _recurrent("gru", "reverse", reverse=True),
    _recurrent("gru", "papers", reset_after=False),
    _recurrent("gru", "papers-reverse", ("bias_hidden",), reset_after=False, reverse=True),
    _recurrent("gru", "bare", ("bias_input", "bias_hidden", "h0", "lengths"), size=17),
    _recurrent("gru", "no-lengths", ("bias_input", "lengths"), size=33, reverse=True),
    _recurrent("gru", "no-state", ("h0",), size=1),
    _cell("gru", reset_after=False),
    _recurrent("lstm", "all"),
    _recurrent("lstm", "reverse", reverse=True),
    _recurrent("lstm", "bare", ("bias_input", "bias_hidden", "h0", "c0", "lengths"), size=17),
    _recurrent("lstm", "no-lengths", ("bias_input", "h0", "lengths"), size=33, reverse=True),
    _recurrent("lstm", "no-cell", ("c0",), size=1),
    _cell("lstm"),
    Case(
        "gru/layers",
        "gru",
        {"x": In(("B", "T", 5)), "lengths": In(("B",), "T")},
        _two_layers,
        _two_layers_oracle,
    ),
]
