"""Any operator on any shapes: an answer or an error, and nothing else.

`make sanitize` runs this file with the library built for the address sanitizer.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pyattn import ort
from pyattn.ort import has_kernel, session

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL
INT32, INT64 = TensorProto.INT32, TensorProto.INT64

# What a run raises: in onnxruntime each kind of status has a class of its own.
ERRORS = (
    ort.ModelError,
    *(
        getattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
        for name in ("Fail", "InvalidArgument", "RuntimeException", "InvalidGraph")
    ),
)

SDPA = ["query", "key", "value", "attn_mask", "kv_lengths", "query_start", "alibi_slopes", "sinks"]
ADDITIVE = ["query", "key", "value", "v", "attn_mask", "kv_lengths", "query_start"]
VARLEN = ["query", "key", "value", "cu_seqlens_q", "cu_seqlens_k", "alibi_slopes", "sinks"]
PAGED = ["query", "key", "value", "block_table", "kv_lengths", "alibi_slopes", "sinks"]
ROTARY = ["x", "cos_cache", "sin_cache", "position_ids"]
LOCAL = ["query", "key", "value", "centre", "v", "attn_mask", "kv_lengths"]
INPUTS = {
    "ScaledDotProductAttention": SDPA,
    "AdditiveAttention": ADDITIVE,
    "VarlenAttention": VARLEN,
    "PagedAttention": PAGED,
    "LuongLocal": LOCAL,
    "RotaryEmbedding": ROTARY,
}
INTEGERS = {
    "position_ids",
    "block_table",
    "kv_lengths",
    "query_start",
    "cu_seqlens_q",
    "cu_seqlens_k",
}
WORDS = {
    "query_start": "Starts",
    "alibi_slopes": "Alibi",
    "sinks": "Sinks",
}
RESULTS = {
    "ScaledDotProductAttention": [
        "Weights",
        "Lse",
        "Max",
        "Entropy",
        "ColumnMass",
        "Scores",
        "BiasedScores",
    ],
    "AdditiveAttention": ["Weights", "Lse", "Max", "Entropy", "Scores", "BiasedScores"],
    "VarlenAttention": ["Lse"],
    "PagedAttention": [],
    "LuongLocal": ["Weights", "Lse", "WindowWeights"],
    "RotaryEmbedding": [],
}


@st.composite
def operators(draw: Any) -> tuple[str, list[str], int]:
    """A name, its inputs ("" where one is left out) and the number of its results."""
    mechanism = draw(st.sampled_from(sorted(INPUTS)))
    if mechanism == "RotaryEmbedding":
        looked_up = draw(st.booleans())
        words = [draw(st.sampled_from(["", "Interleaved"])), "Positions" * looked_up, "Pairs2Of5"]
        words.append(draw(st.sampled_from(["", "Heads1", "Heads3", "Heads9999999999"])))
        return "".join([mechanism, *words]), ROTARY[: 3 + looked_up], 1
    local, paged = mechanism == "LuongLocal", mechanism == "PagedAttention"
    present = {name: draw(st.booleans()) for name in INPUTS[mechanism][3:]}
    for name in ("centre", "cu_seqlens_q", "cu_seqlens_k", "block_table"):
        present[name] = True
    lengths = "Lengths" * (present.get("kv_lengths", False) and not paged)
    present["kv_lengths"] = paged or present.get("kv_lengths", False)
    present["v"] = present.get("v", False) or mechanism == "AdditiveAttention"
    mask = draw(st.sampled_from(["BoolMask", "FloatMask"])) if present.get("attn_mask") else ""
    words = [mechanism]
    if local:
        words += ["Concat" * present["v"], f"Within{draw(st.integers(1, 9))}"]
        words += [draw(st.sampled_from(["", "Renormalized"])), mask, "MaskTS" * bool(mask)]
        words += [lengths]
    else:
        words += [mask, lengths]
        window = st.sampled_from(["", "Causal", "Window0To3", "Window2ToAny", "WindowAnyTo1"])
        words += [draw(window), *(WORDS[n] * present.get(n, False) for n in ("query_start",))]
        if "query_start" not in present:
            words.append(draw(st.sampled_from(["", "BottomRight"])))
        elif not present["query_start"]:
            words.append(draw(st.sampled_from(["", "From3", "FromMinus2", "From1099511627776"])))
        words.append(draw(st.sampled_from(["", "Softcap2p5", "Softcap1eMinus05"])))
        words += [WORDS[n] * present.get(n, False) for n in ("alibi_slopes", "sinks")]
    results = draw(st.permutations(RESULTS[mechanism]))[: draw(st.integers(0, 4))]
    inputs = [name if present.get(name, True) else "" for name in INPUTS[mechanism]]
    while not inputs[-1]:
        inputs.pop()
    return "".join(words + results), inputs, 1 + len(results)


def right_shape(operator: str, name: str, n: dict[str, int]) -> tuple[int, ...]:
    mechanism = next(m for m in INPUTS if operator.startswith(m))
    B, H, G, T, S, D, E = (n[x] for x in "BHGTSDE")
    if name == "x":
        return (B, T, H * D) if "Heads" in operator else (B, H, T, D)
    if name.endswith("cache"):
        return (S, D // 2) if "Positions" in operator else (B, T, D // 2)
    if mechanism == "VarlenAttention":
        shapes = {"query": (T, H, D), "key": (S, G, D), "value": (S, G, E)}
    elif mechanism == "PagedAttention":
        shapes = {"query": (B, H, T, D), "key": (3, G, 30, D), "value": (3, G, 30, E)}
    elif mechanism == "LuongLocal":
        shapes = {"query": (B, T, D), "key": (B, S, D), "value": (B, S, E), "v": (D,)}
    else:
        shapes = {"query": (B, H, T, D), "key": (B, G, S, D), "value": (B, G, S, E), "v": (H, D)}
    return (
        shapes.get(name)
        or {
            "attn_mask": (T, S),
            "centre": (B, T),
            "block_table": (B, S // 30 + 1),
            "kv_lengths": (B,),
            "query_start": (B,),
            "alibi_slopes": (H,),
            "sinks": (H,),
            "position_ids": (B, T),
            "cu_seqlens_q": (B + 1,),
            "cu_seqlens_k": (B + 1,),
        }[name]
    )


@st.composite
def feeds(draw: Any, operator: tuple[str, list[str], int]) -> dict[str, Any]:
    """Arrays most of which fit each other, with any numbers."""
    name, inputs, _ = operator
    mechanism = next(m for m in INPUTS if name.startswith(m))
    sizes = {x: draw(st.integers(0, 70 if x in "TS" else 5)) for x in "BHTSDE"}
    sizes["G"] = sizes["H"] if mechanism == "AdditiveAttention" or draw(st.booleans()) else 1
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    feed = {}
    for label in filter(None, inputs):
        shape = right_shape(name, label, sizes)
        if draw(st.integers(0, 39)) == 0:
            shape = tuple(draw(st.lists(st.integers(0, 4), max_size=5)))
        if label in INTEGERS:
            wild = draw(st.integers(0, 9)) == 0
            above = max(sizes["S"], 1) if label == "position_ids" else sizes["S"] + 1
            array: Any = np.asarray(rng.integers(-wild, 2**62 if wild else above, shape))
            if label == "block_table":
                array = np.asarray(rng.integers(0, 2**31 if wild else 3, shape), np.int32)
            if label.startswith("cu") and array.ndim == 1 and array.size and not wild:
                total = sizes["T" if label.endswith("q") else "S"]
                array = np.sort(rng.integers(0, total + 1, shape))
                array[0], array[-1] = 0, total
        elif label == "attn_mask" and "BoolMask" in name:
            array = np.asarray(rng.random(shape) < 0.5)
        else:
            array = np.asarray(rng.standard_normal(shape) * 4, np.float32)
            if array.size and draw(st.integers(0, 4)) == 0:
                array.flat[0] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e38]))
        feed[label] = array
    return feed


@pytest.fixture(autouse=True)
def library(monkeypatch: Any) -> None:
    """Take the library that the environment names: one with a sanitizer."""
    if path := os.environ.get("PYATTN_TEST_ORT_LIBRARY"):
        monkeypatch.setattr(ort, "custom_ops_library", lambda: path)
        monkeypatch.setattr(ort, "_library", functools.cache(ort._library.__wrapped__))


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(data=st.data(), scale=st.sampled_from([0.5, -1.0, 0.0, 3e38, float("nan")]))
def test_an_answer_or_an_error(data: Any, scale: float) -> None:
    operator = data.draw(operators())
    name, inputs, results = operator
    assert has_kernel(name), name
    feed = data.draw(feeds(operator))
    types = {label: INT64 if label in INTEGERS else FLOAT for label in feed}
    types |= {"block_table": INT32} if "block_table" in feed else {}
    if "BoolMask" in name:
        types["attn_mask"] = BOOL
    has_scale = name.startswith(("Scaled", "Varlen", "Paged"))
    outputs = [f"result_{i}" for i in range(results)]
    node = helper.make_node(
        name, inputs, outputs, domain="pyattn", **({"scale": scale} if has_scale else {})
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(label, types[label], None) for label in feed],
        [helper.make_tensor_value_info(label, FLOAT, None) for label in outputs],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("pyattn", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    try:
        found = session(model, threads=2).run(None, feed)
    except ERRORS as error:
        event("error")
        message = str(error)
    else:
        event("answer")
        message = name
        assert len(found) == results
    assert name in message
