"""Attention in smaller operations: every dtype, every output, one ONNX body per variant."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pyattn as pa
from pyattn import ops
from pyattn.dtypes import compute_dtype
from pyattn.grad import pullback
from tests.draws import FLOATS
from tests.naive_sdpa import naive_outputs
from tests.reference import max_error, tolerance
from tests.reference_sdpa import sdpa_outputs

AUX = (
    *("weights", "lse", "max", "entropy", "column_mass"),
    *("scores", "capped_scores", "biased_scores"),
)
sdpa = pa.scaled_dot_product_attention

every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)


def make(rng: Any, dtype: Any) -> tuple[list[Any], dict[str, Any]]:
    """Query, key, value, and options that leave some queries without a key."""
    wide = np.float64 if dtype == np.float64 else np.float32
    shapes = (2, 4, 5, 16), (2, 2, 9, 16), (2, 2, 9, 8)
    bias = np.where(rng.random((4, 5, 9)) < 0.3, -np.inf, rng.standard_normal((4, 5, 9)))
    options = {
        "mask": bias.astype(dtype),
        "kv_lengths": np.array([9, 0]),
        "window": (4, 2),
        "softcap": 2.0,
        "scale": 0.3,
        "alibi_slopes": (rng.random(4) / 4).astype(wide),
        "sinks": rng.standard_normal(4).astype(wide),
    }
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes], options


def call(query: Any, key: Any, value: Any, aux: Any = AUX, **options: Any) -> Any:
    mask = options.pop("mask", None)
    return sdpa(query, key, value, mask, aux=aux, **options)


@every_dtype
def test_the_expansion_is_the_oracle_s(dtype: Any, rng: Any) -> None:
    arrays, options = make(rng, dtype)
    tensors = [pa.Tensor(a, requires_grad=True) for a in arrays]
    node = call(*tensors, **options)[0].node
    found = node.op.expand(*node.inputs, **node.params)
    exact, plain = sdpa_outputs(*arrays, **options), naive_outputs(*arrays, **options)
    spread = float(exact["spread"].max())
    for name, tensor, spec in zip(("out", *AUX), found, node.outputs, strict=True):
        assert tensor.spec == spec, name
        bound = tolerance(plain[name], exact[name], score=4.0, spread=spread * (name == "out"))
        assert max_error(tensor.numpy(), exact[name]) <= bound, name


@every_dtype
def test_gradients_through_every_output(dtype: Any, rng: Any) -> None:
    """Those that the kernel has no gradient for; against the same in float64."""
    arrays, options = make(rng, dtype)
    wide = compute_dtype(np.dtype(dtype))
    results, cotangents = [], []
    for cast in (dtype, np.float64):
        compute = wide if cast is dtype else np.float64
        given = {n: o.astype(compute) if n in ("alibi_slopes", "sinks") else o
                 for n, o in options.items()} | {"mask": options["mask"].astype(cast)}  # fmt: skip
        leaves = [
            pa.Tensor(a.astype(cast), requires_grad=True) for a in (*arrays, options["sinks"])
        ]
        leaves[3] = pa.Tensor(given.pop("sinks"), requires_grad=True)
        outputs = call(*leaves[:3], sinks=leaves[3], **given)
        if not cotangents:
            cotangents = [rng.standard_normal(o.shape).astype(o.dtype) for o in outputs]
        used = [c.astype(o.dtype) for c, o in zip(cotangents, outputs, strict=True)]
        found = pullback(outputs, used, leaves)
        assert [g.dtype for g in found] == [x.dtype for x in leaves]
        results.append(found)
    unit = float(ml_dtypes.finfo(dtype).eps)
    for narrow, exact in zip(*results, strict=True):
        assert max_error(narrow, exact) <= 40 * unit * max(1.0, float(np.abs(exact).max()))


def test_slopes_are_constants(rng: Any) -> None:
    (q, k, v), _ = make(rng, np.float64)
    for name in ("weights", "lse"):
        leaf = pa.Tensor(np.full(4, 0.1), requires_grad=True)
        out, extra = sdpa(q, k, v, alibi_slopes=leaf, aux=(name,))
        (found,) = pullback((out, extra), [np.ones(out.shape), np.ones(extra.shape)], [leaf])
        assert not found.any()


def test_a_sink_of_minus_infinity_is_none(rng: Any) -> None:
    (q, k, v), options = make(rng, np.float64)
    options["sinks"] = np.full(4, -np.inf)
    with_sinks = call(*(pa.Tensor(a, requires_grad=True) for a in (q, k, v)), **options)
    del options["sinks"]
    node = with_sinks[0].node
    expanded = node.op.expand(*node.inputs, **node.params)
    for found, kernel, expected in zip(expanded, with_sinks, call(q, k, v, **options), strict=True):
        assert max_error(found.numpy(), expected) <= 1e-14
        assert max_error(kernel.numpy(), expected) <= 1e-14


@pytest.mark.parametrize("target", ["functions", "primitive"])
@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_halves_in_onnx_runtime(
    dtype: Any, opset: int, target: Any, rng: Any, session: Any
) -> None:
    arrays, options = make(rng, dtype)
    bias, fixed = options.pop("mask").astype(np.float32), dict(options)
    feed = dict(zip("qkv", (a.astype(np.float32) for a in arrays), strict=True)) | {"m": bias}

    def model(q: Any, k: Any, v: Any, m: Any) -> Any:
        q, k, v, m = (ops.astype(x, dtype) for x in (q, k, v, m))
        results = *call(q, k, v, AUX, mask=m, **fixed), sdpa(q, q, q, scale=0.37)
        return tuple(ops.astype(r, np.float32) for r in results)

    found = session(pa.export(model, feed, opset=opset, target=target, verify=False))
    expected = model(**feed)
    unit = float(ml_dtypes.finfo(dtype).eps)
    for f, e in zip(found.run(None, feed), expected, strict=True):
        # Rounded to the dtype from nearly the same number: next to each other at most.
        assert max_error(f, e) <= unit * max(1.0, float(np.abs(e[np.isfinite(e)]).max()))


def variants(x: Any, y: Any, lengths: Any, starts: Any, slopes: Any) -> list[Any]:
    """Calls that look alike and mean different things."""
    past = {"past_key": y, "past_value": y}
    short, long = ops.astype(lengths, np.int32), ops.astype(starts, np.int32)
    return [
        sdpa(x, y, y, softcap=0.5),
        sdpa(x, y, y, softcap=5e-07),
        sdpa(x, y, y, softcap=50.0),
        sdpa(x, y, y, window=2),
        sdpa(x, y, y, window=(2, -1)),
        sdpa(x, y, y, window=(-1, 2)),
        sdpa(x, y, y, window=(2, 0)),
        sdpa(x, y, y, window=(2, 5), is_causal=True),
        sdpa(x, y, y, is_causal="bottom_right"),
        sdpa(x, y, y, is_causal="bottom_right", kv_lengths=lengths),
        sdpa(x, y, y, is_causal="bottom_right", kv_lengths=short),
        sdpa(x, y, y, kv_lengths=lengths),
        sdpa(x, y, y, kv_lengths=short),
        sdpa(x, y, y, is_causal=True, query_start=starts),
        sdpa(x, y, y, is_causal=True, query_start=long),
        sdpa(x, y, y, is_causal=True, query_start=2),
        sdpa(x, y, y, is_causal=True, query_start=-2),
        sdpa(x, y, y, is_causal=True, query_start=12),
        sdpa(x, y, y, is_causal=True, **past),
        sdpa(x, y, y, alibi_slopes=slopes),
        sdpa(x, y, y, sinks=slopes),
        sdpa(x, y, y, sinks=slopes, alibi_slopes=slopes),
        sdpa(x, y[:, :1], y[:, :1], sinks=slopes),
        sdpa(x, y[:, :2], y[:, :2], sinks=slopes),
        *sdpa(x, y, y, aux=("max", "entropy")),
        *sdpa(x, y, y, aux=("entropy", "max")),
        *sdpa(x, y, y, aux=("scores", "present_key")),
        *sdpa(x, y, y, aux=("capped_scores", "biased_scores"), softcap=0.5),
        *sdpa(x, y, y, aux=("column_mass",)),
    ]


@pytest.mark.parametrize("opset", [18, 24, 26])
def test_a_name_tells_its_body(opset: int, rng: Any, session: Any) -> None:
    """All in one model: the exporter raises where one name has two bodies."""
    feed = {
        "x": rng.standard_normal((2, 4, 5, 8)).astype(np.float32),
        "y": rng.standard_normal((2, 4, 7, 8)).astype(np.float32),
        "lengths": np.array([3, 7]),
        "starts": np.array([1, -2]),
        "slopes": rng.random(4).astype(np.float32),
    }

    def model(x: Any, y: Any, slopes: Any, **rest: Any) -> Any:
        results = []
        for dtype in (np.float32, np.float64):
            wide = [ops.astype(a, dtype) for a in (x, y, slopes)]
            results += variants(*wide[:2], slopes=wide[2], **rest)
        return tuple(ops.astype(r, np.float64) for r in results)

    proto = pa.export(model, feed, opset=opset, verify=False)
    found, expected = session(proto).run(None, feed), model(**feed)
    half = len(expected) // 2
    for i, (f, e) in enumerate(zip(found, expected, strict=True)):
        assert max_error(f, e) <= (2e-5 if i < half else 1e-13), i


def test_attention_outputs_beside_other_outputs(rng: Any, session: Any) -> None:
    x = rng.standard_normal((2, 4, 5, 8)).astype(np.float32)
    sinks = rng.standard_normal(4).astype(np.float32)

    def model(x: Any, aux: Any = ("lse",)) -> Any:
        return sdpa(x, x, x, sinks=sinks, window=(2, 0), aux=aux)

    proto = pa.export(model, {"x": pa.Input(x, ("B", None, "T", None))}, attention_outputs=True)
    assert [o.name for o in proto.graph.output][-1] == "attention_weights_0"
    found = session(proto).run(None, {"x": x})
    for f, e in zip(found, model(x, ("lse", "weights")), strict=True):
        # A log-sum-exp may be so large that this is a few units in its last place.
        assert max_error(f, e) <= max(1e-6, 4 * np.spacing(np.abs(e).max()))


def test_a_past_of_dynamic_length(rng: Any, session: Any) -> None:
    """As many new keys as queries or not, in one batch entry or several."""
    names = ("q", "k", "v", "past_key", "past_value")
    letters = ("T", "S", "S", "P", "P")

    def model(q: Any, k: Any, v: Any, **past: Any) -> Any:
        return sdpa(q, k, v, window=(3, 0), aux=("present_key",), **past)

    def feed(**sizes: int) -> dict[str, Any]:
        return {
            name: rng.standard_normal((sizes["B"], 2, sizes[letter], 8)).astype(np.float32)
            for name, letter in zip(names, letters, strict=True)
        }

    sample = feed(B=2, T=3, S=4, P=5)
    inputs = {
        n: pa.Input(sample[n], ("B", None, d, None)) for n, d in zip(names, letters, strict=True)
    }
    run = session(pa.export(model, inputs))
    for sizes in ({"T": 1, "S": 1, "P": 9}, {"T": 6, "S": 2, "P": 1}, {"T": 4, "S": 4, "P": 0}):
        arrays = feed(B=3, **sizes)
        for f, e in zip(run.run(None, arrays), model(**arrays), strict=True):
            assert max_error(f, e) <= 2e-6


def test_dropout_and_top_k_have_no_expansion(rng: Any) -> None:
    """Rather than leave them out in silence."""
    x, ends = rng.standard_normal((1, 2, 5, 8)).astype(np.float32), np.array([0, 2])
    for model in (
        lambda x: sdpa(x, x, x, dropout_p=0.5, rng=1),
        lambda x: pa.varlen_attention(x[0], x[0], x[0], ends, ends, dropout_p=0.5, rng=1),
        lambda x: sdpa(x, x, x, top_k=2, aux=("top_weights",))[1],
    ):
        with pytest.raises(TypeError, match="dropout and top_k have no form in smaller operations"):
            pa.export(model, {"x": x})
