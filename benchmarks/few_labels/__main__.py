"""Measure what is missing, show what is there, or write the page.

    python -m benchmarks.few_labels run --data PATH [--work DIR] [--arms unet,lora] [--limit N]
    python -m benchmarks.few_labels status
    python -m benchmarks.few_labels table [--check]

PATH holds the data sets, each in a folder of its name. Each training appends one row to
``benchmarks/results/few_labels.jsonl``. A cell that has a row is not trained again, so the command
may be stopped and started at any time; the cell that was running then starts anew. It takes one
core: start it with ``nice nohup ... &`` and go on working. Two of them share the cells. A cell
whose command line samadapt refuses is named and left for later.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import Timeout

from benchmarks.few_labels import page, rows
from benchmarks.few_labels.arms import ARMS
from benchmarks.few_labels.domains import DOMAINS
from benchmarks.few_labels.plan import Cell, cells, missing
from benchmarks.few_labels.trial import RefusedError, run_cell

NICE = 10


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("run", help="train what is missing")
    train.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    train.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "few_labels")
    train.add_argument("--limit", type=int, help="stop after so many cells")
    train.add_argument("--hours", type=float, help="start no cell after so many hours")
    train.add_argument("--budget", type=int, help="another budget in CPU-seconds, for a trial")
    show = commands.add_parser("status", help="say which cells are measured")
    for command in (train, show):
        command.add_argument("--arms", default=",".join(ARMS), help="which, with commas")
        command.add_argument("--domains", default=",".join(DOMAINS), help="which, with commas")
    write = commands.add_parser("table", help="write the tables and the figure of the docs")
    write.add_argument("--check", action="store_true", help="change nothing; fail if stale")
    for command in (train, show, write):
        command.add_argument("--results", type=Path, default=rows.RESULTS)
    given = parser.parse_args()
    if given.command == "table":
        sys.exit(page.write(given.results, check=given.check))
    if given.command == "status":
        status(given.results, chosen(given))
        return
    os.nice(NICE)
    run(given)


def chosen(given: argparse.Namespace) -> list[Cell]:
    """Return the cells that the command line names, in order."""
    for name, known in (("arms", ARMS), ("domains", DOMAINS)):
        if unknown := set(getattr(given, name).split(",")) - set(known):
            sys.exit(f"--{name}: expected names of {', '.join(known)}; got {', '.join(unknown)}")
    arms, domains = given.arms.split(","), given.domains.split(",")
    planned = cells(rows.read(given.results))
    return [cell for cell in planned if cell.arm in arms and cell.domain in domains]


def run(given: argparse.Namespace) -> None:
    """Run the missing cells, one after another, until none is left or a limit is reached."""
    started, done, passed = time.monotonic(), 0, set[Cell]()
    while given.limit is None or done < given.limit:
        if given.hours is not None and time.monotonic() - started > 3600 * given.hours:
            break
        # Read anew each time: another process may have measured cells meanwhile.
        planned = [with_budget(cell, given.budget) for cell in chosen(given)]
        left = [cell for cell in missing(planned, rows.read(given.results)) if cell not in passed]
        if not left:
            break
        cell = left[0]
        try:
            with rows.lock(f"{given.results.resolve()}-{cell}", timeout=0):
                done += measure(cell, given)
        except Timeout:
            print(f"{describe(cell)}: in work elsewhere", flush=True)
        passed.add(cell)


def measure(cell: Cell, given: argparse.Namespace) -> bool:
    """Run one cell and append its row; return whether there is one."""
    try:
        row = run_cell(cell, given.data.resolve(), given.work.resolve())
    except RefusedError as refused:
        print(f"{describe(cell)}: left for later: {refused}", flush=True)
        return False
    rows.append(row, given.results)
    said = f"Dice {row['dice']:.3f}" if row.get("dice") is not None else "failed"
    print(f"{describe(cell)}: {said}, {row['cpu_seconds']:.0f} CPU-seconds", flush=True)
    return True


def with_budget(cell: Cell, budget: int | None) -> Cell:
    """Return a cell with another budget, such as a short one to try the machinery."""
    if budget is None:
        return cell
    return Cell(cell.arm, cell.domain, cell.labels, cell.draw, budget)


def describe(cell: Cell) -> str:
    """Return a cell as text."""
    return f"{cell.domain:16} {cell.arm:8} {cell.labels:4} draw {cell.draw} {cell.budget:5} s"


def status(path: Path, planned: Sequence[Cell]) -> None:
    """Print how many cells of each data set and arm are measured."""
    left = set(missing(planned, rows.read(path)))
    for domain in DOMAINS:
        for arm in ARMS:
            here = [cell for cell in planned if (cell.domain, cell.arm) == (domain, arm)]
            if here:
                measured = sum(cell not in left for cell in here)
                print(f"{domain:16} {arm:8} {measured:3} of {len(here)}")
    print(f"{len(planned) - len(left)} of {len(planned)} cells; failed ones count as measured")


if __name__ == "__main__":
    main()
