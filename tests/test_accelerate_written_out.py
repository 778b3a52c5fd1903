"""Attention that is written out is found however it is written, and means the same afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

import pyattn as pa
from pyattn.ort import session
from tests.written_out import Way, build, feed

LOWEST = float(np.finfo(np.float32).min)
HALF_LOWEST = float(np.finfo(np.float16).min)
SHAPES = ((2, 5, 7), (1, 1, 3), (3, 4, 4))


def compare(way: Way, before: onnx.ModelProto, after: onnx.ModelProto, rng: Any) -> None:
    """Both models give the same; a row of NaN, where -inf leaves no key, becomes 0."""
    runs = [session(model) for model in (before, after)]
    bound = 2e-3 if way.dtype == TensorProto.FLOAT16 else 2e-6
    for shape in ((2, 5, 7),) if way.static else SHAPES:
        inputs = feed(way, rng, *shape)
        (expected,), (found,) = (run.run(None, inputs) for run in runs)
        assert found.dtype == expected.dtype
        if way.fill == -np.inf and not way.guard:
            expected = np.where(np.isnan(expected), 0, expected)
        np.testing.assert_allclose(found, expected, atol=bound, rtol=bound)


def matched(way: Way, rng: Any) -> pa.Accelerated:
    before = build(way)
    result = pa.accelerate(before, verify=False)
    assert not result.left, str(result)
    (found,) = result.matched
    assert found.kind == "MatMul, Softmax, MatMul"
    calls = [node for node in result.model.graph.node if node.domain == "pyattn"]
    assert [node.op_type for node in calls] == [found.function]
    assert not {"Softmax", "Einsum"} & {node.op_type for node in result.model.graph.node} - {
        "Einsum"
    }
    compare(way, before, result.model, rng)
    return result


WAYS = {
    "plain": Way(),
    "opset 13": Way(opset=13, mask="added"),
    "opset 17": Way(opset=17, mask="selected", guard=True),
    "opset 24": Way(opset=24, mask="selected", guard=True),
    "opset 25": Way(opset=25, mask="selected", guard=True),
    "scores divided": Way(scale="divided"),
    "scale on queries": Way(scale="query"),
    "scale on keys": Way(scale="key"),
    "root on both": Way(scale="both", key="views"),
    "scale from the shape": Way(scale="computed"),
    "no scale": Way(scale="none"),
    "keys (0, 2, 3, 1)": Way(key="0231"),
    "keys by views": Way(key="views"),
    "keys as they come": Way(key="given"),
    "bias": Way(mask="added"),
    "bias of two axes": Way(mask="added", mask_rank=2),
    "bias of each head": Way(mask="added", mask_rank=3),
    "bias subtracted": Way(mask="subtracted"),
    "selected, -inf": Way(mask="selected"),
    "selected, -inf, guarded": Way(mask="selected", guard=True),
    "selected, lowest": Way(mask="selected", fill=LOWEST),
    "selected, -1e9": Way(mask="selected", fill=-1e9),
    "selected the other way": Way(mask="swapped", fill=LOWEST),
    "choice added": Way(mask="choice added", fill=LOWEST),
    "choice of -inf added": Way(mask="choice added", guard=True),
    "bias, then selected": Way(mask="two", fill=LOWEST),
    "dropout": Way(dropout=True, opset=20),
    "soft cap": Way(softcap=5.0, mask="added"),
    "grouped heads": Way(groups=2),
    "one key head": Way(groups=1, mask="added"),
    "batch and heads in one axis": Way(layout="3d"),
    "the same with a bias": Way(layout="3d", mask="added", mask_rank=3),
    "the same, split for the mask": Way(layout="3d view", mask="added"),
    "the same, selected": Way(layout="3d view", mask="selected", fill=LOWEST),
    "float64": Way(dtype=TensorProto.DOUBLE, mask="added"),
    "float16": Way(dtype=TensorProto.FLOAT16),
    "float16, wide softmax": Way(dtype=TensorProto.FLOAT16, wide_softmax=True, mask="added"),
    "float16, lowest": Way(dtype=TensorProto.FLOAT16, mask="selected", fill=HALF_LOWEST),
    "static sizes": Way(static=True, mask="added", scale="both", key="views"),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_attention_is_found(way: Way, rng: np.random.Generator) -> None:
    matched(way, rng)


@st.composite
def ways(draw: Any) -> Way:
    layout = draw(st.sampled_from(["4d", "3d", "3d view"]))
    way = Way(
        layout=layout,
        scale=draw(
            st.sampled_from(["scores", "divided", "query", "key", "both", "computed", "none"])
        ),
        key=draw(st.sampled_from(["0132", "0231", "views", "given"])),
        mask=draw(st.sampled_from(["none", "added", "subtracted", "selected", "swapped", "two"])),
        mask_rank=draw(st.sampled_from([2, 3, 4])),
        fill=draw(st.sampled_from([-np.inf, LOWEST, -1e9])),
        guard=draw(st.booleans()),
        dropout=draw(st.booleans()),
        groups=draw(st.sampled_from([1, 2, 4])),
        opset=draw(st.sampled_from([13, 18, 21, 23, 24])),
        static=draw(st.booleans()),
    )
    return replace(way, softcap=draw(st.sampled_from([0.0, 3.0])))


@settings(max_examples=40, deadline=None)
@given(way=ways(), seed=st.integers(0, 2**32 - 1))
def test_any_combination_is_found(way: Way, seed: int) -> None:
    matched(way, np.random.default_rng(seed))


def test_the_report_tells_what_was_found(rng: np.random.Generator) -> None:
    way = Way(groups=2, mask="selected", guard=True, scale="both")
    (found,) = matched(way, rng).matched
    assert (found.heads, found.key_heads, found.head_size) == (4, 2, 8)
    assert (found.mask, found.causal) == ("boolean", False)
    assert found.scale == pytest.approx(8**-0.5)
    text = str(pa.accelerate(build(way)))
    assert "weights (MatMul, Softmax, MatMul): heads 4 of 2, size 8, mask boolean" in text
    assert "-> ScaledDotProductAttentionBoolMaskHeads4Of2" in text
    assert "largest difference on random inputs: " in text


@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize("mask", ["none", "added", "selected"])
def test_functions_are_those_of_an_export(mask: str, opset: int, rng: np.random.Generator) -> None:
    found = pa.accelerate(build(Way(mask=mask, groups=2, opset=opset, guard=True))).model
    arrays = [
        rng.standard_normal((2, n, s, 8), dtype=np.float32) for n, s in ((4, 5), (2, 7), (2, 7))
    ]
    inputs: dict[str, Any] = {
        name: pa.Input(array, ("batch", None, "rows" if name == "query" else "keys", None))
        for name, array in zip(("query", "key", "value"), arrays, strict=True)
    }
    if mask != "none":
        one = np.ones((2, 1, 5, 7), np.float32 if mask == "added" else np.bool_)
        inputs["attn_mask"] = pa.Input(one, ("batch", None, "rows", "keys"))
    exported = pa.export(pa.scaled_dot_product_attention, inputs, opset=opset)
    (ours,), (theirs,) = exported.functions, found.functions
    assert (ours.domain, ours.name) == (theirs.domain, theirs.name)
    assert list(ours.input) == list(theirs.input)
    assert list(ours.attribute) == list(theirs.attribute)
    assert list(ours.node) == list(theirs.node)
    assert list(ours.opset_import) == list(theirs.opset_import)


CAUSAL = {
    "a comparison": "seen = LessOrEqual(keys, queries)",
    "the other way": "seen = GreaterOrEqual(queries, keys)",
    "not later": "later = Greater(keys, queries) seen = Not(later)",
    "the other way, not later": "later = Less(queries, keys) seen = Not(later)",
    "and what always holds": "c = LessOrEqual(keys, queries) there = GreaterOrEqual(queries, zero)"
    " yes = Constant <value = bool {1}> () a = And(yes, there) seen = And(a, c)",
    "a triangle": "tri = Trilu <upper = 0> (ones) seen = Cast <to = 9> (tri)",
    "a triangle, compared": "tri = Trilu <upper = 0> (ones) e = Equal(tri, fzero) seen = Not(e)",
    "above a triangle": "tri = Trilu (ones, one) later = Cast <to = 9> (tri) seen = Not(later)",
}
NOT_CAUSAL = {
    "earlier keys only": "seen = Less(keys, queries)",
    "later keys": "seen = GreaterOrEqual(keys, queries)",
    "shifted": "next = Add(keys, one) seen = LessOrEqual(next, queries)",
    "queries of another length": "r = Range(zero, s, one) a = Constant <value_ints = [1]> ()"
    "q2 = Unsqueeze(r, a) seen = LessOrEqual(keys, q2)",
    "the diagonal too": "tri = Trilu (ones) later = Cast <to = 9> (tri) seen = Not(later)",
    "with padding": "c = LessOrEqual(keys, queries) seen = And(c, padding)",
    "a shifted triangle": "tri = Trilu <upper = 0> (ones, one) seen = Cast <to = 9> (tri)",
}
POSITIONS = """
    zero = Constant <value = int64 {0}> () one = Constant <value = int64 {1}> ()
    first = Constant <value_ints = [0]> () second = Constant <value_ints = [1]> ()
    fzero = Constant <value_float = 0.0> () fone = Constant <value_float = 1.0> ()
    t1 = Shape <start = 2, end = 3> (q) s1 = Shape <start = 3, end = 4> (k)
    t = Squeeze(t1, first) s = Squeeze(s1, first)
    i = Range(zero, t, one) j = Range(zero, s, one)
    queries = Unsqueeze(i, second) keys = Unsqueeze(j, first)
    square = Concat <axis = 0> (t1, s1) ones = Expand(fone, square)
"""


def causal_model(body: str, fill: float) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["" : 20]> g (float[B, 4, T, 8] q, float[B, 4, 8, S] k,
    float[B, 4, S, 8] v, bool[B, 1, 1, S] padding) => (float[B, 4, T, 8] y) {{
    {POSITIONS} {body} scores = MatMul(q, k)
    kept = Where(seen, scores, low) weights = Softmax(kept) y = MatMul(weights, v) }}"""
    model = onnx.parser.parse_model(text)
    low = onnx.numpy_helper.from_array(np.array(fill, np.float32), "low")
    model.graph.initializer.append(low)
    return model


def agrees(before: onnx.ModelProto, after: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Also for T and S that differ, and where padding hides every key that a query may see."""
    for rows, keys in ((5, 5), (3, 6), (6, 3), (1, 4), (4, 1)):
        shapes = {"q": (2, 4, rows, 8), "k": (2, 4, 8, keys), "v": (2, 4, keys, 8)}
        inputs: dict[str, Any] = {
            name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
        }
        inputs["padding"] = np.ones((2, 1, 1, keys), np.bool_)
        inputs["padding"][1, ..., :2] = False
        expected, found = (session(m).run(None, inputs)[0] for m in (before, after))
        np.testing.assert_allclose(found, np.nan_to_num(expected), atol=2e-6)


@pytest.mark.parametrize("fill", [LOWEST, -np.inf])
@pytest.mark.parametrize("what", CAUSAL)
def test_a_mask_that_is_proved_causal(what: str, fill: float, rng: np.random.Generator) -> None:
    model = causal_model(CAUSAL[what], fill)
    result = pa.accelerate(model, verify=False)
    assert [(m.causal, m.mask) for m in result.matched] == [(True, "none")]
    agrees(model, result.model, rng)


@pytest.mark.parametrize("what", NOT_CAUSAL)
def test_a_mask_that_is_not(what: str, rng: np.random.Generator) -> None:
    model = causal_model(NOT_CAUSAL[what], LOWEST)
    result = pa.accelerate(model, verify=False)
    assert [(m.causal, m.mask) for m in result.matched] == [(False, "float")]
    if "another length" not in what:  # which runs where both are equal only
        agrees(model, result.model, rng)


def test_causal_and_padding(rng: np.random.Generator) -> None:
    """With -inf the two are told apart: a key that either hides is not seen."""
    model = causal_model(NOT_CAUSAL["with padding"], -np.inf)
    result = pa.accelerate(model, verify=False)
    assert [(m.causal, m.mask) for m in result.matched] == [(True, "boolean")]
    agrees(model, result.model, rng)


def test_a_constant_causal_mask_becomes_causal(rng: np.random.Generator) -> None:
    way = Way(static=True, mask="selected", fill=LOWEST, mask_rank=2)
    model = build(way)
    for value in model.graph.input:
        for size in value.type.tensor_type.shape.dim:
            size.dim_value = 5 if size.dim_value == 7 else size.dim_value
    (seen,) = (value for value in model.graph.input if value.name == "seen")
    model.graph.input.remove(seen)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.tri(5, dtype=bool), "seen"))
    result = pa.accelerate(model)
    assert [(m.causal, m.mask) for m in result.matched] == [(True, "none")]
    inputs = feed(way, rng, 2, 5, 5)
    del inputs["seen"]
    expected, found = (session(m).run(None, inputs)[0] for m in (model, result.model))
    np.testing.assert_allclose(found, expected, atol=2e-6)
