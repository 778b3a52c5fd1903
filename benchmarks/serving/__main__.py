"""Command line: load one server for a long time."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: list[str]) -> int:
    """Run one command; the status is 1 if a server failed."""
    return _soak(arguments[1:])


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
    file = given.out / f"serving-soak-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
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
