"""What Luong's attention refuses."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from pyattn.attention import _checks as checks
from pyattn.attention._sdpa_options import LARGEST
from pyattn.dtypes import FLOATS
from pyattn.tensor import Dim, Value, spec_of

NAME = "luong_attention"
Score = Literal["dot", "general", "concat", "location"]
Alignment = Literal["global", "local-m", "local-p"]


def check_arrays(
    query: Value,
    key: Value,
    value: Value,
    score: Score,
    weight: Value | None,
    v: Value | None,
    projected_key: Value | None,
    position: dict[str, Value | None],
    mask: Value | None,
    kv_lengths: Value | None,
) -> None:
    """Raise TypeError or ValueError where dtypes or shapes do not fit the score."""
    if (weight is None) != (score == "dot") or (v is None) != (score != "concat"):
        raise ValueError(
            f'{NAME}: score "dot" takes no weight and no v, "general" takes weight, as "location" '
            f'does, "concat" both; got {score!r} with weight {weight is not None}, '
            f"v {v is not None}"
        )
    if projected_key is not None and score != "concat":
        raise ValueError(f'{NAME}: projected_key is for score "concat"; got score {score!r}')
    given: Any = {
        "query": query, "key": key, "value": value, "weight": weight, "v": v,
        "projected_key": projected_key,
    } | position  # fmt: skip
    specs: dict[str, Any] = {name: spec_of(x) for name, x in given.items() if x is not None}
    checks.require_floats(NAME, FLOATS, **specs)
    q, k, x = specs["query"], specs["key"], specs["value"]
    for name, spec, layout in (
        ("query", q, "B, T, D"), ("key", k, "B, S, Dk"), ("value", x, "B, S, E"),
    ):  # fmt: skip
        checks.require_rank(NAME, layout, **{name: spec})
    checks.require_shared(NAME, "B", 0, query=q, key=k)
    checks.require_shared(NAME, "B", 0, query=q, value=x)
    checks.require_shared(NAME, "S", 1, key=k, value=x)
    checks.require_mask(NAME, spec_of(mask), q.dtype, (*q.shape[:2], k.shape[1]), short=True)
    checks.require_lengths(NAME, spec_of(kv_lengths), q.shape[0])
    checks.check_lengths(NAME, kv_lengths, k.shape[1])
    if score == "dot":
        checks.require_shared(NAME, "D", 2, query=q, key=k)
    else:
        _check_weight(score, specs)
    if "projected_key" in specs:
        wanted = (*k.shape[:2], specs["weight"].shape[0])
        if specs["projected_key"].shape != wanted:
            raise ValueError(
                f"{NAME}: projected_key must be (B, S, A) = {wanted}; got "
                f"{specs['projected_key'].shape}"
            )
    if "position_weight" in specs and "position_v" in specs:
        w, direction = specs["position_weight"], specs["position_v"]
        if w.ndim != 2 or w.shape[1] != q.shape[2] or direction.shape != w.shape[:1]:
            raise ValueError(
                f"{NAME}: position_weight must be (P, D) and position_v (P,); got position_weight "
                f"{w.shape}, position_v {direction.shape} for query {q.shape}"
            )


def _check_weight(score: Score, specs: dict[str, Any]) -> None:
    """Raise ValueError where the weight does not fit the score."""
    q, k, w = specs["query"], specs["key"], specs["weight"]
    wanted: Any = (q.shape[2], k.shape[2])
    fits = w.shape == wanted
    if score == "concat":
        wanted = (specs["v"].shape[0] if specs["v"].ndim == 1 else "A", q.shape[2] + k.shape[2])
        fits = w.shape == wanted
    if score == "location":
        wanted = (k.shape[1], q.shape[2])
        fits = w.ndim == 2 and w.shape[1] == wanted[1]
        if fits and not isinstance(k.shape[1], Dim) and not isinstance(w.shape[0], Dim):
            fits = w.shape[0] >= k.shape[1]
    if not fits:
        raise ValueError(
            f"{NAME}: weight must be {wanted}"
            + (" or have more rows" if score == "location" else "")
            + f" for score {score!r}; got weight {w.shape}"
            + (f", v {specs['v'].shape}" if "v" in specs else "")
        )


def check_alignment(
    align: Alignment,
    half_width: Any,
    position: dict[str, Value | None],
    renormalize: Any,
    query_start: Any,
) -> None:
    """Raise TypeError or ValueError for an argument that the alignment does not take or needs."""
    if not isinstance(renormalize, (bool, np.bool_)):
        raise TypeError(f"{NAME}: renormalize must be a bool; got {renormalize!r}")
    needs = {"half_width": align != "global"} | dict.fromkeys(position, align == "local-p")
    for name, given in ({"half_width": half_width} | position).items():
        if (given is not None) != needs[name]:
            raise ValueError(
                f"{NAME}: align {align!r} {'needs' if needs[name] else 'takes no'} {name}"
            )
    for name, here, home in (
        ("renormalize", bool(renormalize), "local-p"),
        ("query_start", query_start is not None, "local-m"),
    ):
        if here and align != home:
            raise ValueError(f"{NAME}: {name} is for align {home!r}; got align {align!r}")
    if half_width is None:
        return
    if isinstance(half_width, bool) or not isinstance(half_width, (int, np.integer)):
        raise TypeError(f"{NAME}: half_width must be an integer; got {half_width!r}")
    if not 1 <= half_width <= LARGEST:
        raise ValueError(f"{NAME}: half_width must lie in 1..{LARGEST}; got {half_width}")
