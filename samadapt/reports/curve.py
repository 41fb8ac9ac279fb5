"""The learning curve as tables, a plot and a file: ``samadapt curve``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from samadapt.evaluation.scores import OVERLAP, SCORES
from samadapt.reports.plots import lighten
from samadapt.reports.tables import NOTHING, csv_name, with_interval
from samadapt.system import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from samadapt.evaluation.learning_curve import CurvePoint

CSV_NAME = "curve.csv"
PLOT_NAME = "curve.png"
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
SCORE_COLUMNS = (*OVERLAP, *(name for name in SCORES if name not in OVERLAP))


def write_curve_csv(path: Path, points: Sequence[CurvePoint]) -> Path:
    """Write every score of every training: a line for each arm, number, draw, case and class."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["arm", "labelled_cases", "draw", "case", "class", *SCORE_COLUMNS, "length_unit"]
    )
    for point in points:
        for draw, rows in enumerate(point.draws):
            for row in rows:
                named = (csv_name(row.case), csv_name(row.class_name))
                values = [row.values.get(name, math.nan) for name in SCORE_COLUMNS]
                cells = ["" if math.isnan(value) else f"{value:.9g}" for value in values]
                writer.writerow([point.arm, point.cases, draw, *named, *cells, row.length_unit])
    return atomic.write_text(path, stream.getvalue())


def curve_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return the tables of ``curve.json``: the scores, the gains, and the arms compared."""
    tables = [_points_table(summary["points"])]
    if summary["gains"]:
        tables.append(_gains_table(summary["gains"]))
    if summary["paired"]:
        tables.append(_arms_table(summary["paired"]))
    return tables


def _points_table(points: Sequence[Mapping[str, Any]]) -> Table:
    """Return the scores by number of labelled cases, with the spread over the draws."""
    table = _table("Scores of the held-out cases by number of labelled cases")
    shown = [score for score in SCORES.values() if score.in_table]
    table.add_column("labelled", justify="right")
    table.add_column("arm")
    for score in shown:
        unit = next((str(p["detail"][score.name]["unit"] or "") for p in points), "")
        heading = f"{score.heading} ({unit})" if unit else score.heading
        bounds = " [95 %]" if score.name == "dice" else ""
        table.add_column(heading + bounds, justify="right")
    repeated = any(len(point["draws"]) > 1 for point in points)
    if repeated:
        table.add_column("Dice of the draws", justify="right")
    for point in sorted(points, key=lambda point: int(point["cases"])):
        cells = []
        for score in shown:
            form = ".2f" if score.kind == "length" else ".3f"
            interval = point["detail"]["dice"].get("interval") if score.name == "dice" else None
            cells.append(with_interval(point[score.name], interval, form))
        if repeated:
            draws = [value for value in point["draws"] if value is not None]
            cells.append(f"{min(draws):.3f} to {max(draws):.3f}" if draws else NOTHING)
        table.add_row(str(point["cases"]), Text(point["arm"]), *cells)
    return table


def _gains_table(gains: Sequence[Mapping[str, Any]]) -> Table:
    """Return what each step to more cases brought, compared case by case."""
    table = _table("What more labelled cases brought: Dice, case by case")
    table.add_column("arm")
    table.add_column("from", justify="right")
    table.add_column("to", justify="right")
    for name in ("difference [95 %]", "for each doubling", "Wilcoxon p"):
        table.add_column(name, justify="right")
    for gain in gains:
        found = gain["dice"]
        table.add_row(
            Text(gain["arm"]),
            str(gain["from"]),
            str(gain["to"]),
            with_interval(found["difference"], found["interval"], "+.3f"),
            with_interval(gain["per_doubling"]["difference"], None, "+.3f"),
            _p(found),
        )
    return table


def _arms_table(paired: Sequence[Mapping[str, Any]]) -> Table:
    """Return the first arm minus each other one with the same labelled cases."""
    others = ", ".join(dict.fromkeys(entry["other"] for entry in paired))
    table = _table(f"{paired[0]['arm']} - {others}, case by case: Dice")
    table.add_column("labelled", justify="right")
    table.add_column("other arm")
    for name in ("difference [95 %]", "Wilcoxon p", "better", "worse", "same"):
        table.add_column(name, justify="right")
    for entry in paired:
        found = entry["dice"]
        counts = [str(found[key]) for key in ("better", "worse", "same")]
        cell = with_interval(found["difference"], found["interval"], "+.3f")
        table.add_row(str(entry["cases"]), Text(entry["other"]), cell, _p(found), *counts)
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.title_style = "bold"
    return table


def _p(comparison: Mapping[str, Any]) -> str:
    return NOTHING if comparison["p"] is None else f"{comparison['p']:.2g}"


def plot_curve(summary: Mapping[str, Any], png: Path) -> Path:
    """Draw Dice with its interval against the number of labelled cases, a line for each arm.

    Args:
        summary: the content of ``curve.json``.
        png: the file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for arm, colour in zip(summary["arms"], COLOURS * len(summary["arms"]), strict=False):
        points = [one for one in summary["points"] if one["arm"] == arm and one["dice"] is not None]
        _draw_arm(axis, arm, points, colour)
    zero_shot = summary["zero_shot"]["dice"]
    if zero_shot is not None:
        how = "exact boxes" if summary["zero_shot"]["oracle_prompt"] else "no prompt"
        axis.axhline(zero_shot, color="#9a9a9a", linestyle="--", linewidth=1.2)
        axis.text(0.01, zero_shot, f" base model, untrained, {how}", color="#666666", fontsize=8.5,
                  va="bottom", transform=axis.get_yaxis_transform())  # fmt: skip
    # Labels are paid for in multiples: a doubling is one step on the axis.
    axis.set_xscale("log", base=2)
    axis.set_xticks(summary["sizes"], [str(size) for size in summary["sizes"]])
    axis.minorticks_off()
    axis.set_xlabel("labelled cases")
    axis.set_ylabel(f"Dice, mean over {summary['held_out']} held-out cases")
    lighten(axis)
    axis.legend(frameon=False, loc="lower right")
    with atomic.file(png) as part:
        figure.savefig(part, format="png")
    return png


def _draw_arm(axis: Axes, arm: str, points: Sequence[Mapping[str, Any]], colour: str) -> None:
    """Draw the means of an arm with their intervals, and every draw as a dot."""
    sizes = [point["cases"] for point in points]
    means = [point["dice"] for point in points]
    axis.plot(sizes, means, color=colour, linewidth=2, marker="o", markersize=6, label=arm)
    for point in points:
        interval = point["detail"]["dice"].get("interval")
        if interval is not None:
            axis.plot([point["cases"]] * 2, interval, color=colour, linewidth=1.2, alpha=0.8)
        draws = [value for value in point["draws"] if value is not None]
        if len(draws) > 1:
            places = [point["cases"]] * len(draws)
            axis.plot(places, draws, "o", color=colour, markersize=3.5, alpha=0.5)
