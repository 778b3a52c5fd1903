"""GRU and LSTM against PyTorch in float64: layers, directions, packed lengths, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pyattn as pa
from pyattn import nn, ops

KINDS = {"gru": (nn.GRU, torch.nn.GRU), "lstm": (nn.LSTM, torch.nn.LSTM)}
CELLS = {"gru": (nn.GRUCell, torch.nn.GRUCell), "lstm": (nn.LSTMCell, torch.nn.LSTMCell)}
both = pytest.mark.parametrize("op", KINDS)


def loaded(ours: Any, theirs: Any) -> Any:
    """Return our module with the parameters of theirs, whose names and layouts are the same."""
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    assert list(ours.parameters()) == list(state)
    return ours.replace(state)


def agree(module: Any, arrays: list[Any], ours: Any, theirs: Any, parameters: Any) -> None:
    """Compare results, and the gradients of the sum of their cubes."""
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = theirs(*leaves)
    torch.stack([(part**3).sum() for part in expected]).sum().backward()
    for f, e in zip(ours(module, *arrays), expected, strict=True):
        np.testing.assert_allclose(f, e.detach().numpy(), rtol=1e-11, atol=1e-12)

    def loss(module: Any, *values: Any) -> Any:
        parts = [ops.sum(part**3) for part in ours(module, *values)]
        return sum(parts[1:], parts[0])

    found, *by_input = pa.grad(loss, tuple(range(1 + len(arrays))))(module, *arrays)
    for f, leaf in zip(by_input, leaves, strict=True):
        np.testing.assert_allclose(f, leaf.grad.numpy(), rtol=1e-9, atol=1e-11)
    for name, parameter in parameters:
        np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-9, atol=1e-11)


@both
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_layers(op: str, bias: bool, bidirectional: bool, packed: bool, rng: Any) -> None:
    ours, theirs = KINDS[op]
    layer = theirs(
        5, 19, num_layers=2, bias=bias, bidirectional=bidirectional, batch_first=True,
        dtype=torch.float64,
    )  # fmt: skip
    module = loaded(ours(5, 19, layers=2, bias=bias, bidirectional=bidirectional, rng=None), layer)
    count, lengths = 4 if bidirectional else 2, np.array([6, 1, 4])
    first = [rng.standard_normal((count, 3, 19)) for _ in range(1 if op == "gru" else 2)]

    def run(module: Any, x: Any, *states: Any) -> Any:
        given = states[0] if op == "gru" else states
        output, last = module(x, given, lengths=lengths if packed else None)
        return (output, last) if op == "gru" else (output, *last)

    def peer(x: Any, *states: Any) -> Any:
        given = states[0] if op == "gru" else states
        if packed:
            x = pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted=False)
        output, last = layer(x, given)
        if packed:
            output = pad_packed_sequence(output, batch_first=True, total_length=6)[0]
        return (output, last) if op == "gru" else (output, *last)

    agree(module, [rng.standard_normal((3, 6, 5)), *first], run, peer, layer.named_parameters())


@both
@pytest.mark.parametrize("bias", [True, False])
def test_cells(op: str, bias: bool, rng: Any) -> None:
    ours, theirs = CELLS[op]
    cell = theirs(5, 19, bias=bias, dtype=torch.float64)
    module = loaded(ours(5, 19, bias=bias, rng=None), cell)
    states = [rng.standard_normal((3, 19)) for _ in range(1 if op == "gru" else 2)]

    def run(module: Any, x: Any, *states: Any) -> Any:
        return (module(x, states[0]),) if op == "gru" else module(x, states)

    def peer(x: Any, *states: Any) -> Any:
        return (cell(x, states[0]),) if op == "gru" else cell(x, states)

    agree(module, [rng.standard_normal((3, 5)), *states], run, peer, cell.named_parameters())
