"""The interface of differentiation; the gradients themselves are checked case by case."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import nn, ops


def loss(x: Any, y: Any) -> Any:
    return ops.sum((x - y) ** 2)


def test_value_and_grad_of_one_and_of_several_arguments(rng: Any) -> None:
    x, y = rng.standard_normal((2, 3, 4))
    value, gradient = pa.value_and_grad(loss)(x, y)
    assert value == pytest.approx(((x - y) ** 2).sum())
    np.testing.assert_allclose(gradient, 2 * (x - y))
    _, (gx, gy) = pa.value_and_grad(loss, (0, 1))(x, y)
    np.testing.assert_allclose(gx, -gy)
    np.testing.assert_array_equal(pa.grad(loss)(x, y), gradient)


def test_structures_come_back_in_their_own_shape(rng: Any) -> None:
    x, y = rng.standard_normal((2, 3))
    tree = {"a": [x, (y,)], "b": x}
    gradient = pa.grad(lambda t: loss(t["a"][0] * t["b"], t["a"][1][0]))(tree)
    assert gradient.keys() == tree.keys()
    assert isinstance(gradient["a"], list)
    assert isinstance(gradient["a"][1], tuple)
    np.testing.assert_allclose(gradient["a"][1][0], -2 * (x * x - y))
    np.testing.assert_allclose(gradient["a"][0], 2 * (x * x - y) * x)


def test_aux_comes_back_beside_the_value(rng: Any) -> None:
    x = rng.standard_normal(3)
    (value, aux), _ = pa.value_and_grad(lambda x: (ops.sum(x), "aux"), has_aux=True)(x)
    assert value == pytest.approx(x.sum())
    assert aux == "aux"


def test_a_module_is_differentiated_by_name_and_left_as_it_was(rng: Any) -> None:
    layer = nn.Linear(4, 3, rng=rng)
    x = rng.standard_normal((5, 4)).astype(np.float32)
    gradient = pa.grad(lambda m: ops.sum(m(x)))(layer)
    assert gradient.keys() == layer.parameters().keys() == {"weight", "bias"}
    np.testing.assert_allclose(gradient["bias"], np.full(3, 5.0))
    np.testing.assert_allclose(gradient["weight"], np.tile(x.sum(0), (3, 1)), rtol=1e-5)
    assert isinstance(layer.weight, np.ndarray)


def test_a_value_used_twice_adds_up(rng: Any) -> None:
    x = rng.standard_normal(4)
    np.testing.assert_allclose(pa.grad(lambda x: ops.sum(x * x * x))(x), 3 * x**2)


def test_an_unused_argument_has_a_zero_gradient(rng: Any) -> None:
    x = rng.standard_normal(4)
    _, unused = pa.grad(lambda x, y: ops.sum(x), (0, 1))(x, x)  # noqa: ARG005
    np.testing.assert_array_equal(unused, np.zeros(4))


def test_a_python_number_does_not_widen_float32() -> None:
    x = np.ones(3, np.float32)
    tensor = pa.Tensor(x, requires_grad=True)
    for result in (tensor * 0.5, 2 + tensor, tensor / np.float64(3), 1.5 - tensor, tensor**2):
        assert result.dtype == np.float32
    assert (x * tensor).dtype == np.float32
    assert pa.grad(lambda x: ops.mean(x * 0.1))(x).dtype == np.float32


def test_a_deep_graph_does_not_exhaust_the_stack() -> None:
    def chain(x: Any) -> Any:
        for _ in range(5000):
            x = x + 1.0
        return ops.sum(x)

    np.testing.assert_array_equal(pa.grad(chain)(np.ones(2)), np.ones(2))


def test_a_nan_in_a_branch_not_taken_stays_out(rng: Any) -> None:
    x = np.array([-1.0, 4.0])
    with np.errstate(invalid="ignore"):
        gradient = pa.grad(lambda x: ops.sum(ops.where(ops.greater(x, 0.0), x, 0.0)))(x)
    np.testing.assert_array_equal(gradient, [0.0, 1.0])


@pytest.mark.parametrize("name", ["sdpa", "additive"])
def test_rows_without_keys_have_zero_gradients(name: str, rng: Any) -> None:
    lengths = np.array([0, 4])
    q, k, v = (rng.standard_normal((2, n, 8)) for n in (3, 4, 4))

    def attend(q: Any, k: Any, v: Any) -> Any:
        if name == "additive":
            return ops.sum(pa.additive_attention(q, k, v, np.ones(8), kv_lengths=lengths))
        q, k, v = (ops.expand_dims(x, 1) for x in (q, k, v))
        return ops.sum(pa.scaled_dot_product_attention(q, k, v, kv_lengths=lengths) ** 2)

    for gradient in pa.grad(attend, (0, 1, 2))(q, k, v):
        assert not gradient[0].any()
        assert np.isfinite(gradient).all()


def test_the_gradient_of_a_float_mask(rng: Any) -> None:
    q, k, v = (rng.standard_normal((1, 2, 4, 8)) for _ in range(3))
    pa.check_grad(
        lambda q, k, v, m: pa.scaled_dot_product_attention(q, k, v, m, is_causal=True),
        q, k, v, rng.standard_normal((4, 4)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pa.grad(lambda x: x)(np.ones(3)), "must return a scalar"),
        (lambda: pa.grad(lambda x: 1.0)(np.ones(3)), "must return a scalar"),  # noqa: ARG005
        (lambda: pa.grad(ops.sum)(np.arange(3)), "only floats have gradients"),
        (lambda: pa.grad(ops.sum)(3.0), "argument to differentiate must be"),
        (lambda: pa.Tensor([1.0]), "must be a NumPy array; got list"),  # type: ignore[arg-type]
        (lambda: np.asarray(pa.Tensor(np.ones(2))), "call .numpy()"),
    ],
)
def test_what_cannot_be_differentiated(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_check_grad_finds_a_wrong_gradient() -> None:
    def wrong(x: Any) -> Any:
        return x * x if x.requires_grad else x * x * 1.001

    with pytest.raises(AssertionError, match="exceeds"):
        pa.check_grad(wrong, np.ones(3))


def test_operators_mean_what_they_say(rng: Any) -> None:
    x = rng.standard_normal(4)
    t = pa.Tensor(x)
    for found, expected in (
        (t + 2, x + 2), (2 + t, x + 2), (t - 2, x - 2), (2 - t, 2 - x), (t * 3, x * 3),
        (3 * t, x * 3), (t / 4, x / 4), (4 / t, 4 / x), (-t, -x), (t**3, x**3), (x - t, x - x),
        (x / t, x / x), (t[1], x[1]), (t[1:3], x[1:3]), (t[...], x), (t[-1], x[-1]),
    ):  # fmt: skip
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-15)
    matrix = rng.standard_normal((4, 4))
    np.testing.assert_allclose((matrix @ pa.Tensor(matrix)).numpy(), matrix @ matrix)
    assert [float(row) for row in t] == x.tolist()
    with pytest.raises(pa.TraceError):
        list(pa.Tensor.symbolic(("B", 2), np.float32))


def test_ties_share_the_gradient_of_max_and_go_left_in_maximum() -> None:
    x = np.array([2.0, 1.0, 2.0])
    np.testing.assert_array_equal(pa.grad(ops.max)(x), [0.5, 0.0, 0.5])
    left, right = pa.grad(lambda a, b: ops.sum(ops.maximum(a, b)), (0, 1))(x, x)
    np.testing.assert_array_equal((left, right), (np.ones(3), np.zeros(3)))


def test_gradients_are_arrays_of_their_own(rng: Any) -> None:
    x = rng.standard_normal(4)
    left, right = pa.grad(lambda a, b: ops.sum((a + b) * 2.0), (0, 1))(x, x)
    left *= 3
    np.testing.assert_array_equal(right, np.full(4, 2.0))
    alone = pa.grad(ops.sum)(x)
    alone += 1


def test_gradients_of_gradients_are_refused(rng: Any) -> None:
    inner = pa.grad(lambda y: ops.sum(y * y * y))
    with pytest.raises(TypeError, match="gradients of gradients"):
        pa.grad(lambda x: ops.sum(x * inner(x)))(rng.standard_normal(2))


def test_results_of_rank_0_go_on(rng: Any) -> None:
    x = rng.standard_normal((2, 3))
    norm = ops.sqrt(ops.sum(x * x))
    assert isinstance(norm, np.ndarray)
    assert ops.divide(norm, norm) == 1
    assert ops.erf(ops.getitem(x, (0, 0))).shape == ()


def test_lse_of_no_keys_has_a_zero_gradient() -> None:
    q, none = np.ones((1, 1, 3, 4)), np.ones((1, 1, 0, 4))

    def total(q: Any) -> Any:
        out, lse = pa.scaled_dot_product_attention(q, none, none, aux=("lse",))
        return ops.sum(out) + ops.sum(ops.where(ops.greater(lse, -np.inf), lse, 0.0))

    assert not pa.grad(total)(q).any()


@pytest.mark.parametrize("argnums", [-1, 5])
def test_argnums_out_of_range(argnums: int) -> None:
    with pytest.raises(TypeError, match="argnums"):
        pa.grad(ops.sum, argnums)(np.ones(3))


def test_training_fits_a_small_model(rng: Any) -> None:
    """A self-attention layer learns to copy the mean of its input to every place."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, rng=rng)
    x = rng.standard_normal((16, 5, 8)).astype(np.float32)
    target = np.broadcast_to(x.mean(1, keepdims=True), x.shape)
    step = pa.value_and_grad(lambda m: ops.mean((m(x) - target) ** 2))
    first, _ = step(layer)
    for _ in range(600):
        value, gradient = step(layer)
        layer = layer.replace(
            {name: p - np.float32(0.3) * gradient[name] for name, p in layer.parameters().items()}
        )
    assert value < first / 5


def test_gradients_share_no_memory(rng: Any) -> None:
    """Callers may change them in place, whatever shape they went through on the way."""
    x, y, z, w = (rng.standard_normal(s) for s in ((2, 6), (3, 4), (2, 3), (2, 6)))

    def loss(x: Any, y: Any, z: Any, w: Any) -> Any:
        wide = ops.concat([z, ops.reshape(ops.transpose(z, (1, 0)), (2, 3))], 1)
        return ops.sum((x + ops.reshape(y, (2, 6)) + wide) * w)

    given = (x, y, z, w)
    found = pa.grad(loss, (0, 1, 2, 3))(*given)
    for i, gradient in enumerate(found):
        assert gradient.flags.writeable
        for other in (*found[:i], *found[i + 1 :], *given):
            assert not np.shares_memory(gradient, other)
