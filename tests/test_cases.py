"""Every case of the registry against its oracle, its gradient, and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import ops
from pyattn.ort import session
from pyattn.tensor import REGISTRY, Tensor
from tests.case import OTHER_SIZES, SIZES, Case
from tests.cases import CASES
from tests.reference import max_error, tolerance
from tests.runtimes import newest_opset

# Of an export; an old runtime knows old opsets only.
FORMS = [
    (opset, target)
    for opset, target in [
        (24, "functions"),
        (24, "primitive"),
        (24, "onnx24"),
        (18, "functions"),
        (26, "functions"),
    ]
    if opset <= newest_opset()
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def outputs(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def widened(arrays: dict[str, Any]) -> dict[str, Any]:
    return {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in arrays.items()}


def test_every_operation_has_a_case() -> None:
    assert REGISTRY.keys() == {case.op for case in CASES}


@every_case
@pytest.mark.parametrize("isa", pa.runtime.available_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_result_is_the_oracle_s(case: Case, isa: str, dtype: Any, rng: Any, use_isa: Any) -> None:
    use_isa(isa)
    for sizes in (SIZES, *OTHER_SIZES):
        arrays = case.arrays(rng, sizes, dtype)
        exact = outputs(case.oracle(**widened(arrays)))
        found = outputs(case.call(**arrays))
        plain = outputs(case.plain(**arrays)) if case.plain else [None] * len(found)
        for e, f, p in zip(exact, found, plain, strict=True):
            assert isinstance(f, (np.ndarray, np.generic))
            assert f.shape == np.shape(e)
            if case.smooth:
                assert f.dtype == dtype
            bound = tolerance(np.asarray(e).astype(dtype) if p is None else p, e)
            assert max_error(f, e) <= bound * (1 if case.plain else 4)


@every_case
def test_tensors_compute_the_same_as_arrays(case: Case, rng: Any) -> None:
    arrays = case.arrays(rng, SIZES, np.float32)
    wrapped = case.call(**{name: Tensor(array) for name, array in arrays.items()})
    for plain, tensor in zip(outputs(case.call(**arrays)), outputs(wrapped), strict=True):
        assert isinstance(tensor, Tensor)
        assert tensor.spec == pa.tensor.Spec(plain.shape, plain.dtype)
        np.testing.assert_array_equal(plain, tensor.numpy())


@pytest.mark.parametrize("case", [c for c in CASES if c.smooth], ids=lambda case: case.name)
@pytest.mark.parametrize("sizes", [SIZES, *OTHER_SIZES], ids=str)
def test_gradient(case: Case, sizes: dict[str, int], rng: Any) -> None:
    arrays = case.arrays(rng, sizes, np.float64)
    floats = [name for name, given in case.inputs.items() if given.has_gradient]
    fixed = {name: a for name, a in arrays.items() if name not in floats}

    def call(*values: Any) -> Any:
        result = outputs(case.call(**dict(zip(floats, values, strict=True)), **fixed))
        # The lse of a row without keys is -inf: nothing to differentiate.
        return tuple(ops.where(r.numpy() > -np.inf, r, 0.0) for r in result)

    pa.check_grad(call, *[arrays[name] for name in floats], rng=rng)


@every_case
@pytest.mark.parametrize(("opset", "target"), FORMS)
@pytest.mark.filterwarnings("ignore:export. .* written out:pyattn.ExportWarning")
def test_onnx_runtime_agrees(case: Case, opset: int, target: Any, rng: Any) -> None:
    arrays = case.arrays(rng, SIZES, np.float32)

    def call(**inputs: Any) -> Any:
        return case.call(**inputs)

    proto = pa.export(call, case.onnx_inputs(arrays), opset=opset, target=target, verify=False)
    assert bool(proto.functions) == (
        target == "functions" and REGISTRY[case.op].function is not None
    )
    runs = [session(proto, accelerate=False)]
    if proto.functions:
        runs.append(session(proto))
        assert all(placement.accelerated for placement in pa.ort.describe(runs[-1]))
    for sizes in OTHER_SIZES:
        if case.static:
            sizes = {**sizes, **{name: SIZES[name] for name in case.static}}
        arrays = case.arrays(rng, sizes, np.float32)
        eager = outputs(case.call(**arrays))
        for run in runs:
            for e, f in zip(eager, run.run(None, arrays), strict=True):
                assert e.dtype == f.dtype
                assert e.shape == f.shape
                assert max_error(f, e) <= 2e-5
