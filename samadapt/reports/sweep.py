"""A sweep as a plan, tables, plots and a file: ``samadapt sweep``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from samadapt.reports.plots import lighten
from samadapt.reports.tables import (
    NOTHING,
    counted,
    csv_name,
    format_seconds,
    with_interval,
)
from samadapt.system import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CSV_NAME = "sweep.csv"
PARALLEL_NAME = "parallel.png"
IMPORTANCE_NAME = "importance.png"

SHOWN_TRIALS = 20
"""Trials in the table on the terminal; the page and the CSV file have all of them."""

GREY = "#bdbdbd"
WIDTH_OF_AXIS = 1.6
"""Inches between two axes of the parallel-coordinates plot."""


def plan_text(plan: Mapping[str, Any]) -> str:
    """Return the plan of a sweep as lines of text."""
    kind = (
        "every combination once" if plan["search"] == "grid" else "TPE: each learns from the last"
    )
    lines = [f"sweep: {counted(plan['trials'], 'trial')}, {kind}"]
    for one in plan["space"]:
        only = f"  (only {', '.join(one['methods'])})" if one["methods"] else ""
        lines.append(f"  {one['key']} = {one['values']}{only}")
    lines += [f"note: {note}" for note in plan["notes"]]
    pruning = plan["pruning"]
    early = (
        f"none: {pruning}"
        if isinstance(pruning, str)
        else f"below the median at the same step, from step {pruning['from_step']} on, once "
        f"{pruning['after_trials']} trials have finished"
    )
    limits = ", ".join(f"train.{key}={value}" for key, value in plan["limits"].items())
    workers = plan["machine"]["workers"]
    seeds = counted(plan["seeds"], "seed")
    held_out = f"held-out cases, scored for it alone: {plan['held_out'] or 'none'}"
    lines += [
        f"each trial: {limits}; {plan['machine_text']}, {workers} at the same time",
        f"stopped early: {early}",
        f"winner: best validation Dice; trained with {seeds}; {held_out}",
    ]
    return "\n".join(lines)


def plan_table(plan: Mapping[str, Any]) -> Table:
    """Return the trials of a grid, a row each."""
    keys = [one["key"] for one in plan["space"]]
    table = _table("Trials")
    table.add_column("trial", justify="right")
    for key in keys:
        table.add_column(key)
    for number, values in enumerate(plan["grid"]):
        table.add_row(str(number), *(Text(values.get(key, NOTHING)) for key in keys))
    return table


def write_sweep_csv(path: Path, trials: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Path:
    """Write one line for each trial: its values, how it ended and its validation Dice."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    others = ("validation", "best_step", "last_step", "trained_parameters", "seconds")
    writer.writerow(["trial", "state", *keys, *others])
    for trial in trials:
        values = [csv_name(trial["values"].get(key, "")) for key in keys]
        cells = ["" if trial[name] is None else f"{trial[name]:.9g}" for name in others]
        writer.writerow([trial["number"], trial["state"], *values, *cells])
    return atomic.write_text(path, stream.getvalue())


def sweep_tables(summary: Mapping[str, Any], most: int | None = None) -> list[Table]:
    """Return the tables of ``sweep.json``: the trials, the best first, and the winner's seeds.

    Args:
        summary: the content of ``sweep.json``.
        most: number of trials that are shown; None: all.
    """
    return [_trials_table(summary, most), _seeds_table(summary["winner"])]


def _trials_table(summary: Mapping[str, Any], most: int | None) -> Table:
    trials = sorted(summary["trials"], key=_rank)
    keys = [key for key in _keys(summary) if len({t["values"].get(key) for t in trials}) > 1]
    table = _table("Trials by validation Dice")
    if most is not None and len(trials) > most:
        table.caption = f"the best {most} of {len(trials)}; {CSV_NAME} has all"
    table.add_column("trial", justify="right")
    for key in keys:
        table.add_column(key, justify="right")
    for name in ("validation Dice", "at step", "trained parameters", "time"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for trial in trials[:most]:
        style = "bold" if trial["number"] == summary["winner"]["number"] else None
        count = trial["trained_parameters"]
        table.add_row(
            str(trial["number"]),
            *(Text(trial["values"].get(key, NOTHING)) for key in keys),
            with_interval(trial["validation"], None, ".4f"),
            str(trial["best_step"] or NOTHING),
            f"{count:,}" if count else NOTHING,
            format_seconds(trial["seconds"]) if trial["seconds"] else NOTHING,
            trial["state"],
            style=style,
        )
    return table


def _seeds_table(winner: Mapping[str, Any]) -> Table:
    table = _table("The winner with other seeds")
    table.add_column("run")
    for name in ("validation Dice", "held-out Dice [95 %]", "base model"):
        table.add_column(name, justify="right")
    for seed in winner["seeds"]:
        table.add_row(
            seed["run_dir"],
            with_interval(seed["validation"], None, ".4f"),
            with_interval(seed["held_out"], seed["interval"], ".3f"),
            with_interval(seed["zero_shot"], None, ".3f"),
        )
    cells = []
    for key in ("validation", "held_out"):
        found = winner["spread"][key]
        cells.append(f"{found['mean']:.3f} \u00b1 {found['std']:.3f}" if found else NOTHING)
    table.add_row("mean \u00b1 standard deviation", *cells, "", style="bold")
    return table


def _keys(summary: Mapping[str, Any]) -> list[str]:
    """Return the searched keys, then those that follow from them, such as a size."""
    found = dict.fromkeys(one["key"] for one in summary["space"])
    for trial in summary["trials"]:
        found |= dict.fromkeys(trial["values"])
    return list(found)


def _rank(trial: Mapping[str, Any]) -> tuple[int, float, int]:
    """Sort finished trials first, then those stopped early, the best first."""
    order = {"finished": 0, "stopped early": 1}
    value = trial["validation"]
    return order.get(trial["state"], 2), -(value if value is not None else -1.0), trial["number"]


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.title_style = "bold"
    return table


def plot_parallel(summary: Mapping[str, Any], png: Path, logarithmic: Sequence[str]) -> Path:
    """Draw each trial as a line through its values, coloured by its validation Dice.

    A trial whose method has no such key passes the mark "none" below the axis. Trials that were
    stopped early are grey and dashed.

    Args:
        summary: the content of ``sweep.json``.
        png: the file to write.
        logarithmic: keys whose axis is logarithmic.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trials = [trial for trial in summary["trials"] if trial["validation"] is not None]
    keys = [key for key in _keys(summary) if len({t["values"].get(key) for t in trials}) > 1]
    places = {
        key: _places([t["values"].get(key) for t in trials], key in logarithmic) for key in keys
    }
    done = [trial["validation"] for trial in trials if trial["state"] == "finished"]
    low, high = min(done), max(done)
    span = (high - low) or 1.0
    figure = Figure(figsize=(2.5 + WIDTH_OF_AXIS * (len(keys) + 1), 4.6), dpi=130)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.05, right=0.95, bottom=0.03, top=0.9)
    axis = figure.subplots()
    colours = colormaps["viridis_r"]  # its palest tenth is left out: it hardly shows on white
    for trial in sorted(trials, key=_rank, reverse=True):  # the best is drawn last, on top
        share = min(1.0, max(-0.05, (trial["validation"] - low) / span))
        line = [places[key].of(trial["values"].get(key)) for key in keys] + [share]
        is_done = trial["state"] == "finished"
        is_best = trial["number"] == summary["winner"]["number"]
        axis.plot(
            range(len(line)),
            line,
            color=colours(0.15 + 0.85 * share) if is_done else GREY,
            linestyle="-" if is_done else (0, (4, 3)),
            linewidth=3.2 if is_best else 1.4,
            alpha=1.0 if is_best else 0.8,
        )
    for number, key in enumerate(keys):
        _draw_axis(axis, number, key, places[key].ticks)
    ticks = {f"{low + span * share:.3f}": share for share in np.linspace(0, 1, 5)}
    _draw_axis(axis, len(keys), "validation Dice", ticks if high > low else {f"{low:.3f}": 0.0})
    axis.set_xlim(-0.2, len(keys) + 0.35)
    axis.set_ylim(-0.17, 1.04)
    axis.set_axis_off()
    with atomic.file(png) as part:
        figure.savefig(part, format="png")
    return png


class _Places:
    """Where the values of a key lie on its axis, from 0 to 1; a missing one lies below."""

    def __init__(self, places: Mapping[str, float], ticks: Mapping[str, float]) -> None:
        self._places, self.ticks = places, ticks

    def of(self, value: str | None) -> float:
        return NO_VALUE if value is None else self._places[value]


NO_VALUE = -0.12
MOST_TICKS = 8


def _places(values: Sequence[str | None], logarithmic: bool) -> _Places:
    """Return the places of values: numbers by size, words at equal distances."""
    given = list(dict.fromkeys(value for value in values if value is not None))
    lacks = {"none": NO_VALUE} if None in values else {}
    try:
        numbers = {text: float(text) for text in given}
    except ValueError:
        ordered = {text: float(place) for place, text in enumerate(given)}
        found = _scaled(ordered)
        return _Places(found, {**found, **lacks})
    if len(numbers) <= MOST_TICKS and not logarithmic:  # a few choices: equal distances
        ordered = {
            text: float(n) for n, text in enumerate(sorted(numbers, key=numbers.__getitem__))
        }
        found = _scaled(ordered)
        return _Places(found, {**found, **lacks})
    scale = {text: float(np.log10(x)) if logarithmic else x for text, x in numbers.items()}
    found = _scaled(scale)
    low, high = min(scale.values()), max(scale.values())
    marks = [low + (high - low) * share for share in np.linspace(0, 1, 5)]
    ticks = {
        f"{10**mark if logarithmic else mark:.2g}": (mark - low) / ((high - low) or 1.0)
        for mark in marks
    }
    return _Places(found, {**ticks, **lacks})


def _scaled(numbers: Mapping[str, float]) -> dict[str, float]:
    low, high = min(numbers.values()), max(numbers.values())
    if low == high:
        return dict.fromkeys(numbers, 0.5)
    return {text: (number - low) / (high - low) for text, number in numbers.items()}


def _draw_axis(axis: Axes, place: int, name: str, ticks: Mapping[str, float]) -> None:
    axis.plot([place, place], [0, 1], color="#555555", linewidth=1)
    axis.text(place, 1.06, name, ha="center", va="bottom", fontsize=9.5, fontweight="bold")
    for text, height in ticks.items():
        axis.plot([place - 0.02, place + 0.02], [height] * 2, color="#555555", linewidth=1)
        axis.text(
            place + 0.04, height, text, va="center", fontsize=8.5,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip


def plot_importance(summary: Mapping[str, Any], png: Path) -> Path:
    """Draw the share of each key in what makes a trial good; say so where it cannot be told.

    Args:
        summary: the content of ``sweep.json``.
        png: the file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = dict(sorted(summary["importance"].items(), key=lambda item: item[1]))
    figure = Figure(figsize=(7.5, 1.4 + 0.42 * max(1, len(shares))), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    if shares:
        bars = axis.barh(list(shares), list(shares.values()), color="#0072B2", height=0.6)
        axis.bar_label(bars, fmt="%.2f", padding=4, fontsize=9)
        axis.set_xlim(0, max(shares.values()) * 1.15)
        axis.set_xlabel("share in what puts a trial among the best (PED-ANOVA)")
        lighten(axis)
    else:
        axis.text(0.5, 0.5, "too few different trials to tell", ha="center", va="center")
        axis.set_axis_off()
    with atomic.file(png) as part:
        figure.savefig(part, format="png")
    return png
