"""Gradients and results against PyTorch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pyattn as pa

SDPA = torch.nn.functional.scaled_dot_product_attention


def torch_gradients(call: Any, arrays: list[Any], cotangent: Any) -> tuple[Any, list[Any]]:
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    out = call(*tensors)
    out.backward(torch.tensor(cotangent))
    return out.detach().numpy(), [t.grad.numpy() for t in tensors]


def our_gradients(call: Any, arrays: list[Any], cotangent: Any) -> tuple[Any, Any]:
    def loss(*values: Any) -> Any:
        out = call(*values)
        return pa.ops.sum(out * cotangent), out.numpy()

    (_, out), gradients = pa.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True)(*arrays)
    return out, gradients


def compare(ours: Any, theirs: Any, arrays: list[Any], cotangent: Any) -> None:
    expected, expected_gradients = torch_gradients(theirs, arrays, cotangent)
    found, gradients = our_gradients(ours, arrays, cotangent)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    for g, e in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(g, e, atol=1e-11)


@pytest.mark.parametrize("variant", ["plain", "causal", "bool", "float", "GQA", "scale"])
def test_sdpa(variant: str, rng: Any) -> None:
    groups = 2 if variant == "GQA" else 4
    q, k, v = (
        rng.standard_normal(shape) for shape in ((2, 4, 5, 8), (2, groups, 7, 8), (2, groups, 7, 3))
    )
    mask: Any = rng.random((2, 1, 5, 7)) < 0.7
    mask[..., 0] = True
    options: dict[str, Any] = {"plain": {}, "bool": {}, "float": {}, "GQA": {}}.get(variant, {})
    if variant == "causal":
        options = {"is_causal": True}
    elif variant == "scale":
        options = {"scale": -0.7}
    if variant == "float":
        mask = np.where(mask, rng.standard_normal(mask.shape), -np.inf)
    masked = variant in ("bool", "float")

    def ours(q: Any, k: Any, v: Any) -> Any:
        return pa.scaled_dot_product_attention(q, k, v, mask if masked else None, **options)

    def theirs(q: Any, k: Any, v: Any) -> Any:
        given = torch.tensor(mask) if masked else None
        return SDPA(q, k, v, given, enable_gqa=variant == "GQA", **options)

    compare(ours, theirs, [q, k, v], rng.standard_normal((2, 4, 5, 3)))


def test_additive(rng: Any) -> None:
    arrays = [rng.standard_normal(s) for s in ((2, 5, 6), (2, 7, 6), (2, 7, 3), (6,))]

    def theirs(q: Any, k: Any, value: Any, v: Any) -> Any:
        scores = torch.tanh(q[:, :, None] + k[:, None]) @ v
        return torch.softmax(scores, -1) @ value

    compare(pa.additive_attention, theirs, arrays, rng.standard_normal((2, 5, 3)))


def test_encoder_layer(rng: Any) -> None:
    ours = pa.nn.TransformerEncoderLayer(16, 4, 32, rng=rng)
    theirs = torch.nn.TransformerEncoderLayer(
        16, 4, 32, dropout=0.0, activation="gelu", batch_first=True
    )
    a, p = ours.attention, ours.parameters()
    state = {
        "self_attn.in_proj_weight": np.concatenate([a.query.weight, a.key.weight, a.value.weight]),
        "self_attn.in_proj_bias": np.concatenate([a.query.bias, a.key.bias, a.value.bias]),
        "self_attn.out_proj.weight": a.output.weight,
        "self_attn.out_proj.bias": a.output.bias,
        **{f"linear1.{n}": p[f"hidden.{n}"] for n in ("weight", "bias")},
        **{f"linear2.{n}": p[f"output.{n}"] for n in ("weight", "bias")},
        **{f"norm1.{n}": p[f"attention_norm.{n}"] for n in ("weight", "bias")},
        **{f"norm2.{n}": p[f"output_norm.{n}"] for n in ("weight", "bias")},
    }
    theirs.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    x = rng.standard_normal((2, 6, 16)).astype(np.float32)
    cotangent = rng.standard_normal(x.shape).astype(np.float32)
    out = theirs(torch.tensor(x))
    out.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(ours(x), out.detach().numpy(), atol=1e-5)
    gradients = pa.grad(lambda m: pa.ops.sum(m(x) * cotangent))(ours)
    for name, grad in (
        ("hidden.weight", theirs.linear1.weight.grad),
        ("attention_norm.bias", theirs.norm1.bias.grad),
        ("attention.output.weight", theirs.self_attn.out_proj.weight.grad),
    ):
        np.testing.assert_allclose(gradients[name], grad.numpy(), atol=2e-4)
    joined = np.concatenate([gradients[f"attention.{n}.weight"] for n in ("query", "key", "value")])
    np.testing.assert_allclose(joined, theirs.self_attn.in_proj_weight.grad.numpy(), atol=2e-4)
