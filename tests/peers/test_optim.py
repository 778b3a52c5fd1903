"""Adam against torch.optim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyattn.optim import Adam


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("max_norm", [None, 2.0])
def test_adam(weight_decay: float, max_norm: float | None, rng: Any) -> None:
    ours = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}
    theirs = {name: torch.tensor(array, requires_grad=True) for name, array in ours.items()}
    adam = Adam(rate=0.01, weight_decay=weight_decay, max_norm=max_norm)
    torches = torch.optim.AdamW(theirs.values(), lr=0.01, weight_decay=weight_decay)
    for _ in range(30):
        gradients = {name: rng.standard_normal(array.shape) for name, array in ours.items()}
        adam.update(ours, gradients)
        for name, leaf in theirs.items():
            leaf.grad = torch.tensor(gradients[name])
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm)
        torches.step()
    for name, leaf in theirs.items():
        # torch adds 1e-6 to the norm that it divides by.
        np.testing.assert_allclose(ours[name], leaf.detach().numpy(), rtol=1e-6, atol=1e-7)
