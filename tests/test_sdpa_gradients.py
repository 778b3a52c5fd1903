"""Gradients of every variant of scaled dot-product attention against the closed-form oracle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyattn as pa
from pyattn.grad import pullback
from tests.draws import FLOATS, draw_sdpa, poison
from tests.naive_sdpa_grad import naive_gradients
from tests.reference import max_error, tolerance
from tests.reference_sdpa import sdpa_outputs
from tests.reference_sdpa_grad import sdpa_gradients

ISAS = pa.runtime.available_isas()
ARGUMENTS = ("query", "key", "value", "mask", "sinks", "past_key", "past_value")


def gradients(
    arrays: dict[str, Any], cotangents: tuple[Any, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """The gradient of each float array, by pyattn, from the cotangents of output and lse."""
    given = {name: array for name, array in arrays.items() if array.dtype != np.bool_}
    leaves = {name: pa.Tensor(array, requires_grad=True) for name, array in given.items()}
    call = options | arrays | leaves
    query, key, value, mask = (call.pop(n, None) for n in ("query", "key", "value", "mask"))
    outputs = pa.scaled_dot_product_attention(query, key, value, mask, aux=("lse",), **call)
    found = pullback(outputs, cotangents, list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def split(options: dict[str, Any], q: Any, k: Any, v: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that may have a gradient, and the other options."""
    everything = {"query": q, "key": k, "value": v, **options}
    # An empty past has an empty gradient, of which the oracle says nothing.
    given = {n: everything[n] for n in ARGUMENTS if everything.get(n) is not None}
    arrays = {n: array for n, array in given.items() if array.size > 0}
    return arrays, {n: o for n, o in options.items() if n not in arrays}


def draw_cotangents(rng: Any, q: Any, v: Any) -> tuple[Any, Any]:
    wide = np.float64 if q.dtype == np.float64 else np.float32
    out = rng.standard_normal((*q.shape[:3], v.shape[3])).astype(q.dtype)
    return out, rng.standard_normal(q.shape[:3]).astype(wide)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), isa=st.sampled_from(ISAS), seed=st.integers(0, 2**32 - 1))
def test_gradients_on_anything(data: Any, isa: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v, options = draw_sdpa(data.draw, rng)
    cotangents = draw_cotangents(rng, q, v)
    given = {"out_cotangent": cotangents[0], "lse_cotangent": cotangents[1]}
    exact = sdpa_gradients(q, k, v, **given, **options)
    plain = naive_gradients(q, k, v, **given, **options)
    biased = sdpa_outputs(q, k, v, **options)["biased_scores"]
    never = ~(biased > -np.inf).reshape(*k.shape[:2], -1, biased.shape[3]).any(2)
    score = float(np.abs(biased[np.isfinite(biased)]).max(initial=0.0))
    arrays, rest = split(options, q, k, v)
    old = biased.shape[3] - k.shape[2]
    for name, unseen in (("key", never[:, :, old:]), ("past_key", never[:, :, :old])):
        for kind in (name, name.replace("key", "value")):
            if kind in arrays:
                arrays[kind] = poison(arrays[kind], unseen)
    pa.runtime.set_isa(isa)
    found = gradients(arrays, cotangents, rest)
    assert found.keys() == exact.keys()
    for name, array in found.items():
        assert array.dtype == arrays[name].dtype, name
        assert array.shape == arrays[name].shape, name
        spread = plain.spread[name]
        bound = tolerance(plain.found[name], exact[name], score=score, spread=spread)
        # Terms of this size cancel before they get as small as the result.
        bound += 8 * float(np.finfo(cotangents[1].dtype).eps) * spread
        assert max_error(array, exact[name]) <= bound, name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_gradients_have_the_same_bits_for_any_threads(
    dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    wide = np.float64 if dtype == np.float64 else np.float32
    q, k, v = (
        rng.standard_normal((2, n, s, 24)).astype(dtype) for n, s in ((4, 70), (2, 300), (2, 300))
    )
    arrays = {"query": q, "key": k, "value": v, "sinks": rng.standard_normal(4).astype(wide)}
    arrays["mask"] = rng.standard_normal((70, 300)).astype(dtype)
    options = {"is_causal": "bottom_right", "softcap": 4.0, "dropout_p": 0.2, "rng": 6}
    cotangents, results = draw_cotangents(rng, q, v), []
    before = pa.runtime.threads()
    try:
        for threads in (1, 2, 5, 1):
            pa.runtime.set_threads(threads)
            results.append(gradients(arrays, cotangents, options))
    finally:
        pa.runtime.set_threads(before)
    for result in results[1:]:
        for name, array in result.items():
            assert array.tobytes() == results[0][name].tobytes(), name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True, "softcap": 2.0}, {"is_causal": "bottom_right", "window": (5, 0)}],
    ids=["plain", "causal", "window"],
)
def test_gradients_of_packed_sequences(
    options: dict[str, Any], dtype: Any, isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    use_isa(isa)
    wide = np.float64 if dtype == np.float64 else np.float32
    ends_q, ends_k = np.array([0, 70, 70, 75, 120]), np.array([0, 130, 140, 140, 200])
    q, k, v, g = (
        rng.standard_normal(shape).astype(dtype)
        for shape in ((120, 4, 20), (200, 2, 20), (200, 2, 13), (120, 4, 13))
    )
    slopes, sinks, g_lse = (rng.random(s).astype(wide) for s in ((4,), (4,), (4, 120)))
    leaves = [pa.Tensor(x, requires_grad=True) for x in (q, k, v, sinks)]
    outputs = pa.varlen_attention(
        *leaves[:3], ends_q, ends_k, alibi_slopes=slopes, sinks=leaves[3], aux=("lse",), **options
    )
    *found, found_sinks = pullback(outputs, (g, g_lse), leaves)
    exact_sinks = np.zeros(4)
    bound = 64 * float(ml_dtypes.finfo(dtype).eps)
    for b in range(4):
        rows, keys = slice(*ends_q[b : b + 2]), slice(*ends_k[b : b + 2])
        if rows.start == rows.stop:
            assert not found[1][keys].any()
            assert not found[2][keys].any()
            continue
        exact = sdpa_gradients(
            *(x[part].swapaxes(0, 1)[None] for x, part in ((q, rows), (k, keys), (v, keys))),
            out_cotangent=g[rows].swapaxes(0, 1)[None],
            lse_cotangent=g_lse[None, :, rows],
            alibi_slopes=slopes,
            sinks=sinks,
            **options,
        )
        exact_sinks += exact["sinks"]
        for gradient, name, part in zip(found, ARGUMENTS, (rows, keys, keys), strict=False):
            assert gradient.dtype == dtype
            assert max_error(gradient[part].swapaxes(0, 1)[None], exact[name]) < bound, name
    assert max_error(found_sinks, exact_sinks) < bound * max(1.0, np.abs(exact_sinks).max())


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_masked_for_one_query_stays_out_of_its_gradient(
    isa: str, rng: Any, use_isa: Callable[[str], None]
) -> None:
    """A key that is not finite and that half of the queries see, a query row that sees nothing."""
    use_isa(isa)
    q, k, v, g = (rng.standard_normal((1, 2, 70, 24)) for _ in range(4))
    mask = np.ones((70, 70), bool)
    mask[:35, 50] = mask[40] = False
    clean = gradients({"query": q, "key": k, "value": v, "mask": mask}, (g, None), {})
    for array in (k, v):
        array[:, :, 50] = np.nan
    q[:, :, 40] = g[:, :, 40] = np.inf
    found = gradients({"query": q, "key": k, "value": v, "mask": mask}, (g, None), {})
    np.testing.assert_array_equal(found["query"][:, :, :35], clean["query"][:, :, :35])
    np.testing.assert_array_equal(found["query"][:, :, 40], 0)
    assert np.isnan(found["query"][:, :, 60]).all()
    mask[35:, 50] = False
    found = gradients({"query": q, "key": k, "value": v, "mask": mask}, (g, None), {})
    for name in ("query", "key", "value"):
        assert np.isfinite(found[name]).all(), name


def test_a_tiny_cap(rng: Any) -> None:
    """Most scores are at the cap, and a few in between, where the slope is 1."""
    q, k, v = (rng.standard_normal((1, 2, n, 8)) for n in (33, 70, 70))
    q[:, :, ::4] *= 1e-5
    cotangents = draw_cotangents(rng, q, v)
    given = {"out_cotangent": cotangents[0], "lse_cotangent": cotangents[1]}
    exact = sdpa_gradients(q, k, v, softcap=2e-5, **given)
    found = gradients({"query": q, "key": k, "value": v}, cotangents, {"softcap": 2e-5})
    assert np.abs(exact["query"]).max() > 0.01
    for name, array in found.items():
        np.testing.assert_allclose(array, exact[name], rtol=0, atol=1e-9)


def test_gradient_through_other_outputs_is_that_of_the_expansion(rng: Any) -> None:
    q, k, v = (rng.standard_normal((1, 2, n, 8)) for n in (5, 7, 7))

    def loss(*arrays: Any) -> Any:
        out, entropy, mass = pa.scaled_dot_product_attention(
            *arrays, is_causal=True, aux=("entropy", "column_mass")
        )
        return pa.ops.sum(out) + pa.ops.sum(entropy * entropy) + pa.ops.sum(mass * mass)

    pa.check_grad(loss, q, k, v)


def test_memory_is_linear() -> None:
    """T = S = 32768, one head, causal with a window, forward and backward: below 64 MB."""
    script = """
import resource
import sys
import numpy as np
from pyattn import _core
rng = np.random.default_rng(0)
q, k, v, g = (rng.standard_normal((1, 1, 32768, 64), dtype=np.float32) for _ in range(4))
_core.sdpa(q[:, :, :1], k, v, None, 0.1, -1, None, None)
unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, per MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
options = {"left": 512}
out, lse = _core.sdpa(q, k, v, None, 0.1, 0, ("lse",), options)
want = {"query", "key", "value"}
grads = _core.sdpa_backward(q, k, v, None, 0.1, 0, options, out, lse, g, None, want)
results = sum(x.nbytes for x in (out, lse, *grads[:3])) / 2**20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit - before - results)
"""
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) < 64
