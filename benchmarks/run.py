"""Run a suite of benchmarks and append the results to its result file.

    python -m benchmarks.run SUITE [--repeat N] [--rows PATTERN] [--output FILE]

Run it on an idle machine, from the root of the repository.
"""

from __future__ import annotations

import argparse
import fnmatch
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine, results, single
from benchmarks.harness import SUITES, Comparison, Run, find_rows, set_threads
from benchmarks.table import row_text


def main() -> None:
    """Measure the rows one after the other, each in its own process, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of each contender")
    parser.add_argument("--rows", default="*", help="which rows, such as '*512*'")
    parser.add_argument("--output", type=Path, help="default: results/SUITE.json beside this file")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    arguments = parser.parse_args()
    set_threads()
    rows = [r for r in find_rows(arguments.suite) if fnmatch.fnmatch(r.name, arguments.rows)]
    if arguments.list or not rows:
        print("\n".join(row.name for row in rows) or f"no row matches {arguments.rows!r}")
        return
    devices = {"cpu"} | {row.device for row in rows if isinstance(row, Comparison)}
    rooflines = {device: machine.roofline(device) for device in sorted(devices)}
    for device, found in rooflines.items():
        print(device, {key: round(value, 1) for key, value in found.items()}, flush=True)
    run = Run(arguments.suite, arguments.repeat, rooflines, not arguments.no_memory)
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "suite": arguments.suite,
        "repeat": arguments.repeat,
        **machine.describe(),
        "rooflines": rooflines,
    }
    measured: list[dict[str, Any]] = []
    try:
        for row in rows:
            measured.append(single.measure(run, row.name))
            print(row_text(measured[-1]), flush=True)
    finally:
        whole = len(measured) == len(find_rows(arguments.suite))
        if measured:
            output = arguments.output or results.FOLDER / f"{arguments.suite}.json"
            results.append(output, {**entry, "whole": whole, "rows": measured})
            print(f"appended {len(measured)} rows to {output}")


if __name__ == "__main__":
    main()
