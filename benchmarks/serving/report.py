"""The results as Markdown: who answers how many, and what was asked for."""

from __future__ import annotations

from itertools import groupby
from typing import Any

OURS = "pyattn-serve"
PYTHON_SERVERS = ("MLServer", "LitServe", "BentoML")


def table(results: dict[str, Any]) -> str:
    """A head with the machine, what was asked for, and every contender."""
    machine = results["machine"]
    versions = "; ".join(
        f"{kind}: {', '.join(f'{name} {version}' for name, version in found.items())}"
        for kind, found in results["servers"].items()
    )
    options = results["options"]
    bare = ", ".join(f"{name} {ms:.3f} ms" for name, ms in results["bare"].items())
    head = (
        f"{machine['cpu']}, {options['cores']} cores for the server and the load generator "
        f"together (load {machine['load_average']:.1f} at the end), {results['threads']} threads "
        f"of ONNX Runtime; commit {results['commit']}, {results['date']}; medians of "
        f"{options['rounds']} rounds of {options['seconds']:g} s. {versions}. A call without a "
        f"server: {bare}."
    )
    lines = [head, "", "## Against the others", "", *_aims(results), "", "## Every contender", ""]
    lines += [
        "| workload | form | clients | server | requests a second | p50 ms | p99 ms | ours |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for _, group in groupby(results["rows"], lambda row: row["case"]):
        rows = list(group)
        ours = _rate(rows, OURS)
        for row in sorted(rows, key=lambda row: -row.get("requests_per_second", 0.0)):
            place = f"| {row['workload']} | {row['form']} | {row['clients']} | {row['contender']} |"
            if row["status"] != "ok" or not row["rounds"]:
                lines.append(f"{place} {row['status']} | | | |")
                continue
            rate = row["requests_per_second"]
            ratio = "" if ours is None else f"{ours / rate:.2f}"
            lines.append(
                f"{place} {rate:.1f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {ratio} |"
            )
    return "\n".join(lines)


def _aims(results: dict[str, Any]) -> list[str]:
    """Our throughput as a multiple of others', and what we add to a bare call."""
    lines = [
        "| workload | form | clients | best of the Python servers | Triton | added p50 ms |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for _, group in groupby(results["rows"], lambda row: row["case"]):
        rows = list(group)
        ours = _rate(rows, OURS)
        if ours is None:
            continue
        first = rows[0]
        rates = [rate for name in PYTHON_SERVERS if (rate := _rate(rows, name)) is not None]
        best = f"{ours / max(rates):.2f}" if rates else "have no such form"
        triton = _rate(rows, "Triton")
        level = f"{ours / triton:.2f}" if triton else ""
        added = ""
        if first["clients"] == 1:
            p50 = next(row["p50_ms"] for row in rows if row["contender"] == OURS)
            added = f"{p50 - results['bare'][first['workload']]:.3f}"
        lines.append(
            f"| {first['workload']} | {first['form']} | {first['clients']} | {best} | {level} | "
            f"{added} |"
        )
    return lines


def _rate(rows: list[dict[str, Any]], contender: str) -> float | None:
    return next(
        (
            float(row["requests_per_second"])
            for row in rows
            if row["contender"] == contender and row["status"] == "ok" and row["rounds"]
        ),
        None,
    )
