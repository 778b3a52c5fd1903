"""Linear layers at sizes on both sides of those from which on the core multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyattn as pa
from tests.draws import EDGES, draw_layout
from tests.reference import max_error, tolerance

ISAS = pa.runtime.available_isas()


@settings(deadline=None, max_examples=60)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_any_size_and_layout(data: Any, isa: str, seed: int) -> None:
    draw, rng = data.draw, np.random.default_rng(seed)
    rows, size_in, size_out = (draw(st.sampled_from((0, *EDGES, 700))) for _ in range(3))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    x, weight, g = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((2, rows, size_in), (size_out, size_in), (2, rows, size_out))
    )
    bias = rng.standard_normal(2 * size_out).astype(dtype)[::2]
    if draw(st.booleans()):
        weight = np.asfortranarray(weight)
    wide = [a.astype(np.float64) for a in (x, weight, bias, g)]
    pa.runtime.set_isa(isa)

    def loss(x: Any, weight: Any, bias: Any) -> Any:
        out = pa.ops.linear(x, weight, bias)
        return pa.ops.sum(out * g), out

    arrays = (draw_layout(draw, x), weight, bias)
    (_, out), gradients = pa.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arrays)
    for found, naive, exact in (
        (out, x @ weight.T + bias, wide[0] @ wide[1].T + wide[2]),
        (gradients[0], g @ weight, wide[3] @ wide[1]),
        (
            gradients[1],
            np.tensordot(g, x, ((0, 1),) * 2),
            np.tensordot(wide[3], wide[0], ((0, 1),) * 2),
        ),
        (gradients[2], g.sum((0, 1)), wide[3].sum((0, 1))),
    ):
        assert found.dtype == dtype
        assert max_error(found, exact) <= tolerance(naive, exact)


@pytest.mark.parametrize("isa", ISAS)
def test_the_same_bits_for_any_threads(isa: str, rng: Any, use_isa: Callable[[str], None]) -> None:
    use_isa(isa)
    x, weight = (rng.standard_normal((n, 600)).astype(np.float32) for n in (900, 310))
    before, found = pa.runtime.threads(), []
    try:
        for count in (1, 2, 5):
            pa.runtime.set_threads(count)
            found.append(pa.ops.linear(x, weight).tobytes())
    finally:
        pa.runtime.set_threads(before)
    assert found[0] == found[1] == found[2]
