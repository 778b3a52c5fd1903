"""Command line: compare servers, load one for a long time, or show what was measured."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import read

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "serving"


def main(arguments: list[str]) -> int:
    """Run one command; the status is 1 if a server failed or answered wrongly."""
    if arguments[:1] == ["soak"]:
        return _soak(arguments[1:])
    if arguments[:1] == ["table"]:
        return _table(arguments[1:])
    return _compare(arguments)


def _compare(arguments: list[str]) -> int:
    from pyattn_serving.bench.report import write_json

    from benchmarks.serving import compare, report

    parser = argparse.ArgumentParser(
        "benchmarks.serving",
        description="Compare pyattn-serve with other servers: same models, same load.",
        epilog="also: soak, table FILE",
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=2.0, help="of one measurement")
    add("--quick", action="store_true", help="one round of 0.5 s")
    add("--only", default="", help="cases whose WORKLOAD/FORM/CLIENTS contains this")
    add("--cores", type=int, default=2, help="for the server and the load generator together")
    add("--threads", type=int, default=2, help="of ONNX Runtime, for every server")
    add("--peers", type=Path, default=ROOT / "build" / "serving-peers", help="their environments")
    add("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args(arguments)
    options = compare.Options(
        rounds=1 if given.quick else given.rounds,
        seconds=0.5 if given.quick else given.seconds,
        threads=given.threads,
        cores=given.cores,
        only=given.only,
    )
    results = compare.run(options, given.peers.resolve())
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / f"peers-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    write_json(results, file)
    print(report.table(results), "", file, sep="\n")
    return int(any(row["status"] == "wrong" for row in results["rows"]))


def _table(arguments: list[str]) -> int:
    from benchmarks.serving import report

    parser = argparse.ArgumentParser("benchmarks.serving table", description="Show a comparison.")
    parser.add_argument("file", type=Path)
    print(report.table(read(parser.parse_args(arguments).file)))
    return 0


def _soak(arguments: list[str]) -> int:
    from benchmarks.serving import soak

    parser = argparse.ArgumentParser(
        "benchmarks.serving soak",
        description="Load pyattn-serve with requests of random lengths, wrong ones and clients "
        "that leave; check every answer and watch its memory.",
    )
    add = parser.add_argument
    add("--minutes", type=float, default=60.0)
    add("--rate", type=float, default=20.0, help="requests a second; 0 is as many as it answers")
    add("--clients", type=int, default=8)
    add("--threads", type=int, default=2, help="of ONNX Runtime")
    add("--out", type=Path, default=RESULTS, help="folder of the report")
    given = parser.parse_args(arguments)
    options = soak.Options(
        minutes=given.minutes,
        rate=given.rate or None,
        clients=given.clients,
        threads=given.threads,
    )
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / f"soak-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    report = soak.run(options, file)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report["requests"].items()))
    sizes = report["memory"]["resident_bytes"]
    print(f"{kinds}; {report['failed']} failed")
    if report["growth"] is not None:
        print(f"resident memory {sizes[-1] / 1e6:.0f} MB, grown to {report['growth']:.3f} times")
    print(file)
    return int(report["failed"] > 0 or not report["flat"] or report["exit_code"] != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
