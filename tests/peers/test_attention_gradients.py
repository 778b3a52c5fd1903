"""Gradients of every variant of scaled dot-product attention against PyTorch's autograd, float64.

PyTorch has no such function for most variants, so the formula is written out in its operations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pyattn as pa
from tests.philox import dropout_factors

B, H, G, T, S, D, E = 2, 4, 2, 9, 13, 8, 5
LENGTHS = np.array([13, 6])

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": -0.7},
    "causal": {"is_causal": True},
    "bottom-right": {"is_causal": "bottom_right"},
    "window": {"window": (3, 1)},
    "causal window": {"is_causal": "bottom_right", "window": (4, 0), "kv_lengths": LENGTHS},
    "start": {"is_causal": True, "query_start": np.array([-3, 5])},
    "lengths": {"kv_lengths": LENGTHS},
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.1, 0.0])},
    "sinks": {"sinks": True, "is_causal": True},
    "rotary": {"rotary": 6, "is_causal": True},
    "rotary interleaved": {"rotary": 8, "rotary_interleaved": True, "query_start": 2},
    "past": {"past": 4, "is_causal": True},
    "bool mask": {"mask": "bool"},
    "float mask": {"mask": (B, H, T, S)},
    "float mask of heads": {"mask": (H, 1, S)},
    "float mask of rows": {"mask": (T, 1), "softcap": 2.0},
    "dropout": {"dropout_p": 0.3, "rng": 2**40 + 7},
    "all": {
        "dropout_p": 0.2, "rng": 5, "softcap": 2.0, "sinks": True, "mask": (B, 1, T, S),
        "alibi_slopes": np.array([0.5, 0.25, 0.1, 0.0]), "is_causal": "bottom_right",
        "window": (6, 0), "kv_lengths": LENGTHS,
    },
}  # fmt: skip


def positions(options: dict[str, Any], keys: int) -> Any:
    """Return j - p, (B, T, S), and which keys are valid, (B, 1, S)."""
    lengths = np.asarray(options.get("kv_lengths", [keys] * B))
    start = np.zeros(B, np.int64) + options.get("query_start", options.get("past", 0))
    if options.get("is_causal") == "bottom_right":
        start = lengths - T
    rows = start[:, None] + np.arange(T)
    distance = np.arange(keys)[None, None] - rows[:, :, None]
    return distance, (np.arange(keys) < lengths[:, None])[:, None]


def allowed_pairs(options: dict[str, Any], mask: Any, keys: int) -> Any:
    """Return the booleans (B, H, T, S) that say which pairs are attended."""
    distance, valid = positions(options, keys)
    left, right = options.get("window", (-1, -1))
    right = 0 if options.get("is_causal") else right
    allowed = np.broadcast_to(valid, distance.shape).copy()
    if left >= 0:
        allowed &= distance >= -left
    if right >= 0:
        allowed &= distance <= right
    allowed = np.broadcast_to(allowed[:, None], (B, H, T, keys))
    if mask is None:
        return allowed
    return allowed & (mask if mask.dtype == np.bool_ else mask > -np.inf)


def turned(x: Any, start: int, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
    """Return rows start, start + 1, ... with their pairs turned, by complex numbers."""
    size, rows = options["rotary"], slice(start, start + x.shape[2])
    angle = torch.complex(arrays["rotary_cos"][rows], arrays["rotary_sin"][rows])
    moving = x[..., :size]
    if options.get("rotary_interleaved"):
        pairs = torch.complex(moving[..., 0::2], moving[..., 1::2]) * angle
        moved = torch.stack([pairs.real, pairs.imag], -1).flatten(-2)
    else:
        pairs = torch.complex(moving[..., : size // 2], moving[..., size // 2 :]) * angle
        moved = torch.cat([pairs.real, pairs.imag], -1)
    return torch.cat([moved, x[..., size:]], -1)


def by_torch(arrays: dict[str, Any], mask: Any, options: dict[str, Any]) -> Any:
    """Return output and log-sum-exp by the definition, in operations that autograd knows."""
    key, value = arrays["key"], arrays["value"]
    if "past_key" in arrays:
        key = torch.cat([arrays["past_key"], key], 2)
        value = torch.cat([arrays["past_value"], value], 2)
    keys, query = key.shape[2], arrays["query"]
    if "rotary" in options:
        start = int(options.get("query_start", 0))
        query, key = turned(query, start, arrays, options), turned(key, 0, arrays, options)
    key, value = (x.repeat_interleave(H // G, 1) for x in (key, value))
    scores = query @ key.mT * options.get("scale", D**-0.5)
    if options.get("softcap"):
        scores = options["softcap"] * torch.tanh(scores / options["softcap"])
    if "alibi_slopes" in options:
        distance = torch.tensor(np.abs(positions(options, keys)[0]), dtype=torch.float64)
        scores = scores - torch.tensor(options["alibi_slopes"])[:, None, None] * distance[:, None]
    if "mask" in arrays:
        scores = scores + arrays["mask"]
    allowed = torch.tensor(allowed_pairs(options, mask, keys))
    empty = ~allowed.any(-1, keepdim=True)
    scores = scores.masked_fill(~allowed, -torch.inf).masked_fill(empty, 0.0)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    if "sinks" in arrays:
        sinks = arrays["sinks"][:, None, None].expand_as(lse)
        lse = torch.where(empty, sinks, torch.logaddexp(lse, sinks))
    weights = torch.exp(scores - lse).masked_fill(empty, 0.0)
    if options.get("dropout_p"):
        probability, seed = options["dropout_p"], options["rng"]
        places = np.ix_(range(B), range(H), range(T))
        factors = dropout_factors(probability, seed, *places, keys)
        weights = weights * torch.tensor(np.asarray(factors, np.float64))
    if "sinks" not in arrays:
        lse = lse.masked_fill(empty, 0.0)
    return weights @ value, lse[..., 0], empty[..., 0].numpy()


def make(options: dict[str, Any], rng: Any) -> tuple[dict[str, Any], Any]:
    """Return the arrays to differentiate by, and the mask."""
    past = options.get("past", 0)
    new = S - past
    arrays = {
        "query": rng.standard_normal((B, H, T, D)),
        "key": rng.standard_normal((B, G, new, D)),
        "value": rng.standard_normal((B, G, new, E)),
    }
    if past:
        arrays["past_key"] = rng.standard_normal((B, G, past, D))
        arrays["past_value"] = rng.standard_normal((B, G, past, E))
    if options.get("sinks"):
        arrays["sinks"] = rng.standard_normal(H)
    for name in ("rotary_cos", "rotary_sin"):
        if "rotary" in options:
            arrays[name] = rng.standard_normal((S + 2, options["rotary"] // 2))
    mask = None
    if options.get("mask") == "bool":
        mask = rng.random((B, 1, T, S)) < 0.5
    elif "mask" in options:
        drawn = rng.standard_normal(options["mask"])
        mask = arrays["mask"] = np.where(rng.random(drawn.shape) < 0.2, -np.inf, drawn)
    return arrays, mask


@pytest.mark.parametrize("isa", pa.runtime.available_isas())
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients(name: str, isa: str, rng: Any, use_isa: Any) -> None:
    options = VARIANTS[name]
    arrays, mask = make(options, rng)
    weight = rng.standard_normal((B, H, T, E)), rng.standard_normal((B, H, T))
    tensors = {k: torch.tensor(v, requires_grad=True) for k, v in arrays.items()}
    out, lse, empty = by_torch(tensors, mask, options)
    kept = np.where(empty & ("sinks" not in arrays), 0.0, weight[1])  # there lse is -inf
    (out * torch.tensor(weight[0])).sum().add((lse * torch.tensor(kept)).sum()).backward()
    fixed = {k: v for k, v in options.items() if k not in ("mask", "sinks", "past", "rotary")}

    def loss(given: dict[str, Any]) -> Any:
        named = dict(given)
        attn_mask = named.pop("mask", mask)
        call = pa.scaled_dot_product_attention
        found, total = call(**named, attn_mask=attn_mask, aux=("lse",), **fixed)
        finite = pa.ops.where(total.numpy() > -np.inf, total, 0.0)
        return pa.ops.sum(found * weight[0]) + pa.ops.sum(finite * kept), found.numpy()

    use_isa(isa)
    (_, found), gradients = pa.value_and_grad(loss, has_aux=True)(arrays)
    np.testing.assert_allclose(found, out.detach().numpy(), atol=1e-12)
    for key, tensor in tensors.items():
        expected = np.nan_to_num(tensor.grad.numpy())
        np.testing.assert_allclose(gradients[key], expected, atol=1e-11, err_msg=key)
