"""Luong's attention: every score, alignment, dtype and mask at random, its corners, its module."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyattn as pa
from pyattn import nn
from tests import reference
from tests.draws import EDGES, FLOATS, draw_layout, draw_lengths, draw_mask, poison
from tests.naive_luong import naive_luong
from tests.naive_sdpa import WIDE
from tests.outputs import largest_score
from tests.reference import max_error, tolerance
from tests.reference_luong import luong

ISAS = pa.runtime.available_isas()
SCORES = ("dot", "general", "concat", "location")
ALIGNMENTS = ("global", "local-m", "local-p")
LOCAL_P = ("weights", "lse", "window_weights", "position")


def draw_score(draw: Any, normal: Any, keys: int) -> tuple[dict[str, Any], int, int]:
    """Return the options of a score and the sizes D and Dk."""
    size = st.sampled_from(EDGES[:13])
    score, depth, width = draw(st.sampled_from(SCORES)), draw(size), draw(size)
    if score == "dot":
        return {"score": score}, depth, depth
    if score == "general":
        return {"score": score, "weight": normal(depth, width) / width**0.5}, depth, width
    if score == "location":
        longest = keys + draw(st.integers(0, 3))
        return {"score": score, "weight": normal(longest, depth)}, depth, width
    units = draw(size)
    weight = normal(units, depth + width) / (depth + width) ** 0.5
    return {"score": score, "weight": weight, "v": normal(units)}, depth, width


def draw_alignment(draw: Any, rng: Any, normal: Any, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Return the options of an alignment; positions reach both ends of the source."""
    batch, rows, keys, depth = sizes
    align = draw(st.sampled_from(ALIGNMENTS))
    if align == "global":
        return {}
    options = {"align": align, "half_width": draw(st.sampled_from([1, 2, 3, 10, 40]))}
    if align == "local-p":
        units = draw(st.sampled_from(EDGES[:6]))
        spread = draw(st.sampled_from([0.0, 0.5, 5.0, 50.0]))
        options["position_weight"] = normal(units, depth)
        options["position_v"] = spread * normal(units)
        return options | {"renormalize": draw(st.booleans())}
    beyond = draw(st.sampled_from([0, 0, rows + 3]))  # where some queries see nothing
    start = rng.integers(-beyond, keys + beyond, batch)
    return options | {"query_start": draw(st.sampled_from([None, int(start[0]), start]))}


@settings(deadline=None, max_examples=150)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_variants_on_anything(data: Any, isa: str, seed: int) -> None:
    draw, rng = data.draw, np.random.default_rng(seed)
    dtype, size = draw(st.sampled_from(FLOATS)), st.sampled_from(EDGES[:12])
    batch, rows, keys = draw(st.integers(1, 2)), draw(size), draw(size)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape)

    scoring, depth, width = draw_score(draw, normal, keys)
    options = scoring | draw_alignment(draw, rng, normal, (batch, rows, keys, depth))
    options = {
        n: x.astype(dtype) if getattr(x, "dtype", None) == np.float64 else x
        for n, x in options.items()
    }
    query, key = normal(batch, rows, depth).astype(dtype), normal(batch, keys, width).astype(dtype)
    value = normal(batch, keys, draw(size)).astype(dtype)
    options["attn_mask"] = draw_mask(draw, rng, (batch, rows, keys), dtype, short=True)
    options["kv_lengths"] = draw_lengths(draw, rng, batch, keys)
    pa.runtime.set_isa(isa)
    aux: tuple[str, ...] = ("weights", "lse", "max", "entropy")
    known: dict[str, Any] = {}
    if options.get("align") == "local-p":
        aux = LOCAL_P
        known["position"] = pa.luong_attention(query, key, aux=("position",), **options)[1]
        exact = luong(query, key, **options)["position"]
        plain = naive_luong(query, key, **options)["position"]
        score = float(np.abs(options["position_v"].astype(float)).sum())
        assert max_error(known["position"], exact) <= tolerance(plain, exact, score=score)
    exact_all = luong(query, key, value, **options, **known)
    plain_all = naive_luong(query, key, value, **options, **known)
    never = ~(exact_all["biased_scores"] > -np.inf).any(1)
    poisoned = draw_layout(draw, poison(value, never))
    if options["score"] == "location":
        never[:] = True  # only its length counts
    poisoned_key, query = draw_layout(draw, poison(key, never)), draw_layout(draw, query)
    with np.errstate(invalid="ignore"):  # projecting the poison
        found = pa.luong_attention(query, poisoned_key, poisoned, aux=aux, **options)
    spread = np.sqrt(exact_all["weights"] ** 2 @ value.astype(np.float64) ** 2).max(initial=0.0)
    for name, array in zip(("out", *aux), found, strict=True):
        truth, yardstick = exact_all[name], plain_all[name]
        assert array.shape == truth.shape, name
        wide = name in (*WIDE, "position")
        assert array.dtype == (yardstick.dtype if wide else dtype), name
        bound = tolerance(
            yardstick,
            truth,
            score=largest_score(exact_all, {}),
            spread=float(spread) if name == "out" else 0.0,
        )
        assert max_error(array, truth) <= bound, name


@pytest.mark.parametrize("align", ["local-m", "local-p"])
def test_the_length_of_the_source_costs_nothing(rng: Any, align: Any) -> None:
    """A source of 2^32 states, all one row of memory: looking at each of them would show."""
    row = rng.standard_normal((1, 1, 4)).astype(np.float32)
    source = np.broadcast_to(row, (1, 2**32, 4))
    query = rng.standard_normal((1, 3, 4)).astype(np.float32)
    options: dict[str, Any] = {"query_start": 2**31}
    if align == "local-p":
        options = {
            "position_weight": np.ones((2, 4), np.float32),
            "position_v": np.zeros(2, np.float32),
        }
    found = pa.luong_attention(query, source, align=align, half_width=3, aux=("lse",), **options)
    assert np.isfinite(found[1]).all()
    if align == "local-m":
        np.testing.assert_allclose(found[0], np.broadcast_to(row, (1, 3, 4)), rtol=1e-6)


def test_both_edges_are_in_the_window_and_sigma_is_half_of_it() -> None:
    """p = 8 sigmoid(0) = 4 and D = 2: keys 2 to 6, of equal scores."""
    query, key = np.zeros((1, 1, 3)), np.eye(8)[None, :, :3] * 0
    options: dict[str, Any] = {"position_weight": np.ones((2, 3)), "position_v": np.ones(2)}
    _, weights, window = pa.luong_attention(
        query, key, align="local-p", half_width=2, aux=("weights", "window_weights"), **options
    )
    gaussian = np.exp(-np.array([4, 1, 0, 1, 4]) / 2) / 5
    np.testing.assert_allclose(weights[0, 0], [0, 0, *gaussian, 0], rtol=1e-15)
    np.testing.assert_allclose(window[0, 0], gaussian, rtol=1e-15)


def test_a_query_that_is_nan_is_nan_and_alone(rng: Any) -> None:
    query, key = (rng.standard_normal((2, n, 4)) for n in (3, 9))
    query[:, 1, 2] = np.nan
    options: dict[str, Any] = {
        "position_weight": rng.standard_normal((2, 4)),
        "position_v": rng.standard_normal(2),
    }
    lengths = np.array([9, 0])
    found = pa.luong_attention(
        query, key, align="local-p", half_width=2, kv_lengths=lengths, aux=LOCAL_P, **options
    )
    for array in found[:4]:
        assert np.isnan(array[0, 1]).all()
        assert not np.isnan(array[:, ::2]).any()
        assert not np.isnan(array[1]).any()  # it has no keys
    assert not found[0][1].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("isa", ISAS)
def test_a_query_alone_has_the_bits_of_many(use_isa: Any, rng: Any, isa: str, dtype: Any) -> None:
    """Many copy their keys and share products; one does neither. Rows begin anywhere."""
    use_isa(isa)
    query, key, value = (
        rng.standard_normal((2, n, 41)).astype(dtype)[..., 1:38] for n in (70, 90, 90)
    )
    options: dict[str, Any] = {
        "position_weight": rng.standard_normal((35, 37)).astype(dtype),
        "position_v": rng.standard_normal(35).astype(dtype),
        "kv_lengths": np.array([90, 51]),
    }
    options |= {"align": "local-p", "half_width": 6, "aux": LOCAL_P}
    together = pa.luong_attention(query, key, value, **options)
    for t in range(0, 70, 9):
        alone = pa.luong_attention(query[:, t : t + 1], key, value, **options)
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[:, 0], many[:, t])
    first = {name: x[:1] if name == "kv_lengths" else x for name, x in options.items()}
    one = pa.luong_attention(query[:1, 8:9], key[:1], value[:1], **first)
    for alone, many in zip(one, together, strict=True):
        np.testing.assert_array_equal(alone[0, 0], many[0, 8])


@pytest.mark.parametrize("layout", ["query", "weight", "v", "key"])
def test_the_common_call_takes_any_layout(rng: Any, layout: str) -> None:
    arrays = {
        "query": rng.standard_normal((2, 20, 8)),
        "key": rng.standard_normal((2, 30, 8)),
        "weight": rng.standard_normal((6, 8)),
        "v": rng.standard_normal(6),
    }
    strided = arrays | {layout: np.repeat(arrays[layout], 2, axis=-1)[..., ::2]}
    if layout == "weight":
        strided["weight"] = np.asfortranarray(arrays["weight"])

    def call(query: Any, key: Any, weight: Any, v: Any) -> Any:
        position: dict[str, Any] = {"position_weight": weight, "position_v": v}
        return pa.luong_attention(query, key, align="local-p", half_width=3, **position)

    np.testing.assert_array_equal(call(**strided), call(**arrays))


@pytest.mark.parametrize("score", ["dot", "general"])
@pytest.mark.parametrize("align", ["global", "local-p"])
def test_the_common_call_has_the_bits_of_the_others(rng: Any, score: Any, align: Any) -> None:
    query, key, value = (rng.standard_normal((2, n, 8)).astype(np.float32) for n in (3, 9, 9))
    options: dict[str, Any] = {"score": score, "align": align}
    if score == "general":
        options["weight"] = rng.standard_normal((8, 8)).astype(np.float32)
    if align == "local-p":
        options |= POSITION | {"renormalize": True}
    for more in ({}, {"kv_lengths": np.array([9, 4])}):
        common = pa.luong_attention(query, key, value, **options, **more)
        other = pa.luong_attention(query, key, value, **options, **more, aux=("lse",))
        np.testing.assert_array_equal(common, other[0])


@pytest.mark.parametrize("dtype", FLOATS[2:])
@pytest.mark.parametrize("align", ALIGNMENTS)
@pytest.mark.parametrize("score", SCORES)
def test_half_types_have_gradients_and_onnx(
    rng: Any, score: Any, align: Any, dtype: Any, session: Any
) -> None:
    shapes: dict[str, tuple[int, ...]] = {"query": (2, 5, 6), "key": (2, 7, 6)}
    more = {"general": (6, 6), "concat": (8, 12), "location": (9, 6)}
    if score in more:
        shapes["weight"] = more[score]
    if score == "concat":
        shapes["v"] = (8,)
    if align == "local-p":
        shapes |= {"position_weight": (4, 6), "position_v": (4,)}
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    half_width = None if align == "global" else 9  # all keys: no rounding changes a window

    def call(**given: Any) -> Any:
        return pa.luong_attention(
            **given, score=score, align=align, half_width=half_width, aux=("weights",)
        )

    def loss(given: Any) -> Any:
        return pa.ops.sum(pa.ops.astype(call(**given)[0], np.float32))

    wide = {name: array.astype(np.float32) for name, array in arrays.items()}
    exact = pa.grad(loss)(wide)
    for name, gradient in pa.grad(loss)(arrays).items():
        assert gradient.dtype == dtype
        bound = 32 * float(ml_dtypes.finfo(dtype).eps) * max(1.0, np.abs(exact[name]).max())
        assert max_error(gradient, exact[name]) <= bound, name
    if dtype == np.float16:
        run = session(pa.export(call, arrays, verify=False))
        for found, eager in zip(run.run(None, arrays), call(**arrays), strict=True):
            assert found.dtype == dtype
            assert max_error(found, eager) <= 4e-3


QUERY, KEY = np.ones((2, 5, 8), np.float32), np.ones((2, 7, 8), np.float32)
CONCAT: dict[str, Any] = {
    "score": "concat", "weight": np.ones((3, 16), np.float32), "v": np.ones(3, np.float32),
}  # fmt: skip
POSITION: dict[str, Any] = {
    "align": "local-p",
    "half_width": 2,
    "position_weight": np.ones((4, 8), np.float32),
    "position_v": np.ones(4, np.float32),
}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"align": "local"}, ValueError, "align must be one of .*; got 'local'"),
        ({"half_width": 2}, ValueError, "align 'global' takes no half_width"),
        ({"align": "local-m"}, ValueError, "align 'local-m' needs half_width"),
        ({"align": "local-m", "half_width": 0}, ValueError, "half_width must lie in 1.*; got 0"),
        ({"align": "local-m", "half_width": 2.0}, TypeError, "must be an integer; got 2.0"),
        ({"align": "local-m", "half_width": True}, TypeError, "must be an integer; got True"),
        ({"align": "local-p", "half_width": 2}, ValueError, "needs position_weight"),
        (POSITION | {"position_v": None}, ValueError, "'local-p' needs position_v"),
        (POSITION | {"align": "local-m"}, ValueError, "'local-m' takes no position_weight"),
        (POSITION | {"position_v": POSITION["position_v"][:3]}, ValueError, r"position_v \(3,\)"),
        (POSITION | {"position_weight": np.ones(4, np.float32)}, ValueError, r"must be \(P, D\)"),
        (POSITION | {"position_v": np.ones(4)}, TypeError, "position_v float64"),
        (POSITION | {"position_v": [1.0]}, TypeError, "position_v must be a NumPy array"),
        (POSITION | {"renormalize": 1}, TypeError, "renormalize must be a bool; got 1"),
        ({"renormalize": True}, ValueError, "renormalize is for align 'local-p'; got .*'global'"),
        ({"query_start": 1}, ValueError, "query_start is for align 'local-m'"),
        (POSITION | {"query_start": 0}, ValueError, "query_start is for align 'local-m'"),
        ({"align": "local-m", "half_width": 1, "query_start": 1.5}, TypeError, "query_start must"),
        (
            {"align": "local-m", "half_width": 1, "query_start": np.zeros(3, np.int64)},
            ValueError,
            r"query_start must have shape \(2,\)",
        ),
        (POSITION | {"aux": ("max",)}, ValueError, r"aux may name each of .*'position'.*'max'"),
        ({"aux": ("position",)}, ValueError, "aux may name each of"),
        (POSITION | {"attn_mask": np.ones((5, 6, 7), bool)}, ValueError, r"\(2, 5, 7\)"),
        (POSITION | {"attn_mask": np.ones((5, 7))}, TypeError, "attn_mask must be bool or float32"),
        (POSITION | {"kv_lengths": np.array([8, 1])}, ValueError, r"lie in 0\.\.7; got 1\.\.8"),
        (POSITION | {"kv_lengths": np.array([1.0, 1.0])}, TypeError, "kv_lengths must be int32"),
        (POSITION | {"half_width": 0}, ValueError, "half_width must lie in 1.*; got 0"),
        (
            POSITION | {"kv_lengths": np.array([1])},
            ValueError,
            r"kv_lengths must have shape \(2,\)",
        ),
        ({"score": "general", "weight": np.ones((8, 8))}, TypeError, "weight float64"),
        ({"score": "general", "weight": np.ones(8, np.float32)}, ValueError, r"weight \(8,\)"),
        ({"score": "location"}, ValueError, "takes weight"),
        (
            {"score": "location", "weight": np.ones((6, 8), np.float32)},
            ValueError,
            r"weight must be \(7, 8\) or have more rows",
        ),
        ({"projected_key": KEY}, ValueError, "projected_key is for score \"concat\".*'dot'"),
        (CONCAT | {"projected_key": KEY}, ValueError, r"must be \(B, S, A\) = \(2, 7, 3\)"),
        (
            CONCAT | {"projected_key": np.ones((2, 7, 3))},
            TypeError,
            "projected_key float64",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        pa.luong_attention(QUERY, KEY, **options)
    assert str(caught.value).startswith("luong_attention: ")


@pytest.mark.parametrize("align", ALIGNMENTS)
@pytest.mark.parametrize("score", SCORES)
def test_module(rng: Any, score: Any, align: Any) -> None:
    sizes: dict[str, Any] = {"half_width": None if align == "global" else 2}
    if score == "location":
        sizes["source_length"] = 9
    if align == "local-p":
        sizes |= {"position_units": 5, "renormalize": True}
    attention = nn.LuongAttention(6, score=score, align=align, **sizes, rng=rng)
    h_t, h_s = (rng.standard_normal((2, n, 6)).astype(np.float32) for n in (3, 7))
    options: dict[str, Any] = {"kv_lengths": np.array([7, 4])}
    if align == "local-m":
        options["query_start"] = np.array([1, 0])
    vectors, weights = attention(h_t, h_s, **options, aux=("weights",))
    exact = luong(
        h_t, h_s, score=score, weight=attention.weight, v=attention.v, align=align,
        half_width=attention.half_width, position_weight=attention.position_weight,
        position_v=attention.position_v, renormalize=attention.renormalize, **options,
    )  # fmt: skip
    joined = np.concatenate([exact["out"], h_t], -1)
    wanted = np.tanh(reference.linear(joined, attention.output.weight))
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    np.testing.assert_allclose(weights, exact["weights"], atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"align": "near"},
        {"align": "local-m"},
        {"half_width": 3},
        {"score": "location"},
        {"source_length": 3},
    ],
)
def test_modules_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^LuongAttention: .*(must be one of|needs)"):
        nn.LuongAttention(4, **options, rng=None)
