"""What a user waits for: whole tasks, each from the start of a process, ours and the peers'.

    python -m benchmarks.end_to_end ROOT [--rows PATTERN]

ROOT is a copy of MSD Task04 (hippocampus). Every contender does its task in a process of its own,
with one thread, and what counts are the CPU-seconds of that process and of those that it starts:
they hardly depend on what else the machine does. Results go to ``results/end_to_end.json`` as soon
as they are there. A run that was stopped, or that has only some rows, goes on where it was, as long
as processor and packages are the same. The tasks are in ``end_to_end_tasks``.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine, results
from benchmarks.end_to_end_tasks import TASKS
from benchmarks.harness import figures, ratios
from benchmarks.process import ROOT, git
from benchmarks.table import row_text

OUTPUT = results.FOLDER / "end_to_end.json"
THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


def main() -> int:
    """Measure what the last run did not; return 1 if a contender failed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of MSD Task04")
    parser.add_argument("--rows", default="*", help="which rows, such as 'predict*'")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    chosen = parser.parse_args()
    entry = unfinished(chosen.output) or begin()
    failed = False
    for row in TASKS:
        if not fnmatch.fnmatch(row, chosen.rows):
            continue
        for contender in TASKS[row]:
            if contender in measured(entry, row):
                continue
            try:
                add(entry, row, contender, measure(row, contender, chosen.root))
            except RuntimeError as error:
                failed = True
                print(f"{row}, {contender}: {error}", file=sys.stderr, flush=True)
                continue
            entry["whole"] = all(set(TASKS[name]) == set(measured(entry, name)) for name in TASKS)
            results.update(chosen.output, entry)
        if measured(entry, row):
            print(row_text(next(one for one in entry["rows"] if one["row"] == row)), flush=True)
    return int(failed)


def begin() -> dict[str, Any]:
    """Return a run without rows."""
    return {
        "time": datetime.now(UTC).isoformat(),
        "suite": "end_to_end",
        "repeat": 1,
        **machine.describe(),
        "threads": 1,
        "rooflines": {},
        "whole": False,
        "rows": [],
    }


def unfinished(path: Path) -> dict[str, Any] | None:
    """Return the last run of a file, if it lacks rows and was made here with these packages."""
    last, here = next(reversed(results.read(path)), None), machine.describe()
    same = last is not None and all(last[key] == here[key] for key in ("processor", "packages"))
    return last if last is not None and same and not last["whole"] else None


def measured(entry: Mapping[str, Any], row: str) -> Mapping[str, Any]:
    """Return what was measured of a row, by contender."""
    return next((one["contenders"] for one in entry["rows"] if one["row"] == row), {})


def add(entry: dict[str, Any], row: str, contender: str, found: Mapping[str, Any]) -> None:
    """Add what one contender took to its row; the first contender of a task is samadapt."""
    rows = entry["rows"]
    if not measured(entry, row):
        rows.append(
            {
                "row": row,
                "kind": "comparison",
                "device": "cpu",
                "images": 1,
                "contenders": {},
                "facts": {},
            }
        )
    one = next(one for one in rows if one["row"] == row)
    one["contenders"][contender] = {
        **figures([found["cpu_s"]]),
        "wall_s": found["wall_s"],
        "commit": git("rev-parse", "HEAD"),
        "error": None,
    }
    facts = found["facts"] | {"peak memory": f"{found['peak_bytes'] / 1e9:.2f} GB"}
    one["facts"] |= {f"{contender}: {key}": value for key, value in facts.items()}
    ordered = {name: one["contenders"][name] for name in TASKS[row] if name in one["contenders"]}
    one["contenders"] = ordered
    (first, ours), *others = ordered.items()
    if first == next(iter(TASKS[row])):
        for _, theirs in others:
            theirs["ratio"] = ratios(ours["seconds"], theirs["seconds"])


def measure(row: str, contender: str, root: Path) -> dict[str, Any]:
    """Let a contender do its task in a process of its own.

    Returns:
        ``cpu_s``, ``wall_s``, ``peak_bytes`` (of the largest process) and ``facts``. If the task
        did a part only, its seconds are multiplied, and the facts say so.

    Raises:
        RuntimeError: the process fails; the message ends with what it wrote to stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, log = Path(folder) / "report.json", Path(folder) / "log.txt"
        command = [sys.executable, "-m", "benchmarks.end_to_end_tasks", row, contender]
        began = datetime.now(UTC)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, str(root), folder],
                cwd=ROOT,
                env=os.environ | THREADS,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            told = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"ended with {process.returncode}:\n{told}")
        found = json.loads(report.read_text(encoding="utf-8"))
    cpu = used.ru_utime + used.ru_stime
    return {
        "cpu_s": round(cpu - found["not_counted_s"] + found["scaled_s"], 2),
        "wall_s": round((datetime.now(UTC) - began).total_seconds(), 2),
        "peak_bytes": used.ru_maxrss * 1024,
        "facts": found["facts"],
    }


if __name__ == "__main__":
    sys.exit(main())
