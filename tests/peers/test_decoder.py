"""Decoder cells against the same steps written with torch, gradients by autograd in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pyattn as pa
from pyattn import nn, ops


def parameters(module: Any) -> dict[str, Any]:
    return {name: array.astype(np.float64) for name, array in module.parameters().items()}


def torch_cell(kind: Any, weights: dict[str, Any], x: Any, state: Any) -> Any:
    """Run torch's recurrent cell on our parameters, which have its names and layouts."""
    given = {name[5:]: weights[name] for name in weights if name.startswith("cell.")}
    size = given["weight_hh"].shape[1]
    cell = kind(x.shape[1], size, dtype=torch.float64)
    return torch.func.functional_call(cell, given, (x, state))


def agree(ours: Any, theirs: Any, weights: dict[str, Any], *arrays: Any) -> None:
    leaves = {name: torch.tensor(array, requires_grad=True) for name, array in weights.items()}
    inputs = [torch.tensor(array, requires_grad=True) for array in arrays]
    out = theirs(leaves, *inputs)
    (out**3).sum().backward()
    np.testing.assert_allclose(ours(weights, *arrays), out.detach().numpy(), atol=1e-12)
    found = pa.grad(lambda *given: ops.sum(ours(*given) ** 3), range(1 + len(arrays)))(
        weights, *arrays
    )
    for name, leaf in leaves.items():
        np.testing.assert_allclose(found[0][name], leaf.grad.numpy(), atol=1e-10, err_msg=name)
    for f, leaf in zip(found[1:], inputs, strict=True):
        np.testing.assert_allclose(f, leaf.grad.numpy(), atol=1e-10)


@pytest.mark.parametrize("coverage", [False, True])
def test_bahdanau(coverage: bool, rng: Any) -> None:
    cell = nn.BahdanauDecoderCell(4, 6, 8, 7, coverage=coverage, reset_after=True, rng=rng)
    words, states = rng.standard_normal((3, 5, 4)), rng.standard_normal((3, 7, 8))

    def ours(weights: Any, words: Any, states: Any) -> Any:
        copy = cell.replace(weights)
        source = copy.prepare(states)
        state, outputs = copy.initial_state(source), []
        for t in range(5):
            state, output = copy(words[:, t], state, source)
            outputs.append(output)
        return ops.stack(outputs, 1)

    def theirs(w: Any, words: Any, states: Any) -> Any:
        s = torch.tanh(states[:, 0, 4:] @ w["first.weight"].T + w["first.bias"])
        covered, outputs = torch.zeros(3, 7, dtype=torch.float64), []
        for t in range(5):
            inner = (s @ w["attention.query.weight"].T)[:, None]
            inner = inner + states @ w["attention.key.weight"].T
            if coverage:
                inner = inner + covered[..., None] * w["coverage"][:, 0]
            a = torch.softmax(torch.tanh(inner) @ w["attention.v"], 1)
            covered = covered + a
            c = (a[..., None] * states).sum(1)
            s = torch_cell(torch.nn.GRUCell, w, torch.cat([words[:, t], c], 1), s)
            outputs.append(torch.cat([s, c], 1))
        return torch.stack(outputs, 1)

    agree(ours, theirs, parameters(cell), words, states)


def test_luong(rng: Any) -> None:
    cell = nn.LuongDecoderCell(4, nn.LuongAttention(6, 8, rng=rng), rng=rng)
    words, states = rng.standard_normal((3, 5, 4)), rng.standard_normal((3, 7, 8))
    start = rng.standard_normal((3, 6))

    def ours(weights: Any, words: Any, states: Any, start: Any) -> Any:
        copy = cell.replace(weights)
        source, state, outputs = copy.prepare(states), copy.initial_state((start, start)), []
        for t in range(5):
            state, output = copy(words[:, t], state, source)
            outputs.append(output)
        return ops.stack(outputs, 1)

    def theirs(w: Any, words: Any, states: Any, start: Any) -> Any:
        h, c, vector, outputs = start, start, torch.zeros(3, 6, dtype=torch.float64), []
        for t in range(5):
            x = torch.cat([words[:, t], vector], 1)
            h, c = torch_cell(torch.nn.LSTMCell, w, x, (h, c))
            scores = (states @ (h @ w["attention.weight"])[..., None])[..., 0]
            context = (torch.softmax(scores, 1)[..., None] * states).sum(1)
            vector = torch.tanh(torch.cat([context, h], 1) @ w["attention.output.weight"].T)
            outputs.append(vector)
        return torch.stack(outputs, 1)

    agree(ours, theirs, parameters(cell), words, states, start)
