"""Results files: written whole or not at all, shown as Markdown tables, compared in pairs."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

Results = dict[str, Any]


def write(path: Path, results: Results) -> None:
    """Write a results file under a temporary name and rename it, so that it is never partial."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read(path: Path) -> Results:
    """Read a results file."""
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    return results


def heading(results: Results) -> str:
    """One paragraph that says what the figures below it depend on."""
    machine, limits = results["machine"], results["limits"]
    products = ", ".join(
        f"{name} {rate / 1e9:.0f}" for name, rate in limits["matmul_float32_flops"].items()
    )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{machine['cpu']} ({' '.join(machine['isa'])}), {results['threads']} threads of "
        f"{machine['cores']} cores (load {machine['load_average']:.1f}); "
        f"commit {results['commit']}, {results['date']}; {versions}. "
        f"Limits measured in the same run: float32 matrix product in GFLOP/s {products}; "
        f"reading memory {limits['read_bytes_per_second'] / 1e9:.1f} GB/s."
    )


def table(results: Results) -> str:
    """Markdown: one line per case and contender, each case led by its fastest contender."""
    lines = [
        heading(results),
        "",
        "| case | contender | median ms | quartiles ms | rate | of limit | times the fastest |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for _, group in groupby(results["rows"], key=lambda row: row["case"]):
        rows = sorted(group, key=lambda row: row["median"] or float("inf"))
        fastest = rows[0]["median"]
        lines.extend(_line(row, fastest, results["limits"]) for row in rows)
    return "\n".join(lines)


# What a case is about: the first of these that was timed.
OURS = ("pyattn.export in onnxruntime", "pyattn")


def summary(results: Results) -> str:
    """Markdown for the README: our time in each case, and the others' as a multiple of it."""
    lines = ["| case | pyattn, ms | the others take, times as long |", "| --- | ---: | --- |"]
    for case, group in groupby(results["rows"], key=lambda row: row["case"]):
        timed = {row["contender"]: row["median"] for row in group if row["median"]}
        name = next((name for name in OURS if name in timed), None)
        if name is None:
            continue
        ours = timed.pop(name)
        others = sorted(timed.items(), key=lambda item: item[1])
        multiples = ", ".join(f"{other} {median / ours:.2f}" for other, median in others)
        lines.append(f"| {case} | {_ms(ours)} | {multiples} |")
    return "\n".join(lines)


def _line(row: dict[str, Any], fastest: float, limits: dict[str, Any]) -> str:
    start = f"| {row['case']} | {row['contender']} "
    if row["status"] != "ok":
        return f"{start}| {row['status']}: {row['reason']} | | | | |"
    low, high = row["quartiles"]
    rate, share = _rate(row, limits)
    return (
        f"{start}| {_ms(row['median'])} | {_ms(low)} – {_ms(high)} "
        f"| {rate} | {share} | {row['median'] / fastest:.2f} |"
    )


def _rate(row: dict[str, Any], limits: dict[str, Any]) -> tuple[str, str]:
    """Work per second, and its share of the machine's limit where there is one for the unit."""
    if row["bytes_read"]:
        rate = row["bytes_read"] / row["median"]
        return f"{rate / 1e9:.1f} GB/s", f"{100 * rate / limits['read_bytes_per_second']:.0f} %"
    rate = row["operations"] / row["median"]
    share = ""
    if row["unit"] == "FLOP":
        share = f"{100 * rate / max(limits['matmul_float32_flops'].values()):.0f} %"
    return f"{_scaled(rate)}{row['unit']}/s", share


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"


def _scaled(rate: float) -> str:
    for factor, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if rate >= factor:
            return f"{rate / factor:.3g}{prefix}"
    return f"{rate:.3g} "


def compare(before: Results, after: Results) -> str:
    """Markdown: the median of every row that both files hold, and their ratio.

    A difference is called noise when the two ranges between quartiles overlap.
    """
    old = {(row["case"], row["contender"]): row for row in before["rows"]}
    lines = [
        f"A: {heading(before)}",
        "",
        f"B: {heading(after)}",
        "",
        "| case | contender | A ms | B ms | B / A | |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in after["rows"]:
        other = old.get((row["case"], row["contender"]))
        if other is None or other["median"] is None or row["median"] is None:
            continue
        ratio = row["median"] / other["median"]
        lines.append(
            f"| {row['case']} | {row['contender']} | {_ms(other['median'])} "
            f"| {_ms(row['median'])} | {ratio:.2f} | {_verdict(other, row)} |"
        )
    return "\n".join(lines)


def _verdict(before: dict[str, Any], after: dict[str, Any]) -> str:
    if after["quartiles"][1] < before["quartiles"][0]:
        return "faster"
    if after["quartiles"][0] > before["quartiles"][1]:
        return "slower"
    return "noise"
