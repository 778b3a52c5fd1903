"""The cases of the attention mechanisms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import pyattn as pa
from tests import naive, reference, reference_layers
from tests.case import Case, In
from tests.naive_sdpa import naive_outputs
from tests.packed import by_padding
from tests.reference_sdpa import positions, sdpa_outputs, with_past

QKV = {
    "query": In(("B", "H", "T", 16)),
    "key": In(("B", "H", "S", 16)),
    "value": In(("B", "H", "S", 9)),
}


def _sdpa(
    name: str,
    more: Mapping[str, In] | None = None,
    aux: tuple[str, ...] = ("weights", "lse"),
    static: str = "",
    **options: Any,
) -> Case:
    """A case of scaled dot-product attention with extra inputs and fixed options."""
    inputs = QKV | dict(more or {})

    def call(query: Any, key: Any, value: Any, mask: Any = None, **rest: Any) -> Any:
        return pa.scaled_dot_product_attention(query, key, value, mask, aux=aux, **rest, **options)

    def oracle(query: Any, key: Any, value: Any, **rest: Any) -> Any:
        found = sdpa_outputs(query, key, value, **rest, **options)
        return tuple(found[name] for name in ("out", *aux))

    def plain(query: Any, key: Any, value: Any, **rest: Any) -> Any:
        found = naive_outputs(query, key, value, **rest, **options)
        found["present_key"] = with_past(rest.get("past_key"), key)
        found["present_value"] = with_past(rest.get("past_value"), value)
        return tuple(found[name] for name in ("out", *aux))

    # To repeat key and value heads for the query heads, ONNX must know how many there are.
    known = frozenset(static + ("H" if "QA" in name else ""))
    # Where two scores change places the largest has no derivative, and random inputs do meet that.
    # A cap as small as the steps of finite differences bends within them.
    smooth = "max" not in aux and not 0 < options.get("softcap", 0.0) < 1e-3
    return Case(f"sdpa/{name}", "sdpa", inputs, call, oracle, plain, smooth, known)


def _turned_before(attend: Any) -> Any:
    """The oracle ``attend`` behind rotations of the queries and of all keys."""

    def call(query: Any, key: Any, value: Any, **options: Any) -> Any:
        tables = [options.pop(name) for name in ("rotary_cos", "rotary_sin")]
        turning = {
            "interleaved": options.pop("rotary_interleaved", False),
            "rotary_embedding_dim": 2 * tables[0].shape[1],
        }
        keys = with_past(options.pop("past_key", None), key)
        values = with_past(options.pop("past_value", None), value)
        batch, size = len(key), keys.shape[2]
        starts, _ = positions(options, batch, query.shape[2], size, size - key.shape[2])
        at_query = starts[:, None] + np.arange(query.shape[2])
        at_key = np.broadcast_to(np.arange(size), (batch, size))
        q, k = (
            reference_layers.rotary_embedding(x, *tables, at, **turning).astype(x.dtype)
            for x, at in ((query, at_query), (keys, at_key))
        )
        return attend(q, k, values, **options | {"query_start": starts})

    return call


def _rotary(name: str, pairs: int, more: Mapping[str, In] | None = None, **options: Any) -> Case:
    """A case with queries and keys that are turned on their way."""
    aux = ("weights", "lse")
    tables = {"rotary_cos": In((24, pairs)), "rotary_sin": In((24, pairs))}
    inputs = QKV | tables | dict(more or {})

    def by(attend: Any, arrays: Any) -> Any:
        found = _turned_before(attend)(**arrays, **options)
        return tuple(found[key] for key in ("out", *aux))

    return Case(
        f"sdpa/rotary-{name}",
        "sdpa",
        inputs,
        lambda **arrays: pa.scaled_dot_product_attention(**arrays, aux=aux, **options),
        lambda **arrays: by(sdpa_outputs, arrays),
        lambda **arrays: by(naive_outputs, arrays),
        static=frozenset("H" if "GQA" in name else ""),
    )


GQA = {"key": In(("B", 2, "S", 16)), "value": In(("B", 2, "S", 9))}
MQA = {"key": In(("B", 1, "S", 16)), "value": In(("B", 1, "S", 9))}
PAST = {"past_key": In(("B", "H", "P", 16)), "past_value": In(("B", "H", "P", 9))}
LENGTHS = {"kv_lengths": In(("B",), "S")}
SLOPES = {"alibi_slopes": In(("H",), "slopes")}
SINKS = {"sinks": In(("H",))}
STARTS = {"query_start": In(("B",), "starts")}

SDPA = [
    _sdpa("plain"),
    _sdpa("causal", is_causal=True),
    _sdpa("bool-mask", {"mask": In(("B", 1, "T", "S"), "bool")}),
    _sdpa("row-mask", {"mask": In(("S",), "bool")}),
    _sdpa("float-mask", {"mask": In(("H", "T", "S"), "bias")}),
    _sdpa("float-mask-causal", {"mask": In(("T", "S"), "bias")}, is_causal=True),
    _sdpa("float-mask-gradient", {"mask": In(("B", 1, "T", "S"))}, is_causal=True),
    _sdpa("short-mask", {"mask": In(("B", 1, "T", 2), "bool")}, static="S"),
    _sdpa("short-float-mask", {"mask": In(("T", 2))}, static="S"),
    _sdpa("lengths", LENGTHS),
    _sdpa(
        "lengths-mask-causal",
        {"mask": In(("B", "H", 1, "S"), "bool"), "kv_lengths": In(("B",), "S")},
        is_causal=True,
    ),
    _sdpa("lengths-float", {"mask": In(("T", "S"), "bias")} | LENGTHS),
    _sdpa("negative-scale", scale=-0.3),
    _sdpa("GQA", GQA),
    _sdpa("MQA-causal", MQA, is_causal=True),
    _sdpa("window", window=(2, 1)),
    _sdpa("window-left-causal", window=(3, -1), is_causal=True),
    _sdpa("window-right", LENGTHS, window=(-1, 2)),
    _sdpa("bottom-right", is_causal="bottom_right"),
    _sdpa("bottom-right-lengths", LENGTHS, is_causal="bottom_right", window=4),
    _sdpa("start", query_start=-2, is_causal=True),
    _sdpa("starts", STARTS, window=(2, 2)),
    _sdpa("starts-lengths-causal", STARTS | LENGTHS, is_causal=True),
    _sdpa("softcap", softcap=0.8),
    _sdpa("softcap-small", {"mask": In(("T", "S"), "bool")}, softcap=2e-5),
    _sdpa("alibi", SLOPES),
    _sdpa("alibi-starts-GQA", GQA | SLOPES | STARTS, is_causal=True),
    _sdpa("sinks", SINKS),
    _sdpa("sinks-no-keys", SINKS | LENGTHS | {"mask": In(("T", 1), "bool")}),
    _sdpa("past", PAST, ("present_key", "weights", "present_value"), is_causal=True),
    _sdpa("past-mask", PAST | {"mask": In(("T", "P + S"), "bias")}, window=(4, 0)),
    _sdpa("past-bottom-right", PAST, is_causal="bottom_right"),
    _sdpa("statistics", {"mask": In(("T", "S"), "bool")}, ("entropy", "column_mass")),
    _sdpa("statistics-sinks", SINKS | LENGTHS, ("entropy", "column_mass", "lse")),
    _sdpa("max", {"mask": In(("T", "S"), "bool")} | SINKS, ("max",)),
    _sdpa(
        "scores",
        {"mask": In(("T", "S"), "bias")},
        ("scores", "capped_scores", "biased_scores"),
        softcap=1.5,
        is_causal=True,
    ),
    _sdpa(
        "everything-GQA",
        GQA | LENGTHS | SLOPES | SINKS | STARTS | {"mask": In(("B", "H", "T", "S"), "bias")},
        ("column_mass", "biased_scores", "lse", "weights", "entropy"),
        softcap=3.0,
        window=(4, -1),
        is_causal=True,
        scale=0.4,
    ),
    _rotary("plain", 8),
    _rotary("part-causal-GQA", 3, GQA, is_causal=True),
    _rotary("interleaved-starts", 8, {"query_start": In(("B",), 6)}, rotary_interleaved=True),
    _rotary("interleaved-part-past", 5, PAST, rotary_interleaved=True, is_causal=True),
]


def _varlen(name: str, more: Mapping[str, In] | None = None, **options: Any) -> Case:
    """A case of packed sequences: T queries and S keys in all, C - 1 sequences, some empty."""
    inputs = {
        "query": In(("T", 4, 16)),
        "key": In(("S", 4, 16)),
        "value": In(("S", 4, 9)),
        "cu_seqlens_q": In(("C",), "offsets", "T"),
        "cu_seqlens_k": In(("C",), "offsets", "S"),
    } | dict(more or {})

    def by(attend: Any, arrays: Any) -> Any:
        found = by_padding(attend, **arrays, **options)
        return found["out"], found["lse"]

    return Case(
        f"varlen/{name}",
        "varlen",
        inputs,
        lambda **arrays: pa.varlen_attention(**arrays, aux=("lse",), **options),
        lambda **arrays: by(sdpa_outputs, arrays),
        lambda **arrays: by(naive_outputs, arrays),
    )


PACKED_SINKS = {"alibi_slopes": In((4,), "slopes"), "sinks": In((4,))}

VARLEN = [
    _varlen("plain"),
    _varlen("causal", is_causal=True),
    _varlen("bottom-right", is_causal="bottom_right"),
    _varlen("GQA", {"key": In(("S", 2, 16)), "value": In(("S", 2, 9))}, scale=-0.3),
    _varlen("everything", PACKED_SINKS, window=(2, 1), softcap=2.0),
    _varlen("everything-bottom-right", PACKED_SINKS, window=2, is_causal="bottom_right"),
]


def _paged(name: str, more: Mapping[str, In] | None = None, **options: Any) -> Case:
    """A case of 7 pages of 5 keys, of which an entry has up to 4; none of a page is out of use."""
    inputs = {
        "query": In(("B", 4, "T", 16)),
        "key_pages": In((7, 2, 5, 16)),
        "value_pages": In((7, 2, 5, 9)),
        "block_table": In(("B", 4), "pages", "7"),
        "kv_lengths": In(("B",), 20),
    } | dict(more or {})

    def by(attend: Any, arrays: Any) -> Any:
        given = dict(arrays)
        table, lengths = given.pop("block_table"), given["kv_lengths"]
        for name in ("key", "value"):
            pages = given.pop(f"{name}_pages")[table]  # (B, 4, G, page, D)
            given[name] = pages.swapaxes(1, 2).reshape(len(table), 2, 20, -1)
        if options.get("is_causal") != "top_left":
            given["query_start"] = lengths - given["query"].shape[2]
        rest = {"scale": None, **options, "is_causal": bool(options.get("is_causal", True))}
        return attend(**given, **rest)["out"]

    return Case(
        f"paged/{name}",
        "paged",
        inputs,
        lambda **arrays: pa.paged_attention(**arrays, **options),
        lambda **arrays: by(sdpa_outputs, arrays),
        lambda **arrays: by(naive_outputs, arrays),
    )


PAGED = [
    _paged("plain"),
    _paged("top-left", is_causal="top_left"),
    _paged("not-causal", is_causal=False, scale=-0.3),
    _paged("everything", PACKED_SINKS, window=(6, 0), softcap=2.0),
]


ADDED = {
    "query": In(("B", "T", 12)),
    "key": In(("B", "S", 12)),
    "value": In(("B", "S", 9)),
    "v": In((12,)),
}


def _additive(name: str, more: Mapping[str, In] | None = None, **options: Any) -> Case:
    inputs = ADDED | dict(more or {})

    def call(query: Any, key: Any, value: Any, v: Any, mask: Any = None, **rest: Any) -> Any:
        return pa.additive_attention(
            query, key, value, v, attn_mask=mask, aux=("weights", "lse"), **rest, **options
        )

    return Case(
        f"additive/{name}",
        "additive",
        inputs,
        call,
        lambda *a, **k: reference.additive(*a, **k, **options),
        lambda *a, **k: naive.naive_additive(*a, **k, **options),
    )


def _additive_heads(
    name: str,
    aux: tuple[str, ...],
    more: Mapping[str, In] | None = None,
    heads: int = 3,
    **options: Any,
) -> Case:
    """A case with all that the oracle of scaled dot-product attention knows, by its oracle."""
    inputs = ADDED | dict(more or {})

    def by(attend: Any, query: Any, key: Any, value: Any, v: Any, **rest: Any) -> Any:
        split = [x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x in (query, key, value)]
        found = attend(*split, v=v.reshape(heads, -1), **rest, **options)
        out = found["out"].swapaxes(1, 2).reshape(*query.shape[:2], -1)
        return (out, *(found[name] for name in aux))

    def call(query: Any, key: Any, value: Any, v: Any, mask: Any = None, **rest: Any) -> Any:
        return pa.additive_attention(
            query, key, value, v, attn_mask=mask, num_heads=heads, aux=aux, **rest, **options
        )

    return Case(
        f"additive/{name}",
        "additive",
        inputs,
        call,
        lambda *a, **k: by(sdpa_outputs, *a, **k),
        lambda *a, **k: by(naive_outputs, *a, **k),
        smooth="max" not in aux,
    )


ADDITIVE = [
    _additive("plain"),
    _additive("causal", is_causal=True),
    _additive("bias", {"bias": In((12,))}),
    _additive("bool-mask", {"mask": In(("B", "T", "S"), "bool")}),
    _additive("float-mask", {"mask": In((1, "S"), "bias")}),
    _additive("lengths", {"kv_lengths": In(("B",), "S")}),
    _additive_heads("heads", ("weights", "lse")),
    _additive_heads("heads-window", ("entropy", "biased_scores"), STARTS, window=(2, 1)),
    _additive_heads(
        "heads-mask-bottom-right",
        ("scores", "max"),
        {"mask": In(("B", 1, "T", "S"), "bias")} | LENGTHS,
        is_causal="bottom_right",
    ),
]
