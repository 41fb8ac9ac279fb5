"""A box and five clicks in volumes: the table, the CSV file and the plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from samadapt.evaluation.volume_clicks import (
    ANSWERS,
    SCORES,
    TOLERANCE_MM,
    CorrectedClass,
    area_under_clicks,
)
from samadapt.reports.clicks import STATE_COLOURS
from samadapt.reports.plots import lighten
from samadapt.reports.tables import NOTHING, STATES, csv_name, with_interval
from samadapt.system import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VOLUME_PLOT_NAME = "volume_clicks.png"
VOLUME_CSV_NAME = "volume_clicks.csv"
HEADINGS = {"dice": "Dice", "nsd": "NSD"}


def volume_clicks_table(summary: Mapping[str, Any]) -> Table:
    """Return the table of the areas under the curves, and of the first and the last answer.

    Args:
        summary: by state what ``summarise_corrections`` returned.
    """
    unit = next(iter(summary.values()))["unit"] or "mm or px"
    table = Table(
        title="A box and five clicks in volumes (CVPR 2025)",
        caption="from the ground truth: an upper bound of real use; AUC: area under the five "
        f"answers to clicks, at most 4; NSD at {TOLERANCE_MM:g} {unit}",
        title_justify="left",
        caption_justify="left",
    )
    table.title_style, table.caption_style = "bold", "dim"
    table.add_column("class")
    table.add_column("")
    for score in SCORES:
        # Short headings, so that a table of two scores fits into 100 columns.
        for heading in (f"{HEADINGS[score]} AUC [95 %]", "box", "5 clicks"):
            table.add_column(heading, justify="right")
    for name in next(iter(summary.values()))["per_class"]:
        for n, (state, title) in enumerate(STATES.items()):
            cells = _cells(summary[state]["per_class"][name])
            table.add_row(Text("" if n else name), title, *cells)
        table.add_section()
    for n, (state, title) in enumerate(STATES.items()):
        table.add_row("" if n else "mean", title, *_cells(summary[state]), style="bold")
    return table


def _cells(entry: Mapping[str, Any]) -> list[str]:
    cells = []
    for score in SCORES:
        interval = entry["intervals"][f"{score}_auc"]["interval"]
        cells.append(with_interval(entry[f"{score}_auc"], interval, ".2f"))
        for answer in (ANSWERS[0], ANSWERS[-1]):
            value = entry[score][answer]
            cells.append(NOTHING if value is None else f"{value:.3f}")
    return cells


def write_volume_clicks(
    directory: Path, results: Mapping[str, Sequence[CorrectedClass]], summary: Mapping[str, Any]
) -> None:
    """Write ``volume_clicks.csv`` and ``volume_clicks.png``.

    The CSV has a line for each state, case and class.

    Args:
        directory: the folder of both files.
        results: the scores by state.
        summary: by state what ``summarise_corrections`` returned.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    answers = [f"{score}_{n}" for score in SCORES for n in ("box", *range(1, len(ANSWERS)))]
    areas = [f"{score}_auc" for score in SCORES]
    writer.writerow(["state", "case", "class", "length_unit", *areas, *answers])
    for state, classes in results.items():
        for one in classes:
            numbers = [*map(area_under_clicks, (one.dice, one.nsd)), *one.dice, *one.nsd]
            named = csv_name(one.case), csv_name(one.class_name), one.length_unit
            writer.writerow([state, *named, *(f"{number:.6f}" for number in numbers)])
    atomic.write_text(directory / VOLUME_CSV_NAME, stream.getvalue())
    _plot(summary, directory / VOLUME_PLOT_NAME)


def _plot(summary: Mapping[str, Any], png: Path) -> None:
    """Draw mean Dice and NSD after the box and each click."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, score in zip(axes, SCORES, strict=True):
        _draw(axis, summary, score)
    with atomic.file(png) as part:
        figure.savefig(part, format="png")


def _draw(axis: Axes, summary: Mapping[str, Any], score: str) -> None:
    for state, label in STATES.items():
        values = list(summary[state][score].values())
        if None not in values:
            area = summary[state][f"{score}_auc"]
            axis.plot(
                range(len(ANSWERS)),
                values,
                color=STATE_COLOURS[state],
                marker="o",
                markerfacecolor="white",
                linewidth=2,
                label=f"{label}, AUC {area:.2f}",
            )
    axis.set_xticks(range(len(ANSWERS)), [name.replace(" ", "\n") for name in ANSWERS])
    axis.set_ylim(-0.02, 1.02)
    axis.set_title(f"mean {HEADINGS[score]}", fontsize=9, loc="left")
    lighten(axis)
    if axis.lines:
        axis.legend(frameon=False, loc="lower right", fontsize=8)
