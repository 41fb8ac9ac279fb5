"""Bring the recorded trainings of the method comparison together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.method_comparison.plan import METHODS, SIZES, TASKS, Trial, searched

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One method at one size on one task.

    Attributes:
        scores: held-out Dice of each seed.
        trained: trained parameters outside the decoder.
        step_s: median seconds of a training step, timed separately; None if it was not timed.
        lr: the learning rate that the search chose.
    """

    scores: tuple[float, ...]
    trained: int
    step_s: float | None
    lr: float

    @property
    def dice(self) -> float:
        """Mean Dice over the seeds."""
        return statistics.fmean(self.scores)

    @property
    def spread(self) -> float | None:
        """Standard deviation of Dice over the seeds; None for a single seed."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


Points = dict[tuple[str, str, str], Point]
"""Points by (method, size, task)."""


def steps_beside(path: Path) -> Path:
    """Return the file that holds the times of the steps."""
    return path.with_name(f"{path.stem}_steps.json")


def step_times(rows: Sequence[Row], timed: Sequence[Row]) -> dict[tuple[str, str, str], float]:
    """Return the median seconds of a step by method, size and task, for the settings of rows."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in timed:
        if rows and row["settings"] == rows[-1]["settings"]:
            found.setdefault(_place(row), []).extend(row["step_s"])
    return {place: statistics.median(seconds) for place, seconds in found.items()}


def _place(row: Row) -> tuple[str, str, str]:
    trial = row["trial"]
    return trial["method"], trial["size"], trial["task"]


def newest(rows: Sequence[Row]) -> list[Row]:
    """Return the trials that share the settings of the last trial."""
    return [row for row in rows if row["settings"] == rows[-1]["settings"]] if rows else []


def of_whole_seeds(rows: Sequence[Row]) -> list[Row]:
    """Return the trials of those seeds for which every method, size and task is complete.

    The trials of the search for learning rates are kept as well. A table of an incomplete seed
    would compare methods that were not trained equally often.
    """
    rates = chosen_rates(rows)
    wanted = {(method, size, task) for method in METHODS for size in SIZES for task in TASKS}
    done: dict[int, set[tuple[str, str, str]]] = {}
    for row in rows:
        if rates.get(row["trial"]["method"]) == row["trial"]["lr"]:
            done.setdefault(row["trial"]["seed"], set()).add(_place(row))
    whole = {seed for seed, places in done.items() if places >= wanted}
    return [row for row in rows if row["trial"]["seed"] in whole]


def unfinished(rows: Sequence[Row]) -> str:
    """Return the text of the page as long as no seed is complete."""
    if not rows:
        return "Not measured yet."
    trials = len(METHODS) * len(SIZES) * len(TASKS)
    return (
        f"Not finished: {len(rows)} trainings are recorded, including the search for learning "
        f"rates. A seed has {trials} trainings and is shown when it is complete. `run` continues "
        "where it stopped."
    )


def chosen_rates(rows: Iterable[Row]) -> dict[str, float]:
    """Return for each method the learning rate with the best validation Dice of the search."""
    best: dict[str, tuple[float, float]] = {}
    for row in rows:
        trial, found = Trial(**row["trial"]), row["validation_dice"]
        if trial == searched(trial.method, trial.lr) and found > best.get(trial.method, (-1.0,))[0]:
            best[trial.method] = (found, trial.lr)
    return {method: lr for method, (_, lr) in best.items()}


def summarise(rows: Sequence[Row], times: Mapping[tuple[str, str, str], float]) -> Points:
    """Collect the seeds of each method, size and task at the chosen learning rate."""
    rates = chosen_rates(rows)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        trial = row["trial"]
        if rates.get(trial["method"]) == trial["lr"]:
            groups.setdefault(_place(row), []).append(row)
    return {place: _point(group, times.get(place)) for place, group in groups.items()}


def _point(group: Sequence[Row], step_s: float | None) -> Point:
    scores = tuple(row["dice"] for row in group)
    return Point(scores, group[0]["trained_encoder"], step_s, group[0]["trial"]["lr"])
