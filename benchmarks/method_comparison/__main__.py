"""Train what is missing of the comparison, or show what is there.

    python -m benchmarks.method_comparison run ROOT [--methods lora,dora] [--jobs 2]
    python -m benchmarks.method_comparison time ROOT [--jobs 2]
    python -m benchmarks.method_comparison report [--check]

ROOT is a folder of MSD Task04. A trial whose settings are in the results is not trained again, so
that a stopped run goes on; with other settings (``--steps 300``) a new comparison begins beside.
``time`` takes the steps alone, one method after another and all over again, on a quiet machine:
training lasts for hours, in which nothing is compared side by side.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks import results
from benchmarks.method_comparison import report
from benchmarks.method_comparison.plan import (
    FIRST_RATES,
    METHODS,
    SEEDS,
    SIZES,
    TASKS,
    Settings,
    Trial,
    search,
)
from benchmarks.method_comparison.trial import one_thread, timed, trained

RESULTS = results.FOLDER / "method_comparison.json"
ROUNDS = 2


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("run", help="train what is missing")
    train.add_argument("--seeds", type=int, default=len(SEEDS), help="so many of the seeds")
    clock = commands.add_parser("time", help="time the steps of every method")
    clock.add_argument("--rounds", type=int, default=ROUNDS, help="how often over all of them")
    clock.add_argument("--tasks", default=",".join(TASKS), help="which, with commas")
    for work in (train, clock):
        work.add_argument("root", type=Path, help="folder of MSD Task04")
        work.add_argument("--methods", default=",".join(METHODS), help="which, with commas")
        work.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
        for field in fields(Settings):
            flag = f"--{field.name.replace('_', '-')}"
            work.add_argument(flag, type=type(field.default), default=field.default)
    train.add_argument("--output", type=Path, default=RESULTS)
    clock.add_argument("--output", type=Path, default=report.steps_beside(RESULTS))
    show = commands.add_parser("report", help="write the table and figures of the docs")
    show.add_argument("--results", type=Path, default=RESULTS)
    show.add_argument("--check", action="store_true", help="change nothing; fail if stale")
    arguments = parser.parse_args()
    if arguments.command == "report":
        sys.exit(report.write(arguments.results, check=arguments.check))
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    """Search a learning rate for every method, then train every task and size, seed by seed."""
    settings = Settings(**{f.name: getattr(arguments, f.name) for f in fields(Settings)})
    methods = arguments.methods.split(",")
    if unknown := set(getattr(arguments, "tasks", "box").split(",")) - set(TASKS):
        sys.exit(f"--tasks: expected names of {', '.join(TASKS)}; got {', '.join(unknown)}")
    if unknown := set(methods) - set(METHODS):
        sys.exit(f"--methods: expected names of {', '.join(METHODS)}; got {', '.join(unknown)}")
    with (
        tempfile.TemporaryDirectory() as work,
        ProcessPoolExecutor(arguments.jobs, get_context("spawn"), one_thread) as pool,
    ):
        place = (settings, arguments.root, Path(work), arguments.output)
        if arguments.command == "time":
            trials = steps_to_time(methods, arguments.rounds, arguments.tasks.split(","))
            list(pool.map(partial(timed, *place), trials))
            return
        train = partial(trained, *place)
        rates = list(pool.map(partial(search, train=train), methods))
        trials = [
            Trial(method, size, task, lr, seed)
            for seed in SEEDS[: arguments.seeds]
            for task in TASKS
            for method, lr in zip(methods, rates, strict=True)
            for size in SIZES
        ]
        list(pool.map(train, trials))


def steps_to_time(
    methods: Sequence[str], rounds: int = ROUNDS, tasks: Sequence[str] = tuple(TASKS)
) -> list[Trial]:
    """Return every method at every size and task, all of them so many times."""
    return [
        Trial(method, size, task, FIRST_RATES[0], SEEDS[0])
        for _ in range(rounds)
        for task in TASKS
        if task in tasks
        for method in methods
        for size in SIZES
    ]


if __name__ == "__main__":
    main()
