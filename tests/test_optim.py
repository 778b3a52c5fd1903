"""Adam against the algorithm of the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import nn, ops
from pyattn.optim import Adam
from tests import reference_decoder


@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"max_norm": 1.5}, {"weight_decay": 0.02, "max_norm": 100.0}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_updates_are_those_of_the_paper(options: Any, dtype: Any, rng: Any) -> None:
    parameters = {"a": rng.standard_normal((2, 3)), "b": rng.standard_normal(4)}
    given = [{k: rng.standard_normal(v.shape) for k, v in parameters.items()} for _ in range(20)]
    settings = {"rate": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, **options}
    exact = reference_decoder.adam(
        [x for array in parameters.values() for x in array.flat],
        [[x for array in step.values() for x in array.flat] for step in given],
        **settings,
    )
    found = {k: v.astype(dtype) for k, v in parameters.items()}
    adam = Adam(**settings)
    for step in given:
        norm = adam.update(found, {k: v.astype(dtype) for k, v in step.items()})
        assert norm == pytest.approx(np.sqrt(sum((v**2).sum() for v in step.values())), 1e-6)
    assert {v.dtype for v in found.values()} == {np.dtype(dtype)}
    flat = np.concatenate([v.ravel() for v in found.values()])
    np.testing.assert_allclose(flat, exact, atol=1e-5 if dtype == np.float32 else 1e-13)


def test_a_network_learns(rng: Any) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            self.hidden, self.output = nn.Linear(2, 16, rng=rng), nn.Linear(16, 1, rng=rng)

        def __call__(self, x: Any) -> Any:
            return self.output(ops.tanh(self.hidden(x)))

    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    differ = np.array([[0], [1], [1], [0]], np.float32)
    network, adam = Network(), Adam(rate=0.03, max_norm=5.0)
    step = pa.value_and_grad(lambda network: ops.mean((network(x) - differ) ** 2))
    for _ in range(400):
        _, gradients = step(network)
        adam.update(network.parameters(), gradients)
    np.testing.assert_allclose(network(x), differ, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -1.0}, "rate must be finite"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"weight_decay": float("nan")}, "weight_decay must be finite"),
        ({"max_norm": 0.0}, "max_norm must be positive"),
    ],
)
def test_bad_options(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adam(**options)


def test_what_does_not_fit_changes_nothing() -> None:
    adam, parameters = Adam(), {"a": np.ones(2), "b": np.ones(3)}
    whole = {"a": np.ones(2), "b": np.ones(3)}
    for gradients, error, message in (
        ({"a": np.ones(2)}, ValueError, r"same names; not \['b'\]"),
        (whole | {"b": np.ones(2)}, ValueError, r"b is float64 \(3,\); its gradient is .*\(2,\)"),
        (whole | {"b": np.ones(3, np.float32)}, ValueError, "its gradient is float32"),
        (whole | {"b": np.ones(3, int)}, TypeError, "gradient b must be float32 or float64"),
        (whole | {"b": np.full(3, np.inf)}, ValueError, "norm of the gradients is inf"),
    ):
        with pytest.raises(error, match=message):
            adam.update(parameters, gradients)
    parameters["b"].flags.writeable = False
    with pytest.raises(ValueError, match="b is read-only"):
        adam.update(parameters, whole)
    assert adam.steps == 0
    assert all((array == 1).all() for array in parameters.values())
