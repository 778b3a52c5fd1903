"""Command line: run suites, or show and compare the files that earlier runs left."""

import argparse
import os
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

SUITES = ("sdpa", "additive", "minilm")


def main(arguments: list[str]) -> int:
    """Run one command; the status is 1 if a contender was wrong or failed or pyattn is missing."""
    if arguments[:1] in (["table"], ["summary"]):
        return _show(arguments[0], arguments[1:])
    if arguments[:1] == ["compare"]:
        return _compare(arguments[1:])
    return _run(arguments)


def _show(form: str, arguments: list[str]) -> int:
    from benchmarks import report

    parser = argparse.ArgumentParser(f"benchmarks {form}", description="Show a file as Markdown.")
    parser.add_argument("file", type=Path)
    results = report.read(parser.parse_args(arguments).file)
    print(report.table(results) if form == "table" else report.summary(results))
    return 0


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
        epilog="also: table FILE, summary FILE, compare BEFORE AFTER",
    )
    parser.add_argument("suite", nargs="*", help=f"of {', '.join(SUITES)}; all unless given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=30, help="samples per contender, at most")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", default="", help="run cases whose name contains this")
    options = parser.parse_args(arguments)
    unknown = set(options.suite) - set(SUITES)
    if unknown:
        parser.error(f"no suite named {', '.join(sorted(unknown))}")
    if options.threads < 1 or options.repeat < 1:
        parser.error("--threads and --repeat must be at least 1")
    _limit_threads(options.threads)

    from benchmarks import harness, machine, report

    names = options.suite or list(SUITES)
    results = machine.describe(options.threads)
    rows: list[harness.Row] = []
    for name in names:
        cases = import_module(f"benchmarks.suites.{name}").cases(options.threads)
        rows.extend(harness.run(cases, options.repeat, options.only))
    if not rows:
        parser.error(f"no case of {', '.join(names)} contains {options.only!r}")
    results["limits"] = machine.best_limits(results["limits"], machine.limits(options.threads))
    results["rows"] = [row.as_json() for row in rows]
    path = options.out / f"{'-'.join(names)}-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    report.write(path, results)
    print(report.table(results), f"\n{path}", sep="\n")
    bad = [row for row in rows if row.status in ("wrong", "failed")]
    missing = [row for row in rows if row.status == "absent" and row.contender.startswith("pyattn")]
    return int(bool(bad or missing))


def _limit_threads(threads: int) -> None:
    """Set the thread count of BLAS and OpenMP, which read it once, when NumPy is imported."""
    if "numpy" in sys.modules:
        raise RuntimeError("the thread count must be set before NumPy is imported")
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
