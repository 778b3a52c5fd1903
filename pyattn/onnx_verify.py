"""Runs an exported model in ONNX Runtime and compares what comes out with the eager model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyattn.onnx_batching import parts, trial
from pyattn.onnx_input import Input, other_sizes
from pyattn.tensor import Array

if TYPE_CHECKING:
    import onnx

    Source = onnx.ModelProto | os.PathLike[str]

TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-5
QUANTIZED_TOLERANCE = 0.25


class VerificationError(RuntimeError):
    """The exported file and the eager model do not agree."""


def verify(model: Callable[..., Any], source: Source, given: Mapping[str, Input]) -> None:
    """Run the file and the model at other sizes than the traced ones; raise where they differ."""
    run = _session(source)
    for where, arrays in _feeds(model, given):
        try:
            eager = eager_outputs(model, arrays)
        except Exception as error:
            error.add_note(
                f"raised by the model while export verified it {where}; if an input holds "
                "lengths, bound them with Input(..., at_most=dimension)"
            )
            raise
        exported = _run(run, list(eager), arrays, where)
        for (name, expected), found in zip(eager.items(), exported, strict=True):
            _compare(f"output {name!r} {where} differs from eager", expected, found)


def verify_batching(
    model: Callable[..., Any], how: Mapping[str, Any], given: Mapping[str, Input]
) -> None:
    """Raise where sequences put together get other answers than each alone."""
    together, alone = trial(how, given)
    whole = eager_outputs(model, together)
    single = [eager_outputs(model, feed) for feed in alone]
    for name, array in whole.items():
        for feed, part in zip(single, parts(how, name, array), strict=True):
            _compare(
                f"output {name!r} of a sequence in a batch differs from that of it alone "
                "(mask_of, pad and offsets_of of the inputs tell how a batch is made)",
                feed[name],
                part,
            )


def quantization_error(
    model: Callable[..., Any], exact: Source, quantized: Source, given: Mapping[str, Input]
) -> tuple[float, float]:
    """Return the largest difference of an output entry, and that relative to the output's largest.

    Raises VerificationError where the root mean square of the differences of an output exceeds a
    quarter of that of the output: a Transformer of six layers moves by a sixth, and one whose
    numbers do not suit eight bits by more.
    """
    runs = _session(exact), _session(quantized)
    largest = relative = 0.0
    for where, arrays in _feeds(model, given):
        outputs = [x.name for x in runs[0].get_outputs()]
        expected, found = (_run(run, outputs, arrays, where) for run in runs)
        for name, one, other in zip(outputs, expected, found, strict=True):
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                raise VerificationError(
                    f"export: output {name!r} {where} is {other.dtype} {other.shape} with int8 "
                    f"weights; it was {one.dtype} {one.shape}"
                )
            if one.dtype.kind != "f" or not one.size:
                continue
            difference = _largest_difference(one, other)
            exact_finite = np.where(np.isfinite(one), one, 0).astype(np.float64)
            change = np.where(np.isfinite(one), other - exact_finite, 0)
            norm, moved = (float(np.sqrt(np.mean(x**2))) for x in (exact_finite, change))
            if not (np.isfinite(difference) and moved <= QUANTIZED_TOLERANCE * norm + TOLERANCE):
                raise VerificationError(
                    f"export: output {name!r} {where} moves by {moved:.3g} (root mean square) with "
                    f"int8 weights, more than a quarter of its {norm:.3g}"
                )
            largest = max(largest, difference)
            relative = max(relative, difference / max(float(np.abs(exact_finite).max()), 1e-30))
    return largest, relative


def _session(source: Source) -> Any:
    from pyattn.ort import session

    try:
        return session(source, accelerate=False)
    except Exception as error:
        raise VerificationError(f"export: ONNX Runtime does not load the file: {error}") from error


def _feeds(
    model: Callable[..., Any], given: Mapping[str, Input]
) -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield inputs at other sizes than the example's, and in words at which."""
    chosen = getattr(model, "verification_sizes", None)
    for sizes in chosen() if chosen else other_sizes(given):
        where = f"at sizes {sizes}" if sizes else "at the sizes of the example"
        yield where, {name: i.resized(sizes) for name, i in given.items()}


def _run(run: Any, outputs: list[str], arrays: Mapping[str, Array], where: str) -> Any:
    try:
        return run.run(outputs, arrays)
    except Exception as error:
        raise VerificationError(f"export: ONNX Runtime failed {where}: {error}") from error


def eager_outputs(model: Callable[..., Any], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of the model by the names that they have in the file."""
    # Copies, because a model may write to its inputs: to a cache, for example.
    result = model(**{name: array.copy() for name, array in arrays.items()})
    if isinstance(result, Mapping):
        return dict(result)
    if isinstance(result, tuple):
        return {f"output_{i}": array for i, array in enumerate(result)}
    return {"output": result}


def _compare(what: str, expected: Array, found: Array) -> None:
    if (expected.shape, expected.dtype) != (found.shape, found.dtype):
        raise VerificationError(
            f"export: {what}: it is {found.dtype} {found.shape}, not {expected.dtype} "
            f"{expected.shape}"
        )
    difference = _largest_difference(expected, found)
    finite = np.abs(expected[np.isfinite(expected)]) if expected.dtype.kind == "f" else expected[:0]
    # Float32 has seven digits: entries above 10 cannot be held to the same absolute difference.
    bound = max(TOLERANCE, RELATIVE_TOLERANCE * float(finite.max(initial=0.0)))
    if not difference <= bound:
        raise VerificationError(f"export: {what} by {difference:.3g}, more than {bound:.3g}")


def _largest_difference(expected: Array, found: Array) -> float:
    if expected.dtype.kind != "f":
        return float(np.count_nonzero(expected != found))
    equal = (expected == found) | (np.isnan(expected) & np.isnan(found))
    difference = np.where(equal, 0.0, np.abs(expected.astype(np.float64) - found))
    return float(difference.max(initial=0.0))
