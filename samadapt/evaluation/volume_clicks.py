"""Scores of a box and five clicks in a volume, as the CVPR 2025 challenge computes them.

A model answers six times: to the box, and after each click (``prompts/volume_clicker.py``). Each
answer has a Dice and an NSD at a tolerance of 2 mm, averaged over the classes that the case has.
Where the Dice is 0.2 or less, the NSD counts as 0. The area under the curve is over the five
answers to clicks, by trapezoids of width 1, so that 4 is perfect.

Two rules differ from the challenge: the box is exact, where the challenge enlarges it at random,
and no time is limited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from samadapt.evaluation.case_scores import CaseClassScore
from samadapt.evaluation.statistics import interval_of

VOLUME_CLICKS = 5
TOLERANCE_MM = 2.0
LEAST_DICE = 0.2
"""Mean Dice of a case up to which its NSD counts as 0."""
ANSWERS = ("box", "1 click", *(f"{n} clicks" for n in range(2, VOLUME_CLICKS + 1)))
SCORES = ("dice", "nsd")


@dataclass(frozen=True)
class CorrectedClass:
    """The scores of one class in one case after each of ``ANSWERS``.

    Attributes:
        case: name of the case.
        class_name: name of the class.
        length_unit: unit of the tolerance: "mm", or "px" for a volume without spacing.
        dice: Dice of each answer.
        nsd: NSD of each answer.
    """

    case: str
    class_name: str
    length_unit: str
    dice: tuple[float, ...]
    nsd: tuple[float, ...]


def corrected_classes(answers: Sequence[Sequence[CaseClassScore]]) -> list[CorrectedClass]:
    """Return the scores of the classes that one case has.

    Args:
        answers: for each of ``ANSWERS`` the scores of all classes, ``dice`` and ``nsd``.
    """
    by_class = [rows for rows in zip(*answers, strict=True) if rows[0].truth_voxels]
    if not by_class:
        return []
    dice = np.array([[row.dice for row in rows] for rows in by_class])
    nsd = np.array([[row.values["nsd"] for row in rows] for rows in by_class])
    nsd[:, dice.mean(axis=0) <= LEAST_DICE] = 0
    return [
        CorrectedClass(
            rows[0].case, rows[0].class_name, rows[0].length_unit, tuple(own[0]), tuple(own[1])
        )
        for rows, own in zip(by_class, zip(dice.tolist(), nsd.tolist(), strict=True), strict=True)
    ]


def area_under_clicks(scores: Sequence[float]) -> float:
    """Return the area under the scores (answers,) of the clicks, without that of the box."""
    clicks = np.asarray(scores, dtype=np.float64)[1:]
    return float(((clicks[1:] + clicks[:-1]) / 2).sum())


def summarise_corrections(
    classes: Sequence[CorrectedClass], names: Sequence[str]
) -> dict[str, Any]:
    """Average the scores over the classes of each case, then over cases, as the challenge does.

    Args:
        classes: of all cases, sorted by case.
        names: names of the classes 1..K.

    Returns:
        - ``cases``: their number.
        - ``dice_auc`` and ``nsd_auc``, from 0 to 4.
        - ``intervals``: of both, by drawing cases; an interval is None beside a ``reason`` if there
          are too few.
        - ``dice`` and ``nsd``: the mean of each answer, by its name in ``ANSWERS``.
        - ``unit``: of the tolerance; ``"mm"``, ``"px"``, or None where cases differ.
        - ``per_class``: for each class the same entries without ``unit``, over the cases that have
          it.
    """
    units = {one.length_unit for one in classes}
    return {
        **_means(classes),
        "unit": units.pop() if len(units) == 1 else None,
        "per_class": {
            name: _means([one for one in classes if one.class_name == name]) for name in names
        },
    }


def _means(classes: Sequence[CorrectedClass]) -> dict[str, Any]:
    by_case = [list(group) for _, group in groupby(classes, key=lambda one: one.case)]
    found: dict[str, Any] = {"cases": len(by_case)}
    intervals: dict[str, Mapping[str, Any]] = {}
    for score in SCORES:
        # (cases, answers)
        values = np.array(
            [np.mean([getattr(one, score) for one in case], axis=0) for case in by_case]
        ).reshape(len(by_case), len(ANSWERS))
        areas = np.array([area_under_clicks(row.tolist()) for row in values])
        has = len(by_case) > 0
        found[f"{score}_auc"] = float(areas.mean()) if has else None
        intervals[f"{score}_auc"] = interval_of(areas[:, None])
        means = values.mean(axis=0).tolist() if has else [None] * len(ANSWERS)
        found[score] = dict(zip(ANSWERS, means, strict=True))
    return {**found, "intervals": intervals}
