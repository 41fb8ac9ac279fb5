"""The rounds of a data engine as a table, a plot and a page: ``samadapt engine retrain``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from samadapt.reports.html import HTML_NAME, Page, write_html
from samadapt.reports.plots import lighten
from samadapt.reports.tables import NOTHING, with_interval
from samadapt.system import atomic

PLOT_NAME = "rounds.png"


def rounds_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return quality by round.

    Args:
        rows: one a round, from 0, the model before the first: ``"round"``, ``"masks"``, ``"new"``,
            ``"needed"`` (share of the new masks that needed correction), ``"proposal_dice"``,
            ``"pixels"``, ``"dice"``, ``"interval"`` and ``"adapter_sha256"``.
    """
    table = Table(title="Quality by round", title_justify="left")
    table.title_style = "bold"
    table.caption = (
        "Held-out images never train. A mask needed correction if its Dice with the accepted one "
        "is below 0.9, or if objects were added or removed."
    )
    for name in ("round", "masks", "new"):
        table.add_column(name, justify="right")
    for name in ("needed correction", "Dice of proposals", "pixels changed"):
        table.add_column(name, justify="right")
    table.add_column("held-out Dice [95 %]", justify="right")
    table.add_column("adapter")
    for row in rows:
        table.add_row(
            str(row["round"]),
            str(row["masks"]),
            str(row["new"]),
            _number(row["needed"], ".0%"),
            _number(row["proposal_dice"], ".3f"),
            _number(row["pixels"], ".2%"),
            with_interval(row["dice"], row["interval"], ".3f"),
            Text(str(row["adapter_sha256"] or "base model")[:12]),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else f"{value:{form}}"


def plot_rounds(rows: Sequence[Mapping[str, Any]], png: Path) -> Path:
    """Draw the held-out Dice and the share of masks that needed correction, by round."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    scored = [row for row in rows if row["dice"] is not None]
    axis.plot(
        [row["round"] for row in scored],
        [row["dice"] for row in scored],
        color="#0072B2",
        linewidth=2,
        marker="o",
        label="Dice of held-out images",
    )
    for row in scored:
        if row["interval"] is not None:
            axis.plot([row["round"]] * 2, row["interval"], color="#0072B2", linewidth=1.2)
    needed = [row for row in rows if row["needed"] is not None]
    axis.plot(
        [row["round"] for row in needed],
        [row["needed"] for row in needed],
        color="#D55E00",
        linewidth=2,
        marker="s",
        linestyle="--",
        label="share of new masks that needed correction",
    )
    axis.set_xticks([row["round"] for row in rows])
    axis.set_xlabel("round")
    axis.set_ylim(-0.02, 1.02)
    lighten(axis)
    axis.legend(frameon=False, loc="best")
    with atomic.file(png) as part:
        figure.savefig(part, format="png")
    return png


def write_rounds_page(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    masks: Table,
    subtitle: str,
    notes: Sequence[str],
    configuration: str,
) -> Path:
    """Write ``rounds.png`` and ``report.html`` of a workspace; return the page.

    Args:
        folder: the workspace.
        rows: see ``rounds_table``.
        masks: the table of the accepted masks.
        subtitle: what was scored.
        notes: remarks that a reader of the scores must know.
        configuration: that of the last run.
    """
    page = Page(
        title="Data engine",
        subtitle=subtitle,
        notes=notes,
        tables=[rounds_table(rows)],
        figures={"Quality by round": plot_rounds(rows, folder / PLOT_NAME)},
        classes=(),
        cases=(),
        details=[masks],
        texts={"Configuration of the last run": configuration},
    )
    return write_html(folder / HTML_NAME, page)


def masks_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return every accepted mask with what made it and what was changed.

    Args:
        rows: the entries of ``accepted`` in the index of a workspace.
    """
    table = Table(title=f"Accepted masks: {len(rows)}")
    for name in ("image", "version", "use", "by", "proposed by", "Dice", "pixels changed"):
        table.add_column(name)
    for row in rows:
        maker, changes = row["maker"] or {}, row["changes"] or {}
        digests = ", ".join(digest[:12] for digest in maker.get("adapter_sha256", ()))
        made = " ".join(filter(None, [maker.get("how"), digests or maker.get("base")]))
        table.add_row(
            Text(row["image"]),
            str(row["version"]),
            "held out" if row["held_out"] else "training",
            Text(row["by"]),
            Text(made or "drawn by hand"),
            _number(changes.get("dice"), ".3f"),
            _number(changes.get("pixels"), ".2%"),
        )
    return table
