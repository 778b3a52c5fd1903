"""Packed sequences: the oracle sequence by sequence, and the bits of each sequence alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyattn as pa
from pyattn.dtypes import compute_dtype
from pyattn.grad import pullback
from tests.draws import FLOATS, draw_bounds, draw_dropout, draw_heads, draw_layout, draw_scoring
from tests.naive_sdpa import naive_outputs
from tests.naive_sdpa_grad import naive_gradients
from tests.packed import by_padding, packed, padded
from tests.reference import max_error, tolerance
from tests.reference_sdpa import sdpa_outputs
from tests.reference_sdpa_grad import sdpa_gradients

ISAS = pa.runtime.available_isas()
LENGTHS = [0, 0, 1, 2, 7, 16, 17, 33, 65, 130]

every_isa = pytest.mark.parametrize("isa", ISAS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)


def offsets_of(lengths: Any, dtype: Any = np.int32) -> Any:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(dtype)


def attend(*arrays: Any, **options: Any) -> dict[str, Any]:
    """Packed attention by pyattn."""
    out, lse = pa.varlen_attention(*arrays, aux=("lse",), **options)
    return {"out": out, "lse": lse}


def dense(query: Any, key: Any, value: Any, **options: Any) -> dict[str, Any]:
    """Attention of padded sequences by pyattn."""
    out, lse = pa.scaled_dot_product_attention(query, key, value, aux=("lse",), **options)
    return {"out": out, "lse": lse}


def draw_packed(draw: Any, rng: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return the five arrays and the options."""
    (heads, groups), dtype = draw_heads(draw), draw(st.sampled_from(FLOATS))
    lengths = draw(st.lists(st.tuples(*[st.sampled_from(LENGTHS)] * 2), max_size=4))
    size = st.sampled_from([1, 3, 8, 16, 31, 64, 65])
    depth, width = draw(size), draw(size)
    kinds = st.sampled_from([np.int32, np.int64])
    rows, keys = (offsets_of([n[i] for n in lengths], draw(kinds)) for i in range(2))
    shapes = (rows[-1], heads, depth), (keys[-1], groups, depth), (keys[-1], groups, width)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    options = draw_bounds(draw) | draw_scoring(draw, rng, heads, dtype) | draw_dropout(draw)
    return [*arrays, rows, keys], options


@settings(deadline=None, max_examples=60)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_packed_on_anything(data: Any, isa: str, seed: int) -> None:
    arrays, options = draw_packed(data.draw, np.random.default_rng(seed))
    exact = by_padding(sdpa_outputs, *arrays, fill=np.nan, **options)
    plain = by_padding(naive_outputs, *arrays, **options)
    pa.runtime.set_isa(isa)
    laid_out = [draw_layout(data.draw, array) for array in arrays[:3]]
    found = attend(*laid_out, *arrays[3:], **options)
    for name, array in found.items():
        assert array.shape == exact[name].shape, name
        assert array.dtype == plain[name].dtype, name
        spread = float(exact["spread"].max(initial=0.0)) if name == "out" else 0.0
        bound = tolerance(plain[name], exact[name], score=exact["score"], spread=spread)
        assert max_error(array, exact[name]) <= bound, name
    alone = pa.varlen_attention(*laid_out, *arrays[3:], **options)
    assert alone.tobytes() == found["out"].tobytes()


def kinds(rng: Any, heads: int, dtype: Any) -> Iterator[dict[str, Any]]:
    """Variants with a different way through the kernels each."""
    wide = np.float64 if dtype == np.float64 else np.float32
    slopes = (rng.random(heads) / 50).astype(wide)
    sinks = rng.standard_normal(heads).astype(wide)
    yield {}
    yield {"is_causal": True}
    yield {"is_causal": "bottom_right", "softcap": 5.0}
    yield {"window": (70, 9), "alibi_slopes": slopes, "sinks": sinks, "scale": 0.3}


def make(rng: Any, dtype: Any, rows: Any, keys: Any) -> list[Any]:
    """The five arrays: 4 query heads, 2 key heads."""
    shapes = (sum(rows), 4, 32), (sum(keys), 2, 32), (sum(keys), 2, 24)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    return [*arrays, offsets_of(rows), offsets_of(keys)]


ROWS, KEYS = [3, 0, 41, 1, 5, 0], [40, 7, 41, 1100, 0, 0]


@every_isa
@every_dtype
def test_a_sequence_has_the_bits_of_dense_attention(
    dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    q, k, v, rows, keys = make(rng, dtype, ROWS, KEYS)
    for options in kinds(rng, 4, dtype):
        found = attend(q, k, v, rows, keys, **options)
        for b in range(len(ROWS)):
            mine, seen = slice(rows[b], rows[b + 1]), slice(keys[b], keys[b + 1])
            one = (a.swapaxes(0, 1)[None] for a in (q[mine], k[seen], v[seen]))
            alone = dense(*one, **options)
            out, lse = alone["out"][0].swapaxes(0, 1), alone["lse"][0]
            assert found["out"][mine].tobytes() == np.ascontiguousarray(out).tobytes(), options
            assert np.ascontiguousarray(found["lse"][:, mine]).tobytes() == lse.tobytes(), options
            if keys[b] == keys[b + 1]:
                assert not found["out"][mine].any()


@every_isa
@every_dtype
def test_dropout_is_that_of_padded_sequences(
    dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    arrays = make(rng, dtype, [5, 0, 40], [70, 3, 90])
    options = {"dropout_p": 0.4, "rng": 2**63 + 11, "is_causal": "bottom_right"}
    found, expected = attend(*arrays, **options), by_padding(dense, *arrays, fill=np.nan, **options)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])
    again = attend(*arrays, dropout_p=0.4, rng=np.random.default_rng(3))
    first = attend(*arrays, dropout_p=0.4, rng=np.random.default_rng(3))
    assert again["out"].tobytes() == first["out"].tobytes()
    assert (again["out"] != attend(*arrays)["out"]).any()


@every_isa
@every_dtype
def test_nan_stays_in_its_sequence(
    dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    arrays = make(rng, dtype, [9, 17, 30], [20, 70, 33])
    clean = attend(*arrays, window=(30, 4))
    rows, keys = arrays[3:]
    for array, ends in zip(arrays[:3], (rows, keys, keys), strict=True):
        array[ends[1] : ends[2]] = np.nan
        array[ends[1] : ends[2], :, ::2] = np.inf
    found = attend(*arrays, window=(30, 4))
    others = np.r_[: rows[1], rows[2] : rows[3]]
    np.testing.assert_array_equal(found["out"][others], clean["out"][others])
    np.testing.assert_array_equal(found["lse"][:, others], clean["lse"][:, others])
    assert np.isnan(found["out"][rows[1] : rows[2]]).all()


@every_isa
@every_dtype
@pytest.mark.parametrize("rows", [ROWS, [1] * 6])
def test_threads_have_the_same_bits(
    dtype: Any, isa: str, rows: Any, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    arrays, before = make(rng, dtype, rows, KEYS), pa.runtime.threads()
    try:
        for options in kinds(rng, 4, dtype):
            results = []
            for threads in (1, 2, 5):
                pa.runtime.set_threads(threads)
                found = attend(*arrays, dropout_p=0.2, rng=5, **options)
                results.append(found["out"].tobytes() + found["lse"].tobytes())
            assert len(set(results)) == 1, options
    finally:
        pa.runtime.set_threads(before)


@every_dtype
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing_in_nothing_out(dtype: Any, lengths: Any, rng: Any) -> None:
    found = attend(*make(rng, dtype, lengths, lengths), is_causal="bottom_right")
    assert found["out"].shape == (0, 4, 24)
    assert found["lse"].shape == (4, 0)


@every_isa
@every_dtype
def test_sequences_without_keys(
    dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    arrays, wide = make(rng, dtype, [4, 3], [0, 0]), compute_dtype(np.dtype(dtype))
    arrays[0][:] = np.nan
    sinks = rng.standard_normal(4).astype(wide)
    for sink, lse in ((None, np.full(4, -np.inf)), (sinks, sinks)):
        found = attend(*arrays, sinks=sink)
        assert not found["out"].any()
        np.testing.assert_array_equal(found["lse"], np.repeat(lse[:, None], 7, 1))


@every_dtype
@pytest.mark.parametrize("causal", [True, "bottom_right"])
def test_gradients_are_those_of_padded_sequences(dtype: Any, causal: Any, rng: Any) -> None:
    *arrays, rows, keys = make(rng, dtype, [5, 0, 17, 2], [9, 3, 20, 0])
    wide = compute_dtype(np.dtype(dtype))
    sinks = rng.standard_normal(4).astype(wide)
    given = (rng.standard_normal((24, 4, 24)).astype(dtype), rng.standard_normal((4, 24)))
    leaves = [pa.Tensor(a, requires_grad=True) for a in (*arrays, sinks)]
    options = {"is_causal": causal, "softcap": 2.0, "window": (9, 5)}
    results = pa.varlen_attention(*leaves[:3], rows, keys, sinks=leaves[3], aux=("lse",), **options)
    found = pullback(results, (given[0], given[1].astype(wide)), leaves)
    lengths = np.diff(keys)
    dense_arrays = [padded(a, e) for a, e in zip(arrays, (rows, keys, keys), strict=True)]
    dense_options = options | {
        "sinks": sinks,
        "is_causal": True,
        "kv_lengths": lengths,
        "query_start": lengths - np.diff(rows) if causal == "bottom_right" else 0,
    }
    cotangents = {
        "out_cotangent": padded(given[0], rows),
        "lse_cotangent": padded(given[1].T[:, :, None], rows)[..., 0].astype(wide),
    }
    exact = sdpa_gradients(*dense_arrays, **cotangents, **dense_options)
    plain = naive_gradients(*dense_arrays, **cotangents, **dense_options)
    names = ("query", "key", "value", "sinks")
    for name, array, leaf, ends in zip(names, found, leaves, (rows, keys, keys, None), strict=True):
        truth = exact[name] if ends is None else packed(exact[name], ends).swapaxes(0, 1)
        assert array.dtype == leaf.dtype, name
        assert array.shape == leaf.shape, name
        spread = plain.spread[name]
        bound = tolerance(plain.found[name], exact[name], score=4.0, spread=spread)
        assert max_error(array, truth) <= bound, name


def test_no_sequences_in_onnx_runtime(rng: Any, session: Any) -> None:
    names = ("query", "key", "value", "cu_seqlens_q", "cu_seqlens_k")
    dims = (("N", None, None), ("M", None, None), ("M", None, None), ("C",), ("C",))
    sample = make(rng, np.float32, [3, 4], [5, 1])
    inputs = {n: pa.Input(a, d) for n, a, d in zip(names, sample, dims, strict=True)}

    def call(**arrays: Any) -> Any:
        return pa.varlen_attention(**arrays, is_causal="bottom_right", aux=("lse",))

    run = session(pa.export(call, inputs, verify=False))
    for lengths in ([], [0], [0, 6, 0]):
        arrays = make(rng, np.float32, lengths, lengths)
        found = run.run(None, dict(zip(names, arrays, strict=True)))
        for f, e in zip(found, call(**dict(zip(names, arrays, strict=True))), strict=True):
            assert f.shape == e.shape
            assert max_error(f, e) <= 2e-6
