"""Command line: run suites, or show and compare the files that earlier runs left."""

import argparse
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

SUITES = (
    "sdpa", "sdpa-bf16", "sdpa-tiny", "sdpa-backward", "sdpa-window", "sdpa-mask", "sdpa-length",
    "additive", "additive-backward", "luong", "recurrent", "minilm", "onnx",
    "operators", "gpt2", "translator", "serving",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run one command; the status is 1 if a contender was wrong or failed or pyattn is missing."""
    if arguments[:1] in (["table"], ["summary"], ["targets"]):
        return _show(arguments[0], arguments[1:])
    if arguments[:1] == ["plot"]:
        return _plot(arguments[1:])
    if arguments[:1] == ["compare"]:
        return _compare(arguments[1:])
    return _run(arguments)


def _show(form: str, arguments: list[str]) -> int:
    from benchmarks import report, targets

    forms = {"table": report.table, "summary": report.summary, "targets": targets.table}
    parser = argparse.ArgumentParser(f"benchmarks {form}", description="Show a file as Markdown.")
    parser.add_argument("file", type=Path)
    print(forms[form](report.read(parser.parse_args(arguments).file)))
    return 0


def _plot(arguments: list[str]) -> int:
    from benchmarks import plot, report

    parser = argparse.ArgumentParser("benchmarks plot", description="Draw speed over length.")
    parser.add_argument("file", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    return int(not plot.write(options.picture, report.read(options.file)))


def _compare(arguments: list[str]) -> int:
    from benchmarks import report

    parser = argparse.ArgumentParser("benchmarks compare", description="Compare two files.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args(arguments)
    print(report.compare(report.read(options.before), report.read(options.after)))
    return 0


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "benchmarks",
        description=__doc__,
        epilog="also: table, summary or targets FILE, plot FILE PICTURE, compare BEFORE AFTER",
    )
    parser.add_argument("suite", nargs="*", help=f"of {', '.join(SUITES)}; all unless given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=30, help="samples per contender, at most")
    parser.add_argument("--quick", action="store_true", help="few, short samples: a third the time")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", default="", help="run cases whose name contains this")
    options = parser.parse_args(arguments)
    unknown = set(options.suite) - set(SUITES)
    if unknown:
        parser.error(f"no suite named {', '.join(sorted(unknown))}")
    if options.threads < 1 or options.repeat < 1:
        parser.error("--threads and --repeat must be at least 1")
    _limit_threads(options.threads)

    from benchmarks import harness, limits, machine, report

    names = options.suite or list(SUITES)
    effort = harness.QUICK if options.quick else harness.Effort(options.repeat)
    results = machine.describe(options.threads)
    measured = limits.build(options.threads)
    rows: list[harness.Row] = []
    for name in names:
        suite = import_module(f"benchmarks.suites.{name.replace('-', '_')}")
        cases = suite.cases(options.threads)
        rows.extend(harness.run(cases, effort, options.only, measured, options.threads))
    if not rows:
        parser.error(f"no case of {', '.join(names)} contains {options.only!r}")
    results["limits"] = limits.medians((row.limit, row.limit_rates) for row in rows)
    results["rows"] = [row.as_json() for row in rows]
    stem = "-".join(options.suite) or "all"
    path = options.out / f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    written = report.write(path, results)
    print(report.page(results), "", *written, sep="\n")
    bad = [row for row in rows if row.status in ("wrong", "failed")]
    missing = [row for row in rows if row.status == "absent" and row.contender.startswith("pyattn")]
    return int(bool(bad or missing))


def _limit_threads(threads: int) -> None:
    """Hold the libraries to the threads, which some of them count once, when they are loaded."""
    if "numpy" in sys.modules:
        raise RuntimeError("the thread count must be set before NumPy is imported")
    from benchmarks.threads import hold

    hold(threads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
