"""The number of clicks (NoC) as files, lines of a table and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.evaluation.number_of_clicks import (
    BOUNDS,
    MOST_CLICKS,
    ClickedObject,
    ClickScores,
    count_clicks,
)
from samadapt.reports.tables import NOTHING, STATES, csv_name, with_interval
from samadapt.system import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STATE_COLOURS = {"zero_shot": "#0072B2", "adapted": "#D55E00"}
PER_CASE_NAME = "noc_per_case.csv"
PER_OBJECT_NAME = "noc_per_object.csv"
COUNTS = ("noc", "nof", "reached_at_last", "never_reached")
AFTER = range(1, MOST_CLICKS + 1)


def write_clicks(directory: Path, results: Mapping[str, ClickScores]) -> None:
    """Write ``noc_per_object.csv`` and ``noc_per_case.csv``.

    The first has a line for each state and object: its number of clicks and the IoU after each of
    them. The second has one for each state, case and class: the means over objects, and the Dice of
    the whole case after each click.

    Args:
        directory: the folder of both files.
        results: what the models made of the clicks, by state.
    """
    noc = [f"noc@{name}" for name in BOUNDS]
    head = ["state", "case", "slice", "class", *noc, *(f"iou_{n}" for n in AFTER)]
    lines = [
        [state, *_names(one.case), one.index, *_names(one.class_name), *_object_cells(one)]
        for state, scores in results.items()
        for one in scores.objects
    ]
    _write(directory / PER_OBJECT_NAME, head, lines)
    counts = [f"{count}@{name}" for name in BOUNDS for count in COUNTS]
    head = ["state", "case", "class", "objects", *counts, *(f"dice_{n}" for n in AFTER)]
    lines = [[state, *line] for state, scores in results.items() for line in _case_lines(scores)]
    _write(directory / PER_CASE_NAME, head, lines)


def _object_cells(one: ClickedObject) -> list[Any]:
    return [*(one.noc(bound) for bound in BOUNDS.values()), *(f"{iou:.6f}" for iou in one.iou)]


def _case_lines(scores: ClickScores) -> Iterator[list[Any]]:
    """Yield the line of each case and class, without its state."""
    objects: dict[tuple[str, str], list[ClickedObject]] = {}
    for one in scores.objects:
        objects.setdefault((one.case, one.class_name), []).append(one)
    # The rows of all numbers of clicks are in the same order, by case and class.
    for rows in zip(*scores.rows, strict=True):
        case, class_name = rows[0].case, rows[0].class_name
        own = objects.get((case, class_name), [])
        found = [count_clicks(own, bound) for bound in BOUNDS.values()]
        counts = [_cell(entry[name]) for entry in found for name in COUNTS]
        # Where both masks are empty there is no score.
        dice = ["" if row.flag == "both_empty" else f"{row.dice:.6f}" for row in rows]
        yield [*_names(case, class_name), len(own), *counts, *dice]


def _names(*names: str) -> list[str]:
    return [csv_name(name) for name in names]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"


def _write(path: Path, head: Sequence[str], lines: Sequence[Sequence[Any]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    atomic.write_text(path, stream.getvalue())


def click_lines(summary: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the lines of a table about the number of clicks: a heading, and a cell a state.

    Args:
        summary: by state what ``summarise_clicks`` returned.
    """
    states = [summary[state] for state in STATES]
    lines = []
    for name, bound in BOUNDS.items():
        found = [state["noc"][name] for state in states]
        noc = [with_interval(one["noc"], one["interval"], ".2f") for one in found]
        lines.append((f"NoC@{name}: clicks to IoU {bound:.2f}", noc))
    for name in BOUNDS:
        cells = [
            f"{one['nof']} of {state['objects']}, {one['reached_at_last']}" if state["objects"]
            else NOTHING
            for state in states
            for one in [state["noc"][name]]
        ]  # fmt: skip
        lines.append((f"NoF@{name}: objects with {MOST_CLICKS} clicks, at the last", cells))
    return lines


def draw_clicks(axis: Axes, summary: Mapping[str, Any]) -> None:
    """Draw mean Dice against the number of clicks.

    Args:
        axis: where.
        summary: by state what ``summarise_clicks`` returned.
    """
    for state, label in STATES.items():
        found = summary[state]
        points = [
            (n, dice) for n, dice in zip(AFTER, found["dice"], strict=True) if dice is not None
        ]
        if not points:
            continue
        noc = [
            f"NoC@{name} {one['noc']:.1f}"
            for name, one in found["noc"].items()
            if one["noc"] is not None
        ]
        axis.plot(
            *zip(*points, strict=True),
            color=STATE_COLOURS[state],
            marker="o",
            markersize=4,
            markerfacecolor="white",
            linewidth=2,
            label=", ".join([label, *noc]),
        )
    axis.set_xticks([1, 3, 5, 8, 10, 15, MOST_CLICKS])
    axis.set_xlim(0.5, MOST_CLICKS + 0.5)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("clicks")
    axis.set_ylabel("mean Dice")
    axis.set_title("simulated clicks", fontsize=9, loc="left")
    axis.legend(frameon=False, loc="lower right", fontsize=8)
