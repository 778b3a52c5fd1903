"""ONNX's own conformance cases of the operator Attention, through pyattn and through the oracle.

The oracle passing shows that it and the adapter below mean what ONNX means.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

import pyattn as pa
from pyattn.ort import describe, session
from tests.reference_sdpa import sdpa_outputs
from tests.runtimes import newest_opset

SLOTS = ("query", "key", "value", "mask", "past_key", "past_value", "kv_lengths")
SCORES = ("scores", "capped_scores", "biased_scores", "weights")  # by qk_matmul_output_mode

OPSET = min(24, newest_opset())

Call = Callable[..., Sequence[Any]]


def collect() -> list[Any]:
    """The cases whose model is one Attention node; the "expanded" ones are its function body."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some bodies of other operators' cases overflow
        from onnx.backend.test.case.node import collect_testcases

        # The cases of other operators come along if another module has collected those.
        found = collect_testcases("Attention")
    return [
        case
        for case in found
        if case.name.startswith("test_attention_")
        and [node.op_type for node in case.model.graph.node] == ["Attention"]
    ]


CASES = collect()


def by_oracle(*arrays: Any, mask: Any, aux: tuple[str, ...], **options: Any) -> Sequence[Any]:
    found = sdpa_outputs(*arrays, mask=mask, **options)
    return [found[name].astype(arrays[0].dtype) for name in ("out", *aux)]


def by_pyattn(*arrays: Any, mask: Any, aux: tuple[str, ...], **options: Any) -> Sequence[Any]:
    found = pa.scaled_dot_product_attention(*arrays, mask, aux=aux, **options)
    return found if aux else [found]


def by_onnx_runtime(*arrays: Any, mask: Any, aux: tuple[str, ...], **options: Any) -> Sequence[Any]:
    """pyattn's operator inside ONNX Runtime; NumPy has no bfloat16 to feed it with."""
    given = dict(zip(("query", "key", "value", "attn_mask"), (*arrays, mask), strict=True))
    given |= options
    feed = {name: x for name, x in given.items() if isinstance(x, np.ndarray)}
    rest = {name: x for name, x in given.items() if name not in feed}
    dtype = arrays[0].dtype
    floats = {name for name, x in feed.items() if x.dtype == dtype}

    def model(**inputs: Any) -> Any:
        inputs = {k: pa.ops.astype(x, dtype) if k in floats else x for k, x in inputs.items()}
        found = pa.scaled_dot_product_attention(**inputs, **rest, aux=aux)
        found = found if aux else (found,)
        return tuple(pa.ops.astype(x, np.float32) for x in found)

    feed = {name: x.astype(np.float32) if name in floats else x for name, x in feed.items()}
    run = session(pa.export(model, feed, opset=OPSET, verify=False))
    assert [placement.accelerated for placement in describe(run)] == [True]
    return [x.astype(dtype) for x in run.run(None, feed)]


def split_heads(array: Any, heads: int) -> Any:
    """(B, T, heads * D) to (B, heads, T, D)."""
    return array.reshape(*array.shape[:2], heads, -1).swapaxes(1, 2)


def options_of(attributes: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """The variant that the node asks for.

    softmax_precision is not looked at: the softmax is in float32 at least.
    """
    options: dict[str, Any] = {
        "is_causal": bool(attributes.get("is_causal", 0)),
        "scale": attributes.get("scale"),
        "softcap": attributes.get("softcap", 0.0),
        "window": tuple(attributes.get(f"{side}_window_size", -1) for side in ("left", "right")),
    }
    lengths = arrays.get("kv_lengths")
    if lengths is not None:  # nonpad_kv_seqlen: a cache that ends with the queries' own keys
        options["query_start"] = lengths - arrays["query"].shape[2]
    return options


def evaluate(call: Call, node: Any, inputs: Sequence[Any]) -> list[Any]:
    """The node's outputs, those without a name left out, by an attention function."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    given = iter(inputs)
    arrays = {slot: next(given) for slot, name in zip(SLOTS, node.input, strict=False) if name}
    flat = arrays["query"].ndim == 3
    if flat:
        for name, heads in (("query", "q"), ("key", "kv"), ("value", "kv")):
            arrays[name] = split_heads(arrays[name], attributes[f"{heads}_num_heads"])
    options = options_of(attributes, arrays)
    names = (
        "out",
        "present_key",
        "present_value",
        SCORES[attributes.get("qk_matmul_output_mode", 0)],
    )
    aux = tuple(n for n, wanted in zip(names, node.output, strict=False) if wanted and n != "out")
    query, key, value, mask = (arrays.pop(name, None) for name in SLOTS[:4])
    found = list(call(query, key, value, mask=mask, aux=aux, **arrays, **options))
    if flat:
        batch, heads, rows, width = found[0].shape
        found[0] = found[0].swapaxes(1, 2).reshape(batch, rows, heads * width)
    return found


def compare(case: Any, found: Any, expected: Any) -> None:
    """ONNX's rule: the case's tolerances, for bfloat16 two units instead of the relative one."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    rtol = case.rtol
    if found.dtype.name == "bfloat16":
        rtol = 2.0**-6
        found, expected = found.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=case.atol)


def check(call: Call, case: Any) -> None:
    for inputs, outputs in case.data_sets:
        found = evaluate(call, case.model.graph.node[0], inputs)
        for f, e in zip(found, outputs, strict=True):
            compare(case, f, e)


def test_all_cases_are_here() -> None:
    # Of onnx 1.23. A release that adds some wants its additions looked at.
    assert len({case.name for case in CASES}) == len(CASES) == 93
    dtypes = {case.data_sets[0][0][0].dtype.name for case in CASES}
    assert dtypes == {"float32", "float16", "bfloat16"}


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name[15:])


@every_case
def test_oracle_is_onnx_s(case: Any) -> None:
    check(by_oracle, case)


@every_case
@pytest.mark.parametrize("isa", pa.runtime.available_isas())
def test_pyattn_is_onnx_s(case: Any, isa: str, use_isa: Callable[[str], None]) -> None:
    use_isa(isa)
    check(by_pyattn, case)


@every_case
def test_the_operator_is_onnx_s(case: Any) -> None:
    check(by_onnx_runtime, case)
