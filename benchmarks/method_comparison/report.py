"""Write the table and the figures of docs/explanation/method-comparison.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.method_comparison.figures import draw
from benchmarks.method_comparison.plan import METHODS, SEEDS, SIZES, TASKS, read_trials
from benchmarks.method_comparison.summary import (
    Point,
    Points,
    Row,
    newest,
    of_whole_seeds,
    step_times,
    steps_beside,
    summarise,
    unfinished,
)
from benchmarks.table import with_section

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "explanation" / "method-comparison.md"
IMAGES = DOCS / "images"
START, END = "<!-- methods:start -->", "<!-- methods:end -->"


def write(path: Path, *, check: bool = False) -> int:
    """Write the table and the figures of the newest comparison.

    Args:
        path: the file of results.
        check: change nothing and return 1 if the table is stale.
    """
    rows = newest(read_trials(path))
    whole = of_whole_seeds(rows)
    points = summarise(whole, step_times(rows, read_trials(steps_beside(path))))
    text = PAGE.read_text(encoding="utf-8")
    wanted = with_section(text, section(whole, points) if whole else unfinished(rows), START, END)
    if check:
        return int(wanted != text)
    if whole:
        draw(points, IMAGES)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


def section(rows: Sequence[Row], points: Points) -> str:
    """Return the table and a paragraph that says how it was measured."""
    settings, size = rows[-1]["settings"], rows[-1]["slices"]
    counts = sorted({len(point.scores) for point in points.values()})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    header = ["method", "parameters", *(f"{task}: Dice" for task in TASKS), "learning rate"]
    header.append(f"{next(iter(TASKS))}: s a step")
    lines = [_line(header), _line("---" for _ in header)]
    for method in sorted(METHODS, key=lambda name: -_mean(points, name)):
        if any(place[0] == method for place in points):
            lines.append(_line(_cells(points, method)))
    measured = (
        f"MSD hippocampus, LiteMedSAM at {settings['image_size']} px, {settings['steps']} steps of "
        f"{settings['batch_size']} slices, {size['train']} training slices, {seeds} of "
        f"{len(SEEDS)} seeds. Each method is placed in blocks {settings['blocks']} and trains the "
        "whole decoder as well. A cell holds the small, the medium and the large size; Dice is the "
        "mean over held-out volumes, given as mean and standard deviation over the seeds. Learning "
        "rates were chosen on validation cases, on the semantic task at the medium size. Rows are "
        "sorted by their mean over both tasks. `decoder` trains the decoder alone (a LoRA of rank "
        "4, of rank 16, and the whole decoder). The machine was one thread of "
        f"{rows[-1]['machine']['processor']}, with two processes at once."
    )
    return "\n".join([measured, "", *lines])


def _mean(points: Points, method: str) -> float:
    found = [point.dice for place, point in points.items() if place[0] == method]
    return statistics.fmean(found) if found else 0.0


def _cells(points: Points, method: str) -> list[str]:
    tasks = {
        task: [points[place] for size in SIZES if (place := (method, size, task)) in points]
        for task in TASKS
    }
    sizes = next(found for found in tasks.values() if found)
    return [
        f"`{method}`",
        " · ".join(_count(point.trained) for point in sizes),
        *(" · ".join(map(_score, found)) or "-" for found in tasks.values()),
        f"{sizes[0].lr:g}",
        " · ".join("-" if p.step_s is None else f"{p.step_s:.2f}" for p in sizes),
    ]


def _score(point: Point) -> str:
    spread = "" if point.spread is None else f"±{point.spread:.3f}"
    return f"{point.dice:.3f}{spread}"


def _count(number: int) -> str:
    if number < 1000:
        return str(number)
    return f"{number / 1e3:.0f}k" if number < 1e6 else f"{number / 1e6:.1f}M"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
