"""Additive attention and its gradients against PyTorch's autograd, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pyattn as pa

B, H, T, S, A, E = 2, 3, 9, 13, 4, 5
NAMES = ("query", "key", "value", "v", "bias")

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"window": (3, 1), "query_start": 2},
    "lengths": {"kv_lengths": np.array([13, 6])},
    "bool mask": {"mask": "bool"},
    "float mask": {"mask": "float"},
    "all": {"mask": "float", "is_causal": "bottom_right", "kv_lengths": np.array([13, 6])},
}


def allowed_pairs(options: dict[str, Any]) -> Any:
    """Return booleans (B, 1, T, S), by position and length."""
    lengths = np.asarray(options.get("kv_lengths", [S] * B))
    start = lengths - T if options.get("is_causal") == "bottom_right" else np.zeros(B, np.int64)
    start = start + options.get("query_start", 0)
    distance = np.arange(S) - (start[:, None] + np.arange(T))[..., None]
    left, right = options.get("window", (S + T, S + T))
    right = 0 if options.get("is_causal") else right
    keys = np.arange(S) < lengths[:, None]
    return torch.tensor((keys[:, None] & (distance >= -left) & (distance <= right))[:, None])


def by_torch(arrays: dict[str, Any], mask: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """Return output (B, T, H E) and log-sum-exp (B, H, T) with every (T, S, A) sum in memory."""
    query, key, value = (
        arrays[name].unflatten(-1, (H, -1)).transpose(1, 2) for name in ("query", "key", "value")
    )
    bias, v = (arrays[name].view(H, 1, A) for name in ("bias", "v"))
    hidden = torch.tanh((query + bias).unsqueeze(3) + key.unsqueeze(2))
    scores = (hidden * v.unsqueeze(2)).sum(-1)
    allowed = allowed_pairs(options)
    if mask is not None and mask.dtype == torch.bool:
        allowed = allowed & mask
    elif mask is not None:
        scores = scores + mask
    scores = scores.masked_fill(~allowed, -torch.inf)
    empty = ~(scores > -torch.inf).any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    lse = torch.logsumexp(scores.masked_fill(empty, 0.0), -1).masked_fill(empty[..., 0], 0.0)
    return (weights @ value).transpose(1, 2).flatten(2), lse


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("isa", pa.runtime.available_isas())
def test_gradients(name: str, isa: str, rng: Any, use_isa: Callable[[str], None]) -> None:
    use_isa(isa)
    options = dict(VARIANTS[name])
    sizes = ((B, T, H * A), (B, S, H * A), (B, S, H * E), (H * A,), (H * A,))
    arrays = {n: rng.standard_normal(size) for n, size in zip(NAMES, sizes, strict=True)}
    mask = {
        "bool": rng.random((B, 1, T, S)) < 0.5,
        "float": np.where(rng.random((H, T, S)) < 0.3, -np.inf, rng.standard_normal((H, T, S))),
    }.get(options.pop("mask", ""))
    tensors = {n: torch.tensor(array, requires_grad=True) for n, array in arrays.items()}
    out, lse = by_torch(tensors, None if mask is None else torch.tensor(mask), options)
    weights = rng.standard_normal(out.shape), rng.standard_normal(lse.shape)
    (out * torch.tensor(weights[0])).sum().add((lse * torch.tensor(weights[1])).sum()).backward()

    def loss(given: dict[str, Any]) -> Any:
        found, found_lse = pa.additive_attention(
            *(given[n] for n in NAMES[:4]), bias=given["bias"], attn_mask=mask, num_heads=H,
            aux=("lse",), **options,
        )  # fmt: skip
        np.testing.assert_allclose(found.numpy(), out.detach().numpy(), rtol=0, atol=1e-12)
        finite = pa.ops.where(found_lse.numpy() > -np.inf, found_lse, np.zeros(lse.shape))
        np.testing.assert_allclose(finite.numpy(), lse.detach().numpy(), rtol=0, atol=1e-12)
        return pa.ops.sum(found * weights[0]) + pa.ops.sum(finite * weights[1])

    for argument, gradient in pa.grad(loss)(arrays).items():
        want = tensors[argument].grad.numpy()
        np.testing.assert_allclose(
            gradient, want, rtol=0, atol=1e-11 * max(1.0, np.abs(want).max())
        )
