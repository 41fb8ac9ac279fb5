"""The number of clicks (NoC): how many clicks an object takes until its mask is good enough.

It is the measure of interactive segmentation (Xu et al. 2016, "Deep interactive object selection"),
by the rules of RITM and SimpleClick. A simulated user (``prompts/clicker.py``) clicks at most 20
times. NoC@85 is the number of clicks after which the IoU of the mask first is 0.85 or more,
averaged over objects; an object that never gets there counts as 20. NoF@85, the number of failures,
is published as the objects with 20 clicks. It includes those that reach 0.85 with exactly the 20th
click, which are therefore counted apart.

An object is what a prompt stands for: a connected component of a class in a slice or tile, or the
whole class there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from samadapt.evaluation.case_scores import CaseClassScore, summarise
from samadapt.evaluation.statistics import interval_of_ratio

MOST_CLICKS = 20
BOUNDS = {"85": 0.85, "90": 0.90}
"""The IoU of a good mask, by the name of the bound in NoC@85 and NoC@90."""


@dataclass(frozen=True)
class ClickedObject:
    """One object and the quality of its mask.

    Attributes:
        case: name of the case.
        index: number of the slice or tile in the case.
        class_name: name of the object's class.
        iou: the IoU of its mask after each of ``MOST_CLICKS`` clicks.
    """

    case: str
    index: int
    class_name: str
    iou: tuple[float, ...]

    def reached_at(self, bound: float) -> int | None:
        """Return the first number of clicks with an IoU of ``bound``; None if there is none."""
        return next((n for n, one in enumerate(self.iou, start=1) if one >= bound), None)

    def noc(self, bound: float) -> int:
        """Return the number of clicks until ``bound``; ``MOST_CLICKS`` if it is never reached."""
        return self.reached_at(bound) or MOST_CLICKS


@dataclass
class ClickScores:
    """What a model makes of 1 to ``MOST_CLICKS`` clicks.

    Attributes:
        objects: all objects, sorted by case.
        rows: for each number of clicks one score for each case and class, over all slices of the
            case.
    """

    objects: list[ClickedObject] = field(default_factory=list)
    rows: list[list[CaseClassScore]] = field(
        default_factory=lambda: [[] for _ in range(MOST_CLICKS)]
    )


def summarise_clicks(scores: ClickScores, classes: Sequence[str]) -> dict[str, Any]:
    """Return the number of clicks and the curves against the clicks.

    Args:
        scores: of all cases.
        classes: names of the classes 1..K.

    Returns:
        - ``objects``: their number.
        - ``noc``: by the names of ``BOUNDS``, as ``count_clicks`` returns it.
        - ``iou``: the mean IoU over objects after each click; None without objects.
        - ``dice``: the mean Dice of whole cases after each click.
        - ``per_class``: for each class ``objects``, ``noc``, ``iou`` and ``dice``.
    """
    curve = [summarise(rows, classes) for rows in scores.rows]
    parts = {name: [one for one in scores.objects if one.class_name == name] for name in classes}
    return {
        **_summary(scores.objects),
        "dice": [one["dice"] for one in curve],
        "per_class": {
            name: {
                **_summary(objects),
                "dice": [one["per_class"][name]["dice"] for one in curve],
            }
            for name, objects in parts.items()
        },
    }


def _summary(objects: Sequence[ClickedObject]) -> dict[str, Any]:
    iou = np.mean([one.iou for one in objects], axis=0).tolist() if objects else None
    noc = {name: count_clicks(objects, bound) for name, bound in BOUNDS.items()}
    return {"objects": len(objects), "noc": noc, "iou": iou}


def count_clicks(objects: Sequence[ClickedObject], bound: float) -> dict[str, Any]:
    """Count the clicks until the masks of some objects reach an IoU.

    Args:
        objects: sorted by case.
        bound: the IoU.

    Returns:
        - ``noc``: mean number of clicks; None without objects.
        - ``interval``: of that mean, by drawing whole cases; None beside a ``reason`` if there are
          too few.
        - ``nof``: number of failures as published, the objects with ``MOST_CLICKS`` clicks.
        - ``reached_at_last``: those of them that reach the bound exactly at the last click.
        - ``never_reached``: those that do not reach it.
    """
    clicks = [one.noc(bound) for one in objects]
    last = sum(one.reached_at(bound) == MOST_CLICKS for one in objects)
    failures = clicks.count(MOST_CLICKS)
    by_case = [
        [one.noc(bound) for one in group] for _, group in groupby(objects, key=lambda one: one.case)
    ]
    sums = np.array([sum(one) for one in by_case], dtype=np.float64)
    counts = np.array([len(one) for one in by_case], dtype=np.float64)
    return {
        "noc": float(np.mean(clicks)) if clicks else None,
        **interval_of_ratio(sums, counts),
        "nof": failures,
        "reached_at_last": last,
        "never_reached": failures - last,
    }
