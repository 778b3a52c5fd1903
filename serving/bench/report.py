"""What was measured, as JSON and as a table."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from .load import Measurement

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_BAR = 40  # characters of the longest


def summary(result: Measurement, *, with_tokens: bool) -> dict[str, Any]:
    """Return the figures of a measurement; times of requests are in milliseconds."""
    seconds = result.end - result.begin
    milliseconds = np.asarray(result.latencies) * 1e3
    figures: dict[str, Any] = {
        "seconds": seconds,
        "requests": result.count,
        "succeeded": milliseconds.size,
        "requests_per_second": _rate(milliseconds.size, seconds),
        "tokens_per_second": _rate(result.tokens, seconds) if with_tokens else None,
        "bytes_sent_per_second": _rate(result.sent, seconds),
        "bytes_received_per_second": _rate(result.received, seconds),
        "latency_ms": None,
        "histogram": [],
        "errors": {
            name: {"count": count, "first": result.messages[name]}
            for name, count in result.errors.most_common()
        },
        "generator_processor": _rate(result.processor, seconds),
    }
    if milliseconds.size:
        values = np.percentile(milliseconds, PERCENTILES).tolist()
        figures["latency_ms"] = {
            "mean": float(milliseconds.mean()),
            "min": float(milliseconds.min()),
            **{f"p{p:g}": value for p, value in zip(PERCENTILES, values, strict=True)},
            "max": float(milliseconds.max()),
        }
        figures["histogram"] = _histogram(milliseconds)
    return figures


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _histogram(milliseconds: np.ndarray[Any, np.dtype[np.float64]]) -> list[dict[str, float]]:
    """Return how many are at most 1, 2, 5, 10, ... ms and above the bound before."""
    bounds = [digit * 10.0**power for power in range(-3, 8) for digit in (1, 2, 5)]
    places = np.searchsorted(bounds, milliseconds)
    counts = np.bincount(places, minlength=len(bounds))
    return [
        {"up_to_ms": bounds[place], "count": int(counts[place])}
        for place in range(places.min(), places.max() + 1)
    ]


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures for a reader."""
    lines = [
        f"requests     {figures['succeeded']} in {figures['seconds']:.1f} s, "
        f"{figures['requests_per_second']:.1f} a second",
    ]
    if figures["tokens_per_second"] is not None:
        lines.append(f"tokens       {figures['tokens_per_second']:.0f} a second")
    lines.append(
        f"sent         {figures['bytes_sent_per_second'] / 1e6:.2f} MB a second, "
        f"received {figures['bytes_received_per_second'] / 1e6:.2f}"
    )
    for name, value in (figures["latency_ms"] or {}).items():
        lines.append(f"{name:<12} {value:.3f} ms")
    most = max((entry["count"] for entry in figures["histogram"]), default=0)
    for entry in figures["histogram"]:
        bar = "#" * -(-_BAR * entry["count"] // most)
        lines.append(f"to {entry['up_to_ms']:<9g} {entry['count']:>9} {bar}".rstrip())
    for name, error in figures["errors"].items():
        lines.append(f"error {name}: {error['count']}, the first: {error['first']}")
    share = figures["generator_processor"]
    lines.append(f"generator    {share:.0%} of a processor")
    if share > 0.8:
        lines.append("the generator itself was the limit: start several, or on another machine")
    return "\n".join(lines)


def write_json(report: Mapping[str, Any], file: Path) -> None:
    """Write a report; nobody ever sees half of it."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(orjson.dumps(report, option=orjson.OPT_INDENT_2))
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink()
        raise
