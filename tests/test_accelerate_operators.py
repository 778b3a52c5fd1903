"""Attention that is one operator, ONNX's or ONNX Runtime's own, means the same afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import pyattn as pa
from pyattn.ort import session
from tests.test_onnx_attention import CASES, compare

CONTRIB = "com.microsoft"
B, T, S, H, D, E = 2, 5, 7, 4, 8, 6
WIDE = 16  # the head size, where ONNX Runtime takes multiples of 16 only

Arrays = dict[str, Any]


def normal(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape, dtype=np.float32)


def described(name: str, array: Any) -> onnx.ValueInfoProto:
    """An input whose sizes are dynamic but for the last, and for the heads of four axes."""
    static = {array.ndim - 1} - {0} | ({1} if array.ndim == 4 else set())
    sizes = [n if i in static else f"{name}{i}" for i, n in enumerate(array.shape)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), sizes)


def model_of(
    op_type: str,
    inputs: dict[str, Any],
    outputs: list[str],
    *,
    domain: str = CONTRIB,
    opset: int = 20,
    constants: tuple[str, ...] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """One node; inputs of None are missing ones, sizes other than the last are dynamic."""
    names = [name if array is not None else "" for name, array in inputs.items()]
    node = helper.make_node(op_type, names, outputs, domain=domain, name="attention", **attributes)
    given = {n: a for n, a in inputs.items() if a is not None}
    declared = [described(name, given[name]) for name in given if name not in constants]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs if n]
    weights = [onnx.numpy_helper.from_array(given[name], name) for name in constants]
    graph = helper.make_graph([node], "attention", declared, results, weights)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def replaced(
    model: onnx.ModelProto, feed: Arrays, function: str, bound: float = 3e-6
) -> pa.Accelerated:
    """The operator is replaced by the function, and the outputs stay."""
    result = pa.accelerate(model, verify=False)
    assert [found.function for found in result.matched] == [function], str(result)
    assert not result.left
    ours, theirs = ({n.op_type for n in m.graph.node} for m in (result.model, model))
    assert not ours & theirs
    expected, found = (session(m).run(None, feed) for m in (model, result.model))
    for e, f in zip(expected, found, strict=True):
        np.testing.assert_allclose(f, e, atol=bound, rtol=bound)
    return result


def given(inputs: dict[str, Any], *constants: str) -> Arrays:
    return {n: a for n, a in inputs.items() if a is not None and n not in constants}


# ONNX's own cases. Those that ONNX Runtime gets wrong are compared with the case's result instead.
STANDARD = [case for case in CASES if not case.name.endswith("bf16")]


@pytest.mark.parametrize("case", STANDARD, ids=lambda case: case.name[15:])
def test_standard_attention(case: Any) -> None:
    """What is replaced gives what the case expects; what is not says why."""
    node = case.model.graph.node[0]
    result = pa.accelerate(case.model, verify=False)
    (left,) = result.left or (None,)
    if left is not None:
        known = ("scores or weights are read", "its mask is for")
        assert any(reason in left.reason for reason in known), left
        assert "its mask is for" not in left.reason or "padded" in case.name or "short" in case.name
        assert result.model == case.model
        return
    assert len(result.matched) == 1
    assert "Attention" not in [n.op_type for n in result.model.graph.node]
    run = session(result.model)
    for inputs, outputs in case.data_sets:
        names = [name for name in node.input if name]
        found = run.run(None, dict(zip(names, inputs, strict=True)))
        for f, e in zip(found, outputs, strict=True):
            compare(case, f, e)


def test_most_standard_cases_are_replaced() -> None:
    counts = [len(pa.accelerate(case.model, verify=False).matched) for case in STANDARD]
    assert sum(counts) >= 60


@pytest.mark.parametrize("mask", ["none", "padding", "rows", "lengths", "bias", "both"])
@pytest.mark.parametrize("causal", [0, 1])
def test_multi_head_attention(mask: str, causal: int, rng: np.random.Generator) -> None:
    keys = T if causal else S
    padding = None
    if mask in ("padding", "both"):
        padding = np.ones((B, keys), np.int32)
        padding[1, -2:] = 0
    if mask == "rows":
        padding = np.ones((B, T, keys), np.int32)
        padding[1, :, -2:] = 0
    if mask == "lengths":
        padding = np.array([keys, keys - 2], np.int32)
    inputs = {
        "query": normal(rng, B, T, H * D),
        "key": normal(rng, B, keys, H * D),
        "value": normal(rng, B, keys, H * E),
        "bias": None if mask == "none" else normal(rng, H * (2 * D + E)),
        "key_padding_mask": padding,
        "attention_bias": normal(rng, 1, H, T, keys) if mask in ("bias", "both") else None,
    }
    model = model_of("MultiHeadAttention", inputs, ["y"], num_heads=H, unidirectional=causal)
    if mask == "lengths":  # are told from other vectors by their number
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        (vector,) = (v for v in model.graph.input if v.name == "bias")
        vector.type.tensor_type.shape.dim[0].dim_value = H * (2 * D + E)
    name = "ScaledDotProductAttention" + "FloatMask" * (mask != "none") + "Causal" * causal
    result = replaced(model, given(inputs), name)
    (found,) = result.matched
    assert (found.kind, found.heads, found.head_size) == (f"{CONTRIB}::MultiHeadAttention", H, D)
    assert found.scale == pytest.approx(D**-0.5)


def test_multi_head_attention_with_a_past(rng: np.random.Generator) -> None:
    inputs = {
        "query": normal(rng, B, T, H * D),
        "key": normal(rng, B, T, H * D),
        "value": normal(rng, B, T, H * D),
        **dict.fromkeys(("bias", "key_padding_mask", "attention_bias")),
        "past_key": normal(rng, B, H, 3, D),
        "past_value": normal(rng, B, H, 3, D),
    }
    outputs = ["y", "present_key", "present_value"]
    model = model_of("MultiHeadAttention", inputs, outputs, num_heads=H, scale=0.5)
    assert replaced(model, given(inputs), "ScaledDotProductAttention").matched[0].scale == 0.5
    model = model_of("MultiHeadAttention", inputs, outputs, num_heads=H, unidirectional=1)
    replaced(model, given(inputs), "ScaledDotProductAttentionCausalStarts")


def test_multi_head_attention_over_keys_in_heads(rng: np.random.Generator) -> None:
    inputs = {
        "query": normal(rng, B, T, H * D),
        "key": normal(rng, B, H, S, D),
        "value": normal(rng, B, H, S, D),
    }
    model = model_of("MultiHeadAttention", inputs, ["y"], num_heads=H)
    replaced(model, given(inputs), "ScaledDotProductAttention")


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("past", [False, True])
def test_attention_with_projections(
    causal: int, mask: bool, past: bool, rng: np.random.Generator
) -> None:
    total = T + 3 * past
    padding = np.ones((B, total), np.int32)
    padding[1, -1] = 0
    inputs = {
        "x": normal(rng, B, T, 12),
        "weights": normal(rng, 12, 3 * H * D) / 4,
        "bias": normal(rng, 3 * H * D),
        "mask_index": padding if mask else None,
        "past": normal(rng, 2, B, H, 3, D) if past else None,
    }
    outputs = ["y", "present"] if past else ["y"]
    constants = ("weights", "bias")
    model = model_of(
        "Attention", inputs, outputs, constants=constants, num_heads=H, unidirectional=causal
    )
    name = "ScaledDotProductAttention" + "FloatMask" * mask + "Causal" * causal
    replaced(model, given(inputs, *constants), name + "Starts" * (causal and past), 1e-5)


def grouped(
    rng: np.random.Generator, past: int, rows: int, lengths: list[int], room: int = 0
) -> Any:
    """Inputs of GroupQueryAttention; ``room`` is the size of the cache, if that is a buffer."""
    total, batch = max(lengths), len(lengths)
    return {
        "query": normal(rng, batch, rows, H * WIDE),
        "key": normal(rng, batch, rows, 2 * WIDE),
        "value": normal(rng, batch, rows, 2 * WIDE),
        "past_key": normal(rng, batch, 2, room or past, WIDE),
        "past_value": normal(rng, batch, 2, room or past, WIDE),
        "seqlens_k": np.array(lengths, np.int32) - 1,
        "total_sequence_length": np.array([total], np.int32),
    }


@pytest.mark.parametrize(
    ("past", "rows", "lengths", "room"),
    [
        (6, 1, [7, 7], 0),
        (6, 1, [7, 4], 0),
        (6, 1, [7, 4], 16),
        (4, 3, [7], 0),
        (0, 5, [5, 5], 0),
    ],
)
@pytest.mark.parametrize("options", [{}, {"local_window_size": 3}, {"softcap": 4.0, "scale": 0.7}])
@pytest.mark.parametrize("rotary", [False, True])
def test_group_query_attention(
    past: int, rows: int, lengths: list[int], room: int, options: Any, rotary: bool,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    inputs = grouped(rng, past, rows, lengths, room)
    constants: tuple[str, ...] = ()
    if rotary:
        angles = rng.random((32, WIDE // 2), dtype=np.float32)
        inputs |= {"cos_cache": np.cos(angles), "sin_cache": np.sin(angles)}
        constants, options = ("cos_cache", "sin_cache"), {**options, "do_rotary": 1}
    model = model_of(
        "GroupQueryAttention", inputs, ["y", "present_key", "present_value"], constants=constants,
        num_heads=H, kv_num_heads=2, **options,
    )  # fmt: skip
    result = pa.accelerate(model, verify=False)
    assert len(result.matched) == 1, str(result)
    assert (result.matched[0].heads, result.matched[0].key_heads) == (H, 2)
    feed = given(inputs, *constants)
    expected, found = (session(m).run(None, feed) for m in (model, result.model))
    np.testing.assert_allclose(found[0], expected[0], atol=3e-6)
    for e, f in zip(expected[1:], found[1:], strict=True):
        assert f.shape == e.shape
        for i, length in enumerate(lengths):  # what lies behind an entry's own keys is undefined
            np.testing.assert_allclose(f[i, :, :length], e[i, :, :length], atol=1e-6)


def test_group_query_attention_of_a_padded_prompt(rng: np.random.Generator) -> None:
    inputs = grouped(rng, 0, 5, [5, 3])
    packed = np.concatenate([inputs[n] for n in ("query", "key", "value")], axis=-1)
    inputs |= {"query": packed, "key": None, "value": None}
    model = model_of(
        "GroupQueryAttention",
        inputs,
        ["y", "present_key", "present_value"],
        num_heads=H,
        kv_num_heads=2,
    )
    result = pa.accelerate(model, verify=False)
    assert len(result.matched) == 1, str(result)
    expected, found = (session(m).run(["y"], given(inputs))[0] for m in (model, result.model))
    np.testing.assert_allclose(found[0], expected[0], atol=3e-6)
    np.testing.assert_allclose(found[1, :3], expected[1, :3], atol=3e-6)


REFUSED = {
    "perhaps lengths": (
        {"key_padding_mask": np.array([7, 5], np.int32)},
        {},
        "its mask has one axis, and may be more than lengths",
    ),
    "packed": ({"key": None, "value": None}, {}, "packed"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_left_says_why(what: str, rng: np.random.Generator) -> None:
    other, attributes, reason = REFUSED[what]
    inputs = {
        "query": normal(rng, B, T, H * D),
        "key": normal(rng, B, S, H * D),
        "value": normal(rng, B, S, H * D),
        "bias": None,
        "key_padding_mask": None,
    } | other
    model = model_of("MultiHeadAttention", inputs, ["y"], num_heads=H, **attributes)
    result = pa.accelerate(model, verify=False)
    assert result.model is model
    (left,) = result.left
    assert (left.name, left.kind) == ("attention", f"{CONTRIB}::MultiHeadAttention")
    assert reason in left.reason


def test_sizes_behind_operators_that_onnx_does_not_know(rng: np.random.Generator) -> None:
    """As in a model that ONNX Runtime's optimizer wrote: ONNX's inference ends at the first."""
    text = """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
    g (float[B, T, 32] x, float[32] gain, int32[B] lengths) => (float[B, T, 32] y) {
        n = com.microsoft.SkipLayerNormalization <epsilon = 0.1> (x, x, gain)
        y = com.microsoft.MultiHeadAttention <num_heads = 4> (n, n, n, , lengths)
    }"""
    model = onnx.parser.parse_model(text)
    result = pa.accelerate(model)
    assert [m.function for m in result.matched] == ["ScaledDotProductAttentionFloatMask"]
    assert (result.matched[0].heads, result.matched[0].head_size) == (4, 8)
    lengths = np.array([5, 2], np.int32)
    feed = {"x": normal(rng, 2, 5, 32), "gain": normal(rng, 32), "lengths": lengths}
    expected, found = (session(m).run(None, feed)[0] for m in (model, result.model))
    np.testing.assert_allclose(found, expected, atol=3e-6)
