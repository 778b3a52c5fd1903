"""Queries and keys turned as the kernel loads them: the bits of arrays that were turned before."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pyattn as pa
from pyattn import runtime
from pyattn.attention import _rotary

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
attend = pa.scaled_dot_product_attention


def tables(pairs: int, rows: int, dtype: Any) -> tuple[Any, Any]:
    angles = np.arange(rows)[:, None] * 100.0 ** (-np.arange(pairs) / pairs)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def before(x: Any, start: Any, cosine: Any, sine: Any, interleaved: bool = False) -> Any:
    at = np.broadcast_to(np.asarray(start), len(x))[:, None] + np.arange(x.shape[2])
    return pa.ops.rotary_embedding(
        x, cosine, sine, at, interleaved=interleaved, rotary_embedding_dim=2 * cosine.shape[1]
    )


def same(found: Any, wanted: Any) -> None:
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("shape", "pairs"),
    [
        ((4, 1, 1, 70, 64), 32),
        ((2, 2, 5, 9, 33), 8),
        ((4, 2, 130, 130, 32), 10),
        ((2, 1, 300, 300, 16), 8),  # so many queries that the keys are turned before
    ],
)
def test_bits(
    use_isa: Any,
    isa: str,
    rng: Any,
    dtype: Any,
    interleaved: bool,
    shape: tuple[int, ...],
    pairs: int,
) -> None:
    use_isa(isa)
    heads, groups, rows, size, depth = shape
    q = rng.standard_normal((2, heads, rows, depth)).astype(dtype)
    k, v = (rng.standard_normal((2, groups, size, depth)).astype(dtype) for _ in range(2))
    turn = tables(pairs, size + rows + 20, dtype)
    by = {"rotary_cos": turn[0], "rotary_sin": turn[1], "rotary_interleaved": interleaved}
    aux = ("lse", "weights", "entropy")
    turned_keys = before(k, 0, *turn, interleaved)
    for start in (0, np.array([3, 17])):
        wanted = attend(
            before(q, start, *turn, interleaved), turned_keys, v,
            query_start=start, is_causal=True, aux=aux,
        )  # fmt: skip
        same(attend(q, k, v, query_start=start, is_causal=True, aux=aux, **by), wanted)
    wanted = attend(
        before(q, size - rows, *turn, interleaved), turned_keys, v, is_causal="bottom_right",
        aux=("lse",),
    )  # fmt: skip
    same(attend(q, k, v, is_causal="bottom_right", aux=("lse",), **by), wanted)


@pytest.fixture
def problem(rng: Any) -> Any:
    q = rng.standard_normal((2, 4, 5, 16)).astype(np.float32)
    k, v = (rng.standard_normal((2, 2, 11, 16)).astype(np.float32) for _ in range(2))
    cosine, sine = tables(8, 11, np.float32)
    return q, k, v, {"rotary_cos": cosine, "rotary_sin": sine}


def test_a_cache_is_not_turned(problem: Any) -> None:
    q, k, v, by = problem
    past = {"past_key": k[:, :, :6], "past_value": v[:, :, :6]}
    new = k[:, :, 6:], v[:, :, 6:]
    out, keys, values = attend(
        q, *new, **past, is_causal=True, aux=("present_key", "present_value"), **by
    )
    same((keys, values), (k, v))
    same([out], [attend(q, k, v, query_start=6, is_causal=True, **by)])


def test_what_the_kernel_does_not_take(problem: Any) -> None:
    """Rows with gaps, and the column mass, which other kernels compute."""
    q, k, v, by = problem
    wide = np.repeat(q, 2, -1)[..., ::2]
    same([attend(wide, k, v, **by)], [attend(q, k, v, **by)])
    out, mass, weights = attend(q, k, v, aux=("column_mass", "weights"), **by)
    same([out], [attend(q, k, v, **by)])
    np.testing.assert_allclose(mass, weights.sum(2), rtol=1e-5)


def test_masked_keys_are_not_read(problem: Any) -> None:
    q, k, v, by = problem
    wanted = attend(q, k, v, is_causal=True, **by)
    poisoned = k.copy()
    poisoned[:, :, 5:] = np.nan
    same([attend(q, poisoned, v, is_causal=True, **by)], [wanted])


def test_positions_outside_the_tables(problem: Any) -> None:
    q, k, v, by = problem
    for start in (7, -1, np.array([0, 7])):
        with pytest.raises(ValueError, match=r"11 rows for positions (-1|0)\.\.(10|11)"):
            attend(q, k, v, query_start=start, **by)
    with pytest.raises(ValueError, match=r"a row for each position.* got 10 rows"):
        attend(q, k, v, **{name: x[:10] for name, x in by.items()})


def test_into_an_array(problem: Any) -> None:
    q, k, v, by = problem
    out = np.full_like(q, np.nan)
    assert attend(q, k, v, out=out, **by) is out
    same([out], [attend(q, k, v, **by)])
    with pytest.raises(ValueError, match="out and query must not overlap"):
        attend(q, k, v, out=q, **by)


def test_keys_before_and_on_the_way(problem: Any, monkeypatch: Any) -> None:
    q, k, v, by = problem
    wanted = attend(q, k, v, **by)
    monkeypatch.setattr(_rotary, "MOST_BLOCKS", 0)
    same([attend(q, k, v, **by)], [wanted])
