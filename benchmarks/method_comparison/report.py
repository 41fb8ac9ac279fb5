"""The README's table and plot of the comparison."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import results
from benchmarks.method_comparison.plan import METHODS, SEEDS, SIZES, TASKS, Trial, searched
from benchmarks.table import with_section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

README = Path(__file__).parents[2] / "README.md"
START, END = "<!-- methods:start -->", "<!-- methods:end -->"
PLOT = "method_comparison.png"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """A method at one size and task, over its seeds.

    Attributes:
        dice, spread: mean and standard deviation of the held-out Dice; of one seed no spread.
        seeds: how many.
        trained: parameters beside the decoder's.
        step_s: median seconds of a step, timed apart; None where they were not.
        lr: learning rate that was chosen.
    """

    dice: float
    spread: float | None
    seeds: int
    trained: int
    step_s: float | None
    lr: float


Points = dict[tuple[str, str, str], Point]
"""By method, size and task."""


def write(path: Path, *, check: bool = False) -> int:
    """Write plot and table of the newest comparison; return 1 where ``check`` finds a stale one."""
    rows = newest(results.read(path))
    whole = of_whole_seeds(rows)
    points = summarise(whole, step_times(rows, results.read(steps_beside(path))))
    text = README.read_text(encoding="utf-8")
    wanted = with_section(text, section(whole, points) if whole else unfinished(rows), START, END)
    if check:
        return int(wanted != text)
    if whole:
        draw(points, path.parent / PLOT)
    README.write_text(wanted, encoding="utf-8")
    return 0


def steps_beside(path: Path) -> Path:
    """Return where the times of the steps lie."""
    return path.with_name(f"{path.stem}_steps.json")


def step_times(rows: Sequence[Row], timed: Sequence[Row]) -> dict[tuple[str, str, str], float]:
    """Return the median seconds of a step by method, size and task, of the settings of ``rows``."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in timed:
        if rows and row["settings"] == rows[-1]["settings"]:
            found.setdefault(_place(row), []).extend(row["step_s"])
    return {place: statistics.median(seconds) for place, seconds in found.items()}


def _place(row: Row) -> tuple[str, str, str]:
    trial = row["trial"]
    return trial["method"], trial["size"], trial["task"]


def newest(rows: Sequence[Row]) -> list[Row]:
    """Return the trials of the settings that were used last."""
    return [row for row in rows if row["settings"] == rows[-1]["settings"]] if rows else []


def of_whole_seeds(rows: Sequence[Row]) -> list[Row]:
    """Return the search, and the trials of the seeds that every method, size and task has.

    A table of some methods at some sizes would compare what was not trained alike.
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
    """Return what is said while no seed is whole."""
    if not rows:
        return "Not measured yet."
    trials = len(METHODS) * len(SIZES) * len(TASKS)
    return (
        f"Not finished: {len(rows)} trainings are recorded, the search for learning rates among "
        f"them; a seed has {trials} and is shown once it is whole. `run` goes on where it stopped."
    )


def chosen_rates(rows: Iterable[Row]) -> dict[str, float]:
    """Return each method's rate: the best validation Dice of the search."""
    best: dict[str, tuple[float, float]] = {}
    for row in rows:
        trial, found = Trial(**row["trial"]), row["validation_dice"]
        if trial == searched(trial.method, trial.lr) and found > best.get(trial.method, (-1.0,))[0]:
            best[trial.method] = (found, trial.lr)
    return {method: lr for method, (_, lr) in best.items()}


def summarise(rows: Sequence[Row], times: Mapping[tuple[str, str, str], float]) -> Points:
    """Bring the seeds of each method, size and task together, at the rate that was chosen."""
    rates = chosen_rates(rows)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        trial = row["trial"]
        if rates.get(trial["method"]) == trial["lr"]:
            groups.setdefault(_place(row), []).append(row)
    return {place: _point(group, times.get(place)) for place, group in groups.items()}


def _point(group: Sequence[Row], step_s: float | None) -> Point:
    scores = [row["dice"] for row in group]
    return Point(
        dice=statistics.fmean(scores),
        spread=statistics.stdev(scores) if len(scores) > 1 else None,
        seeds=len(scores),
        trained=group[0]["trained_encoder"],
        step_s=step_s,
        lr=group[0]["trial"]["lr"],
    )


def section(rows: Sequence[Row], points: Points) -> str:
    """Return the table with what it was measured on."""
    settings, size = rows[-1]["settings"], rows[-1]["slices"]
    counts = sorted({point.seeds for point in points.values()})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    header = ["method", "parameters", *(f"{task}: Dice" for task in TASKS), "rate"]
    header.append(f"{next(iter(TASKS))}: s a step")
    lines = [_line(header), _line("---" for _ in header)]
    for method in sorted(METHODS, key=lambda name: -_mean(points, name)):
        if any(place[0] == method for place in points):
            lines.append(_line(_cells(points, method)))
    told = (
        f"MSD hippocampus, LiteMedSAM at {settings['image_size']} px, "
        f"{settings['steps']} steps of {settings['batch_size']} slices, {size['train']} to train "
        f"on, {seeds} of {len(SEEDS)} seeds; methods in blocks {settings['blocks']} beside the "
        f"whole decoder. "
        f"Small, medium and large; Dice per held-out volume, mean and standard deviation over the "
        f"seeds. Learning rates were chosen on validation cases, semantic at the medium size. "
        f"Sorted by the mean; `none` trains the decoder alone (LoRA of rank 4 and 16, and whole). "
        f"One thread of {rows[-1]['machine']['processor']}, two processes at once."
    )
    return "\n".join([told, "", *lines, "", f"![Dice of the methods](benchmarks/results/{PLOT})"])


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


def draw(points: Points, png: Path) -> None:
    """Draw Dice against trained parameters and against seconds a step, a row for each task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(TASKS), 2, sharey="row")
    for row, task in zip(axes, TASKS, strict=True):
        of_task = {place[:2]: point for place, point in points.items() if place[2] == task}
        _draw_one(row[0], of_task, "trained", "trained parameters beside the decoder's")
        _draw_one(row[1], of_task, "step_s", "seconds a step, one thread")
        row[0].set_xscale("symlog", linthresh=1000)
        row[0].set_ylabel(f"{task}: Dice per held-out volume")
    draft = png.with_name(f".{png.name}.tmp")
    figure.savefig(draft, format="png")
    draft.replace(png)


def _draw_one(
    axis: Axes, points: Mapping[tuple[str, str], Point], against: str, label: str
) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab20"]
    for number, method in enumerate(METHODS):
        line = [points[method, size] for size in SIZES if (method, size) in points]
        line = [point for point in line if getattr(point, against) is not None]
        if not line:
            continue
        across = [getattr(point, against) for point in line]
        axis.errorbar(
            across,
            [point.dice for point in line],
            [point.spread or 0 for point in line],
            color=colours(number % 20),
            marker="osD^v"[number % 5],
            markersize=5,
            linewidth=1,
            elinewidth=0.6,
            alpha=0.9,
        )
        axis.annotate(
            method, (across[-1], line[-1].dice), (4, 3), textcoords="offset points", fontsize=7
        )
    axis.set_xlabel(label)
    axis.grid(visible=True, color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
