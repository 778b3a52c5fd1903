"""What attention becomes in a file: the three targets, every opset, and what ONNX Runtime lacks."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

import pyattn as pa
from pyattn import nn
from pyattn.ort import session
from tests import reference
from tests.runtimes import newest_opset

OPSETS = range(18, onnx.defs.onnx_opset_version() + 1)
sdpa = pa.scaled_dot_product_attention


def all_nodes(proto: Any) -> Iterator[Any]:
    bodies = [proto.graph.node, *(function.node for function in proto.functions)]
    while bodies:
        for node in bodies.pop():
            yield node
            bodies.extend(a.g.node for a in node.attribute if a.HasField("g"))


def count(proto: Any, op_type: str) -> int:
    return sum(node.op_type == op_type and not node.domain for node in all_nodes(proto))


@pytest.fixture
def qkv(rng: Any) -> dict[str, Any]:
    shapes = {"q": (2, 4, 5, 8), "k": (2, 2, 7, 8), "v": (2, 2, 7, 6)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def directly(model: Any, feed: Any, *, opset: int = 24) -> Any:
    """Export to the operator Attention, which every attention must become; return the results."""
    proto = pa.export(model, feed, opset=opset, target="onnx24", verify=False)
    assert count(proto, "Attention") == 1
    assert not count(proto, "Softmax")
    return session(proto).run(None, feed)


# What the operator can say, some of it by a mask; among them what ONNX Runtime's kernel rejects.
SAYABLE: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "bottom right": {"is_causal": "bottom_right"},
    "window": {"window": (2, 1)},
    "causal window": {"window": (3, 0), "is_causal": True},
    "start": {"is_causal": True, "query_start": 2},
    "starts": {"is_causal": True, "query_start": np.array([-1, 3])},
    "lengths": {"kv_lengths": np.array([7, 3])},
    "no keys": {"kv_lengths": np.array([7, 0]), "is_causal": "bottom_right"},
    "softcap": {"softcap": 1.5, "is_causal": True},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 0.125, 0], np.float32), "window": (4, 0)},
    "scale": {"scale": 0.3},
    "negative scale": {"scale": -0.4},
    "scale zero": {"scale": 0.0},
}


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("mask", ["none", "bool", "short", "float"])
@pytest.mark.parametrize("name", SAYABLE)
def test_what_the_operator_can_say(name: str, mask: str, opset: int, qkv: Any, rng: Any) -> None:
    given: Any = None
    if mask == "float":
        given = rng.standard_normal((4, 5, 7)).astype(np.float32)
        given[:, 1, 3:] = -np.inf
        given[0, 2] = -np.inf
    elif mask != "none":
        given = rng.random((2, 1, 5, 4 if mask == "short" else 7)) < 0.6
        given[1, 0, 3] = False
    options = SAYABLE[name]

    def model(q: Any, k: Any, v: Any) -> Any:
        out, weights = sdpa(q, k, v, given, aux=("weights",), **options)
        return {"out": out, "weights": weights}

    expected = model(**qkv)
    for found, exact in zip(directly(model, qkv, opset=opset), expected.values(), strict=True):
        np.testing.assert_allclose(found, exact, atol=2e-6)


def test_a_row_of_the_lowest_number_is_a_bias(qkv: Any) -> None:
    mask = np.zeros((5, 7), np.float32)
    mask[1], mask[2] = np.finfo(np.float32).min, -np.inf
    mask[3, :4] = np.finfo(np.float32).min
    feed = {name: array[:, :2] for name, array in qkv.items()} | {"m": mask}
    exact = reference.sdpa(feed["q"], feed["k"], feed["v"], mask=mask).out
    (found,) = directly(lambda q, k, v, m: sdpa(q, k, v, m), feed)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    assert not found[:, :, 2].any()


def test_a_past_is_joined_outside_of_the_operator(qkv: Any) -> None:
    """The operator takes a past only together with presents."""
    feed = qkv | {"pk": qkv["k"][:, :, :3], "pv": qkv["v"][:, :, :3]}

    def model(q: Any, k: Any, v: Any, pk: Any, pv: Any) -> Any:
        return sdpa(q, k, v, past_key=pk, past_value=pv, is_causal=True)

    proto = pa.export(model, feed, target="onnx24")
    (node,) = (node for node in all_nodes(proto) if node.op_type == "Attention")
    assert len(node.input) <= 4
    assert len(node.output) == 1


UNSAYABLE = {
    "no sinks": {"sinks": np.zeros(4, np.float32)},
    "does not return lse": {"aux": ("lse",)},
    "does not return scores, max": {"aux": ("weights", "scores", "max")},
}


@pytest.mark.parametrize("reason", UNSAYABLE)
def test_what_the_operator_cannot_say_is_written_out_and_told(reason: str, qkv: Any) -> None:
    def model(q: Any, k: Any, v: Any) -> Any:
        found = sdpa(q, k, v, **UNSAYABLE[reason])
        return found if isinstance(found, tuple) else (found, sdpa(q, k, v))

    with pytest.warns(pa.ExportWarning, match=f"1 x sdpa is written out: .*{reason}"):
        proto = pa.export(model, qkv, target="onnx24")
    assert count(proto, "Softmax") == 1
    told = json.loads({p.key: p.value for p in proto.metadata_props}["pyattn.remarks"])
    assert [reason in remark for remark in told] == [True]


@pytest.mark.parametrize(("dtype", "bits"), [("float64", 24), ("float16", 11), ("bfloat16", 8)])
def test_other_dtypes_are_written_out_and_told(dtype: str, bits: int, qkv: Any) -> None:
    def model(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (pa.ops.astype(x, np.dtype(dtype)) for x in (q, k, v))
        return pa.ops.astype(sdpa(q, k, v), np.float32)

    with pytest.warns(pa.ExportWarning, match=f"it is {dtype}"):
        proto = pa.export(model, qkv, target="onnx24", verify=False)
    assert not count(proto, "Attention")
    (found,) = session(proto).run(None, qkv)
    # The bodies compute in float32 or float64, so the result is off by its own rounding: float32's
    # for float64, which the model returns in it.
    exact = sdpa(*(x.astype(np.dtype(dtype)).astype(np.float64) for x in qkv.values()))
    assert reference.max_error(found, exact) <= 2.0**-bits * np.abs(exact).max() + 1e-6


def test_mechanisms_without_an_operator_are_told(rng: Any) -> None:
    x = rng.standard_normal((1, 4, 8)).astype(np.float32)
    v = rng.standard_normal(8).astype(np.float32)

    def model(x: Any) -> Any:
        return pa.additive_attention(x, x, x, v) + pa.additive_attention(x, x, x, v)

    with pytest.warns(pa.ExportWarning, match="2 x additive is written out: ONNX has no operator"):
        pa.export(model, {"x": x}, target="onnx24")


def test_attention_without_keys(qkv: Any) -> None:
    """ONNX Runtime's kernel takes none; a size known beforehand is lowered around."""
    fixed = qkv | {"k": qkv["k"][:, :, :0], "v": qkv["v"][:, :, :0]}

    def model(q: Any, k: Any, v: Any) -> Any:
        return sdpa(q, k, v)

    with pytest.warns(pa.ExportWarning, match="attention without keys"):
        proto = pa.export(model, fixed, target="onnx24")
    assert not session(proto).run(None, fixed)[0].any()
    inputs: dict[str, Any] = {"q": qkv["q"]} | {
        name: pa.Input(qkv[name], (None, None, "keys", None)) for name in "kv"
    }
    with pytest.raises(Exception, match="KV sequence length must be greater than 0"):
        session(pa.export(model, inputs, target="onnx24")).run(None, fixed)
    (found,) = session(pa.export(model, inputs, target="primitive")).run(None, fixed)
    assert not found.any()


@pytest.mark.parametrize("opset", [o for o in OPSETS if o > 24])
def test_an_opset_without_a_kernel_is_told(opset: int, qkv: Any) -> None:
    with pytest.warns(pa.ExportWarning, match=f"no kernel for Attention of opset {opset}"):
        proto = pa.export(
            lambda q, k, v: sdpa(q, k, v, scale=-1.0), qkv, opset=opset, target="onnx24",
            verify=opset <= newest_opset(),
        )  # fmt: skip
    assert count(proto, "Attention") == 1
    for target in ("functions", "primitive"):
        proto = pa.export(
            lambda q, k, v: sdpa(q, k, v), qkv, opset=opset, target=target,
            verify=opset <= newest_opset(),
        )  # fmt: skip
        assert not count(proto, "Attention")


def models(rng: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Models that between them have most of what is exported, each with its inputs."""
    x = pa.Input(rng.standard_normal((2, 4, 8)).astype(np.float32), ("batch", "time", None))
    lengths = pa.Input(np.array([4, 2]), ("batch",), at_most="time")
    encoder = nn.TransformerEncoderLayer(8, 2, 16, rng=rng)
    attention = nn.AdditiveAttention(8, 8, 4, rng=rng)
    recurrent = nn.GRU(8, 4, rng=rng)
    norm, rotary = nn.RMSNorm(8), nn.RotaryEmbedding(4, 16)
    luong = nn.LuongAttention(8, 8, align="local-m", half_width=1, rng=rng)
    packed = pa.Input(rng.standard_normal((6, 2, 4)).astype(np.float32), ("rows", None, None))
    offsets = pa.Input(np.array([0, 2, 6]), ("offsets",), offsets_of="rows")

    def turned(x: Any) -> Any:
        heads = pa.ops.transpose(pa.ops.reshape(norm(x), (0, 0, 2, 4)), (0, 2, 1, 3))
        heads = rotary(heads)
        return sdpa(heads, heads, heads, is_causal=True)

    def looped(x: Any) -> Any:
        def step(state: Any) -> Any:
            after = state + sdpa(state, state, state)
            return after, after

        return pa.ops.loop(step, pa.ops.expand_dims(x, 1), 3)[0]

    return {
        "encoder": (encoder, {"x": x}),
        "additive": (
            lambda x, lengths: attention(x, x, x, kv_lengths=lengths),
            {"x": x, "lengths": lengths},
        ),
        "recurrent": (recurrent, {"x": x}),
        "turned": (turned, {"x": x}),
        "luong": (lambda x: luong(x, x), {"x": x}),
        "packed": (
            lambda x, ends: pa.varlen_attention(x, x, x, ends, ends, is_causal=True),
            {"x": packed, "ends": offsets},
        ),
        "looped": (looped, {"x": x}),
    }


@pytest.mark.parametrize(
    "name", ["encoder", "additive", "recurrent", "turned", "luong", "packed", "looped"]
)
@pytest.mark.parametrize("target", ["functions", "primitive", "onnx24"])
@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset(opset: int, target: Any, name: str, rng: Any) -> None:
    """Verified by the export itself, at three sizes, where ONNX Runtime knows the opset."""
    model, inputs = models(rng)[name]
    if target == "onnx24" and opset < 23:
        with pytest.raises(ValueError, match=r"opset must lie in 23\.\..* for target 'onnx24'"):
            pa.export(model, inputs, opset=opset, target=target)
        return
    with warnings.catch_warnings():
        if target == "onnx24":
            warnings.simplefilter("ignore", pa.ExportWarning)
        proto = pa.export(model, inputs, opset=opset, target=target, verify=opset <= newest_opset())
    assert proto.opset_import[0].version == opset
    assert bool(proto.functions) == (target == "functions" and name != "recurrent")
    assert not any(function.overload for function in proto.functions)  # older runtimes ignore it
    if target == "primitive":
        assert not count(proto, "Attention")


def test_targets_that_are_none(qkv: Any) -> None:
    with pytest.raises(ValueError, match=r"target must be one of .*'onnx24'.*; got 'fast'"):
        pa.export(lambda q, k, v: sdpa(q, k, v), qkv, target="fast")  # type: ignore[arg-type]
