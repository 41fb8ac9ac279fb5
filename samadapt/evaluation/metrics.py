"""Dice and IoU per class and case, with one stated rule for every kind of empty mask.

========================  ==========================================================
case                      Dice, IoU
========================  ==========================================================
both masks empty          NaN, counted as ``both_empty``, left out of every mean
only the truth empty      0, counted and flagged ``truth_empty`` (a false positive)
only the prediction empty 0, counted and flagged ``prediction_empty`` (a miss)
nothing to average        None, with the reason
========================  ==========================================================

A mean is over cases per class, then over classes. Some libraries differ: MONAI gives NaN for a
false positive on an empty truth, 0 for the mean of nothing, and averages classes within a case.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from samadapt.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

Flag = Literal["", "both_empty", "truth_empty", "prediction_empty"]


@dataclass(frozen=True)
class CaseClassScore:
    """How well one class was found in one case.

    Attributes:
        case: name of the case; a whole volume where there is one.
        class_name: name of the class.
        dice: 2·|P∩T| / (|P| + |T|) in 0..1; NaN where both are empty.
        iou: |P∩T| / (|P| + |T| - |P∩T|) in 0..1; NaN where both are empty.
        truth_voxels: |T|.
        prediction_voxels: |P|.
        intersection: |P∩T|.
    """

    case: str
    class_name: str
    dice: float
    iou: float
    truth_voxels: int
    prediction_voxels: int
    intersection: int

    @property
    def flag(self) -> Flag:
        """Which of the two masks is empty; an empty string where neither is."""
        if self.truth_voxels and self.prediction_voxels:
            return ""
        if self.truth_voxels:
            return "prediction_empty"
        return "truth_empty" if self.prediction_voxels else "both_empty"


def dice(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Dice of two boolean masks of the same shape; NaN where both are empty.

    Raises:
        DataError: for two shapes.
    """
    return _dice(*_mask_counts(prediction, truth))


def iou(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Intersection over union of two boolean masks of the same shape; NaN where both are empty.

    Raises:
        DataError: for two shapes.
    """
    return _iou(*_mask_counts(prediction, truth))


def score_case(
    case: str,
    prediction: NDArray[Any],
    truth: NDArray[Any],
    classes: Sequence[str],
) -> list[CaseClassScore]:
    """Score every class of one case from exact voxel counts, in one pass over the labels.

    Args:
        case: name of the case, for the rows and for errors.
        prediction: (h, w, d) or (h, w) integer labels: 0 background, k for ``classes[k - 1]``.
        truth: the same shape and meaning.
        classes: class names in the order of their labels 1..K.

    Returns:
        One row a class, in the order of ``classes``.

    Raises:
        DataError: for two shapes, labels that are no integers, or a label outside 0..K.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise DataError(
            f"case {case!r}: prediction and ground truth must have one shape; got "
            f"{prediction.shape} and {truth.shape}"
        )
    count = len(classes) + 1
    joint_index = _labels(case, "ground truth", truth, count) * count
    joint_index += _labels(case, "prediction", prediction, count)
    joint = np.bincount(joint_index, minlength=count * count).reshape(count, count)
    truth_voxels, prediction_voxels = joint.sum(axis=1), joint.sum(axis=0)
    rows = []
    for label, name in enumerate(classes, start=1):
        p, t = int(prediction_voxels[label]), int(truth_voxels[label])
        both = int(joint[label, label])
        rows.append(CaseClassScore(case, name, _dice(p, t, both), _iou(p, t, both), t, p, both))
    return rows


def summarise(rows: Iterable[CaseClassScore], classes: Sequence[str]) -> dict[str, Any]:
    """Average the rows over cases per class, then over classes.

    Args:
        rows: scores of any number of cases; each (case, class) at most once.
        classes: all class names; a class without rows is reported, not forgotten.

    Returns:
        ``{"dice", "iou", "per_class": {name: {"dice", "iou", "cases", "both_empty",
        "truth_empty", "prediction_empty"}}}``. ``cases`` counts the cases in the mean: all but
        ``both_empty``. Where there is nothing to average, the scores are None beside a
        ``"reason"``, and the class is left out of the mean over classes.

    Raises:
        DataError: for a class that is not in ``classes``, or a (case, class) given twice.
    """
    by_class: dict[str, list[CaseClassScore]] = {name: [] for name in classes}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if row.class_name not in by_class:
            raise DataError(
                f"case {row.case!r} has a score of class {row.class_name!r}; expected one of "
                f"{list(classes)}"
            )
        if (row.case, row.class_name) in seen:
            raise DataError(f"case {row.case!r} has two scores of class {row.class_name!r}")
        seen.add((row.case, row.class_name))
        by_class[row.class_name].append(row)
    per_class = {name: _summarise_class(name, by_class[name]) for name in classes}
    scored = [entry for entry in per_class.values() if entry["dice"] is not None]
    summary: dict[str, Any] = {"dice": None, "iou": None, "per_class": per_class}
    if scored:
        summary["dice"] = math.fsum(entry["dice"] for entry in scored) / len(scored)
        summary["iou"] = math.fsum(entry["iou"] for entry in scored) / len(scored)
    else:
        summary["reason"] = (
            "no case has any class, in the ground truth or in the prediction"
            if seen
            else "no case was scored"
        )
    return summary


def _summarise_class(name: str, rows: list[CaseClassScore]) -> dict[str, Any]:
    """Mean over the cases in which at least one of the two masks is not empty."""
    flags = Counter(row.flag for row in rows)
    scored = [row for row in rows if row.flag != "both_empty"]
    entry: dict[str, Any] = {
        "dice": None,
        "iou": None,
        "cases": len(scored),
        "both_empty": flags["both_empty"],
        "truth_empty": flags["truth_empty"],
        "prediction_empty": flags["prediction_empty"],
    }
    if scored:
        entry["dice"] = math.fsum(row.dice for row in scored) / len(scored)
        entry["iou"] = math.fsum(row.iou for row in scored) / len(scored)
    elif rows:
        entry["reason"] = (
            f"class {name!r} is empty, in the ground truth and in the prediction, in all "
            f"{len(rows)} cases"
        )
    else:
        entry["reason"] = f"no case was scored for class {name!r}"
    return entry


def _labels(case: str, what: str, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The labels flat as int64, checked to be integers in 0..count - 1."""
    if labels.dtype.kind not in "iub":
        raise DataError(f"case {case!r}: {what} must hold integer labels; got {labels.dtype}")
    flat = labels.ravel().astype(np.int64)
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    if low < 0 or high >= count:
        raise DataError(
            f"case {case!r}: {what} labels must be 0 (background) to {count - 1}; "
            f"got {low} to {high}"
        )
    return flat


def _mask_counts(prediction: ArrayLike, truth: ArrayLike) -> tuple[int, int, int]:
    """(|P|, |T|, |P∩T|) of two boolean masks."""
    p, t = np.asarray(prediction, dtype=bool), np.asarray(truth, dtype=bool)
    if p.shape != t.shape:
        raise DataError(f"prediction and truth must have one shape; got {p.shape} and {t.shape}")
    return int(p.sum()), int(t.sum()), int((p & t).sum())


def _dice(prediction: int, truth: int, both: int) -> float:
    return 2 * both / (prediction + truth) if prediction + truth else math.nan


def _iou(prediction: int, truth: int, both: int) -> float:
    union = prediction + truth - both
    return both / union if union else math.nan
