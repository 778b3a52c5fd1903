"""Results files: written whole or not at all, shown as Markdown, compared in pairs."""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

Results = dict[str, Any]
Rows = list[dict[str, Any]]

LIMITS = {
    "matmul_float32_flops": "float32 matrix product",
    "matmul_bfloat16_flops": "bfloat16 matrix product",
    "read_bytes_per_second": "reading memory",
}
PLOTTED = "sdpa-length"  # a suite with a picture instead of lines in the summary


def write(path: Path, results: Results) -> list[Path]:
    """Write the results, the page that shows them and its picture; return what was written."""
    from benchmarks import plot

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = path.with_suffix(".png")
    drawn = [picture] if plot.write(picture, results) else []
    page_of = page(results, picture.name if drawn else "")
    _replace(path.with_suffix(".md"), page_of + "\n")
    _replace(path, json.dumps(results, indent=1, allow_nan=False) + "\n")
    return [path, path.with_suffix(".md"), *drawn]


def _replace(path: Path, text: str) -> None:
    """Write under a temporary name and rename, so that the file is never partial."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def read(path: Path) -> Results:
    """Read a results file."""
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    return results


def newest(folder: Path, suites: Iterable[str]) -> Path:
    """The newest results file of a folder that has rows of every one of the suites."""
    wanted = set(suites)
    found = []
    for path in folder.glob("*.json"):
        results = read(path)
        if wanted <= {suite_of(row) for row in results["rows"]}:
            found.append((results["date"], path))
    if not found:
        raise FileNotFoundError(f"no results of {', '.join(sorted(wanted))} in {folder}")
    return max(found)[1]


def suite_of(row: dict[str, Any]) -> str:
    """The suite that a row belongs to, which begins the name of its case."""
    return str(row["case"]).split("/", 1)[0]


def by_case(results: Results) -> list[tuple[str, Rows]]:
    """The rows of each case, in the order in which the cases were run."""
    return [(case, list(rows)) for case, rows in groupby(results["rows"], lambda row: row["case"])]


def ours(rows: Rows) -> dict[str, Any] | None:
    """What a case is about: pyattn's fastest way to do it, or None if none was timed."""
    return _fastest(row for row in rows if is_ours(row))


def best_peer(rows: Rows) -> dict[str, Any] | None:
    """The fastest of the others, or None if none was timed."""
    return _fastest(row for row in rows if not is_ours(row))


def is_ours(row: dict[str, Any]) -> bool:
    """Whether a row is pyattn's."""
    return str(row["contender"]).startswith("pyattn")


def _fastest(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    timed = [row for row in rows if row["median"]]
    return min(timed, key=lambda row: row["median"]) if timed else None


def rate(row: dict[str, Any]) -> float:
    """Operations per second, or bytes per second where the memory sets the limit."""
    work: float = row["bytes_read"] or row["operations"]
    return work / float(row["median"])


def share(row: dict[str, Any], source: str = "") -> float | None:
    """The rate as a part of the machine's limit, measured by one library or by the fastest."""
    rates: dict[str, float] = row.get("limit_rates") or {}
    limit = rates.get(source) if source else max(rates.values(), default=None)
    return rate(row) / limit if limit and row["median"] else None


def heading(results: Results) -> str:
    """One paragraph that says what the figures below it depend on."""
    machine = results["machine"]
    limits = "; ".join(
        f"{title} {_rates(results['limits'][kind])}"
        for kind, title in LIMITS.items()
        if kind in results["limits"]
    )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{machine['cpu']} ({' '.join(machine['isa'])}), {results['threads']} threads of "
        f"{machine['cores']} cores (load {machine['load_average']:.1f}); "
        f"commit {results['commit']}, {results['date']}; {versions}. "
        f"Limits measured in the same run, in 10^9 operations or bytes per second: {limits}."
    )


def _rates(rates: dict[str, float] | float) -> str:
    """A limit by library; files of the first runs have one number for reading memory."""
    if isinstance(rates, float):
        return f"{rates / 1e9:.1f}"
    return ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())


def page(results: Results, picture: str = "") -> str:
    """The whole of a results file as Markdown."""
    from benchmarks import targets

    parts = [heading(results)]
    if targets.found(results):
        parts.append("## Against what was asked for\n\n" + targets.table(results))
    if picture:
        parts.append(f"## Speed over sequence length\n\n![speed over sequence length]({picture})")
    return "\n\n".join([*parts, "## Every contender\n\n" + table(results, head=False)])


def table(results: Results, *, head: bool = True) -> str:
    """Markdown: one line per case and contender, each case led by its fastest contender.

    `of limit` is against the fastest library's matrix product, or the rate of reading memory, in
    the same rounds. `best peer` is how many times as long the fastest of the others takes.
    """
    lines = [
        *([heading(results), ""] if head else []),
        "| case | contender | median ms | quartiles ms | rate | of limit | best peer |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for _, rows in by_case(results):
        peer = best_peer(rows)
        ordered = sorted(rows, key=lambda row: row["median"] or float("inf"))
        lines.extend(_line(row, peer) for row in ordered)
    return "\n".join(lines)


def _line(row: dict[str, Any], peer: dict[str, Any] | None) -> str:
    start = f"| {row['case']} | {row['contender']} "
    if row["status"] != "ok":
        return f"{start}| {row['status']}: {row['reason']} | | | | |"
    low, high = row["quartiles"]
    against = f"{peer['median'] / row['median']:.2f}" if peer else ""
    unit = "B" if row["bytes_read"] else row["unit"]
    return (
        f"{start}| {_ms(row['median'])} | {_ms(low)} – {_ms(high)} "
        f"| {_scaled(rate(row))}{unit}/s | {percent(share(row))} | {against} |"
    )


# In the summary, the first of these that was timed stands for pyattn.
OURS = ("pyattn.export in onnxruntime", "pyattn")


def summary(results: Results) -> str:
    """Markdown for the README: our time in each case, and the others' as a multiple of it.

    The column `of limit` is there where limits were measured in turn with the cases.
    """
    chosen: list[tuple[str, dict[str, Any], Rows]] = []
    for case, rows in by_case(results):
        timed = {row["contender"]: row for row in rows if row["median"]}
        name = next((name for name in OURS if name in timed), None)
        if name is not None and suite_of(rows[0]) != PLOTTED:
            mine = timed.pop(name)
            chosen.append((case, mine, sorted(timed.values(), key=lambda row: row["median"])))
    limited = any(share(mine) is not None for _, mine, _ in chosen)
    lines = [
        f"| case | pyattn, ms |{' of limit |' * limited} the others take, times as long |",
        f"| --- | ---: |{' ---: |' * limited} --- |",
    ]
    for case, mine, others in chosen:
        part = f" {percent(share(mine))} |" if limited else ""
        multiples = ", ".join(
            f"{row['contender']} {row['median'] / mine['median']:.2f}" for row in others
        )
        lines.append(f"| {case} | {_ms(mine['median'])} |{part} {multiples} |")
    return "\n".join(lines)


def percent(part: float | None) -> str:
    """A share in percent; empty where there is none."""
    return "" if part is None else f"{100 * part:.0f} %"


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
    quartiles: Sequence[Sequence[float]] = (before["quartiles"], after["quartiles"])
    if quartiles[1][1] < quartiles[0][0]:
        return "faster"
    if quartiles[1][0] > quartiles[0][1]:
        return "slower"
    return "noise"
