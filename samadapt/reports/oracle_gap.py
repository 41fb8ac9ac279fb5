"""The oracle gap, how scores depend on the prompts, as files, a table and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from samadapt.evaluation.calibration import calibration
from samadapt.evaluation.prompt_matrix import (
    BOX,
    CLICKS,
    DRAWN,
    MOVED,
    NONE,
    SETTINGS,
    SHOWN_CLICKS,
    PromptMatrix,
)
from samadapt.prompts.simulate import SAM_SIDE
from samadapt.reports.clicks import STATE_COLOURS, click_lines, draw_clicks, write_clicks
from samadapt.reports.plots import lighten
from samadapt.reports.tables import NOTHING, STATES, csv_name
from samadapt.system import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CSV_NAME = "oracle_gap.csv"
PLOT_NAME = "oracle_gap.png"


def gap_summary(results: Mapping[str, PromptMatrix]) -> dict[str, Any]:
    """Return the entry ``oracle_gap`` of ``summary.json``.

    Args:
        results: scores by state (``zero_shot``, ``adapted``).

    Returns:
        For each setting: ``oracle_prompt``, whether the prompts come from the ground truth, and
        for each state ``dice``, ``iou``, ``per_class`` and the ``calibration`` of the predicted
        IoU. A state that was not scored in a setting is None.
    """
    return {
        setting: {
            "oracle_prompt": setting != NONE,
            **{
                state: (found := scores.settings.get(setting))
                and {**found.summary, "calibration": calibration(found.iou)}
                for state, scores in results.items()
            },
        }
        for setting in SETTINGS
    }


def gap_table(summary: Mapping[str, Any], clicks: Mapping[str, Any]) -> Table:
    """Return the table of the oracle gap: mean Dice, predicted beside true IoU, number of clicks.

    Args:
        summary: what ``gap_summary`` returned.
        clicks: by state what ``summarise_clicks`` returned.
    """
    table = Table(
        title="The oracle gap: mean Dice by what the model is given",
        caption="* made from the ground truth: an upper bound of real use; pixels are those of an "
        f"image whose longest side is {SAM_SIDE:.0f}; NoF: objects that take all clicks, and how "
        "many of them reach the IoU with the last one",
        title_justify="left",
        caption_justify="left",
    )
    table.title_style, table.caption_style = "bold", "dim"
    table.add_column("given")
    for name in STATES.values():
        table.add_column(name, justify="right")
    table.add_column("adapted: IoU predicted", justify="right")
    table.add_column("true", justify="right")
    for setting, entry in summary.items():
        scores = [entry.get(state) or {} for state in STATES]
        trust = (scores[-1].get("calibration") or {}) if scores else {}
        numbers = [
            *(score.get("dice") for score in scores),
            trust.get("predicted"),
            trust.get("true"),
        ]
        mark = " *" if entry["oracle_prompt"] else ""
        cells = [NOTHING if value is None else f"{value:.3f}" for value in numbers]
        table.add_row(Text(f"{setting}{mark}"), *cells)
    table.add_section()
    for heading, cells in click_lines(clicks):
        table.add_row(Text(f"{heading} *"), *cells, "", "")
    return table


def forgetting_text(found: Mapping[str, Any]) -> str:
    """Return a sentence about the result of ``forgetting.forgetting``."""
    if found["iou"] is None:
        return f"outside the domain: not measured, {found['reason']}"
    listed = ", ".join(f"{name} {one['iou']:.3f}" for name, one in found["images"].items())
    return (
        f"outside the domain, on {len(found['images'])} photographs: IoU {found['iou']:.3f} with "
        f"the base model's masks of the same {found['masks']} boxes (1: unchanged; {listed})"
    )


def write_gap(
    directory: Path,
    results: Mapping[str, PromptMatrix],
    summary: Mapping[str, Any],
    clicks: Mapping[str, Any],
) -> None:
    """Write ``oracle_gap.csv``, ``oracle_gap.png`` and the files of ``write_clicks``.

    The CSV has a line for each state, setting, case and class.

    Args:
        directory: the folder of the files.
        results: scores by state.
        summary: what ``gap_summary`` returned for them.
        clicks: by state what ``summarise_clicks`` returned for them.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["given", "oracle_prompt", "state", "case", "class", "dice", "iou", "flag"])
    for state, matrix in results.items():
        for setting, scores in matrix.settings.items():
            for row in scores.rows:
                # Where both masks are empty there is no score.
                numbers = [
                    "" if row.flag == "both_empty" else f"{x:.6f}" for x in (row.dice, row.iou)
                ]
                oracle = str(setting != NONE).lower()
                named = csv_name(row.case), csv_name(row.class_name)
                writer.writerow([setting, oracle, state, *named, *numbers, row.flag])
    atomic.write_text(directory / CSV_NAME, stream.getvalue())
    write_clicks(directory, {state: matrix.clicks for state, matrix in results.items()})
    plot_gap(summary, clicks, directory / PLOT_NAME)


def plot_gap(summary: Mapping[str, Any], clicks: Mapping[str, Any], png: Path) -> None:
    """Draw mean Dice against the prompts and against the clicks, and true against predicted IoU.

    Args:
        summary: what ``gap_summary`` returned.
        clicks: by state what ``summarise_clicks`` returned.
        png: the file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 4.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, gridspec_kw={"width_ratios": [2.1, 1.3, 1]})
    _draw_dice(axes[0], summary)
    draw_clicks(axes[1], clicks)
    _draw_trust(axes[2], summary)
    for axis in axes:
        lighten(axis)
    with atomic.file(png) as part:
        figure.savefig(part, format="png")


def _draw_dice(axis: Axes, summary: Mapping[str, Any]) -> None:
    """Draw no prompt, clicks and boxes as separate lines, each ordered by quality of the prompt."""
    names = list(summary)
    for state, label in STATES.items():
        colour = STATE_COLOURS[state]
        clicks = [CLICKS[n] for n in SHOWN_CLICKS]
        drawn = [[name] for name in DRAWN.values()]
        for group in ([NONE], clicks, [BOX, *MOVED.values()], *drawn):
            points = [
                (names.index(name), summary[name][state]["dice"])
                for name in group
                if summary[name].get(state) and summary[name][state]["dice"] is not None
            ]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    marker="o",
                    markerfacecolor=colour if group == [NONE] else "white",
                    linewidth=2,
                    label=label,
                )
                label = "_nolegend_"  # one legend entry for each state
    axis.set_xticks(range(len(names)), [_in_lines(name) for name in names])
    axis.set_ylim(-0.02, 1.02)
    axis.set_ylabel("mean Dice")
    axis.set_title(
        "hollow: the prompt is made from the ground truth; px where the longest side is 1024",
        fontsize=9,
        loc="left",
    )
    axis.legend(frameon=False)  # where it hides the least


def _in_lines(name: str) -> str:
    """Return the name of a setting with a line for each word, since names stand side by side."""
    return name.replace(" px", "\N{NO-BREAK SPACE}px").replace(" ", "\n")


def _draw_trust(axis: Axes, summary: Mapping[str, Any]) -> None:
    """Draw true against predicted IoU for exact boxes, in bins of the predicted IoU."""
    # On the diagonal the predicted IoU is the true one.
    axis.plot([0, 1], [0, 1], color="#9a9a9a", linewidth=1, linestyle="--")
    for state, label in STATES.items():
        entry = summary[BOX].get(state)
        bins = entry["calibration"]["bins"] if entry else []
        if bins:
            most = max(one["objects"] for one in bins)
            axis.scatter(
                [one["predicted"] for one in bins],
                [one["true"] for one in bins],
                [20 + 130 * one["objects"] / most for one in bins],
                color=STATE_COLOURS[state],
                alpha=0.75,
                label=label,
            )
    axis.set_xlim(-0.02, 1.05)
    axis.set_ylim(-0.02, 1.05)
    axis.set_xlabel("predicted IoU")
    axis.set_ylabel("true IoU")
    axis.set_title("does it know? (exact box; size: objects)", fontsize=9, loc="left")
