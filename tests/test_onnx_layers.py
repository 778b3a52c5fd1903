"""The cases that ONNX generates for RotaryEmbedding and RMSNormalization, run through pyattn."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import ops
from pyattn.ort import session

COUNTS = {"RotaryEmbedding": 8, "RMSNormalization": 19}


@functools.cache
def suite(op_type: str) -> dict[str, Any]:
    """Return the generated cases of one node of this type, by name.

    Cases are generated when their module is imported, and kept only if they are of the type that
    was asked for just then. So a module that was imported for another type is loaded again.
    """
    from onnx.backend.test.case import node

    def found() -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # generators of other operators divide by zero
            generated = node.collect_testcases(op_type)
        nodes = {case.name: case for case in generated}
        return {
            k: c for k, c in nodes.items() if [n.op_type for n in c.model.graph.node] == [op_type]
        }

    if not found():
        importlib.reload(importlib.import_module(f"{node.__name__}.{op_type.lower()}"))
    return found()


def call(node: Any, inputs: list[Any]) -> Any:
    """Apply the operation of pyattn that an ONNX node stands for."""
    from onnx import helper

    options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "RMSNormalization":
        return ops.rms_norm(*inputs, **options)
    return ops.rotary_embedding(
        *inputs, **options | {"interleaved": bool(options.get("interleaved", 0))}
    )


@pytest.mark.parametrize("op_type", COUNTS)
def test_the_suite_is_complete(op_type: str) -> None:
    assert len(suite(op_type)) == COUNTS[op_type]


@pytest.mark.parametrize("isa", pa.runtime.available_isas())
@pytest.mark.parametrize("op_type", COUNTS)
def test_the_suite_passes(op_type: str, isa: str, use_isa: Any) -> None:
    use_isa(isa)
    for name, case in suite(op_type).items():
        for inputs, (expected,) in case.data_sets:
            found = call(case.model.graph.node[0], inputs)
            assert found.dtype == expected.dtype, name
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize("op_type", COUNTS)
def test_the_suite_passes_through_an_exported_file(op_type: str, opset: int) -> None:
    for name, case in suite(op_type).items():
        for inputs, (expected,) in case.data_sets:
            names = [n for n in case.model.graph.node[0].input if n]
            given = dict(zip(names, inputs, strict=True))

            def model(case: Any = case, **arrays: Any) -> Any:
                return call(case.model.graph.node[0], list(arrays.values()))

            proto = pa.export(model, given, opset=opset, verify=False)
            bodies = (proto.graph, *proto.functions)
            standard = op_type in {node.op_type for body in bodies for node in body.node}
            assert standard == (opset >= 23), name
            (found,) = session(proto).run(None, given)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)
