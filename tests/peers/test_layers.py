"""Rotary embedding and RMS normalisation against PyTorch, results and gradients in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pyattn as pa
from pyattn import ops


def agree(ours: Any, theirs: Any, *arrays: Any) -> None:
    """Compare a function of ours with one of torch's: its value, and the gradient of its cube."""
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    out = theirs(*leaves)
    (out**3).sum().backward()
    np.testing.assert_allclose(ours(*arrays), out.detach().numpy(), rtol=1e-12, atol=1e-12)
    which = tuple(range(len(arrays)))
    found = pa.grad(lambda *values: ops.sum(ours(*values) ** 3), which)(*arrays)
    for f, leaf in zip(found, leaves, strict=True):
        np.testing.assert_allclose(f, leaf.grad.numpy(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rms_norm(axis: int, rng: Any) -> None:
    x = rng.standard_normal((4, 5, 19))
    agree(
        lambda x, scale: ops.rms_norm(x, scale, axis=axis, epsilon=1e-3),
        lambda x, scale: torch.nn.functional.rms_norm(x, x.shape[axis:], scale, 1e-3),
        x,
        rng.standard_normal(x.shape[axis:]),
    )


@pytest.mark.parametrize("turned", [8, 22])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_embedding(interleaved: bool, turned: int, rng: Any) -> None:
    positions = rng.integers(0, 11, (2, 7))

    def theirs(x: Any, cosine: Any, sine: Any) -> Any:
        moving, rest = x[..., :turned], x[..., turned:]
        pairs = moving.unflatten(-1, (-1, 2) if interleaved else (2, -1))
        u, v = pairs.unbind(-1 if interleaved else -2)
        c, s = (cache[torch.tensor(positions)][:, None] for cache in (cosine, sine))
        turns = torch.stack([u * c - v * s, u * s + v * c], -1 if interleaved else -2)
        return torch.cat([turns.flatten(-2), rest], -1)

    agree(
        lambda x, cosine, sine: ops.rotary_embedding(
            x, cosine, sine, positions, interleaved=interleaved, rotary_embedding_dim=turned
        ),
        theirs,
        rng.standard_normal((2, 3, 7, 22)),
        rng.standard_normal((11, turned // 2)),
        rng.standard_normal((11, turned // 2)),
    )
