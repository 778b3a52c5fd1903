"""Runs a model before and after it was rewritten, and compares what comes out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx

from pyattn.dtypes import FLOATS
from pyattn.ort import session
from pyattn.tensor import Array

TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2
RELATIVE_TOLERANCE = 1e-4
SEED = 20170612
CHOICES = (2, 3, 5, 7)  # of dynamic sizes: small, and different from each other
WIDTH = 16  # of a float input's dynamic size, which often has a least one


class Difference(Exception):  # noqa: N818 -- becomes a VerificationError
    """What differs, or cannot be run."""


def compare(before: onnx.ModelProto, after: onnx.ModelProto, folder: str) -> float:
    """Run both models on the same random inputs; return the largest difference of an output.

    The result is run twice: the bodies of its functions, and pyattn's kernels. Raises Difference
    where one differs by more than the tolerance, or where a model does not run.
    """
    original = _loaded("the original", before, folder, accelerate=False)
    feed, expected = _first_that_runs(before, original)
    largest = 0.0
    for name, accelerate in (("the result", False), ("the result on pyattn's kernels", True)):
        run = _loaded(name, after, folder, accelerate=accelerate)
        try:
            found = run.run(None, feed)
        except Exception as error:
            raise Difference(f"ONNX Runtime does not run {name}: {error}") from error
        for output, one, other in zip(before.graph.output, expected, found, strict=True):
            largest = max(largest, _difference(output.name, one, other))
    return largest


def _loaded(name: str, model: onnx.ModelProto, folder: str, *, accelerate: bool) -> Any:
    try:
        return session(model, accelerate=accelerate, folder=folder)
    except Exception as error:
        raise Difference(f"ONNX Runtime does not load {name}: {error}") from error


def _first_that_runs(model: onnx.ModelProto, run: Any) -> tuple[dict[str, Array], list[Any]]:
    """Return inputs that the original takes, and its outputs.

    Which numbers the integers of a model stand for is not written in it: they are tried small, then
    as zeros and ones.
    """
    from onnxruntime import RunOptions

    errors, quiet = [], RunOptions()
    quiet.log_severity_level = 4  # trying is no reason to complain
    for highest, differ in itertools.product((8, 1), (True, False)):
        feed = inputs(model, highest=highest, sizes_differ=differ)
        try:
            return feed, run.run(None, feed, quiet)
        except Exception as error:  # noqa: BLE001 -- as above
            errors.append(error)
    raise Difference(f"no random inputs were found that the original takes: {errors[0]}")


def inputs(model: onnx.ModelProto, *, highest: int, sizes_differ: bool) -> dict[str, Array]:
    """Return random inputs: floats normal, integers 0 to ``highest``, masks 1 but for the ends."""
    rng = np.random.default_rng(SEED)
    constants = {tensor.name for tensor in model.graph.initializer}
    given = [x for x in model.graph.input if x.name not in constants]
    sizes = _sizes(given, differ=sizes_differ)
    feed = {}
    for value in given:
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type"):
            raise Difference(f"the input {value.name} is not a tensor")
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = [
            size.dim_value
            if size.HasField("dim_value")
            else sizes[size.dim_param or f"{value.name}.{axis}"]
            for axis, size in enumerate(kind.shape.dim)
        ]
        feed[value.name] = _random(rng, value.name, dtype, shape, highest)
    return feed


def _sizes(given: list[onnx.ValueInfoProto], *, differ: bool) -> dict[str, int]:
    """Choose every dynamic size; one whose name is the sum of others is their sum."""
    names: dict[str, None] = {}
    for value in given:
        for axis, size in enumerate(value.type.tensor_type.shape.dim):
            if not size.HasField("dim_value"):
                names[size.dim_param or f"{value.name}.{axis}"] = None
    chosen = {
        name: (CHOICES[i % len(CHOICES)] if differ else CHOICES[-1]) for i, name in enumerate(names)
    }
    for name in names:
        if "batch" in name:
            chosen[name] = CHOICES[0]
    past, new, total = ((f"{x}sequence_length") for x in ("past_", "", "total_"))
    if {past, new, total} <= set(names):
        chosen[total] = chosen[past] + chosen[new]
    for name in names:
        terms = [term.strip() for term in name.split("+")]
        if len(terms) > 1 and all(term in chosen or term.isdigit() for term in terms):
            chosen[name] = sum(int(term) if term.isdigit() else chosen[term] for term in terms)
    return chosen


def _random(
    rng: np.random.Generator, name: str, dtype: np.dtype[Any], shape: list[int], highest: int
) -> Array:
    if dtype == np.bool_ or ("mask" in name.lower() and dtype.kind in "iu"):
        array = np.ones(shape, dtype)
        if array.ndim > 1 and array.shape[-1] > 1:
            array[-1, ..., -1] = 0  # the last key of the last sequence is padding
        return array
    if dtype.name in FLOATS:
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind not in "iu":
        raise Difference(f"the input {name} is of {dtype}, of which there are no random numbers")
    return rng.integers(0, highest, shape, endpoint=True).astype(dtype)


def _difference(name: str, expected: Any, found: Any) -> float:
    """Return the largest difference of an output; raise Difference where it is too large."""
    if not isinstance(expected, np.ndarray):
        return 0.0
    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise Difference(
            f"the output {name} is {found.dtype} {found.shape}; of the original it is "
            f"{expected.dtype} {expected.shape}"
        )
    if expected.dtype.name not in FLOATS:
        if not np.array_equal(expected, found):
            raise Difference(f"the output {name}, of {expected.dtype}, differs")
        return 0.0
    one, other = expected.astype(np.float64), found.astype(np.float64)
    equal = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        difference = float(np.where(equal, 0.0, np.abs(one - other)).max(initial=0.0))
    largest = float(np.abs(one[np.isfinite(one)]).max(initial=0.0))
    bound = max(
        HALF_TOLERANCE if expected.dtype.itemsize == 2 else TOLERANCE, RELATIVE_TOLERANCE * largest
    )
    if not difference <= bound:
        raise Difference(
            f"the output {name} differs from the original's by {difference:.3g}, more than "
            f"{bound:.3g}"
        )
    return difference
