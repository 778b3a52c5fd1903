"""Elementwise operations in half precision, bfloat16 above all, whose kind NumPy does not know."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pyattn as pa
from pyattn import ops
from pyattn.tensor import Tensor

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
half = pytest.mark.parametrize("dtype", HALVES, ids=str)

# The operation, and its partial derivatives.
BINARY: dict[str, Any] = {
    "add": lambda x, y: (1 + 0 * x, 1 + 0 * y),
    "subtract": lambda x, y: (1 + 0 * x, -1 + 0 * y),
    "multiply": lambda x, y: (y + 0 * x, x + 0 * y),
    "maximum": lambda x, y: (1.0 * (x >= y), 1.0 * (x < y)),
    "minimum": lambda x, y: (1.0 * (x <= y), 1.0 * (x > y)),
}
COMPARISONS = ["equal", "less", "less_equal", "greater"]
# They want float32 or float64: what they round to half precision is the caller's to say.
WIDE_ONLY: dict[str, Any] = {
    name: getattr(ops, name)
    for name in (
        "exp", "log", "sqrt", "tanh", "sigmoid", "relu", "erf", "gelu", "negative", "softmax",
        "log_softmax",
    )
} | {"divide": lambda x: ops.divide(x, x), "power": lambda x: ops.power(x, 2.0)}  # fmt: skip


def drawn(rng: Any, dtype: Any, *shapes: tuple[int, ...]) -> list[Any]:
    """Multiples of 1/4 below 4: their products and sums of a few are exact in half precision."""
    return [(rng.integers(-15, 16, shape) / 4).astype(dtype) for shape in shapes]


@half
@pytest.mark.parametrize("name", BINARY)
def test_of_two_arrays_and_their_gradients(name: str, dtype: Any, rng: Any) -> None:
    x, y, g = drawn(rng, dtype, (3, 1, 4), (2, 4), (3, 2, 4))
    wide = [a.astype(np.float32) for a in (x, y, g)]
    exact = getattr(np, name)(*wide[:2]).astype(dtype)
    for given in ((x, y), (Tensor(x), Tensor(y)), (x, Tensor(y))):
        found = getattr(ops, name)(*given)
        assert found.dtype == dtype
        found = found.numpy() if isinstance(found, Tensor) else found
        np.testing.assert_array_equal(found, exact)

    def loss(x: Any, y: Any) -> Any:
        return ops.sum(ops.astype(ops.multiply(getattr(ops, name)(x, y), g), np.float32))

    of_x, of_y = (wide[2] * partial for partial in BINARY[name](*wide[:2]))
    expected = of_x.sum(1, keepdims=True), of_y.sum(0)
    for found, e in zip(pa.grad(loss, (0, 1))(x, y), expected, strict=True):
        assert found.dtype == dtype
        # Sums of two or three terms, each rounded once.
        np.testing.assert_allclose(found.astype(np.float32), e, rtol=0.02, atol=0.1)


@half
def test_of_an_array_and_a_number(dtype: Any, rng: Any) -> None:
    (x,) = drawn(rng, dtype, (5,))
    wide = x.astype(np.float32)
    tensor = Tensor(x)
    for found, exact in (
        (tensor + 0.5, wide + 0.5), (2 * tensor, 2 * wide), (1 - tensor, 1 - wide),
        (ops.maximum(x, 0), np.maximum(wide, 0)), (ops.multiply(x, -1.0), -wide),
    ):  # fmt: skip
        assert found.dtype == dtype
        found = found.numpy() if isinstance(found, Tensor) else found
        np.testing.assert_array_equal(found, exact.astype(dtype))


@half
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name: str, dtype: Any, rng: Any) -> None:
    x, y = drawn(rng, dtype, (3, 1, 9), (7, 9))
    exact = getattr(np, name)(x.astype(np.float32), y.astype(np.float32))
    assert exact.any()
    assert not exact.all()
    np.testing.assert_array_equal(getattr(ops, name)(x, y), exact)
    np.testing.assert_array_equal(getattr(ops, name)(Tensor(x), Tensor(y)).numpy(), exact)


@half
def test_choosing_and_converting(dtype: Any, rng: Any) -> None:
    x, y = drawn(rng, dtype, (3, 4), (3, 4))
    condition = rng.random((3, 4)) < 0.5
    np.testing.assert_array_equal(ops.where(condition, x, y), np.where(condition, x, y))
    of_x, of_y = pa.grad(
        lambda x, y: ops.sum(ops.astype(ops.where(condition, x, y), np.float32)), (0, 1)
    )(x, y)
    assert of_x.dtype == of_y.dtype == dtype
    np.testing.assert_array_equal(of_x, condition.astype(dtype))
    np.testing.assert_array_equal(of_y, (~condition).astype(dtype))
    np.testing.assert_array_equal(ops.astype(x, np.float64), x.astype(np.float64))
    np.testing.assert_array_equal(ops.astype(x.astype(np.float64), dtype), x)


@half
@pytest.mark.parametrize("name", WIDE_ONLY)
def test_functions_that_would_round(name: str, dtype: Any) -> None:
    for x in (np.ones((2, 3), dtype), Tensor(np.ones((2, 3), dtype))):
        with pytest.raises(TypeError, match=f"{name}: got {dtype}.*; expected float32 or float64"):
            WIDE_ONLY[name](x)


def test_types_that_are_no_numbers_are_refused() -> None:
    for dtype in (np.bool_, np.complex64, ml_dtypes.float8_e4m3fn, "S3"):
        x = np.zeros(3, dtype)
        with pytest.raises(TypeError, match=r"multiply: got .*; expected numbers"):
            ops.multiply(x, x)
