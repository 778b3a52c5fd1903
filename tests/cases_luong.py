"""The cases of Luong's attention: every score with every alignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import pyattn as pa
from pyattn.attention.position import POSITION
from pyattn.tensor import apply
from tests.case import Case, In
from tests.naive_luong import naive_luong
from tests.reference_luong import luong, position_of

HEADS = {"query": In(("B", "T", 6))}
SCORES: dict[str, dict[str, In]] = {
    "dot": {"key": In(("B", "S", 6))},
    "general": {"key": In(("B", "S", 5)), "weight": In((6, 5))},
    "concat": {"key": In(("B", "S", 5)), "weight": In((8, 11)), "v": In((8,))},
    "location": {"key": In(("B", "S", 5)), "weight": In((24, 6))},
}
LENGTHS = {"kv_lengths": In(("B",), "S")}
VALUE = {"value": In(("B", "S", 9))}
ANYWHERE = {"position_v": In((4,))}
BOOL = {"attn_mask": In(("B", "T", "S"), "bool")}


def _case(
    score: str,
    variant: str = "global",
    more: Mapping[str, In] | None = None,
    aux: tuple[str, ...] = ("weights", "lse"),
    **options: Any,
) -> Case:
    options |= {"score": score}

    def named(found: dict[str, Any]) -> Any:
        return tuple(found[name] for name in ("out", *aux))

    op = "additive" if score == "concat" else "sdpa"
    return Case(
        f"luong/{score}-{variant}",
        "local" if options.get("align") == "local-p" else op,
        HEADS | SCORES[score] | dict(more or {}),
        lambda query, key, value=None, **rest: pa.luong_attention(
            query, key, value, aux=aux, **rest, **options
        ),
        lambda query, key, value=None, **rest: named(luong(query, key, value, **rest, **options)),
        lambda query, key, value=None, **rest: named(
            naive_luong(query, key, value, **rest, **options)
        ),
        smooth=not {"max", "window_weights"} & set(aux),
    )


def _monotonic(score: str, variant: str, more: Mapping[str, In] | None = None) -> Case:
    return _case(
        score, f"local-m{variant}", more, ("weights", "entropy"), align="local-m", half_width=2
    )


def _predictive(
    score: str, variant: str = "", more: Mapping[str, In] | None = None, **options: Any
) -> Case:
    """A window does not change where the position is rounded otherwise.

    Positions are near S / 2, which is far from the next whole number for an odd S; for S = 2, and
    where there are lengths, a half width has every key in the window. Where p_t crosses a whole
    number the weights of the window move by one place: there positions lie anywhere, so that they
    are hardly ever so near to one, and there is no derivative.
    """
    position = {"position_weight": In((4, 6)), "position_v": In((4,), "slight")}
    options = {"half_width": 2, "aux": ("weights", "lse", "position")} | options
    more = position | dict(more or {})
    return _case(score, f"local-p{variant}", more, align="local-p", **options)


def _shares(query: Any, weight: Any, v: Any) -> Any:
    options: Any = {"position_weight": weight, "position_v": v}
    return np.array([[position_of(row, 1, options) for row in entry] for entry in query])


LUONG = [
    Case(
        "luong/position",
        "position",
        HEADS | {"weight": In((40, 6)), "v": In((40,))},
        lambda query, weight, v: apply(POSITION, query, weight, v),
        _shares,
    ),
    *(_case(score) for score in SCORES),
    _case("dot", "mask", BOOL | VALUE, ("max", "weights")),
    _case("general", "lengths", LENGTHS | {"attn_mask": In((1, "S"), "bias")}),
    *(_monotonic(score, "") for score in SCORES),
    _monotonic("dot", "-start", {"query_start": In(("B",), "starts")} | BOOL),
    _monotonic("concat", "-lengths", LENGTHS | {"query_start": In(("B",), "starts")}),
    *(_predictive(score) for score in SCORES),
    _predictive("dot", "-renormalized", VALUE, renormalize=True),
    _predictive("concat", "-lengths-renormalized", LENGTHS, half_width=17, renormalize=True),
    _predictive("general", "-lengths", LENGTHS | VALUE, half_width=17, aux=("position",)),
    _predictive("dot", "-bool-mask", BOOL | VALUE),
    _predictive("concat", "-row-mask", {"attn_mask": In(("S",), "bias")}),
    _predictive("general", "-float-mask", {"attn_mask": In(("B", 1, "S"))}, aux=("lse",)),
    _predictive("dot", "-window", ANYWHERE | VALUE, half_width=17, aux=("window_weights", "lse")),
    _predictive(
        "concat", "-window-lengths", ANYWHERE | LENGTHS, half_width=18, aux=("window_weights",)
    ),
    _predictive("location", "-float-mask", {"attn_mask": In(("T", "S"))}, renormalize=True),
]
