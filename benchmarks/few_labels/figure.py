"""Draw Dice against the number of labels, a panel for each data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.few_labels.arms import ARMS
from benchmarks.few_labels.domains import DOMAINS, Domain, cluster_of
from benchmarks.few_labels.plan import SMALL, Row
from benchmarks.few_labels.scores import mean_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"unet": "#0072b2", "today": "#999999", "frozen": "#e69f00", "lora": "#d55e00"}
COLUMNS = 4


def draw(measured: Mapping[tuple[str, str, int, int], Sequence[Row]], png: Path) -> Path:
    """Draw the means with their intervals, and every draw as a dot.

    Args:
        measured: the rows by arm, data set, number of labels and budget.
        png: the file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-len(DOMAINS) // COLUMNS), COLUMNS, sharey=True).ravel()
    for axis, domain in zip(panels, DOMAINS.values(), strict=False):
        for arm, colour in COLOURS.items():
            places = [
                (labels, rows)
                for labels in domain.labels
                if (rows := measured.get((arm, domain.name, labels, SMALL)))
            ]
            _draw_arm(axis, domain, places, colour)
        axis.set_title(domain.name if domain.claims else f"{domain.name} (no claim)", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks(domain.labels, [str(labels) for labels in domain.labels])
        axis.minorticks_off()
        axis.set_xlabel(f"labelled {domain.unit}", fontsize=9)
        axis.set_ylim(0, 1)
        axis.grid(visible=True, color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in panels[::COLUMNS]:
        axis.set_ylabel("Dice, held-out cases")
    handles = [
        panels[0].plot([], [], "o-", color=colour, label=ARMS[arm].title)[0]
        for arm, colour in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, format="png")
    return png


def _draw_arm(
    axis: Axes, domain: Domain, places: Sequence[tuple[int, Sequence[Row]]], colour: str
) -> None:
    found = [(n, mean_of(rows, "dice", partial(cluster_of, domain))) for n, rows in places]
    axis.plot(
        [labels for labels, _ in found],
        [estimate.value for _, estimate in found],
        "o-",
        color=colour,
        linewidth=1.8,
        markersize=4.5,
    )
    for labels, estimate in found:
        if estimate.interval is not None:
            axis.plot([labels] * 2, estimate.interval, color=colour, linewidth=1, alpha=0.7)
    for labels, rows in places:
        if len(rows) > 1:
            dots = [row["dice"] for row in rows]
            axis.plot([labels] * len(rows), dots, "o", color=colour, markersize=2.5, alpha=0.5)
