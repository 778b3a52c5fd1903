"""Keys that are projected once for a source: the score "concat" of Luong's attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import ops
from pyattn.dtypes import compute_dtype
from tests.draws import FLOATS

ALIGNMENTS = ("global", "local-m", "local-p")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("align", ALIGNMENTS)
def test_a_projected_key_is_not_made_again(rng: Any, align: Any, dtype: Any) -> None:
    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    query, key, weight = normal(2, 5, 6), normal(2, 7, 4), normal(8, 10)
    options: dict[str, Any] = {
        "score": "concat", "v": normal(8), "align": align, "kv_lengths": np.array([7, 3]),
        "half_width": None if align == "global" else 2, "aux": ("weights", "lse"),
    }  # fmt: skip
    if align == "local-p":
        options |= {"position_weight": normal(3, 6), "position_v": normal(3)}
    expected = pa.luong_attention(query, key, weight=weight, **options)
    wide = [ops.astype(x, compute_dtype(x.dtype)) for x in (key, weight[:, 6:])]
    projected = ops.linear(*wide).astype(dtype)
    unread = weight.copy()
    unread[:, 6:] = np.nan
    found = pa.luong_attention(query, key, weight=unread, projected_key=projected, **options)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(f, e)


@pytest.mark.parametrize("align", ["global", "local-p"])
def test_the_gradient_of_a_projected_key(rng: Any, align: Any) -> None:
    options: dict[str, Any] = {
        "score": "concat", "align": align, "half_width": None if align == "global" else 9,
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "query": (2, 5, 6), "key": (2, 7, 4), "weight": (8, 10), "v": (8,),
    }  # fmt: skip
    if align == "local-p":
        shapes |= {"position_weight": (3, 6), "position_v": (3,)}
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    cotangent = rng.standard_normal((2, 5, 4))

    def once(given: dict[str, Any]) -> Any:
        projected = ops.linear(given["key"], given["weight"][:, 6:])
        return pa.luong_attention(**given, projected_key=projected, **options)

    def at_each_step(given: dict[str, Any]) -> Any:
        return pa.luong_attention(**given, **options)

    pa.check_grad(once, arrays, rng=rng)
    first, second = (
        pa.grad(lambda given, call=call: ops.sum(call(given) * cotangent))(arrays)
        for call in (once, at_each_step)
    )
    for name in arrays:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-12, atol=1e-13)


def test_a_projected_key_is_exported(rng: Any) -> None:
    shapes = {"query": ("B", "T", 6), "key": ("B", "S", 4), "projected_key": ("B", "S", 8)}
    sizes = {"B": 2, "T": 5, "S": 7}
    inputs = {
        name: pa.Input(
            rng.standard_normal([sizes.get(d, d) for d in dims]).astype(np.float32),
            tuple(d if isinstance(d, str) else None for d in dims),
        )
        for name, dims in shapes.items()
    }
    weight, v = (rng.standard_normal(s).astype(np.float32) for s in ((8, 10), (8,)))
    pa.export(lambda **a: pa.luong_attention(**a, score="concat", weight=weight, v=v), inputs)
