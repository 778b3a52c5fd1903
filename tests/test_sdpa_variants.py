"""Every variant of scaled dot-product attention at random; and what has to be equal bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyattn as pa
from tests.draws import FLOATS, draw_layout, draw_sdpa, poison
from tests.naive_sdpa import naive_outputs
from tests.outputs import PRESENT, TOP_K, check_all
from tests.reference import max_error, tolerance
from tests.reference_sdpa import sdpa_outputs

ISAS = pa.runtime.available_isas()
SCORES = ("scores", "capped_scores", "biased_scores")
TOP = ("top_weights", "top_indices")
ROWS = ("lse", "max", "entropy", *TOP, "weights")
AUX = (*ROWS, "column_mass", *SCORES, *PRESENT)

every_isa = pytest.mark.parametrize("isa", ISAS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)


def attend(
    query: Any, key: Any, value: Any, aux: Any = (), out: Any = None, **options: Any
) -> dict[str, Any]:
    """The output as "out" and each auxiliary output under its name, by pyattn."""
    mask = options.pop("mask", None)
    if set(aux) & set(TOP):
        options["top_k"] = TOP_K
    found = pa.scaled_dot_product_attention(query, key, value, mask, aux=aux, out=out, **options)
    return dict(zip(("out", *aux), found if aux else (found,), strict=True))


def poisoned(array: Any, past: Any, never: Any) -> tuple[Any, Any]:
    """Poison what ``never`` (B, G, S) marks in the past and in the new keys or values."""
    old = 0 if past is None else past.shape[2]
    before = None if past is None else poison(past, never[:, :, :old])
    return poison(array, never[:, :, old:]), before


@settings(deadline=None, max_examples=100)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_variants_on_anything(data: Any, isa: str, seed: int) -> None:
    draw, rng = data.draw, np.random.default_rng(seed)
    q, k, v, options = draw_sdpa(draw, rng)
    exact = sdpa_outputs(q, k, v, top_k=TOP_K, **options)
    plain = naive_outputs(q, k, v, top_k=TOP_K, **options)
    aux = draw(st.lists(st.sampled_from([n for n in AUX if n not in PRESENT]), unique=True))
    batch, groups, keys = k.shape[0], k.shape[1], exact["weights"].shape[3]
    by_group = (batch, groups, -1, keys)
    never = ~(exact["biased_scores"] > -np.inf).reshape(by_group).any(2)
    k, options["past_key"] = poisoned(k, options.get("past_key"), never)
    v, options["past_value"] = poisoned(v, options.get("past_value"), never)
    q, k, v = (draw_layout(draw, a) for a in (q, k, v))
    for name in ("mask", "past_key", "past_value"):
        if np.ndim(options.get(name)) > 1:
            options[name] = draw_layout(draw, options[name])
    pa.runtime.set_isa(isa)
    found = attend(q, k, v, aux, **options)
    check_all(found, exact, plain, options)
    out = np.full_like(found["out"], np.nan)
    if draw(st.booleans()):  # heads inside of rows, as a projection back to the model wants them
        out = np.ascontiguousarray(out.swapaxes(1, 2)).swapaxes(1, 2)
    assert attend(q, k, v, out=out, **options)["out"] is out
    np.testing.assert_array_equal(out, found["out"])


@every_dtype
def test_present_and_raw_scores_of_all_pairs(dtype: Any, rng: Any) -> None:
    q, k, v = (rng.standard_normal((2, 2, n, 16)).astype(dtype) for n in (9, 20, 20))
    options = {
        "past_key": rng.standard_normal((2, 2, 17, 16)).astype(dtype),
        "past_value": rng.standard_normal((2, 2, 17, 16)).astype(dtype),
        "mask": rng.random((9, 37)) < 0.5,
        "is_causal": True,
        "window": 12,
        "softcap": 1.5,
    }
    found = attend(q, k, v, (*SCORES, *PRESENT), **options)
    exact, plain = sdpa_outputs(q, k, v, **options), naive_outputs(q, k, v, **options)
    for name in SCORES:
        assert max_error(found[name], exact[name]) <= tolerance(plain[name], exact[name]), name
    for name in PRESENT:
        assert found[name].dtype == dtype
        np.testing.assert_array_equal(found[name], exact[name])


@every_isa
@every_dtype
def test_arrays_of_stride_zero(
    dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    shapes = ((1, 4, 20, 16), (1, 1, 70, 16), (1, 1, 70, 9), (1, 4, 1, 70))
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    sizes = ((3, 4, 20, 16), (3, 2, 70, 16), (3, 2, 70, 9), (3, 4, 20, 70))
    views = [np.broadcast_to(a, size) for a, size in zip(arrays, sizes, strict=True)]
    for mask in (views[3], views[3] > 0):
        found = attend(*views[:3], ROWS, mask=mask)
        copied = attend(*(a.copy() for a in views[:3]), ROWS, mask=mask.copy())
        for name, array in copied.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@every_isa
def test_equal_weights_go_by_the_lower_key(isa: str, use_isa: Callable[[str], None]) -> None:
    use_isa(isa)
    q, k = np.ones((1, 1, 2, 8), np.float32), np.zeros((1, 1, 150, 8), np.float32)
    k[..., [40, 90, 149], :] = 1.0
    found = attend(q, k, k, TOP, mask=np.arange(150) != 90)
    np.testing.assert_array_equal(found["top_indices"][0, 0], [[40, 149, 0]] * 2)
    few = attend(q, k, k, TOP, kv_lengths=np.array([2]))
    np.testing.assert_array_equal(few["top_indices"][0, 0], [[0, 1, -1]] * 2)
    np.testing.assert_array_equal(few["top_weights"][0, 0], [[0.5, 0.5, 0.0]] * 2)


@every_isa
@every_dtype
@pytest.mark.parametrize("keys", [0, 5])
def test_rows_without_a_key(
    dtype: Any, isa: str, keys: int, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    q = np.full((1, 2, 3, 8), np.nan, dtype)
    k = np.full((1, 1, keys, 8), np.nan, dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    sinks = np.array([0.5, -100.0], wide)
    for sink, lse in ((None, [-np.inf, -np.inf]), (sinks, sinks)):
        found = attend(q, k, k, ROWS, sinks=sink, query_start=-3, is_causal=True)
        np.testing.assert_array_equal(found.pop("lse"), np.repeat(lse, 3).reshape(1, 2, 3))
        np.testing.assert_array_equal(found.pop("max"), np.full((1, 2, 3), -np.inf))
        np.testing.assert_array_equal(found.pop("top_indices"), np.full((1, 2, 3, TOP_K), -1))
        for name, array in found.items():
            assert not array.any(), name


HEADS, GROUPS, ROW_COUNT, KEYS = 4, 2, 41, 1100


def kinds(rng: Any, dtype: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Variants with a different way through the kernels each; per batch entry, head and row."""
    wide = np.float64 if dtype == np.float64 else np.float32
    bias = rng.standard_normal((2, HEADS, ROW_COUNT, KEYS))
    bias[rng.random(bias.shape) < 0.3] = -np.inf
    starts = np.array([KEYS - ROW_COUNT, 400])
    yield "plain", {}
    yield "causal", {"is_causal": True, "query_start": starts}
    yield "window", {"window": (70, 9), "query_start": starts}
    yield "mask", {"mask": bias > 0, "query_start": 0}
    yield "lengths", {"kv_lengths": np.array([KEYS - 1, 130])}
    yield (
        "everything",
        {
            "mask": bias.astype(dtype),
            "is_causal": True,
            "window": (700, -1),
            "query_start": starts,
            "kv_lengths": np.array([KEYS, 420]),
            "softcap": 5.0,
            "alibi_slopes": rng.random(HEADS).astype(wide) / 50,
            "sinks": rng.standard_normal(HEADS).astype(wide),
        },
    )


def inputs(rng: Any, dtype: Any) -> tuple[Any, Any, Any]:
    shapes = (HEADS, ROW_COUNT, 32), (GROUPS, KEYS, 32), (GROUPS, KEYS, 24)
    q, k, v = (rng.standard_normal((2, *shape)).astype(dtype) for shape in shapes)
    return q, k, v


def one_row(options: dict[str, Any], i: int) -> dict[str, Any]:
    """The options under which query i alone sees what it sees among the others."""
    alone = dict(options)
    if "query_start" in options:
        alone["query_start"] = options["query_start"] + i
    if "mask" in options:
        alone["mask"] = options["mask"][:, :, i : i + 1]
    return alone


def one_head(options: dict[str, Any], b: int, h: int) -> dict[str, Any]:
    """The options of head h of batch entry b alone."""
    alone = dict(options)
    for name in ("query_start", "kv_lengths"):
        if np.ndim(options.get(name)) == 1:
            alone[name] = options[name][b : b + 1]
    for name in ("alibi_slopes", "sinks"):
        if name in options:
            alone[name] = options[name][h : h + 1]
    if "mask" in options:
        alone["mask"] = options["mask"][b : b + 1, h : h + 1]
    return alone


def assert_same_bits(found: dict[str, Any], expected: dict[str, Any], at: Any, what: str) -> None:
    for name, array in found.items():
        same = array.tobytes() == np.ascontiguousarray(expected[name][at]).tobytes()
        assert same, f"{name} of {what}"


@every_isa
@every_dtype
def test_a_row_has_the_same_bits_alone(
    dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    q, k, v = inputs(rng, dtype)
    for kind, options in kinds(rng, dtype):
        whole = attend(q, k, v, ROWS, **options)
        for i in (0, 1, 16, ROW_COUNT - 1):
            row = slice(i, i + 1)
            alone = attend(q[:, :, row], k, v, ROWS, **one_row(options, i))
            assert_same_bits(alone, whole, (slice(None), slice(None), row), f"row {i}, {kind}")


@every_isa
@every_dtype
def test_a_head_has_the_same_bits_alone(
    dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    q, k, v = inputs(rng, dtype)
    for kind, options in kinds(rng, dtype):
        whole = attend(q, k, v, (*ROWS, "column_mass"), **options)
        for b, h in ((0, 0), (1, 1), (1, 3)):
            g, entry, head = h // (HEADS // GROUPS), slice(b, b + 1), slice(h, h + 1)
            shared = (entry, slice(g, g + 1))
            alone = attend(
                q[entry, head], k[shared], v[shared], (*ROWS, "column_mass"),
                **one_head(options, b, h),
            )  # fmt: skip
            assert_same_bits(alone, whole, (entry, head), f"entry {b}, head {h}, {kind}")


@every_isa
@every_dtype
@pytest.mark.parametrize("rows", [1, ROW_COUNT])
def test_threads_and_runs_have_the_same_bits(
    dtype: Any, isa: str, rows: int, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    q, k, v = inputs(rng, dtype)
    before = pa.runtime.threads()
    try:
        for kind, options in kinds(rng, dtype):
            options |= {"dropout_p": 0.2, "rng": 2**63 + 5}
            if "mask" in options:
                options["mask"] = options["mask"][:, :, :rows]
            pa.runtime.set_threads(1)
            first = attend(q[:, :, :rows], k, v, AUX, **options)
            for threads in (1, 2, 5):
                pa.runtime.set_threads(threads)
                again = attend(q[:, :, :rows], k, v, AUX, **options)
                assert_same_bits(again, first, (), f"{threads} threads, {kind}")
    finally:
        pa.runtime.set_threads(before)


@every_isa
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_a_generator_seeds_dropout(
    dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    q, k, v = (rng.standard_normal((2, 3, n, 16)).astype(dtype) for n in (20, 70, 70))
    drawn = [
        attend(q, k, v, dropout_p=0.5, rng=np.random.default_rng(seed))["out"] for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    generator = np.random.default_rng(1)
    first, second = (attend(q, k, v, dropout_p=0.5, rng=generator)["out"] for _ in range(2))
    np.testing.assert_array_equal(first, drawn[0])
    assert (first != second).any()
