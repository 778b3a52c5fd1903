"""Wrong arguments get the documented error, which names the function and what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyattn as pa
from pyattn import ops

F = np.float32


def arrays(*shapes: tuple[int, ...], dtype: Any = F) -> list[Any]:
    return [np.ones(shape, dtype) for shape in shapes]


Q, K, V = arrays((2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 3))
AQ, AK, AV, W = arrays((2, 5, 8), (2, 7, 8), (2, 7, 3), (8,))

SDPA: dict[str, tuple[Any, type[Exception], str]] = {
    "no array": (([[1.0]], K, V), TypeError, "query must be a NumPy array or a Tensor; got list"),
    "dtype": ((Q.astype(np.int64), K, V), TypeError, "query int64"),
    "complex": ((Q.astype(np.complex64), K, V), TypeError, "bfloat16; got query complex64"),
    "mixed": ((Q, K.astype(np.float64), V), TypeError, "query float32, key float64"),
    "rank": ((Q[0], K, V), ValueError, r"query must be \(B, H, T, D\); got shape \(4, 5, 8\)"),
    "batch": ((Q[:1], K, V), ValueError, "must share B"),
    "D": ((Q[..., :4], K, V), ValueError, r"must share D; got query \(2, 4, 5, 4\), key"),
    "S": ((Q, K, V[:, :, :6]), ValueError, "key and value must share S"),
    "G": ((Q, K, V[:, :1]), ValueError, "key and value must share G"),
    "heads": ((Q[:, :3], K, V), ValueError, "heads of query must be a multiple"),
    "no heads": ((Q, K[:, :0], V[:, :0]), ValueError, "heads of query must be a multiple"),
    "D = 0": ((Q[..., :0], K[..., :0], V), ValueError, "D > 0"),
    "mask shape": ((Q, K, V, np.ones((4, 7), bool)), ValueError, r"broadcast to \(2, 4, 5, 7\)"),
    "mask long": ((Q, K, V, np.ones((5, 8), bool)), ValueError, r"broadcast to \(2, 4, 5, 7\)"),
    "mask rank": ((Q, K, V, np.ones((1, 2, 4, 5, 7), bool)), ValueError, "broadcast"),
    "mask rank 0": ((Q, K, V, np.ones((), bool)), ValueError, "broadcast"),
    "mask dtype": ((Q, K, V, np.ones((5, 7), np.int8)), TypeError, "bool or float32; got int8"),
    "mask wide": ((Q, K, V, np.ones((5, 7))), TypeError, "bool or float32; got float64"),
}


@pytest.mark.parametrize("name", SDPA)
def test_sdpa(name: str) -> None:
    args, error, message = SDPA[name]
    with pytest.raises(error, match=message) as caught:
        pa.scaled_dot_product_attention(*args)
    assert str(caught.value).startswith("scaled_dot_product_attention: ")


@pytest.mark.parametrize(
    "name", ["dtype", "mixed", "rank", "batch", "D", "S", "heads", "mask shape"]
)
def test_a_trace_gives_the_same_message(name: str) -> None:
    args, error, _ = SDPA[name]
    with pytest.raises(error) as eager:
        pa.scaled_dot_product_attention(*args)
    symbols = [pa.Tensor.symbolic(a.shape, a.dtype) for a in args]
    with pytest.raises(error) as traced:
        pa.scaled_dot_product_attention(*symbols)
    assert str(eager.value) == str(traced.value)


OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "lengths range": ({"kv_lengths": np.array([3, 8])}, ValueError, r"0\.\.7; got 3\.\.8"),
    "lengths negative": ({"kv_lengths": np.array([-1, 2])}, ValueError, r"0\.\.7; got -1\.\.2"),
    "lengths dtype": ({"kv_lengths": np.array([1.0, 2])}, TypeError, "int32 or int64; got float64"),
    "lengths shape": ({"kv_lengths": np.array([1, 2, 3])}, ValueError, r"shape \(2,\); got \(3,\)"),
    "aux": ({"aux": ("weight",)}, ValueError, "aux may name each of"),
    "aux twice": ({"aux": ("lse", "lse")}, ValueError, "aux may name each of"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_shared_options(name: str) -> None:
    options, error, message = OPTIONS[name]
    with pytest.raises(error, match=message):
        pa.scaled_dot_product_attention(Q, K, V, **options)
    with pytest.raises(error, match=message):
        pa.additive_attention(AQ, AK, AV, W, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, "scale must be finite"),
        ({"scale": float("inf")}, "scale must be finite"),
        ({"scale": 1e39}, "scale must be finite"),
        ({"is_causal": "middle"}, "is_causal must be"),
    ],
)
def test_sdpa_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pa.scaled_dot_product_attention(Q, K, V, **options)


ADDITIVE: dict[str, tuple[Any, type[Exception], str]] = {
    "no array": ((AQ, AK, AV, [1.0]), TypeError, "v must be a NumPy array"),
    "dtype": ((AQ, AK, AV, W.astype(np.float64)), TypeError, "v float64"),
    "rank": ((Q, AK, AV, W), ValueError, r"query must be \(B, T, A\)"),
    "batch": ((AQ[:1], AK, AV, W), ValueError, "must share B"),
    "A": ((AQ[..., :4], AK, AV, W), ValueError, "query and key must share A"),
    "v": ((AQ, AK, AV, W[:4]), ValueError, "query and v must share A"),
    "S": ((AQ, AK, AV[:, :6], W), ValueError, "key and value must share S"),
}


@pytest.mark.parametrize("name", ADDITIVE)
def test_additive(name: str) -> None:
    args, error, message = ADDITIVE[name]
    with pytest.raises(error, match=message) as caught:
        pa.additive_attention(*args)
    assert str(caught.value).startswith("additive_attention: ")


@pytest.mark.parametrize("mask", [np.ones((4, 5, 7), bool), np.ones((1, 1, 5, 7), bool)])
def test_additive_mask(mask: Any) -> None:
    with pytest.raises(ValueError, match=r"broadcast to \(2, 5, 7\)"):
        pa.additive_attention(AQ, AK, AV, W, attn_mask=mask)


def test_additive_bias() -> None:
    with pytest.raises(ValueError, match="bias must be"):
        pa.additive_attention(AQ, AK, AV, W, bias=np.ones(5, F))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "cosine"}, "score must be one of"),
        ({"score": "general"}, "takes weight"),
        ({"score": "dot", "weight": np.ones((8, 8), F)}, "takes no weight"),
        ({"score": "general", "weight": np.ones((8, 7), F)}, r"weight must be \(8, 8\)"),
        (
            {"score": "concat", "weight": np.ones((4, 8), F), "v": W[:4]},
            r"weight must be \(4, 16\)",
        ),
    ],
)
def test_luong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pa.luong_attention(AQ, AK, **options)


def test_luong_names_itself_and_what_it_was_given() -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ((AQ[..., :3], AK), {}, "query and key must share D"),
        ((AQ, AK[:1]), {}, "must share B"),
        ((AQ, AK, AV[:, :3]), {}, "must share S"),
        ((Q, AK), {}, r"query must be \(B, T, D\)"),
        ((AQ, AK), {"attn_mask": np.ones((1, 2, 5, 7), bool)}, r"broadcast to \(2, 5, 7\)"),
        ((AQ, AK), {"score": "general", "weight": np.ones((), F)}, r"weight must be \(8, 8\)"),
        ((AQ, AK), {"score": "concat", "weight": np.ones((4, 16), F), "v": W}, r"got weight"),
    ]
    for args, options, message in cases:
        with pytest.raises(ValueError, match=f"^luong_attention: .*{message}"):
            pa.luong_attention(*args, **options)


def test_none_and_lists_are_no_arrays() -> None:
    calls: list[Callable[[], Any]] = [
        lambda: pa.scaled_dot_product_attention(None, K, V),
        lambda: pa.scaled_dot_product_attention(Q, K, V, aux=None),
        lambda: pa.additive_attention(AQ, AK, AV, None),
        lambda: pa.additive_attention(AQ, AK, AV, W, bias=np.ones(8)),
        lambda: pa.luong_attention(AQ, None),
        lambda: pa.luong_attention(AQ, AK, kv_lengths=[1, 2]),
        lambda: ops.tanh(None),
        lambda: ops.matmul(AQ, None),
        lambda: ops.take(AQ[0], None),
        lambda: ops.sum([1.0]),
        lambda: ops.transpose([1.0], (0,)),
        lambda: ops.expand_dims([1.0], 0),
        lambda: ops.dropout([1.0], 0.0, None),
        lambda: ops.concat(AQ, 0),
        lambda: ops.concat([[1.0]], 0),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"expected a|must be a|expected one dtype"):
            call()


def test_operations_refuse_dtypes_that_onnx_would_treat_otherwise() -> None:
    numbers, truths = np.arange(4), np.ones(4, bool)
    calls: list[Callable[[], Any]] = [
        lambda: ops.divide(numbers, 2),
        lambda: ops.mean(numbers),
        lambda: ops.sum(truths),
        lambda: ops.add(truths, truths),
        lambda: ops.less(truths, truths),
        lambda: ops.logical_and(numbers, numbers),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="expected"):
            call()
    assert ops.sum(np.arange(4, dtype=np.int32)).dtype == np.int32


@pytest.mark.parametrize("length", [0, 1, 5])
def test_no_keys_give_zeros(length: int) -> None:
    out, weights, lse = pa.scaled_dot_product_attention(
        Q[:, :, :length], K[:, :, :0], V[:, :, :0], aux=("weights", "lse")
    )
    assert out.shape == (2, 4, length, 3)
    assert weights.shape == (2, 4, length, 0)
    assert not out.any()
    assert np.all(lse == -np.inf)
    out, lse = pa.additive_attention(AQ[:, :length], AK[:, :0], AV[:, :0], W, aux=("lse",))
    assert out.shape == (2, length, 3)
    assert not out.any()
    assert np.all(lse == -np.inf)


def test_an_empty_batch_gives_an_empty_result() -> None:
    assert pa.scaled_dot_product_attention(Q[:0], K[:0], V[:0]).shape == (0, 4, 5, 3)
    assert pa.scaled_dot_product_attention(Q, K, V[..., :0]).shape == (2, 4, 5, 0)
    assert pa.additive_attention(AQ[:0], AK[:0], AV[:0], W).shape == (0, 5, 3)
    lengths = np.zeros(0, np.int64)
    assert pa.scaled_dot_product_attention(Q[:0], K[:0], V[:0], kv_lengths=lengths).size == 0


def huge(*shape: int) -> Any:
    """An array of any shape that takes four bytes: every stride is zero."""
    return np.broadcast_to(np.ones((), F), shape)


@pytest.mark.parametrize(
    "call",
    [
        lambda: pa.scaled_dot_product_attention(
            huge(2**20, 2**20, 2**20, 8), huge(2**20, 2**20, 1, 8), huge(2**20, 2**20, 1, 8)
        ),
        lambda: pa.scaled_dot_product_attention(
            huge(1, 1, 2**31, 1), huge(1, 1, 2**31, 1), huge(1, 1, 2**31, 1), aux=("weights",)
        ),
        lambda: pa.additive_attention(
            huge(2**31, 2**31, 4), huge(2**31, 1, 4), huge(2**31, 1, 4), huge(4)
        ),
    ],
)
def test_sizes_that_overflow_are_refused(call: Callable[[], Any]) -> None:
    with pytest.raises((ValueError, MemoryError)):
        call()


OPS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "add dtypes": (lambda: ops.add(AQ, AQ.astype(np.float64)), TypeError, "dtypes must be equal"),
    "add shapes": (lambda: ops.add(AQ, AK), ValueError, "sizes 5 and 7 do not broadcast"),
    "add numbers": (lambda: ops.add(1, 2), TypeError, "expected a NumPy array or a Tensor"),
    "add text": (lambda: ops.add(AQ, "x"), TypeError, "got str"),
    "float to int": (lambda: ops.add(np.arange(3), 0.5), TypeError, "does not combine"),
    "tanh ints": (lambda: ops.tanh(np.arange(3)), TypeError, "float32 or float64"),
    "matmul rank": (lambda: ops.matmul(W, W), ValueError, "rank 2 or more"),
    "matmul sizes": (lambda: ops.matmul(AQ, AK), ValueError, "sizes 8 and 7 differ"),
    "linear": (lambda: ops.linear(AQ, np.ones((3, 7), F)), ValueError, r"weight \(out, in\)"),
    "linear bias": (lambda: ops.linear(AQ, np.ones((3, 8), F), W), ValueError, r"bias \(out,\)"),
    "reshape": (lambda: ops.reshape(AQ, (3, -1)), ValueError, "does not become"),
    "reshape two": (lambda: ops.reshape(AQ, (-1, -1)), ValueError, "more than one -1"),
    "reshape copy": (lambda: ops.reshape(W, (8, 0)), ValueError, "copies an axis"),
    "transpose": (lambda: ops.transpose(AQ, (0, 1)), ValueError, "do not permute"),
    "concat": (lambda: ops.concat([AQ, AK], 0), ValueError, "only axis 0 may differ"),
    "concat none": (lambda: ops.concat([], 0), ValueError, "got none"),
    "axis": (lambda: ops.sum(AQ, 3), ValueError, "out of range"),
    "index": (lambda: ops.getitem(AQ, 9), IndexError, "out of range"),
    "index kind": (lambda: ops.getitem(AQ, "a"), IndexError, "expected integers and slices"),
    "index step": (lambda: ops.getitem(AQ, slice(0, 4, 2)), IndexError, "step 1"),
    "index rank": (lambda: ops.getitem(W, (0, 0)), IndexError, "2 indices"),
    "take high": (lambda: ops.take(AQ[0], np.array([5])), ValueError, r"0\.\.4; got 5\.\.5"),
    "take low": (lambda: ops.take(AQ[0], np.array([-1])), ValueError, "got -1"),
    "take float": (lambda: ops.take(AQ[0], W), TypeError, "integer indices"),
    "where": (lambda: ops.where(W, W, W), TypeError, "must be bool"),
    "norm": (lambda: ops.layer_norm(AQ, W[:3], W[:3]), ValueError, "weight and bias"),
    "norm eps": (lambda: ops.layer_norm(AQ, W, W, eps=0.0), ValueError, "eps must be positive"),
    "dropout": (lambda: ops.dropout(AQ, 1.0, None), ValueError, "p must lie"),
}


@pytest.mark.parametrize("name", OPS)
def test_operations(name: str) -> None:
    call, error, message = OPS[name]
    with pytest.raises(error, match=message):
        call()
