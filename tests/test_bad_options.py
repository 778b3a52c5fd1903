"""Wrong options, and wrong arguments of the packed, paged and row-wise functions.

Each gets the documented error, which names the function, the argument and what was found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pyattn as pa

F = np.float32
Bad = tuple[dict[str, Any], type[Exception], str]


def ones(*shape: int, dtype: Any = F) -> Any:
    return np.ones(shape, dtype)


def array(*numbers: Any, dtype: Any = None) -> Any:
    return np.array(numbers, dtype)


def read_only(x: Any) -> Any:
    x.flags.writeable = False
    return x


QKV: dict[str, Any] = {
    "query": ones(2, 4, 5, 8), "key": ones(2, 2, 7, 8), "value": ones(2, 2, 7, 3)
}  # fmt: skip
ROTARY = {"rotary_cos": ones(7, 4), "rotary_sin": ones(7, 4)}
PAST = {"past_key": ones(2, 2, 6, 8), "past_value": ones(2, 2, 6, 3)}

# What every function of this family takes, and what they say of it.
SCORING: dict[str, Bad] = {
    "causal": ({"is_causal": "middle"}, ValueError, "\"bottom_right\"; got 'middle'"),
    "causal number": ({"is_causal": 1}, ValueError, "is_causal must be a bool.*got 1"),
    "causal none": ({"is_causal": None}, ValueError, "is_causal must be a bool.*got None"),
    "causal array": ({"is_causal": ones(3)}, ValueError, "is_causal must be a bool"),
    "scale text": ({"scale": "1"}, TypeError, "scale must be a number; got '1'"),
    "scale bool": ({"scale": True}, TypeError, "scale must be a number; got True"),
    "scale complex": ({"scale": 1j}, TypeError, "scale must be a number"),
    "scale vector": ({"scale": ones(1)}, TypeError, "scale must be a number"),
    "scale tensor": ({"scale": pa.Tensor(ones())}, TypeError, "scale must be a number"),
    "scale nan": ({"scale": np.nan}, ValueError, "scale must be finite"),
    "scale wide": ({"scale": 1e39}, ValueError, r"scale must be finite.* 1e\+39"),
    "softcap": ({"softcap": -1.0}, ValueError, r"softcap must be .*0\.\.inf; got -1"),
    "softcap inf": ({"softcap": np.inf}, ValueError, "softcap must be finite"),
    "softcap none": ({"softcap": None}, TypeError, "softcap must be a number; got None"),
    "softcap list": ({"softcap": []}, TypeError, "softcap must be a number"),
    "softcap vector": ({"softcap": np.zeros(4)}, TypeError, "softcap must be a number"),
    "window": ({"window": -2}, ValueError, r"window must lie in -1\.\..*; got -2"),
    "window far": ({"window": (0, 2**41)}, ValueError, f"window must lie.*; got {2**41}"),
    "window float": ({"window": 2.0}, TypeError, r"an int or \(left, right\); got 2.0"),
    "window bool": ({"window": True}, TypeError, "window must be an int or .*; got True"),
    "window three": ({"window": (1, 2, 3)}, TypeError, "window must be an int or"),
    "window text": ({"window": "ab"}, TypeError, "window must be an int or"),
    "window side": ({"window": (1, 2.5)}, TypeError, "window must be an integer; got 2.5"),
    "window none": ({"window": (1, None)}, TypeError, "window must be an integer; got None"),
    "slopes": ({"alibi_slopes": [1.0] * 4}, TypeError, "alibi_slopes must be a NumPy array"),
    "slopes dtype": ({"alibi_slopes": np.ones(4)}, TypeError, "must be float32; got float64"),
    "slopes shape": ({"alibi_slopes": ones(2)}, ValueError, r"alibi_slopes.*\(4,\); got \(2,\)"),
    "slopes rank": ({"alibi_slopes": ones(4, 1)}, ValueError, r"\(4,\); got \(4, 1\)"),
}
SINKS: dict[str, Bad] = {
    "sinks": ({"sinks": 1.0}, TypeError, "sinks must be a NumPy array.*; got float"),
    "sinks dtype": ({"sinks": ones(4, dtype=np.float16)}, TypeError, "sinks.*got float16"),
    "sinks shape": ({"sinks": ones(5)}, ValueError, r"sinks must have shape \(4,\); got \(5,\)"),
}
DROPOUT: dict[str, Bad] = {
    "dropout": ({"dropout_p": 1.0, "rng": 1}, ValueError, "dropout_p must be below 1; got 1"),
    "dropout range": ({"dropout_p": -0.1, "rng": 1}, ValueError, r"0\.\.1; got -0.1"),
    "dropout nan": ({"dropout_p": np.nan, "rng": 1}, ValueError, "dropout_p must be finite"),
    "dropout text": ({"dropout_p": "x"}, TypeError, "dropout_p must be a number; got 'x'"),
    "dropout none": ({"dropout_p": None}, TypeError, "dropout_p must be a number; got None"),
    "no seed": ({"dropout_p": 0.5}, ValueError, "dropout_p needs rng"),
    "seed": ({"dropout_p": 0.5, "rng": -1}, ValueError, r"rng must lie in 0\.\..*; got -1"),
    "seed large": ({"dropout_p": 0.5, "rng": 2**64}, ValueError, f"; got {2**64}"),
    "seed float": ({"dropout_p": 0.5, "rng": 1.0}, TypeError, "rng must be an integer or.*; got 1"),
    "seed bool": ({"rng": True}, TypeError, "rng must be an integer or .*; got True"),
    "legacy": ({"rng": np.random.RandomState(1)}, TypeError, "Generator; got RandomState"),
}
AUX: dict[str, Bad] = {
    "aux": ({"aux": ("weight",)}, ValueError, "aux may name each of .*; got .*'weight'"),
    "aux twice": ({"aux": ("lse", "lse")}, ValueError, "aux may name each of .* once"),
    "aux none": ({"aux": None}, TypeError, "aux must be a tuple of names; got NoneType"),
    "aux number": ({"aux": (1,)}, TypeError, r"aux must be a tuple of names; got \(1,\)"),
    "aux list": ({"aux": (["lse"],)}, TypeError, "aux must be a tuple of names"),
}
POSITIONS: dict[str, Bad] = {
    "start": ({"query_start": 1.0}, TypeError, "query_start must be an integer, a NumPy array"),
    "start list": ({"query_start": [1, 2]}, TypeError, r"query_start must be.*; got \[1, 2\]"),
    "start bool": ({"query_start": True}, TypeError, "query_start must be .*; got True"),
    "start far": ({"query_start": 2**41}, ValueError, f"query_start must lie.*; got {2**41}"),
    "start dtype": ({"query_start": np.ones(2)}, TypeError, "query_start must be int32 or int64"),
    "start uint": ({"query_start": ones(2, dtype=np.uint8)}, TypeError, "int64; got uint8"),
    "start shape": ({"query_start": array(1)}, ValueError, r"query_start.*\(2,\); got \(1,\)"),
    "start rank": ({"query_start": np.array(1)}, ValueError, r"query_start.*\(2,\); got \(\)"),
    "start range": (
        {"query_start": array(0, -(2**41))}, ValueError, f"query_start must lie.*; got {-(2**41)}"
    ),
    "start twice": (
        {"query_start": 1, "is_causal": "bottom_right"}, ValueError, "query_start and is_causal"
    ),
    "lengths": ({"kv_lengths": [1, 2]}, TypeError, "kv_lengths must be a NumPy array"),
    "lengths dtype": ({"kv_lengths": np.ones(2)}, TypeError, "int32 or int64; got float64"),
    "lengths shape": ({"kv_lengths": array(1, 2, 3)}, ValueError, r"\(2,\); got \(3,\)"),
    "lengths range": ({"kv_lengths": array(3, 8)}, ValueError, r"kv_lengths.* 0\.\.7; got 3\.\.8"),
    "lengths negative": ({"kv_lengths": array(-1, 2)}, ValueError, r"0\.\.7; got -1\.\.2"),
}  # fmt: skip
ROOM: dict[str, Bad] = {  # out=
    "out list": ({"out": [1.0]}, TypeError, "out must be a NumPy array.*; got list"),
    "out tensor": ({"out": pa.Tensor(ones(2, 4, 5, 3))}, TypeError, "out takes arrays only"),
    "out dtype": ({"out": np.ones((2, 4, 5, 3))}, TypeError, "out must be float32; got float64"),
    "out shape": (
        {"out": ones(2, 4, 5, 8)}, ValueError, r"out.* \(2, 4, 5, 3\); got \(2, 4, 5, 8\)"
    ),
    "out rank": ({"out": ones(40, 3)}, ValueError, r"\(2, 4, 5, 3\); got \(40, 3\)"),
    "out read-only": ({"out": read_only(ones(2, 4, 5, 3))}, ValueError, "out is read-only"),
    "out strided": ({"out": ones(2, 4, 5, 6)[..., ::2]}, ValueError, "contiguous along its last"),
    "out reversed": ({"out": ones(2, 4, 5, 3)[..., ::-1]}, ValueError, "contiguous along its last"),
    "out swapped": ({"out": ones(2, 4, 3, 5).swapaxes(2, 3)}, ValueError, "contiguous along"),
}  # fmt: skip
SDPA: dict[str, Bad] = {
    "rotary alone": ({"rotary_cos": ones(7, 4)}, ValueError, "rotary_sin must be given together"),
    "rotary list": (ROTARY | {"rotary_cos": [1.0]}, TypeError, "rotary_cos must be a NumPy array"),
    "rotary dtype": (
        ROTARY | {"rotary_sin": np.ones((7, 4))}, TypeError, "rotary_sin must .*float64 for float32"
    ),
    "rotary pairs": (
        {"rotary_cos": ones(7, 5), "rotary_sin": ones(7, 5)}, ValueError, r"\(7, 5\).*query \(2, 4"
    ),
    "rotary shapes": (ROTARY | {"rotary_sin": ones(7, 3)}, ValueError, r"R / 2\).*\(7, 3\)"),
    "rotary rank": (
        {"rotary_cos": ones(7), "rotary_sin": ones(7)}, ValueError, r"must be \(positions, R / 2\)"
    ),
    "rotary empty": (
        {"rotary_cos": ones(7, 0), "rotary_sin": ones(7, 0)}, ValueError, r"above 0.*\(7, 0\)"
    ),
    "rotary order": ({"rotary_interleaved": True}, ValueError, "rotary_interleaved needs rotary_c"),
    "rotary order text": (
        ROTARY | {"rotary_interleaved": "no"}, TypeError, "rotary_interleaved must be .*'no'"
    ),
    "past alone": ({"past_key": PAST["past_key"]}, ValueError, "must be given together"),
    "past value": ({"past_value": PAST["past_value"]}, ValueError, "must be given together"),
    "past list": (PAST | {"past_key": [1.0]}, TypeError, "past_key must be a NumPy array"),
    "past dtype": (PAST | {"past_key": np.ones((2, 2, 6, 8))}, TypeError, "past_key float64, key"),
    "past rank": (PAST | {"past_value": ones(2, 6, 3)}, ValueError, r"past_value \(2, 6, 3\), val"),
    "past P": (
        PAST | {"past_value": ones(2, 2, 5, 3)},
        ValueError,
        r"share P; got past_key \(2, 2, 6, 8\), past_value \(2, 2, 5, 3\)",
    ),
    "past G": (
        PAST | {"past_key": ones(2, 1, 6, 8)}, ValueError, r"past_key \(2, 1, 6, 8\), key \(2, 2, 7"
    ),
    "past lengths": (PAST | {"kv_lengths": array(1, 14)}, ValueError, r"0\.\.13; got 1\.\.14"),
    "top_k": ({"top_k": -1}, ValueError, r"top_k must lie in 0\.\..*; got -1"),
    "top_k float": ({"top_k": 2.0}, TypeError, "top_k must be an integer; got 2.0"),
    "top_k none": ({"top_k": None}, TypeError, "top_k must be an integer; got None"),
    "top_k bool": ({"top_k": True, "aux": "top_weights"}, TypeError, "top_k must be an integer"),
    "no top_k": ({"aux": ("top_indices",)}, ValueError, "need top_k > 0; got 0"),
    "short mask": (
        {"attn_mask": ones(3, 5, dtype=bool)}, ValueError, r"to \(2, 4, 5, 7\); got shape \(3, 5\)"
    ),
    "mask list": ({"attn_mask": [True]}, TypeError, "attn_mask must be a NumPy array"),
}  # fmt: skip


def check(function: Any, arguments: dict[str, Any], bad: Bad) -> None:
    """The error is the documented one, and its message begins with the function's name."""
    changes, error, message = bad
    with pytest.raises(error, match=message) as caught:
        function(**arguments | changes)
    assert str(caught.value).startswith(f"{function.__name__}: ")


SDPA_ALL = SCORING | SINKS | DROPOUT | AUX | POSITIONS | ROOM | SDPA


@pytest.mark.parametrize("name", SDPA_ALL)
def test_sdpa(name: str) -> None:
    check(pa.scaled_dot_product_attention, QKV, SDPA_ALL[name])


@pytest.mark.parametrize("name", SCORING | SINKS | POSITIONS | SDPA)
def test_a_trace_gives_the_same_message(name: str) -> None:
    """Where the numbers of an array decide, it is one that is known while tracing."""
    changes, error, _ = SDPA_ALL[name]
    with pytest.raises(error) as eager:
        pa.scaled_dot_product_attention(**QKV | changes)
    symbols = {n: pa.Tensor.symbolic(a.shape, a.dtype) for n, a in QKV.items()}
    with pytest.raises(error) as traced:
        pa.scaled_dot_product_attention(**symbols | changes)
    assert str(eager.value) == str(traced.value)


BUFFER = ones(320)  # the output is its first 120 numbers
OVERLAPS = {
    "query": BUFFER.reshape(2, 4, 5, 8),
    "value": BUFFER[119:203].reshape(2, 2, 7, 3),
    "attn_mask": BUFFER[119:154].reshape(5, 7),
    "sinks": BUFFER[100:104],
    "past_key": BUFFER[80:272].reshape(2, 2, 6, 8),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_out_overlaps(name: str) -> None:
    out, other = BUFFER[:120].reshape(2, 4, 5, 3), OVERLAPS[name]
    past = PAST if name == "past_key" else {}
    message = rf"out and {name} must not overlap; got out \(2, 4, 5, 3\), {name} \("
    bad = ({name: other, "out": out}, ValueError, message)
    check(pa.scaled_dot_product_attention, QKV | past, bad)


def test_out_beside_the_inputs_in_one_array(rng: Any) -> None:
    """The ranges of these interleaved views overlap, no number is in both."""
    rows = rng.standard_normal((2, 5, 4, 11), dtype=F).swapaxes(1, 2)
    query, out = rows[..., :8], rows[..., 8:]
    given = QKV | {"query": query}
    expected = pa.scaled_dot_product_attention(**given)
    assert pa.scaled_dot_product_attention(**given, out=out) is out
    np.testing.assert_array_equal(out, expected)


ENDS = {"cu_seqlens_q": array(0, 2, 5), "cu_seqlens_k": array(0, 3, 7, dtype=np.int32)}
PACKED = {"query": ones(5, 4, 8), "key": ones(7, 2, 8), "value": ones(7, 2, 3)} | ENDS
VARLEN: dict[str, Bad] = {
    "no array": ({"query": [1.0]}, TypeError, "query must be a NumPy array.*; got list"),
    "offsets list": ({"cu_seqlens_k": [0, 7]}, TypeError, "cu_seqlens_k must be a NumPy array"),
    "dtype": ({"query": ones(5, 4, 8, dtype=int)}, TypeError, "query int64, key float32"),
    "mixed": ({"value": np.ones((7, 2, 3))}, TypeError, "value float64"),
    "query rank": ({"query": ones(1, 5, 4, 8)}, ValueError, r"query must be \(N, H, D\); got"),
    "key rank": ({"key": ones(7, 8)}, ValueError, r"key must be \(M, G, D\); got shape \(7, 8\)"),
    "value rank": ({"value": ones(7)}, ValueError, r"value must be \(M, G, E\); got shape \(7,\)"),
    "M": ({"value": ones(6, 2, 3)}, ValueError, r"share M; got key \(7, 2, 8\), value \(6, 2, 3\)"),
    "G": ({"value": ones(7, 1, 3)}, ValueError, r"share G; got key .*, value \(7, 1, 3\)"),
    "D": ({"query": ones(5, 4, 9)}, ValueError, r"share D; got query \(5, 4, 9\), key \(7, 2, 8"),
    "D = 0": ({"query": ones(5, 4, 0), "key": ones(7, 2, 0)}, ValueError, "D > 0"),
    "heads": ({"query": ones(5, 3, 8)}, ValueError, r"heads of query .* query \(5, 3, 8\)"),
    "offsets dtype": ({"cu_seqlens_q": np.ones(3)}, TypeError, "cu_seqlens_q must be int32 or"),
    "offsets rank": (
        {"cu_seqlens_k": ones(3, 1, dtype=int)}, ValueError, r"shape \(B \+ 1,\); got \(3, 1\)"
    ),
    "offsets none": ({"cu_seqlens_q": array(dtype=int)}, ValueError, r"\(B \+ 1,\); got \(0,\)"),
    "B": ({"cu_seqlens_k": array(0, 7)}, ValueError, r"cu_seqlens_k.* \(3,\); got \(2,\)"),
    "begin": ({"cu_seqlens_q": array(1, 2, 5)}, ValueError, r"cu_seqlens_q must rise from 0 to 5"),
    "end": ({"cu_seqlens_k": array(0, 3, 6)}, ValueError, r"rise from 0 to 7; got \[0 3 6\]"),
    "beyond": ({"cu_seqlens_k": array(0, 9, 7)}, ValueError, r"rise from 0 to 7; got \[0 9 7\]"),
    "falls": ({"cu_seqlens_q": array(0, -1, 5)}, ValueError, r"cu_seqlens_q must rise .*0 -1  5"),
    "aux": ({"aux": ("weights",)}, ValueError, r"aux may name each of \('lse',\) once"),
    "aux none": AUX["aux none"],
}  # fmt: skip
VARLEN_ALL = SCORING | SINKS | DROPOUT | VARLEN


@pytest.mark.parametrize("name", VARLEN_ALL)
def test_varlen(name: str) -> None:
    check(pa.varlen_attention, PACKED, VARLEN_ALL[name])


@pytest.mark.parametrize("name", ["dtype", "query rank", "M", "heads", "offsets rank", "B"])
def test_a_trace_of_varlen_gives_the_same_message(name: str) -> None:
    changes, error, _ = VARLEN[name]
    with pytest.raises(error) as eager:
        pa.varlen_attention(**PACKED | changes)
    symbols = {n: pa.Tensor.symbolic(a.shape, a.dtype) for n, a in (PACKED | changes).items()}
    with pytest.raises(error) as traced:
        pa.varlen_attention(**symbols)
    assert str(eager.value) == str(traced.value)


PAGED_ARGUMENTS = {
    "query": ones(2, 4, 5, 8),
    "key_pages": ones(6, 2, 16, 8),
    "value_pages": ones(6, 2, 16, 3),
    "block_table": array([3, 1], [0, 5], dtype=np.int32),
    "kv_lengths": array(20, 17),
}
PAGED: dict[str, Bad] = {
    "no array": ({"key_pages": None}, TypeError, "key_pages must be a NumPy array.*; got NoneType"),
    "dtype": ({"query": ones(2, 4, 5, 8, dtype=int)}, TypeError, "query int64, key_pages float32"),
    "mixed": ({"value_pages": np.ones((6, 2, 16, 3))}, TypeError, "value_pages float64"),
    "query rank": ({"query": ones(4, 5, 8)}, ValueError, r"query must be \(B, H, T, D\); got"),
    "key rank": ({"key_pages": ones(6, 16, 8)}, ValueError, r"key_pages must be \(N, G, page, D\)"),
    "value rank": ({"value_pages": ones(6)}, ValueError, r"value_pages must be \(N, G, page, E\)"),
    "N": ({"value_pages": ones(5, 2, 16, 3)}, ValueError, r"share N; got key_pages \(6.*\(5, 2"),
    "G": ({"value_pages": ones(6, 1, 16, 3)}, ValueError, r"share G; got key_pages \(6.*\(6, 1"),
    "page": ({"value_pages": ones(6, 2, 8, 3)}, ValueError, r"share page; got .*\(6, 2, 8, 3\)"),
    "D": ({"query": ones(2, 4, 5, 9)}, ValueError, r"share D; got query \(2, 4, 5, 9\), key_pages"),
    "D = 0": (
        {"query": ones(2, 4, 5, 0), "key_pages": ones(6, 2, 16, 0)}, ValueError, "D > 0; got query"
    ),
    "heads": ({"query": ones(2, 3, 5, 8)}, ValueError, r"heads of query .*query \(2, 3, 5, 8\)"),
    "no rows": (
        {"key_pages": ones(6, 2, 0, 8), "value_pages": ones(6, 2, 0, 3)},
        ValueError,
        r"must hold a key; got key_pages \(6, 2, 0, 8\)",
    ),
    "table": ({"block_table": [[0]]}, TypeError, "block_table must be a NumPy array"),
    "table dtype": (
        {"block_table": array([3, 1], [0, 5])}, TypeError, "block_table must be int32; got int64"
    ),
    "table rank": (
        {"block_table": array(3, 1, dtype=np.int32)}, ValueError, r"\(2, pages\); got \(2,\)"
    ),
    "table B": (
        {"block_table": array([3, 1], dtype=np.int32)}, ValueError, r"\(2, pages\); got \(1, 2\)"
    ),
    "no such page": (
        {"block_table": array([3, 1], [0, 6], dtype=np.int32)}, ValueError, r"0\.\.5; got 0\.\.6"
    ),
    "negative page": (
        {"block_table": array([3, -1], [0, 5], dtype=np.int32)}, ValueError, r"0\.\.5; got -1\.\.5"
    ),
    "lengths": ({"kv_lengths": [20, 17]}, TypeError, "kv_lengths must be a NumPy array"),
    "lengths dtype": ({"kv_lengths": np.ones(2)}, TypeError, "kv_lengths.*; got float64"),
    "lengths shape": ({"kv_lengths": array(20)}, ValueError, r"kv_lengths.* \(2,\); got \(1,\)"),
    "lengths range": ({"kv_lengths": array(20, 33)}, ValueError, r"0\.\.32; got 20\.\.33"),
    "lengths negative": ({"kv_lengths": array(20, -3)}, ValueError, r"0\.\.32; got -3\.\.20"),
}  # fmt: skip
PAGED_ALL = SCORING | SINKS | PAGED


@pytest.mark.parametrize("name", PAGED_ALL)
def test_paged(name: str) -> None:
    check(pa.paged_attention, PAGED_ARGUMENTS, PAGED_ALL[name])


ROW_ARGUMENTS = {
    "query": QKV["query"], "key": QKV["key"], "rows": [0, 4], "lse": ones(2, 4, 5)
}  # fmt: skip
ROWS: dict[str, Bad] = {
    "no array": ({"query": [1.0]}, TypeError, "query must be a NumPy array.*; got list"),
    "tensor": ({"key": pa.Tensor(QKV["key"])}, TypeError, "key must be.*; got a Tensor"),
    "dtype": ({"key": np.ones((2, 2, 7, 8))}, TypeError, "query float32, key float64"),
    "rank": ({"key": ones(2, 7, 8)}, ValueError, r"key must be \(B, G, S, D\); got shape \(2, 7"),
    "B": ({"key": ones(3, 2, 7, 8)}, ValueError, r"share B; got query \(2, 4, 5, 8\), key \(3, 2"),
    "D": ({"key": ones(2, 2, 7, 9)}, ValueError, r"share D; got query \(2, 4, 5, 8\), key \(2, 2"),
    "heads": ({"key": ones(2, 3, 7, 8)}, ValueError, "heads of query must be a multiple"),
    "mask": ({"attn_mask": [True]}, TypeError, "attn_mask must be a NumPy array"),
    "mask dtype": ({"attn_mask": np.ones(7)}, TypeError, "attn_mask must be bool or float32"),
    "mask shape": ({"attn_mask": ones(2, 7)}, ValueError, r"to \(2, 4, 5, 7\); got shape \(2, 7\)"),
    "rows number": ({"rows": 3}, TypeError, "rows must be an array or a list; got int"),
    "rows none": ({"rows": None}, TypeError, "rows must be an array or a list; got NoneType"),
    "rows tensor": ({"rows": pa.Tensor(array(1))}, TypeError, "rows must be.*; got a Tensor"),
    "start tensor": ({"query_start": pa.Tensor(array(1, 2))}, TypeError, "query_start.* a Tensor"),
    "rows float": ({"rows": [1.0]}, TypeError, "rows must be integers; got float64"),
    "rows bool": ({"rows": ones(5, dtype=bool)}, TypeError, "rows must be integers; got bool"),
    "rows rank": ({"rows": [[0]]}, ValueError, r"rows must have shape \(R,\); got \(1, 1\)"),
    "rows range": ({"rows": [5, 1]}, ValueError, r"rows must lie in 0\.\.4; got 1\.\.5"),
    "rows negative": ({"rows": array(0, -1)}, ValueError, r"rows must lie in 0\.\.4; got -1\.\.0"),
    "lse": ({"lse": 1.0}, TypeError, "lse must be a NumPy array.*; got float"),
    "lse dtype": ({"lse": np.ones((2, 4, 5))}, TypeError, "lse must be float32; got float64"),
    "lse shape": ({"lse": ones(2, 4, 2)}, ValueError, r"lse .*\(2, 4, 5\); got \(2, 4, 2\)"),
}
ROWS_ALL = SCORING | POSITIONS | ROWS


@pytest.mark.parametrize("name", ROWS_ALL)
def test_attention_weights(name: str) -> None:
    check(pa.attention_weights, ROW_ARGUMENTS, ROWS_ALL[name])


def test_integers_of_numpy_are_integers(rng: Any) -> None:
    query, key, value = (rng.standard_normal(a.shape, dtype=F) for a in QKV.values())
    options = {"window": (3, 1), "query_start": 2, "top_k": 2, "dropout_p": 0.5, "rng": 7}
    expected = pa.scaled_dot_product_attention(query, key, value, aux="top_weights", **options)
    numpy_options = {n: np.int64(o) for n, o in options.items() if isinstance(o, int)}
    numpy_options |= {"window": (np.int32(3), np.int8(1)), "is_causal": np.False_}
    found = pa.scaled_dot_product_attention(
        query, key, value, aux=["top_weights"], **options | numpy_options
    )
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_array_equal(f, e)
    scale = pa.scaled_dot_product_attention(query, key, value, scale=F(0.5))
    for number in (0.5, np.array(0.5), np.float64(0.5)):
        again = pa.scaled_dot_product_attention(query, key, value, scale=number)
        np.testing.assert_array_equal(again, scale)
