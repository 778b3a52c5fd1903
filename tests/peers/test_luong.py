"""Gradients of Luong's attention, every score with every alignment, against PyTorch's autograd.

PyTorch has no such function, so the paper's formulas (arXiv:1508.04025) are written out in its
operations, with the full matrix, in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pyattn as pa

B, T, S, D, DK, A, P = 2, 9, 13, 6, 5, 7, 4
LENGTHS = np.array([13, 6])
SCORES = ("dot", "general", "concat", "location")
VARIANTS: dict[str, dict[str, Any]] = {
    "global": {},
    "local-m": {"align": "local-m", "half_width": 2, "query_start": np.array([-1, 3])},
    "local-p": {"align": "local-p", "half_width": 3},
    "local-p renormalized": {"align": "local-p", "half_width": 2, "renormalize": True},
}


def make(score: str, variant: str, rng: Any) -> dict[str, Any]:
    """Return the arrays to differentiate by."""
    arrays = {
        "query": rng.standard_normal((B, T, D)),
        "key": rng.standard_normal((B, S, D if score == "dot" else DK)),
        "value": rng.standard_normal((B, S, 8)),
    }
    weights = {"general": (D, DK), "concat": (A, D + DK), "location": (S + 2, D)}
    if score in weights:
        arrays["weight"] = rng.standard_normal(weights[score])
    if score == "concat":
        arrays["v"] = rng.standard_normal(A)
    if VARIANTS[variant].get("align") == "local-p":
        arrays["position_weight"] = rng.standard_normal((P, D))
        arrays["position_v"] = rng.standard_normal(P)
    return arrays


def scores_of(score: str, x: dict[str, Any]) -> Any:
    query, key = x["query"], x["key"]
    if score == "dot":
        return query @ key.mT
    if score == "general":
        return query @ x["weight"] @ key.mT
    if score == "location":
        return query @ x["weight"][: key.shape[1]].T
    both = torch.cat(
        [query[:, :, None].expand(-1, -1, S, -1), key[:, None].expand(-1, T, -1, -1)], -1
    )
    return torch.tanh(both @ x["weight"].T) @ x["v"]


def by_torch(score: str, x: dict[str, Any], mask: Any, options: dict[str, Any]) -> Any:
    """Return context, weights, log-sum-exp (0 where there is no key) and where there is none."""
    align, half = options.get("align", "global"), options.get("half_width", 0)
    column = torch.arange(S, dtype=torch.float64)
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)[:, None]
    allowed = torch.tensor(mask) & (column < lengths)[:, None]
    away = torch.zeros(B, T, S, dtype=torch.float64)
    if align == "local-m":
        centre = torch.tensor(options["query_start"])[:, None] + torch.arange(T)
        allowed = allowed & ((column - centre[..., None]).abs() <= half)
    if align == "local-p":
        hidden = torch.tanh(x["query"] @ x["position_weight"].T) @ x["position_v"]
        away = column - (lengths * torch.sigmoid(hidden))[..., None]
        allowed = allowed & (away.abs() <= half)
    empty = ~allowed.any(-1, keepdim=True)
    scores = scores_of(score, x).masked_fill(~allowed, -torch.inf).masked_fill(empty, 0.0)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    weights = torch.exp(scores - lse).masked_fill(empty, 0.0)
    if align == "local-p":
        weights = weights * torch.exp(-(away**2) / (2 * (half / 2) ** 2))
        if options.get("renormalize"):
            weights = weights / weights.sum(-1, keepdim=True).masked_fill(empty, 1.0)
    return weights @ x["value"], weights, lse.masked_fill(empty, 0.0)[..., 0], empty[..., 0]


@pytest.mark.parametrize("isa", pa.runtime.available_isas())
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("score", SCORES)
def test_gradients(score: str, variant: str, isa: str, rng: Any, use_isa: Any) -> None:
    options, arrays = VARIANTS[variant], make(score, variant, rng)
    mask = rng.random((B, T, S)) < 0.8
    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in arrays.items()}
    out, weights, lse, empty = by_torch(score, tensors, mask, options)
    by = [rng.standard_normal(tuple(x.shape)) for x in (out, weights, lse)]
    by[2] = np.where(empty.numpy(), 0.0, by[2])
    sums = [(x * torch.tensor(w)).sum() for x, w in zip((out, weights, lse), by, strict=True)]
    (sums[0] + sums[1] + sums[2]).backward()

    def loss(given: dict[str, Any]) -> Any:
        found = pa.luong_attention(
            **given, score=score, attn_mask=mask, kv_lengths=LENGTHS, aux=("weights", "lse"),
            **options,
        )  # fmt: skip
        finite = [pa.ops.where(x.numpy() > -np.inf, x, 0.0) for x in found]
        total = [pa.ops.sum(x * w) for x, w in zip(finite, by, strict=True)]
        return total[0] + total[1] + total[2], found[0].numpy()

    use_isa(isa)
    (_, found), gradients = pa.value_and_grad(loss, has_aux=True)(arrays)
    np.testing.assert_allclose(found, out.detach().numpy(), atol=1e-12)
    for name, tensor in tensors.items():
        wanted = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        np.testing.assert_allclose(gradients[name], wanted, atol=1e-11, err_msg=name)
