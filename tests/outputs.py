"""The outputs of attention against the oracle, each by the rule of `tests.reference.tolerance`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.naive_sdpa import WIDE
from tests.reference import max_error, tolerance

PRESENT = ("present_key", "present_value")
TOP_K = 3


def largest_score(exact: dict[str, Any], options: dict[str, Any]) -> float:
    """The size of what goes into the exponential, to which its error is relative."""
    scores = [exact["biased_scores"], np.asarray(options.get("sinks", 0.0), np.float64)]
    sizes = [np.abs(s[np.isfinite(s)]).max(initial=0.0) for s in scores]
    return float(max(sizes))


def check_top(found: dict[str, Any], exact: dict[str, Any], bound: float) -> None:
    """The keys named have the weights named; a key whose weight vanishes may be left out."""
    indices = found["top_indices"]
    assert indices.dtype.kind == "i"
    named = indices >= 0
    picked = np.take_along_axis(exact["weights"], np.maximum(indices, 0).astype(np.intp), -1)
    seen = np.take_along_axis(
        exact["biased_scores"], np.maximum(indices, 0).astype(np.intp), -1
    ) > -np.inf  # fmt: skip
    assert seen[named].all()
    assert max_error(np.where(named, picked, 0.0), exact["top_weights"]) <= 2 * bound
    assert (named == (exact["top_indices"] >= 0))[exact["top_weights"] > 1e-30].all()
    for row, kept in zip(indices.reshape(-1, TOP_K), named.reshape(-1, TOP_K), strict=True):
        assert len(set(row[kept])) == kept.sum()


def check_all(found: dict[str, Any], exact: Any, plain: Any, options: dict[str, Any]) -> None:
    """Each output against the oracle, by the rule of `tests.reference.tolerance`."""
    allowed, score = exact["biased_scores"] > -np.inf, largest_score(exact, options)
    dtype = plain["out"].dtype
    for name, array in found.items():
        if name in PRESENT:
            np.testing.assert_array_equal(array, exact[name], err_msg=name)
        if name in PRESENT or name == "top_indices":
            continue
        truth, yardstick = exact[name], plain[name]
        assert array.shape == truth.shape, name
        assert array.dtype == (yardstick.dtype if name in WIDE else dtype), name
        if name in ("scores", "capped_scores"):  # of a masked pair: not here, the key is poisoned
            array, truth, yardstick = (np.where(allowed, a, 0) for a in (array, truth, yardstick))
        spread = float(exact["spread"].max(initial=0.0)) if name == "out" else 0.0
        bound = tolerance(yardstick, truth, score=score, spread=spread)
        assert max_error(array, truth) <= bound, name
    if "top_indices" in found:
        check_top(found, exact, tolerance(plain["top_weights"], exact["top_weights"], score=score))
