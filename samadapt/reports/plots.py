"""The progress plot of a run: loss, validation Dice and learning rate against the step."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.system import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RAW, SMOOTH, VALIDATION, RATE = "#9a9a9a", "#0072B2", "#D55E00", "#009E73"
Points = list[tuple[int, float]]


def plot_progress(metrics_jsonl: Path, png: Path) -> Path:
    """Draw loss (raw and smoothed), validation Dice and learning rate against the step.

    Args:
        metrics_jsonl: a file with one JSON object a line: ``{"kind": "train", "step", "loss",
            "lr", …}`` or ``{"kind": "validate", "step", "dice", …}``. It may be missing or empty.
            Lines that a crash cut short and values that are null or not finite are left out. If a
            step was written twice, after a resume, the later line counts.
        png: the file to write; its folder is made.

    Returns:
        ``png``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = _read_lines(metrics_jsonl)
    loss = _points(lines, "train", "loss")
    rate = _points(lines, "train", "lr")
    dice = _points(lines, "validate", "dice")
    figure = Figure(figsize=(8, 7.2), dpi=130)
    FigureCanvasAgg(figure)
    # Margins are fixed: matplotlib's constrained layout draws everything once more to find them.
    places = {"left": 0.11, "right": 0.98, "bottom": 0.065, "top": 0.98, "hspace": 0.14}
    axes = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 3, 1.4], **places})
    _draw_loss(axes[0], loss)
    _draw_dice(axes[1], dice)
    _draw_rate(axes[2], rate)
    for axis in axes:
        lighten(axis)
    axes[2].set_xlabel("step")
    axes[2].xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels(axes)
    with atomic.file(png) as part:
        figure.savefig(part, format="png")
    return png


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def plot_runs(metrics: Mapping[str, Path]) -> bytes:
    """Draw the smoothed loss and the validation Dice of several runs against the step.

    Args:
        metrics: the ``metrics.jsonl`` of each run by its name; see ``plot_progress``.

    Returns:
        The content of a PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from scipy.ndimage import gaussian_filter1d

    figure = Figure(figsize=(8, 5.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for (name, path), colour in zip(metrics.items(), cycle(COLOURS), strict=False):
        lines = _read_lines(path)
        if loss := _points(lines, "train", "loss"):
            steps, values = zip(*loss, strict=True)
            smoothed = gaussian_filter1d(np.array(values), max(len(values) / 50, 1), mode="nearest")
            upper.plot(steps, smoothed, color=colour, linewidth=1.8, label=name)
        if dice := _points(lines, "validate", "dice"):
            steps, values = zip(*dice, strict=True)
            lower.plot(steps, values, color=colour, linewidth=1.8, marker="o", markersize=4)
    for axis, label in ((upper, "training loss, smoothed"), (lower, "validation Dice")):
        axis.set_ylabel(label)
        if not axis.lines:
            _say_nothing(axis, "nothing was trained")
        lighten(axis)
    if upper.lines:
        upper.legend(frameon=False, loc="upper right")
    lower.set_xlabel("step")
    lower.xaxis.get_major_locator().set_params(integer=True)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def lighten(axis: Axes) -> None:
    """Put a pale grid behind the curves, and leave the upper and the right side open."""
    axis.grid(visible=True, color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_loss(axis: Axes, loss: Points) -> None:
    from scipy.ndimage import gaussian_filter1d  # centred; a running mean would lag behind

    axis.set_ylabel("training loss")
    if not loss:
        _say_nothing(axis, "no training step yet")
        return
    steps, values = zip(*loss, strict=True)
    marker = "o" if len(steps) == 1 else None
    axis.plot(steps, values, color=RAW, linewidth=0.9, alpha=0.7, marker=marker, label="each step")
    smoothed = gaussian_filter1d(np.array(values), max(len(values) / 50, 1), mode="nearest")
    axis.plot(steps, smoothed, color=SMOOTH, linewidth=2.2, label="smoothed")
    if min(values) > 0 and max(values) > 30 * min(values):
        axis.set_yscale("log")
    axis.legend(frameon=False, loc="upper right")


def _draw_dice(axis: Axes, dice: Points) -> None:
    axis.set_ylabel("validation Dice")
    if not dice:
        _say_nothing(axis, "no validation yet")
        return
    steps, values = zip(*dice, strict=True)
    axis.plot(steps, values, color=VALIDATION, linewidth=2.2, marker="o", markersize=5)
    best_step, best = max(dice, key=lambda point: point[1])
    axis.plot([best_step], [best], color=VALIDATION, marker="*", markersize=15, linestyle="none")
    # The text stands below the star, and on its left side if the star is near the right edge.
    inwards = best_step >= (min(steps) + max(steps)) / 2
    axis.annotate(
        f"best {best:.3f} at step {best_step}",
        (best_step, best),
        xytext=(-8 if inwards else 8, -16),
        textcoords="offset points",
        ha="right" if inwards else "left",
        va="top",
        color="#7a3500",
    )
    low, high = min(values), max(values)
    room = max(high - low, 0.02)
    axis.set_ylim(max(low - 0.35 * room, -0.02), min(high + 0.15 * room, 1.02))


def _draw_rate(axis: Axes, rate: Points) -> None:
    axis.set_ylabel("learning rate")
    if not rate:
        _say_nothing(axis, "no training step yet")
        return
    steps, values = zip(*rate, strict=True)
    marker = "o" if len(steps) == 1 else None
    axis.plot(steps, values, color=RATE, linewidth=2, marker=marker)
    axis.set_ylim(bottom=0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))


def _say_nothing(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color="#777777")
    axis.set_yticks([])


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects of a file; other lines are left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _points(lines: list[dict[str, Any]], kind: str, key: str) -> Points:
    """Return (step, value) in the order of steps: finite values only, the last of each step."""
    found: dict[int, float] = {}
    for line in lines:
        step, value = line.get("step"), line.get(key)
        if line.get("kind") != kind or not isinstance(step, int):
            continue
        if isinstance(value, int | float) and math.isfinite(value):
            found[step] = float(value)
    return sorted(found.items())
