"""A contact sheet: many training slices on one page, with class outlines and prompts."""

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
    draw_masks,
    draw_prompts,
    draw_scribbles,
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

# Inches: the width of a slice, the gap between slices, the margin of the page.
WIDTH, GAP, MARGIN = 2.1, 0.1, 0.12

# Inches: the heights of the name over a slice, of a line of the heading, of a row of the legend.
NAME, HEAD_ROW, LEGEND_ROW = 0.2, 0.2, 0.22

LONGEST_NAME = 34
"""Letters that fit over a slice."""


@dataclass(frozen=True)
class SheetSlice:
    """One slice as the model gets it.

    Attributes:
        name: the text over the slice.
        image: (h, w, 3) uint8.
        labels: (h, w) integers: 0 is background, k is the k-th class, ``IGNORED`` is hatched.
        boxes: (n, 4) XYXY in pixels of the image, or None.
        points: (n, k, 2) as (x, y) in pixels of the image, or None.
        point_labels: (n, k): 1 foreground, 0 background, -1 not drawn; None without points.
        masks: (n, h, w) bool, mask prompts, or None.
        scribbled: the points of an object with one label are a curve.
        note: the text inside the lower edge, for example "4 of 37 objects".
    """

    name: str
    image: NDArray[np.uint8]
    labels: NDArray[Any]
    boxes: NDArray[Any] | None = None
    points: NDArray[Any] | None = None
    point_labels: NDArray[Any] | None = None
    masks: NDArray[np.bool_] | None = None
    scribbled: bool = False
    note: str = ""


def draw_contact_sheet(
    slices: Sequence[SheetSlice], classes: Sequence[str], heading: Sequence[str], path: Path
) -> Path:
    """Draw slices in rows and write them as one PNG; return its path.

    Args:
        slices: at least one slice.
        classes: the class names, for the legend.
        heading: the lines at the top of the page.
        path: the PNG to write. Its folder is made; an existing file is replaced.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(slices)))
    rows = math.ceil(len(slices) / columns)
    # The median shape of the images sets the height of the rows, so wide images waste no room.
    ratios = sorted(item.labels.shape[0] / item.labels.shape[1] for item in slices)
    row_height = WIDTH * min(max(ratios[len(ratios) // 2], 0.5), 1.3)
    width = 2 * MARGIN + columns * (WIDTH + GAP) - GAP
    legend_columns, legend_rows = legend_grid(classes, width)
    head, foot = 0.1 + HEAD_ROW * len(heading), 0.14 + LEGEND_ROW * legend_rows
    height = head + rows * (NAME + row_height + GAP) + foot
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
    for number, item in enumerate(slices):
        row, column = divmod(number, columns)
        left = MARGIN + column * (WIDTH + GAP)
        bottom = height - head - (row + 1) * (NAME + row_height + GAP) + GAP
        place = (left / width, bottom / height, WIDTH / width, row_height / height)
        _draw_slice(figure.add_axes(place), item, enlarged=max(item.labels.shape) <= WIDTH * DPI)
    draw_legend(figure, classes, legend_columns)
    with atomic.file(path) as part:
        figure.savefig(part, format="png", dpi=DPI)
    return path


def _draw_slice(axis: Axes, item: SheetSlice, *, enlarged: bool) -> None:
    from matplotlib.collections import LineCollection

    axis.imshow(item.image, interpolation="nearest" if enlarged else "antialiased")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color="#888888", linewidth=0.5)  # shows where a white image ends
    axis.set_autoscale_on(False)
    draw_ignored(axis, item.labels)
    for label in np.unique(item.labels[item.labels > 0]).tolist():
        lines = outline(item.labels == label)
        style = {"colors": colour_of(label), "linewidths": 1.1, "linestyles": line_style(label)}
        axis.add_collection(LineCollection(lines, **style), autolim=False)  # type: ignore[arg-type]
    if item.masks is not None:
        draw_masks(axis, item.masks, scale=0.6)
    if item.scribbled:
        draw_scribbles(axis, item.points, item.point_labels, scale=0.6)
    else:
        draw_prompts(axis, item.boxes, item.points, item.point_labels, scale=0.6)
    if item.note:
        box: dict[str, Any] = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5}
        place: dict[str, Any] = {"transform": axis.transAxes, "ha": "right", "va": "bottom"}
        axis.text(0.99, 0.01, item.note, color="white", size=5.5, bbox=box, **place)
    name = item.name if len(item.name) <= LONGEST_NAME else f"…{item.name[1 - LONGEST_NAME :]}"
    axis.set_title(printable(name), size=6.5, pad=2, parse_math=False)
