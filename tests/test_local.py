"""The operation behind local-p alignment: its gradients, its types, its bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyattn as pa
from pyattn import _core
from pyattn.attention._sdpa_graph import full_mask
from pyattn.attention.local import AUX, LOCAL
from pyattn.tensor import apply
from tests.draws import EDGES, FLOATS, draw_lengths, draw_mask, poison
from tests.reference import max_error

ISAS = pa.runtime.available_isas()


def local_inputs(rng: Any, shape: tuple[int, ...], *, direction: bool) -> dict[str, Any]:
    """Return query, key, value, centre, and v or none, in float64."""
    batch, rows, keys, depth, width = shape
    arrays = {
        "query": rng.standard_normal((batch, rows, depth)),
        "key": rng.standard_normal((batch, keys, depth)),
        "value": rng.standard_normal((batch, keys, width)),
        "centre": rng.uniform(-4, keys + 4, (batch, rows)),
    }
    if direction:
        arrays["v"] = rng.standard_normal(depth)
    return arrays


def local_gradients(arrays: Any, weights: Any, mask: Any, lengths: Any, **params: Any) -> Any:
    """Of a weighted sum of all results, with respect to all arrays."""

    def loss(given: Any) -> Any:
        q, k, x, centre = (given[name] for name in ("query", "key", "value", "centre"))
        found = apply(LOCAL, q, k, x, centre, given.get("v"), mask, lengths, **params)
        found = [pa.ops.astype(part, np.float64) for part in found]  # of two dtypes
        found = [pa.ops.where(part.numpy() > -np.inf, part, 0.0) for part in found]
        total = [pa.ops.sum(part * w) for part, w in zip(found, weights, strict=True)]
        return total[0] + total[1] + total[2] + total[3]

    return pa.grad(loss)(arrays)


@settings(deadline=None, max_examples=80)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_gradients_on_anything(data: Any, isa: str, seed: int) -> None:
    """In float32 against float64, whose gradients the cases compare with differences."""
    draw, rng = data.draw, np.random.default_rng(seed)
    size = st.sampled_from(EDGES[:13])
    shape = draw(st.integers(1, 2)), *(draw(size) for _ in range(4))
    wide = local_inputs(rng, shape, direction=draw(st.booleans()))
    wide = {n: x.astype(np.float32).astype(np.float64) for n, x in wide.items()}
    mask = draw_mask(draw, rng, shape[:3], np.bool_, short=True)
    lengths = draw_lengths(draw, rng, shape[0], shape[2])
    half = draw(st.sampled_from([1, 2, 5, 40]))
    params = {"half_width": half, "renormalize": draw(st.booleans()), "aux": AUX}
    batch, rows, keys, _, width = shape
    last = ((width,), (keys,), (), (2 * half + 1,))
    weights = [rng.standard_normal((batch, rows, *more)) for more in last]
    pa.runtime.set_isa(isa)
    if mask is not None:
        mask = full_mask(mask, keys)
    exact = local_gradients(wide, weights, mask, lengths, **params)
    _, seen, _, _ = apply(LOCAL, *(wide.get(n) for n in ("query", "key", "value", "centre", "v")),
                          mask, lengths, **params)  # fmt: skip
    narrow = {name: x.astype(np.float32) for name, x in wide.items()}
    for name in ("key", "value"):
        narrow[name] = poison(narrow[name], ~(seen > 0).any(1))
    narrow["query"] = poison(narrow["query"], ~(seen > 0).any(2))
    found = local_gradients(narrow, weights, mask, lengths, **params)
    for name, gradient in found.items():
        assert np.isfinite(exact[name]).all()
        bound = 3e-5 * max(1.0, float(np.abs(exact[name]).max(initial=0.0)))
        assert max_error(gradient, exact[name]) <= bound, name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("direction", [False, True])
def test_gradients_are_those_of_differences(
    use_isa: Any, rng: Any, isa: str, renormalize: bool, direction: bool
) -> None:
    """Of all results, with centres that no step takes over an edge."""
    use_isa(isa)
    arrays = local_inputs(rng, (2, 7, 11, 5, 3), direction=direction)
    arrays["centre"] = np.floor(arrays["centre"]) + 0.3
    params: dict[str, Any] = {"half_width": 2, "renormalize": renormalize, "aux": AUX}
    mask = rng.random((2, 7, 11)) < 0.8

    def call(*given: Any) -> Any:
        q, k, x, centre, *v = given
        found = apply(LOCAL, q, k, x, centre, *(v or [None]), mask, None, **params)
        return tuple(pa.ops.where(part.numpy() > -np.inf, part, 0.0) for part in found)

    pa.check_grad(call, *arrays.values(), rng=rng)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("direction", [False, True])
def test_half_types_are_float32_rounded_once(
    use_isa: Any, rng: Any, isa: str, direction: bool
) -> None:
    use_isa(isa)
    params: dict[str, Any] = {"half_width": 4, "renormalize": False, "aux": AUX}
    for dtype in FLOATS[2:]:
        arrays = local_inputs(rng, (2, 19, 40, 37, 21), direction=direction)
        centre, v = arrays["centre"].astype(np.float32), arrays.get("v")
        v = None if v is None else v.astype(np.float32)
        narrow = [arrays[name].astype(dtype) for name in ("query", "key", "value")]
        mask = np.where(rng.random((2, 1, 40)) < 0.2, -np.inf, 0.5).astype(dtype)
        rounded = apply(LOCAL, *narrow, centre, v, mask, None, **params)
        widened = [x.astype(np.float32) for x in (*narrow, mask)]
        full = apply(LOCAL, *widened[:3], centre, v, widened[3], None, **params)
        for a, b in zip(rounded, full, strict=True):
            np.testing.assert_array_equal(a, b.astype(a.dtype))
        weights = [rng.standard_normal(x.shape).astype(dtype).astype(np.float64) for x in full]
        names, more = ("query", "key", "value", "centre"), {} if v is None else {"v": v}
        by_dtype = [
            local_gradients(
                dict(zip(names, (*given[:3], centre), strict=True)) | more,
                weights, None, None, **params,
            )
            for given in (narrow, widened)
        ]  # fmt: skip
        for name, gradient in by_dtype[0].items():
            np.testing.assert_array_equal(gradient, by_dtype[1][name].astype(gradient.dtype))


@pytest.mark.parametrize("direction", [False, True])
def test_bits_depend_neither_on_the_threads_nor_on_the_batch(rng: Any, direction: bool) -> None:
    arrays = local_inputs(rng, (3, 700, 900, 40, 24), direction=direction)
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    arrays["centre"][1] = 450.3  # all rows share a window
    params: dict[str, Any] = {"half_width": 7, "renormalize": False, "aux": AUX}
    names = ("query", "key", "value", "centre")

    def run(given: Any) -> tuple[list[Any], dict[str, Any]]:
        found = apply(LOCAL, *(given.get(n) for n in (*names, "v")), None, None, **params)
        weights = [np.cos(np.arange(x.size)).reshape(x.shape) for x in found]
        weights = [np.broadcast_to(w[:1], w.shape) for w in weights]
        return list(found), local_gradients(given, weights, None, None, **params)

    before = pa.runtime.threads()
    try:
        runs = []
        for count in (1, 2, 5):
            pa.runtime.set_threads(count)
            runs.append(run(arrays))
    finally:
        pa.runtime.set_threads(before)
    for found, gradients in runs[1:]:
        for a, b in zip(found, runs[0][0], strict=True):
            np.testing.assert_array_equal(a, b)
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, runs[0][1][name])
    for b in range(3):
        one = {n: x if n == "v" else x[b : b + 1] for n, x in arrays.items()}
        found, gradients = run(one)
        for whole, part in zip(runs[0][0], found, strict=True):
            np.testing.assert_array_equal(whole[b : b + 1], part)
        for name in names:
            np.testing.assert_array_equal(runs[0][1][name][b : b + 1], gradients[name])


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"state": np.ones((2, 5), np.float32)}, ValueError, "state must have shape"),
        ({"state": np.ones((2, 5, 4), np.int64)}, TypeError, "state has dtype int64"),
        ({"state": np.ones((2, 5, 8), np.float32)[..., ::2]}, ValueError, "unit stride"),
        ({"position_weight": np.ones((3, 4))}, TypeError, "position_weight has dtype float64"),
        ({"position_weight": np.ones((3, 5), np.float32)}, ValueError, "H in common"),
        ({"position_v": np.ones(4, np.float32)}, ValueError, r"position_v must have shape \(3,\)"),
        ({"kv_lengths": np.array([1, 10])}, ValueError, "kv_lengths"),
    ],
)
def test_positions_refuse(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    arrays: dict[str, Any] = {
        "state": np.ones((2, 5, 4), np.float32),
        "position_weight": np.ones((3, 4), np.float32),
        "position_v": np.ones(3, np.float32),
        "kv_lengths": None,
    }
    with pytest.raises(error, match=message) as caught:
        _core.positions(**(arrays | changed), keys=9)
    assert str(caught.value).startswith("positions: ")


def test_the_state_of_positions_must_fit_the_query() -> None:
    query, key = np.ones((2, 5, 4), np.float32), np.ones((2, 9, 4), np.float32)
    weight, v = np.ones((3, 4), np.float32), np.ones(3, np.float32)

    def call(centre: Any) -> Any:
        return _core.local(query, key, key, centre, 2, False, None, None, None, None)

    assert call((query, weight, v)).shape == (2, 5, 4)
    with pytest.raises(ValueError, match="local: state must have B and T of the query"):
        call((query[:, :4], weight, v))
    with pytest.raises(TypeError, match="local: centre must be an array or three"):
        call((query, weight))
    with pytest.raises(TypeError, match="local: state has dtype float64"):
        call((query.astype(float), weight, v))
    with pytest.raises(TypeError, match=r"local_backward: centre must be a numpy\.ndarray"):
        _core.local_backward(
            query, key, key, (query, weight, v), 2, False, None, None, None,
            query, None, None, None, {"query"},
        )  # fmt: skip
