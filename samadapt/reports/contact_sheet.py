"""Many training slices on one page: image, outlines of the classes, prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.console import printable
from samadapt.reports.overlays import (
    colour_of,
    draw_ignored,
    draw_legend,
    draw_prompts,
    legend_grid,
    line_style,
    outline,
)
from samadapt.system import atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

DPI = 140
TILE, GAP, MARGIN = 2.1, 0.1, 0.12  # inches
NAME, HEAD_ROW, LEGEND_ROW = 0.2, 0.2, 0.22  # inches
LONGEST = 34  # letters over a tile


@dataclass(frozen=True)
class Tile:
    """One slice as the model gets it.

    Attributes:
        name: what is written over it.
        image: (h, w, 3) uint8.
        labels: (h, w) integers, 0 background, k for the k-th class, ``IGNORED`` is hatched.
        boxes: (n, 4) XYXY pixels, or None.
        points: (n, k, 2) (x, y) pixels, or None.
        point_labels: (n, k), 1 foreground, 0 background, -1 not drawn; None without points.
        note: what is written inside its lower edge, for example "4 of 37 objects".
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[Any]
    boxes: NDArray[Any] | None = None
    points: NDArray[Any] | None = None
    point_labels: NDArray[Any] | None = None
    note: str = ""


def draw_contact_sheet(
    tiles: Sequence[Tile], classes: Sequence[str], heading: Sequence[str], path: Path
) -> Path:
    """Write slices side by side, in rows, as one PNG.

    Args:
        tiles: at least one.
        classes: class names, for the legend.
        heading: lines above everything.
        path: to write; its folder is made, an existing file is replaced.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    # the usual shape of the images decides how tall a row is, so that wide ones waste no room
    ratios = sorted(tile.labels.shape[0] / tile.labels.shape[1] for tile in tiles)
    tall = TILE * min(max(ratios[len(ratios) // 2], 0.5), 1.3)
    width = 2 * MARGIN + columns * (TILE + GAP) - GAP
    legend_columns, legend_rows = legend_grid(classes, width)
    head, foot = 0.1 + HEAD_ROW * len(heading), 0.14 + LEGEND_ROW * legend_rows
    height = head + rows * (NAME + tall + GAP) + foot
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for line, text in enumerate(heading):
        top = 1 - (0.08 + line * HEAD_ROW) / height
        weight, size = ("bold", 9) if line == 0 else ("normal", 7.5)
        figure.text(
            MARGIN / width,
            top,
            printable(text),
            weight=weight,
            size=size,
            va="top",
            parse_math=False,
        )
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        left = MARGIN + column * (TILE + GAP)
        bottom = height - head - (row + 1) * (NAME + tall + GAP) + GAP
        place = (left / width, bottom / height, TILE / width, tall / height)
        _draw(figure.add_axes(place), tile, enlarged=max(tile.labels.shape) <= TILE * DPI)
    draw_legend(figure, classes, legend_columns)
    with atomic.file(path) as part:
        figure.savefig(part, format="png", dpi=DPI)
    return path


def _draw(axis: Axes, tile: Tile, *, enlarged: bool) -> None:
    from matplotlib.collections import LineCollection

    axis.imshow(tile.image, interpolation="nearest" if enlarged else "antialiased")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color="#888888", linewidth=0.5)  # white images end somewhere too
    axis.set_autoscale_on(False)
    draw_ignored(axis, tile.labels)
    for label in np.unique(tile.labels[tile.labels > 0]).tolist():
        lines = outline(tile.labels == label)
        style = {"colors": colour_of(label), "linewidths": 1.1, "linestyles": line_style(label)}
        axis.add_collection(LineCollection(lines, **style), autolim=False)  # type: ignore[arg-type]
    draw_prompts(axis, tile.boxes, tile.points, tile.point_labels, scale=0.6)
    if tile.note:
        box: dict[str, Any] = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5}
        place: dict[str, Any] = {"transform": axis.transAxes, "ha": "right", "va": "bottom"}
        axis.text(0.99, 0.01, tile.note, color="white", size=5.5, bbox=box, **place)
    name = tile.name if len(tile.name) <= LONGEST else f"…{tile.name[1 - LONGEST :]}"
    axis.set_title(printable(name), size=6.5, pad=2, parse_math=False)
