"""The learning curve: what more labelled cases brought, and whether still more are worth it.

A point of the curve is one arm (a way to train) with one number of labelled cases. It may be
trained several times, with other cases each time (draws). Every training scores the same held-out
cases. The scores of a case are averaged over the draws first, so intervals and tests are over
cases, as everywhere else. How far the draws lie apart is reported beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from samadapt.evaluation.case_scores import CaseClassScore, summarise
from samadapt.evaluation.comparison import compare_states

LITTLE = 0.015
"""Dice for each doubling of the labelled cases, below which the answer is "will bring little". Two
people who outline the same object usually differ by more."""


@dataclass(frozen=True)
class CurvePoint:
    """The scores of one arm with one number of labelled cases.

    Attributes:
        arm: the way to train, such as ``"lora"`` or ``"unet"``.
        cases: number of labelled cases, those that chose the best step included.
        draws: the rows of each training.
    """

    arm: str
    cases: int
    draws: Sequence[Sequence[CaseClassScore]]


def summarise_curve(points: Sequence[CurvePoint], classes: Sequence[str]) -> dict[str, Any]:
    """Return means, gains and differences of all points.

    Args:
        points: of each arm in rising order of cases; the first arm is compared with the others.
        classes: all class names.

    Returns:
        - ``points``: for each point ``arm``, ``cases``, ``draws`` (the mean Dice of each) and the
          entries of ``case_scores.summarise`` with intervals.
        - ``gains``: for each arm and each step to the next number of cases, the paired comparison
          of Dice, and the difference and its interval ``per_doubling``.
        - ``paired``: for each number of cases and each other arm, the first arm minus the other.
    """
    rows = {(point.arm, point.cases): mean_over_draws(point.draws) for point in points}
    arms = list(dict.fromkeys(point.arm for point in points))
    gains = []
    for arm in arms:
        sizes = [point.cases for point in points if point.arm == arm]
        for fewer, more in pairwise(sizes):
            found = compare_states(rows[arm, fewer], rows[arm, more], classes)["dice"]
            gains.append({"arm": arm, "from": fewer, "to": more, "dice": found})
            gains[-1]["per_doubling"] = _per_doubling(found, math.log2(more / fewer))
    paired = [
        {
            "cases": cases,
            "arm": arms[0],
            "other": arm,
            **compare_states(rows[arm, cases], rows[arms[0], cases], classes),
        }
        for arm, cases in rows
        if arm != arms[0] and (arms[0], cases) in rows
    ]
    return {
        "points": [_point_entry(point, rows[point.arm, point.cases], classes) for point in points],
        "gains": gains,
        "paired": paired,
    }


def mean_over_draws(draws: Sequence[Sequence[CaseClassScore]]) -> list[CaseClassScore]:
    """Average each score of each case and class over the draws that define it."""
    if len(draws) == 1:
        return list(draws[0])
    found: dict[tuple[str, str], list[CaseClassScore]] = {}
    for rows in draws:
        for row in rows:
            found.setdefault((row.case, row.class_name), []).append(row)
    return [_mean_row(rows) for rows in found.values()]


def _mean_row(rows: Sequence[CaseClassScore]) -> CaseClassScore:
    values = {}
    for name in rows[0].values:
        finite = [row.values[name] for row in rows if math.isfinite(row.values[name])]
        values[name] = sum(finite) / len(finite) if finite else math.nan
    # A mask counts as empty only if it is in every draw; that is what the counts are read for.
    predicted = max(row.prediction_voxels for row in rows)
    return replace(rows[0], values=values, prediction_voxels=predicted)


def _point_entry(
    point: CurvePoint, rows: Sequence[CaseClassScore], classes: Sequence[str]
) -> dict[str, Any]:
    draws = [summarise(found, classes)["dice"] for found in point.draws]
    return {
        "arm": point.arm,
        "cases": point.cases,
        "draws": draws,
        **summarise(rows, classes, intervals=True),
    }


def _per_doubling(comparison: dict[str, Any], doublings: float) -> dict[str, Any]:
    """Return difference and interval of a comparison, for each doubling of the cases."""
    difference, interval = comparison["difference"], comparison["interval"]
    return {
        "difference": None if difference is None else difference / doublings,
        "interval": interval and [bound / doublings for bound in interval],
    }


def answer(summary: dict[str, Any]) -> list[str]:
    """Say in words what more labels brought, a sentence or two for each arm.

    Args:
        summary: the result of ``summarise_curve``.
    """
    points = [point for point in summary["points"] if point["dice"] is not None]
    arms = list(dict.fromkeys(point["arm"] for point in points))
    texts = []
    for arm in arms:
        listed = ", ".join(
            f"with {_cases(point['cases'])} {point['dice']:.2f}"
            for point in points
            if point["arm"] == arm
        )
        gains = [gain for gain in summary["gains"] if gain["arm"] == arm]
        texts.append(f"{arm}: {listed}" + (f"; {_verdict(gains[-1])}" if gains else ""))
    return [*texts, *_as_good(points, arms)]


def _verdict(gain: dict[str, Any]) -> str:
    """Say what the last step brought, and what it means for more labels."""
    each, interval = gain["per_doubling"]["difference"], gain["per_doubling"]["interval"]
    if each is None:
        return "no held-out case has a score with both of the last numbers"
    if gain["to"] == 2 * gain["from"]:
        said = f"the last doubling {_change(each)}"
    else:
        whole = gain["dice"]["difference"]
        said = f"from {gain['from']} to {_cases(gain['to'])} it {_change(whole)}, "
        said += f"{abs(each):.2f} for each doubling"
    if interval is not None:
        low, high = interval
        if each < LITTLE and high < 2 * LITTLE:
            return f"{said}: more labels will bring little"
        if each >= LITTLE and low > 0:
            return f"{said}: more labels will help"
        said += f" [{low:.2f}, {high:.2f}]"
    return f"{said}: the held-out cases are too few to tell whether more labels help"


def _change(difference: float) -> str:
    return f"{'lost' if round(difference, 2) < 0 else 'gained'} {abs(difference):.2f}"


def _as_good(points: Sequence[dict[str, Any]], arms: Sequence[str]) -> Iterator[str]:
    """Say how many cases the other arms need for what the first reaches with its fewest."""
    for arm in arms[1:]:
        first = next(point for point in points if point["arm"] == arms[0])
        others = [point for point in points if point["arm"] == arm]
        equal = next((one for one in others if one["dice"] >= first["dice"]), None)
        if equal is None:
            most = others[-1]
            yield (
                f"{arm} with {_cases(most['cases'])} ({most['dice']:.2f}) does not reach "
                f"{arms[0]} with {_cases(first['cases'])} ({first['dice']:.2f})"
            )
        else:
            yield (
                f"{arm} needs {_cases(equal['cases'])} for what {arms[0]} reaches with "
                f"{_cases(first['cases'])} ({first['dice']:.2f})"
            )


def _cases(count: int) -> str:
    return f"{count} case" if count == 1 else f"{count} cases"
