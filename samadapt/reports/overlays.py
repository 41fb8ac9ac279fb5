"""Overlays: image, ground truth, zero-shot and adapted prediction of a slice, side by side.

The class colours are those of Okabe and Ito (2008), which people with any colour vision can tell
apart. Their order here makes the first ones stand out on grey images.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from samadapt.console import printable
from samadapt.data.types import IGNORED
from samadapt.errors import DataError
from samadapt.reports.tables import STATES
from samadapt.system import atomic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from samadapt.evaluation.case_scores import CaseClassScore

COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
FILL = 0.38
"""Opacity of the colour inside a class outline."""

HATCH, HATCHED = "////", "#FFFFFF"
"""Pattern and colour of ignored pixels. White is visible on dark and on grey images alike."""

DPI = 160
PANEL_INCHES = 3.3

NARROWEST = 2.5
"""Inches: the least width of a column, so that the headings fit over a narrow image."""

TALLEST = 1.3
"""Height over width of the tallest panel. A taller image gets a narrower panel instead."""

# Inches: the gap between panels, the margin, the heights of title, heading, detail and legend row.
GAP, MARGIN, TITLE, HEADING, DETAIL, LEGEND_ROW = 0.1, 0.12, 0.34, 0.24, 0.16, 0.22

NAMED_SCORES = 4
"""Scores of single classes are listed for at most so many classes."""


def choose_cases(rows: Iterable[CaseClassScore]) -> dict[str, str]:
    """Choose the best, median and worst case by their mean Dice over classes.

    Args:
        rows: the scores of the model.

    Returns:
        ``{"best": case, "median": case, "worst": case}``; with two cases there is no median, with
        one case only the best. Cases without any class (all NaN) are not chosen. Cases with equal
        scores are ordered by name.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if not math.isnan(row.dice):
            scores[row.case].append(row.dice)
    ranked = sorted(scores, key=lambda case: (-math.fsum(scores[case]) / len(scores[case]), case))
    if not ranked:
        return {}
    chosen = {"best": ranked[0]}
    if len(ranked) > 2:
        chosen["median"] = ranked[len(ranked) // 2]
    if len(ranked) > 1:
        chosen["worst"] = ranked[-1]
    return chosen


@dataclass(frozen=True)
class _Panel:
    """One column of an overlay; without labels it shows the image and its prompts."""

    heading: str
    labels: NDArray[Any] | None
    detail: str = ""


def draw_overlay(
    image: NDArray[np.uint8],
    truth: NDArray[Any],
    zero_shot: NDArray[Any] | None,
    adapted: NDArray[Any] | None,
    classes: Sequence[str],
    *,
    path: Path,
    title: str = "",
    scores: Mapping[str, Mapping[str, float]] | None = None,
    scores_of: str = "case",
    boxes: ArrayLike | None = None,
    points: ArrayLike | None = None,
    point_labels: ArrayLike | None = None,
    spacing: tuple[float, float] = (1.0, 1.0),
    names: Mapping[str, str] = STATES,
) -> Path:
    """Draw one slice as panels side by side, image, ground truth, zero-shot and adapted.

    Args:
        image: (h, w, 3) of 0..255, after the intensity rule.
        truth: (h, w) labels: 0 is background, k is ``classes[k - 1]``, ``IGNORED`` is hatched.
        zero_shot: (h, w) labels of the model before training; None: no such panel.
        adapted: (h, w) labels of the model after training; None: no such panel.
        classes: the class names, for the legend.
        path: the PNG to write; its folder is made.
        title: for example "hippocampus_042, slice 17, median".
        scores: Dice by state (``"zero_shot"``, ``"adapted"``) and class; NaN if both are empty.
        scores_of: what the Dice is over, ``"case"`` or ``"slice"``; written beside it.
        boxes: (n, 4) XYXY in pixels of the image, the prompts of the model; drawn on the image.
        points: (n, 2) or (n, k, 2) as (x, y) in pixels of the image, prompts of the model.
        point_labels: the shape of ``points`` without the last axis: 1 foreground, 0 background,
            -1 not drawn; None: all are foreground.
        spacing: (row, column) size of a pixel in mm; the drawing keeps their ratio.
        names: what people call the states; see ``tables.state_names``.

    Returns:
        ``path``.

    Raises:
        DataError: for labels of another shape than the image.
    """
    predicted = {"zero_shot": zero_shot, "adapted": adapted}
    panels = _panels(truth, predicted, scores or {}, scores_of, names)
    for panel in panels:
        if panel.labels is not None and panel.labels.shape != image.shape[:2]:
            raise DataError(
                f"overlay {path.name}: {panel.heading} must be (h, w) = {image.shape[:2]}; "
                f"got {panel.labels.shape}"
            )
    has_details = any(panel.detail for panel in panels)
    heading_inches = HEADING + (DETAIL if has_details else 0.0)
    width, height = _panel_size(image.shape[0] * spacing[0] / (image.shape[1] * spacing[1]))
    total_width = 2 * MARGIN + len(panels) * (max(width, NARROWEST) + GAP) - GAP
    columns, rows = legend_grid(classes, total_width)
    figure, axes = _layout(
        len(panels), (width, height), (heading_inches, 0.14 + rows * LEGEND_ROW), title
    )
    has_prompt = boxes is not None or points is not None
    for axis, panel in zip(axes, panels, strict=True):
        _draw_image(axis, image, spacing)
        if panel.labels is not None:
            _draw_labels(axis, panel.labels)
        elif has_prompt:
            draw_prompts(axis, boxes, points, point_labels)
        heading = "image and prompt" if panel.labels is None and has_prompt else panel.heading
        _write_heading(axis, heading, panel.detail, heading_inches)
    draw_legend(figure, classes, columns)
    with atomic.file(path) as part:
        figure.savefig(part, format="png", dpi=DPI)
    return path


def _panels(
    truth: NDArray[Any],
    predicted: Mapping[str, NDArray[Any] | None],
    scores: Mapping[str, Mapping[str, float]],
    scores_of: str,
    names: Mapping[str, str],
) -> list[_Panel]:
    panels = [_Panel("image", None), _Panel("ground truth", truth)]
    for state, labels in predicted.items():
        if labels is None:
            continue
        heading = names[state]
        dice = {name: d for name, d in scores.get(state, {}).items() if not math.isnan(d)}
        if not dice:
            panels.append(_Panel(heading, labels))
            continue
        mean = math.fsum(dice.values()) / len(dice)
        detail = " · ".join(f"{name} {value:.2f}" for name, value in dice.items())
        shown = detail if 1 < len(dice) <= NAMED_SCORES else ""
        panels.append(_Panel(f"{heading}: Dice {mean:.3f} ({scores_of})", labels, shown))
    return panels


def _panel_size(ratio: float) -> tuple[float, float]:
    """Return (width, height) in inches of a panel for an image of this height over width."""
    if ratio <= TALLEST:
        return PANEL_INCHES, PANEL_INCHES * ratio
    return PANEL_INCHES * TALLEST / ratio, PANEL_INCHES * TALLEST


def legend_grid(classes: Sequence[str], width: float) -> tuple[int, int]:
    """Return (columns, rows) of a legend so that its longest entry fits.

    Args:
        classes: the class names.
        width: inches that the legend may be wide.
    """
    # Inches of one entry: its coloured patch and its letters.
    entry = 0.55 + 0.085 * max(len(name) for name in classes)
    rows = math.ceil(len(classes) / max(int(width / entry), 1))
    return math.ceil(len(classes) / rows), rows


def _layout(
    count: int, panel: tuple[float, float], heading_footer: tuple[float, float], title: str
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, placed in inches so that nothing overlaps at any aspect."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (width, height), (heading, footer) = panel, heading_footer
    column = max(width, NARROWEST)
    total_width = 2 * MARGIN + count * (column + GAP) - GAP
    total_height = (TITLE if title else 0.0) + heading + height + footer
    figure = Figure(figsize=(total_width, total_height), dpi=DPI, facecolor="white")
    # The figure gets its canvas directly, without the global state of pyplot.
    FigureCanvasAgg(figure)
    axes = []
    for index in range(count):
        left = MARGIN + index * (column + GAP) + (column - width) / 2
        rectangle = (left, footer, width, height)
        totals = (total_width, total_height) * 2
        left, bottom, wide, high = (
            inches / total for inches, total in zip(rectangle, totals, strict=True)
        )
        axes.append(figure.add_axes((left, bottom, wide, high)))
    if title:
        place = (MARGIN / total_width, 1 - 0.1 / total_height)
        figure.text(*place, printable(title), weight="bold", size=11, va="top", parse_math=False)
    return figure, axes


def _draw_image(axis: Axes, image: NDArray[np.uint8], spacing: tuple[float, float]) -> None:
    # Enlarged pixels stay sharp; a reduced image is smoothed against aliasing.
    enlarged = max(image.shape[:2]) <= PANEL_INCHES * DPI
    axis.imshow(
        image,
        interpolation="nearest" if enlarged else "antialiased",
        aspect=spacing[0] / spacing[1],
    )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_autoscale_on(False)


def _draw_labels(axis: Axes, labels: NDArray[Any]) -> None:
    """Fill every class half-transparently and draw its outline along the pixel edges."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    fill = np.zeros((*labels.shape, 4), dtype=np.float32)
    for label in np.unique(labels[labels > 0]).tolist():
        mask = labels == label
        colour = colour_of(label)
        fill[mask] = (*to_rgb(colour), FILL)
        lines = LineCollection(
            outline(mask),  # type: ignore[arg-type]
            colors=colour,
            linewidths=1.4,
            capstyle="projecting",
            linestyles=line_style(label),
        )
        axis.add_collection(lines, autolim=False)
    axis.imshow(fill, interpolation="nearest", aspect=axis.get_aspect())
    draw_ignored(axis, labels)


def draw_ignored(axis: Axes, labels: NDArray[Any]) -> None:
    """Hatch the pixels that are labelled ``IGNORED``."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    rows = [
        (row, start, stop)
        for row, start, stop in _runs(np.pad(labels == IGNORED, ((0, 0), (1, 1))))
    ]
    if not rows:
        return
    # Each run of a row is a closed rectangle, and all rectangles form one path.
    corners = [[(x0, y), (x1, y), (x1, y + 1), (x0, y + 1), (x0, y)] for y, x0, x1 in rows]
    codes = [Outline.MOVETO, *[Outline.LINETO] * 3, Outline.CLOSEPOLY] * len(corners)
    shape = Outline(np.reshape(corners, (-1, 2)) - 0.5, codes)
    patch = PathPatch(shape, fill=False, hatch=HATCH, edgecolor=HATCHED, linewidth=0)
    axis.add_patch(patch)


def outline(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the edges between the pixels inside and outside a mask.

    Args:
        mask: (h, w); pixels beyond its border count as outside.

    Returns:
        (n, 2, 2) segments of two (x, y) points each, with pixel centres at whole numbers.
        Neighbouring edges on one line form one segment, so that a dashed line stays dashed.
    """
    padded = np.pad(mask, 1)
    # Edges between rows are horizontal, edges between columns vertical.
    segments = [
        *(((x0, y), (x1, y)) for y, x0, x1 in _runs(padded[1:] != padded[:-1])),
        *(((x, y0), (x, y1)) for x, y0, y1 in _runs((padded[:, 1:] != padded[:, :-1]).T)),
    ]
    return np.array(segments, dtype=np.float64).reshape(-1, 2, 2) - 0.5


def _runs(edges: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Return (row, start, stop) of every run of True along the last axis of a padded edge map."""
    inner = edges[:, 1:-1].astype(np.int8)
    change = np.diff(inner, axis=1, prepend=0, append=0)
    rows, starts = np.nonzero(change == 1)
    stops = np.nonzero(change == -1)[1]
    return list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))


def draw_prompts(
    axis: Axes,
    boxes: ArrayLike | None,
    points: ArrayLike | None,
    point_labels: ArrayLike | None,
    scale: float = 1.0,
) -> None:
    """Draw boxes and points in white with a black rim, which is visible on any image.

    Args:
        axis: the axis that shows the image.
        boxes: (n, 4) XYXY in pixels of the image, or None.
        points: (..., 2) as (x, y) in pixels of the image, or None.
        point_labels: the shape of ``points`` without the last axis; see ``draw_overlay``.
        scale: factor on the sizes of lines and markers.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=2.8 * scale, foreground="black")]
    for x0, y0, x1, y1 in np.asarray(boxes if boxes is not None else []).reshape(-1, 4).tolist():
        rectangle = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False)
        rectangle.set(edgecolor="white", linewidth=1.3 * scale, path_effects=rim)
        axis.add_patch(rectangle)
    if points is None:
        return
    places = (
        np.asarray(points, dtype=float).reshape(-1, 2) - 0.5
    )  # matplotlib centres pixels on whole numbers
    signs = np.ones(len(places)) if point_labels is None else np.asarray(point_labels).ravel()
    for sign, marker in ((1, "o"), (0, "X")):
        x, y = places[signs == sign].T
        axis.scatter(
            x,
            y,
            s=42 * scale**2,
            marker=marker,
            c="white",
            edgecolors="black",
            linewidths=1.1,
            zorder=5,
        )


def draw_masks(axis: Axes, masks: NDArray[np.bool_], scale: float = 1.0) -> None:
    """Draw the outlines of mask prompts (n, h, w) in white with a black rim."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=2.8 * scale, foreground="black")]
    for mask in masks:
        lines = LineCollection(list(outline(mask)), colors="white", linewidths=1.3 * scale)
        lines.set_path_effects(rim)  # type: ignore[arg-type]
        axis.add_collection(lines, autolim=False)


def draw_scribbles(
    axis: Axes, points: ArrayLike | None, point_labels: ArrayLike | None, scale: float = 1.0
) -> None:
    """Draw scribbles as lines with a black rim: solid inside an object, dotted outside.

    Args:
        axis: the axis that shows the image.
        points: (n, k, 2) as (x, y) in pixels of the image, or None. Those of an object with one
            label are a curve.
        point_labels: (n, k): 1 inside, 0 outside, -1 not drawn.
        scale: factor on the widths of lines.
    """
    from matplotlib.patheffects import withStroke

    if points is None or point_labels is None:
        return
    rim = [withStroke(linewidth=3.6 * scale, foreground="black")]
    for curve, labels in zip(np.asarray(points, float), np.asarray(point_labels), strict=True):
        for sign, style in ((1, "-"), (0, ":")):
            x, y = curve[labels == sign].T - 0.5
            axis.plot(x, y, style, color="white", linewidth=2 * scale, path_effects=rim, zorder=5)


def _write_heading(axis: Axes, heading: str, detail: str, inches: float) -> None:
    """Write a heading, and a line of detail if any, into the space above a panel."""
    place: dict[str, Any] = {
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "ha": "center",
        "va": "bottom",
        "parse_math": False,
    }
    lift = 4 + 72 * (inches - HEADING)  # points
    axis.annotate(printable(heading), (0.5, 1), xytext=(0, lift), size=10, **place)
    if detail:
        axis.annotate(detail, (0.5, 1), xytext=(0, 4), size=8, color="#444444", **place)


def draw_legend(figure: Figure, classes: Sequence[str], columns: int) -> None:
    """Write the class names beside their colours at the bottom of the figure."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=to_rgba(colour_of(label), FILL),
            edgecolor=colour_of(label),
            linewidth=1.4,
            linestyle=line_style(label),
        )
        for label in range(1, len(classes) + 1)
    ]
    # A space before the name, since matplotlib hides labels that start with an underscore.
    legend = figure.legend(
        handles,
        [f" {name}" for name in classes],
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        borderaxespad=0.2,
        handlelength=1.4,
        handletextpad=0.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def colour_of(label: int) -> str:
    """Return the colour of a class; classes beyond the last colour start again at the first."""
    return COLOURS[(label - 1) % len(COLOURS)]


def line_style(label: int) -> Literal["solid", "dashed"]:
    """Return the line style of a class: dashed if its colour is used a second time."""
    return "solid" if label <= len(COLOURS) else "dashed"
