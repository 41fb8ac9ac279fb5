"""Draw the figures of the method comparison, one for each question."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.method_comparison.plan import METHODS, SIZES, TASKS
from benchmarks.method_comparison.summary import Point, Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

TITLES = {"box": "with a box", "semantic": "without a prompt, two classes"}
DECODER_ALONE = "decoder"
HIDDEN = ("full",)
"""``full`` in the last blocks is ``late_blocks``: the same numbers would be drawn twice."""

FAMILIES = {
    "low-rank update": ("lora", "dora", "pissa", "adalora", "loha", "lokr", "vera", "fact"),
    "low-rank with convolutions": ("conv_lora",),
    "rotation": ("oft",),
    "bottleneck": ("houlsby", "adaptformer", "adapter"),
    "scales, biases, norms, tokens": ("ia3", "ssf", "bias", "layernorm", "prompt_tokens"),
    "whole blocks": ("late_blocks", "full"),
}
COLOURS = ("#0072b2", "#56b4e9", "#cc79a7", "#009e73", "#e69f00", "#d55e00")
"""Okabe and Ito's colours, which people with colour blindness can tell apart."""

LABELS = {
    "low-rank update": ("left", (7, -3)),
    "low-rank with convolutions": ("center", (0, -14)),
    "bottleneck": ("left", (7, -3)),
    "whole blocks": ("right", (6, 7)),
}
"""Alignment and offset, in points, of the name of a family's best point; elsewhere above it."""

SIZE_COLOURS = dict(zip(SIZES, ("#9ecae1", "#4292c6", "#08519c"), strict=True))
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31}
"""Two-sided 95 % quantiles of Student's t by the number of runs."""


def draw(points: Points, folder: Path) -> list[Path]:
    """Draw all figures of the comparison.

    Args:
        points: by method, size and task.
        folder: where the PNG files are written; existing ones are replaced.

    Returns:
        The files.
    """
    figures = {
        "methods_dice.png": _dice_by_method,
        "methods_parameters.png": _dice_against_parameters,
        "methods_step_time.png": _seconds_a_step,
    }
    written = []
    for name, make in figures.items():
        path = folder / name
        make(points).savefig(path, format="png")
        written.append(path)
    return written


def _dice_by_method(points: Points) -> Figure:
    """Draw which method is best: the mean over all runs, its interval, and every run."""
    figure = _new_figure(11, 6.6)
    for axis, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        by_method = {
            method: runs
            for method in METHODS
            if method not in HIDDEN and (runs := _runs(points, method, task))
        }
        order = sorted(by_method, key=lambda name: statistics.fmean(_all(by_method[name])))
        for row, method in enumerate(order):
            for size, scores in by_method[method].items():
                rows = [row + _offset(size)] * len(scores)
                axis.plot(scores, rows, "o", ms=3.5, color=SIZE_COLOURS[size], zorder=2)
            mean, half = _interval(_all(by_method[method]))
            below = [row - 0.17] * 2  # under the runs, so that it hides none of them
            axis.plot([mean - half, mean + half], below, color="black", lw=1.4, zorder=3)
            axis.plot([mean], below[:1], "D", ms=5, color="black", zorder=4)
            if method == DECODER_ALONE:
                axis.axvline(mean, color="#999999", lw=1, ls="--", zorder=1)
        axis.set_yticks(range(len(order)), [_label(name) for name in order])
        axis.set_ylim(-0.7, len(order) - 0.3)
        axis.set_xlabel("Dice, mean over held-out volumes")
        axis.set_title(TITLES[task])
        _clean(axis, "x")
    handles = [_dot(SIZE_COLOURS[size], f"a run, {size}") for size in SIZES]
    handles.append(_dot("black", "mean of all runs with 95 % interval", marker="D"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _dice_against_parameters(points: Points) -> Figure:
    """Draw what more parameters bring. The best point of each family is named."""
    figure = _new_figure(11, 5.6)
    for axis, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        placed = {
            (method, size): point
            for (method, size, of_task), point in points.items()
            if of_task == task and method not in (*HIDDEN, DECODER_ALONE)
        }
        for (method, _), point in placed.items():
            axis.plot([point.trained], [point.dice], "o", ms=6, color=_colour(method), alpha=0.85)
        axis.set_xscale("log")
        _name_the_best(axis, placed)
        _draw_seed_bar(axis, placed.values())
        alone = [p.dice for (m, _, t), p in points.items() if t == task and m == DECODER_ALONE]
        if alone:
            axis.axhline(max(alone), color="#777777", lw=1, ls="--", zorder=1)
            axis.text(0.72, max(alone), "decoder alone, best size", color="#555555", fontsize=8.5,
                      ha="center", va="bottom", transform=axis.get_yaxis_transform())  # fmt: skip
        axis.set_xlabel("trained parameters outside the decoder")
        axis.set_ylabel("Dice, mean over seeds")
        axis.set_title(TITLES[task])
        _clean(axis, "both")
    handles = [_dot(colour, family) for family, colour in zip(FAMILIES, COLOURS, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


def _name_the_best(axis: Axes, placed: Mapping[tuple[str, str], Point]) -> None:
    """Write the name of the best point of each family beside it."""
    for name, members in FAMILIES.items():
        family = {place: point for place, point in placed.items() if place[0] in members}
        if not family:
            continue
        (method, size), best = max(family.items(), key=lambda item: item[1].dice)
        side, offset = LABELS.get(name, ("left", (-6, 7)))
        axis.annotate(
            f"{method}, {size}",
            (best.trained, best.dice),
            offset,
            textcoords="offset points",
            fontsize=8.5,
            ha=side,
        )


def _draw_seed_bar(axis: Axes, points: Iterable[Point]) -> None:
    """Draw how far apart seeds typically are: smaller differences mean nothing."""
    spreads = [point.spread for point in points if point.spread is not None]
    if not spreads:
        return
    typical, bottom = statistics.median(spreads), axis.get_ylim()[0]
    middle = bottom + 0.04 * (axis.get_ylim()[1] - bottom) + typical
    axis.errorbar([0.9], [middle], [typical], color="black", capsize=4,
                  transform=axis.get_yaxis_transform())  # fmt: skip
    axis.text(0.88, middle, "typical standard\ndeviation over seeds", fontsize=8.5, ha="right",
              va="center", transform=axis.get_yaxis_transform())  # fmt: skip


def _seconds_a_step(points: Points) -> Figure:
    """Draw what a step costs: three sizes of each method on the box task."""
    figure = _new_figure(8, 6)
    axis, task = figure.subplots(), next(iter(TASKS))
    times = {
        method: {
            size: seconds
            for size in SIZES
            if (point := points.get((method, size, task))) and (seconds := point.step_s) is not None
        }
        for method in METHODS
        if method not in HIDDEN
    }
    times = {method: by_size for method, by_size in times.items() if by_size}
    order = sorted(times, key=lambda name: -statistics.fmean(times[name].values()))
    for row, method in enumerate(order):
        by_size = times[method]
        bounds = [min(by_size.values()), max(by_size.values())]
        axis.plot(bounds, [row, row], color="#bbbbbb", lw=2, zorder=1)
        for size, seconds in by_size.items():
            axis.plot([seconds], [row], "o", ms=6, color=SIZE_COLOURS[size], zorder=2)
    axis.set_yticks(range(len(order)), [_label(name) for name in order])
    axis.set_xlim(left=0)
    axis.set_xlabel("seconds of a training step with a box, one thread")
    _clean(axis, "x")
    handles = [_dot(SIZE_COLOURS[size], f"{size} size") for size in SIZES]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _runs(points: Points, method: str, task: str) -> dict[str, tuple[float, ...]]:
    return {
        size: points[method, size, task].scores for size in SIZES if (method, size, task) in points
    }


def _all(by_size: Mapping[str, Sequence[float]]) -> list[float]:
    return [score for scores in by_size.values() for score in scores]


def _interval(scores: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval (Student's t)."""
    mean, count = statistics.fmean(scores), len(scores)
    if count < 2:
        return mean, 0.0
    return mean, T_95.get(count, 1.96) * statistics.stdev(scores) / math.sqrt(count)


def _offset(size: str) -> float:
    """Return how far the runs of a size lie above the middle of their row."""
    return 0.05 + 0.15 * list(SIZES).index(size)


def _label(method: str) -> str:
    return "decoder alone" if method == DECODER_ALONE else method


def _colour(method: str) -> str:
    for colour, members in zip(COLOURS, FAMILIES.values(), strict=True):
        if method in members:
            return colour
    return "#777777"


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _dot(colour: str, label: str, marker: str = "o") -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], ls="", marker=marker, color=colour, label=label)


def _clean(axis: Axes, grid: str) -> None:
    axis.grid(visible=True, axis=grid, color="#e4e4e4", linewidth=0.8)  # type: ignore[arg-type]
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
