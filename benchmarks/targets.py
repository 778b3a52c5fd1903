"""What pyattn is asked to reach on two threads of an AVX-512 machine, and what a run measured.

A share of the matrix rate is taken of NumPy's product of the same rounds, as it was asked for; the
table shows it of the fastest library's too, which on some processors is nearly twice as fast.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks import report
from benchmarks.report import Results, Rows

LONG, SHORT = 512, 128


@dataclass(frozen=True)
class Target:
    """One line: `measured` should be at least `wanted`."""

    work: str
    case: str
    measured: float
    wanted: float
    note: str = ""


def table(results: Results) -> str:
    """Markdown: each target, what was measured, and whether it is reached."""
    lines = ["| work | case | measured | at least | reached |", "| --- | --- | ---: | ---: | --- |"]
    for target in found(results):
        reached = "yes" if target.measured >= target.wanted else "no"
        note = f" ({target.note})" if target.note else ""
        lines.append(
            f"| {target.work} | {target.case} | {target.measured:.2f}{note} "
            f"| {target.wanted:.2f} | {reached} |"
        )
    return "\n".join(lines)


def found(results: Results) -> list[Target]:
    """Every target whose case was timed in this run."""
    suites: dict[str, dict[str, Rows]] = {}
    for case, rows in report.by_case(results):
        if report.ours(rows) is not None:
            suites.setdefault(report.suite_of(rows[0]), {})[case.split("/", 1)[1]] = rows
    rules: tuple[Callable[[dict[str, dict[str, Rows]]], Iterator[Target]], ...] = (
        _prefill, _matrix_rate, _narrow, _decode, _tiny, _backward, _window, _mask,
        _additive, _local, _recurrent, _onnx, _decoders,
    )  # fmt: skip
    return [target for rule in rules for target in rule(suites)]


Suites = dict[str, dict[str, Rows]]


def _against_peer(rows: Rows, only: str = "") -> tuple[float, str] | None:
    """How many times as long the best peer takes, and which that is."""
    mine = report.ours(rows)
    peer = report.best_peer([row for row in rows if only in row["contender"]])
    if mine is None or peer is None:
        return None
    return peer["median"] / mine["median"], peer["contender"]


def _split(cases: dict[str, Rows], *, decode: bool) -> dict[str, Rows]:
    return {case: rows for case, rows in cases.items() if bool(rows[0]["bytes_read"]) == decode}


def _mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _ratios(work: str, cases: dict[str, Rows], wanted: float, only: str = "") -> list[Target]:
    pairs = ((case, _against_peer(rows, only)) for case, rows in cases.items())
    return [Target(work, case, pair[0], wanted, pair[1]) for case, pair in pairs if pair]


def _prefill(suites: Suites) -> Iterator[Target]:
    work = "float32 prefill, times the best peer"
    targets = _ratios(work, _split(suites.get("sdpa", {}), decode=False), 1.0)
    yield from targets
    if targets:
        yield Target(work, "geometric mean", _mean([t.measured for t in targets]), 1.4)


def _matrix_rate(suites: Suites) -> Iterator[Target]:
    for case, rows in _split(suites.get("sdpa", {}), decode=False).items():
        length = int(case.split(",")[3])
        wanted = 0.85 if length >= LONG else 0.75
        target = _share("float32 prefill, of the matrix rate", case, rows, wanted, "numpy")
        if target is not None and (length >= LONG or length == SHORT):
            yield target


def _share(work: str, case: str, rows: Rows, wanted: float, source: str = "") -> Target | None:
    mine = report.ours(rows)
    part = None if mine is None else report.share(mine, source)
    if mine is None or part is None:
        return None
    note = f"{report.share(mine) or 0.0:.2f} of the fastest library's" if source else ""
    return Target(work, case, part, wanted, note)


def _narrow(suites: Suites) -> Iterator[Target]:
    work = "bfloat16 prefill, times the best peer"
    targets = _ratios(work, _split(suites.get("sdpa-bf16", {}), decode=False), 1.4)
    if targets:
        notes = ", ".join(f"{t.measured:.2f}" for t in targets)
        yield Target(work, "geometric mean", _mean([t.measured for t in targets]), 1.4, notes)


def _decode(suites: Suites) -> Iterator[Target]:
    for suite, dtype, wanted in (("sdpa", "float32", 0.85), ("sdpa-bf16", "bfloat16", 0.8)):
        cases = _split(suites.get(suite, {}), decode=True)
        for case, rows in cases.items():
            target = _share(f"{dtype} decode, of the read bandwidth", case, rows, wanted)
            if target is not None:
                yield target
        work = f"{dtype} decode, times the best peer"
        plain = {t.case: t for t in _ratios(work, _without_rewriting(cases), 3.0)}
        for target in _ratios(work, cases, 3.0):
            other = plain.get(target.case, target)
            if other.note != target.note:
                note = f"{target.note}; {other.measured:.2f} times {other.note}"
                target = replace(target, note=note)
            yield target


def _without_rewriting(cases: dict[str, Rows]) -> dict[str, Rows]:
    """Only what libraries offer as they stand, without the rewriting that reads each key once."""
    return {
        case: [row for row in rows if "heads as rows" not in row["contender"]]
        for case, rows in cases.items()
    }


def _tiny(suites: Suites) -> Iterator[Target]:
    yield from _ratios("a tiny call, times torch", suites.get("sdpa-tiny", {}), 4.0, "torch")


def _backward(suites: Suites) -> Iterator[Target]:
    work = "float32 forward and backward, times torch"
    yield from _ratios(work, suites.get("sdpa-backward", {}), 1.3, "torch")


def _pairs(cases: dict[str, Rows], mark: str) -> Iterator[tuple[str, Rows, Rows]]:
    """Cases with an option in their name, each with the case without it."""
    for case, rows in cases.items():
        plain = "/".join(part for part in case.split("/") if not part.startswith(mark))
        if plain != case and plain in cases:
            yield case, rows, cases[plain]


def _window(suites: Suites) -> Iterator[Target]:
    for case, rows, plain in _pairs(suites.get("sdpa-window", {}), "window"):
        fast, slow = report.ours(rows), report.ours(plain)
        if fast and slow:
            ratio = slow["median"] / fast["median"]
            yield Target("a window, times the full computation", case, ratio, 20.0)


def _local(suites: Suites) -> Iterator[Target]:
    for case, rows, plain in _pairs(suites.get("luong", {}), "local-p"):
        fast, slow = report.ours(rows), report.ours(plain)
        if fast and slow:
            ratio = slow["median"] / fast["median"]
            yield Target("local-p, times the global alignment", case, ratio, 50.0)


def _mask(suites: Suites) -> Iterator[Target]:
    for mark in ("blocks", "padding"):
        for case, rows, plain in _pairs(suites.get("sdpa-mask", {}), mark):
            masked, full = report.ours(rows), report.ours(plain)
            if masked and full:
                part = report.rate(masked) / report.rate(full)
                yield Target("a boolean mask, per allowed area, of no mask", case, part, 0.85)


def _additive(suites: Suites) -> Iterator[Target]:
    forward, both = suites.get("additive", {}), suites.get("additive-backward", {})
    yield from _ratios("additive, times torch.compile", forward, 12.0, "torch.compile")
    yield from _ratios("additive, times eager PyTorch", forward, 60.0, "torch eager")
    work = "additive forward and backward, times eager PyTorch"
    yield from _ratios(work, both, 15.0, "torch eager")


ONNX_WANTED = {
    "1,32,8,1,4096,128": ("onnxruntime", 2.5),
    "1,8,8,4096,4096,64/causal": ("onnxruntime", 2.0),
    "additive 16,50,50,256": ("body", 8.0),
    "minilm 32 sentences": ("padded in onnxruntime", 1.5),
}


def _onnx(suites: Suites) -> Iterator[Target]:
    cases = suites.get("onnx", {})
    for case, (peer, wanted) in ONNX_WANTED.items():
        if case in cases:
            yield from _ratios("operators in ONNX Runtime", {case: cases[case]}, wanted, peer)
    sentences = {case: rows for case, rows in cases.items() if case.startswith("minilm")}
    for peer in ("openvino", "torch"):
        yield from _ratios(f"packed sentences, times {peer}", sentences, 1.0, peer)


def _decoders(suites: Suites) -> Iterator[Target]:
    for suite in ("gpt2", "translator"):
        for case, rows in suites.get(suite, {}).items():
            wanted = 1.5 if case.startswith("decode") else 1.0
            work = f"{suite}, times torch's exports in ONNX Runtime"
            yield from _ratios(work, {case: rows}, wanted, "torch.onnx.export")


def _recurrent(suites: Suites) -> Iterator[Target]:
    yield from _ratios("GRU and LSTM, times torch", suites.get("recurrent", {}), 1.0, "torch")
