"""pyattn's operators inside ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import pyattn as pa
from pyattn import ops, ort
from pyattn.ort import describe, has_kernel, session
from tests.reference import max_error
from tests.runtimes import newest_opset

OPSET = min(24, newest_opset())
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def narrow(names: tuple[str, ...], call: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
    """A model of float32 that calls in ``dtype``: NumPy has no bfloat16 to feed a session with."""

    def model(**inputs: Any) -> Any:
        if dtype is not np.float32:
            inputs = {k: ops.astype(v, dtype) if k in names else v for k, v in inputs.items()}
        found = call(**inputs)
        found = found if isinstance(found, tuple) else (found,)
        return tuple(ops.astype(x, np.float32) if x.dtype != np.float32 else x for x in found)

    return model


def dynamic(arrays: dict[str, Any]) -> dict[str, pa.Input]:
    """Inputs (B, H, length, D) whose heads and head sizes alone are fixed."""
    return {
        name: pa.Input(array, ("b", None, "t" if name == "query" else "s", None))
        for name, array in arrays.items()
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "bottom right": {"is_causal": "bottom_right"},
    "window": {"window": (3, 2)},
    "left window": {"window": (2, -1), "query_start": 4},
    "softcap": {"softcap": 3.5},
    "all of it": {"window": (4, 0), "softcap": 2.0, "query_start": -1},
}
AUX = ("weights", "lse", "max", "entropy", "column_mass", "scores", "biased_scores")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=str)
def test_bits_are_those_of_the_eager_call(
    dtype: Any, variant: str, mask: str, heads: tuple[int, int], rng: Any
) -> None:
    options = VARIANTS[variant]
    arrays = {
        "query": rng.standard_normal((2, heads[0], 5, 8)).astype(np.float32),
        "key": rng.standard_normal((2, heads[1], 9, 8)).astype(np.float32),
        "value": rng.standard_normal((2, heads[1], 9, 4)).astype(np.float32),
        "kv_lengths": np.array([9, 4], np.int32),
    }
    if mask == "bool":
        arrays["attn_mask"] = rng.random((2, 1, 5, 9)) < 0.7
    if mask == "float":
        arrays["attn_mask"] = rng.standard_normal((5, 9)).astype(np.float32)
    names = ("query", "key", "value") + (("attn_mask",) if mask == "float" else ())

    def attend(**inputs: Any) -> Any:
        return pa.scaled_dot_product_attention(**inputs, **options, aux=AUX)

    model = narrow(names, attend, dtype)
    proto = pa.export(model, arrays, opset=OPSET, verify=False)
    run = session(proto)
    assert [x.accelerated for x in describe(run)] == [True]
    for found, eager in zip(run.run(None, arrays), model(**arrays), strict=True):
        np.testing.assert_array_equal(found, eager)


def test_additive_bits_are_those_of_the_eager_call(rng: Any) -> None:
    arrays = {
        "query": rng.standard_normal((2, 5, 12)).astype(np.float32),
        "key": rng.standard_normal((2, 9, 12)).astype(np.float32),
        "value": rng.standard_normal((2, 9, 6)).astype(np.float32),
        "v": rng.standard_normal(12).astype(np.float32),
    }
    for dtype in DTYPES:
        model = narrow(tuple(arrays), lambda **x: pa.additive_attention(**x, num_heads=3), dtype)
        run = session(pa.export(model, arrays, opset=OPSET, verify=False))
        np.testing.assert_array_equal(run.run(None, arrays)[0], model(**arrays)[0])


def causal_model(rng: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    arrays = {
        name: rng.standard_normal((2, 4, n, 16)).astype(np.float32)
        for name, n in (("query", 5), ("key", 9), ("value", 9))
    }

    def model(query: Any, key: Any, value: Any) -> Any:
        return pa.scaled_dot_product_attention(query, key, value, is_causal=True)

    return pa.export(model, dynamic(arrays), opset=OPSET, verify=False), arrays


def test_describe_tells_where_nodes_run(rng: Any) -> None:
    proto, _ = causal_model(rng)
    (placement,) = describe(session(proto))
    assert placement.operator == "ScaledDotProductAttentionCausal"
    assert placement.accelerated
    assert "pyattn's kernel" in str(placement)
    (placement,) = describe(session(proto, accelerate=False))
    assert not placement.accelerated
    assert "body" in str(placement)


def test_describe_refuses_a_session_made_elsewhere(rng: Any) -> None:
    made = onnxruntime.InferenceSession(
        causal_model(rng)[0].SerializeToString(), providers=["CPUExecutionProvider"]
    )
    with pytest.raises(TypeError, match=r"describe: session must come from pyattn\.ort\.session"):
        describe(made)


def test_the_profile_says_the_same(rng: Any, tmp_path: Path) -> None:
    """And the library alone, as another language would register it, has the usual operators."""
    proto, arrays = causal_model(rng)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(ort.custom_ops_library()))
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    made = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    made.run(None, arrays)
    events = json.loads(Path(made.end_profiling()).read_text())
    operators = {e["args"]["op_name"] for e in events if "op_name" in e.get("args", {})}
    assert "ScaledDotProductAttentionCausal" in operators
    assert not operators & {"Attention", "MatMul", "Softmax"}


@pytest.mark.skipif(OPSET < 23, reason="the body of older opsets is for float32 only")
def test_types_that_somebody_changed_are_for_the_body(rng: Any) -> None:
    proto, arrays = causal_model(rng)
    wide = session(proto).run(None, arrays)[0]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    run = session(proto)
    assert [x.accelerated for x in describe(run)] == [False]
    narrowed = {name: array.astype(np.float16) for name, array in arrays.items()}
    assert max_error(run.run(None, narrowed)[0], wide) <= 1e-2


def test_a_function_of_somebody_else_keeps_its_body(rng: Any) -> None:
    del rng
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("pyattn", 1)]
    function = helper.make_function(
        "pyattn", "Other", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], opsets[:1]
    )
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    node = helper.make_node("Other", ["x"], ["y"], domain="pyattn")
    graph = helper.make_graph([node], "g", [value], [result])
    proto = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    run = session(proto)
    assert [x.accelerated for x in describe(run)] == [False]
    assert run.run(None, {"x": np.ones(2, np.float32)})[0].tolist() == [-1.0, -1.0]


def test_paths_and_bytes_are_read_too(rng: Any, tmp_path: Path) -> None:
    proto, arrays = causal_model(rng)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    results = [session(x).run(None, arrays)[0] for x in (proto, path, str(path), path.read_bytes())]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_bit(threads: int, rng: Any) -> None:
    proto, arrays = causal_model(rng)
    arrays = {name: rng.standard_normal((1, 4, 700, 16)).astype(np.float32) for name in arrays}
    expected = session(proto, threads=1).run(None, arrays)[0]
    run = session(proto, threads=threads)
    with ThreadPoolExecutor(4) as callers:
        for result in callers.map(lambda _: run.run(None, arrays)[0], range(12)):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2"])
def test_bad_numbers_of_threads(threads: Any, rng: Any) -> None:
    with pytest.raises(ValueError, match="session: threads must be an integer of 1 or more; got"):
        session(causal_model(rng)[0], threads=threads)


def test_bad_session_entry() -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("pyattn.threads", "many")
    with pytest.raises(Exception, match=r'pyattn: pyattn\.threads must be 1 to 1024; got "many"'):
        options.register_custom_ops_library(str(ort.custom_ops_library()))


@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
def test_empty_axes(sizes: tuple[int, int, int], rng: Any) -> None:
    proto, _ = causal_model(rng)
    batch, rows, keys = sizes
    arrays = {
        name: np.ones((batch, 4, n, 16), np.float32)
        for name, n in (("query", rows), ("key", keys), ("value", keys))
    }
    (found,) = session(proto).run(None, arrays)
    assert found.shape == (batch, 4, rows, 16)
    assert not found.any()


def test_results_have_shapes_before_anything_runs(rng: Any) -> None:
    proto, _ = causal_model(rng)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert session(proto).get_outputs()[0].shape == ["b", 4, "t", 16]


def test_sizes_without_names_stay_unknown(rng: Any) -> None:
    """Not -1: then the product behind would not fit."""
    proto = free_model()
    node = helper.make_node("MatMul", ["out", "factor"], ["y"])
    proto.graph.node.append(node)
    for given in proto.graph.input[:3]:
        shape = given.type.tensor_type.shape
        for size in (None, 4, None, None):
            axis = shape.dim.add()
            if size:
                axis.dim_value = size
    proto.graph.input.append(helper.make_tensor_value_info("factor", TensorProto.FLOAT, [16, 3]))
    proto.graph.output[0].name = "y"
    feed = free_inputs() | {"factor": rng.standard_normal((16, 3)).astype(np.float32)}
    assert session(proto).run(None, feed)[0].shape == (2, 4, 5, 3)


BAD = {
    "query and key must share D; got query (2, 4, 5, 16), key (2, 4, 9, 8)": {"key": (2, 4, 9, 8)},
    "key and value must share S; got": {"value": (2, 4, 8, 16)},
    "query, key and value must share B; got": {"key": (3, 4, 9, 16), "value": (3, 4, 9, 16)},
    "H must be a multiple of G; got": {"key": (2, 3, 9, 16), "value": (2, 3, 9, 16)},
    "query, key and value must have 4 axes; got": {"query": (2, 5, 16)},
    "attn_mask must broadcast to (2, 4, 5, 9); got (2, 5, 9)": {"attn_mask": (2, 5, 9)},
    "kv_lengths must have shape (2,); got kv_lengths (3,)": {"kv_lengths": (3,)},
}


def free_model() -> onnx.ModelProto:
    """A model without any shapes, so that the kernel is the first to look at them."""
    inputs = ["query", "key", "value", "attn_mask", "kv_lengths"]
    types = [TensorProto.FLOAT] * 3 + [TensorProto.BOOL, TensorProto.INT64]
    node = helper.make_node(
        "ScaledDotProductAttentionBoolMaskLengths", inputs, ["out"], domain="pyattn", scale=0.25
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, t, None) for n, t in zip(inputs, types, strict=True)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("pyattn", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def free_inputs() -> dict[str, Any]:
    return {
        "query": np.zeros((2, 4, 5, 16), np.float32),
        "key": np.zeros((2, 4, 9, 16), np.float32),
        "value": np.zeros((2, 4, 9, 16), np.float32),
        "attn_mask": np.ones((2, 1, 5, 9), np.bool_),
        "kv_lengths": np.array([9, 1]),
    }


@pytest.mark.parametrize("message", BAD)
def test_wrong_shapes_are_errors_that_name_them(message: str) -> None:
    arrays = free_inputs()
    for name, shape in BAD[message].items():
        arrays[name] = np.ones(shape, arrays[name].dtype)
    run = session(free_model())
    with pytest.raises(Exception, match=r"ScaledDotProductAttentionBoolMaskLengths: ") as raised:
        run.run(None, arrays)
    assert message in str(raised.value)
    run.run(None, free_inputs())  # the session lives on


def test_lengths_out_of_range() -> None:
    arrays = free_inputs() | {"kv_lengths": np.array([3, 10])}
    with pytest.raises(Exception, match=r"kv_lengths must lie in 0\.\.9; got 10 at index 1"):
        session(free_model()).run(None, arrays)


def test_a_scale_that_is_no_number() -> None:
    proto = free_model()
    proto.graph.node[0].attribute[0].f = float("inf")
    with pytest.raises(Exception, match="scale must be finite"):
        session(proto)
    del proto.graph.node[0].attribute[:]
    with pytest.raises(Exception, match="scale"):
        session(proto)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "ScaledDotProductAttentio",
        "ScaledDotProductAttentionn",
        "ScaledDotProductAttentionWindow3",
        "ScaledDotProductAttentionWindowMinus3To2",
        "ScaledDotProductAttentionFromp",
        "ScaledDotProductAttentionSoftcap",
        "ScaledDotProductAttentionSoftcap1p0p0",
        "ScaledDotProductAttentionTopWeights",
        "ScaledDotProductAttentionHeads4",
        "AdditiveAttentionColumnMass",
        "VarlenAttentionWeights",
        "LuongLocal",
        "LuongLocalWithin0",
        "LuongLocalWithin99999999999999999999",
        "LuongLocalWithin3BoolMask",
        "ScaledDotProductAttention\0",
        "RotaryEmbedding",
        "RotaryEmbeddingPairs4",
        "RotaryEmbeddingPairs4Of8Heads0",
        "RotaryEmbeddingPairs4Of8Weights",
    ],
)
def test_names_without_a_kernel(name: str) -> None:
    assert not has_kernel(name)


def test_a_build_without_the_library(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(ort, "_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="pyattn was built without pyattn_ort"):
        ort.custom_ops_library()


def test_masked_poison_stays_out(rng: Any) -> None:
    arrays = free_inputs()
    for name in ("query", "key", "value"):
        arrays[name] = rng.standard_normal(arrays[name].shape).astype(np.float32)
    run = session(free_model())
    clean = run.run(None, arrays)[0]
    arrays["key"][1, :, 1:] = arrays["value"][1, :, 1:] = np.nan
    assert max_error(run.run(None, arrays)[0], clean) == 0
