"""Score each class in each case and average the scores, with one rule for empty masks.

The formula of each score, such as Dice, is in its file of ``evaluation/scores``.

========================  ==================================  ======================  ===
case                      Dice, IoU                           HD95                    NSD
========================  ==================================  ======================  ===
both masks empty          NaN, counted as ``both_empty``,     NaN                     NaN
                          left out of every mean
only the truth empty      0, counted and flagged              the image's diagonal,   0
                          ``truth_empty`` (false positive)    flagged
only the prediction empty 0, counted and flagged              the image's diagonal,   0
                          ``prediction_empty`` (a miss)       flagged
nothing to average        None, with the reason               None                    None
========================  ==================================  ======================  ===

Ignored voxels are removed from the prediction and from the truth before any score is taken. A class
without a known voxel in a case has no row.

A mean is taken over the cases of each class, then over classes. Some libraries differ: MONAI gives
NaN for a false positive on an empty truth, 0 for the mean of nothing, and averages the classes
within a case.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from samadapt.data.types import IGNORED
from samadapt.errors import DataError
from samadapt.evaluation.scores import SCORES, ClassMasks
from samadapt.evaluation.statistics import class_means, interval_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

Flag = Literal["", "both_empty", "truth_empty", "prediction_empty"]
BLOCK = 2**22
"""Voxels that are counted at once. Counting copies them as 64-bit integers, too much for a CT."""


@dataclass(frozen=True)
class CaseClassScore:
    """The scores of one class in one case.

    Attributes:
        case: name of the case, such as a whole volume.
        class_name: name of the class.
        values: each score by its name in ``SCORES``; NaN if it is undefined.
        truth_voxels: |T|, the voxels of the truth.
        prediction_voxels: |P|, the voxels of the prediction.
        intersection: |P∩T|, the voxels of both.
        length_unit: ``"mm"``, or ``"px"`` if the spacing is not known.
        ignored_voxels: voxels of the case that were left out, because it is not known whether they
            belong to the class.
        voxels: all voxels of the case, including the ignored ones.
    """

    case: str
    class_name: str
    values: Mapping[str, float]
    truth_voxels: int
    prediction_voxels: int
    intersection: int
    length_unit: str = "px"
    ignored_voxels: int = 0
    voxels: int = 0

    @property
    def dice(self) -> float:
        """2·|P∩T| / (|P| + |T|) in 0..1; NaN if both are empty."""
        return self.values["dice"]

    @property
    def iou(self) -> float:
        """|P∩T| / (|P| + |T| - |P∩T|) in 0..1; NaN if both are empty."""
        return self.values["iou"]

    @property
    def flag(self) -> Flag:
        """Which of the two masks is empty; an empty string if neither is."""
        if self.truth_voxels and self.prediction_voxels:
            return ""
        if self.truth_voxels:
            return "prediction_empty"
        return "truth_empty" if self.prediction_voxels else "both_empty"


def dice(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Return the Dice of two boolean masks of the same shape; NaN if both are empty.

    Raises:
        DataError: the shapes differ.
    """
    return _overlap("dice", prediction, truth)


def iou(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Return the IoU of two boolean masks of the same shape; NaN if both are empty.

    Raises:
        DataError: the shapes differ.
    """
    return _overlap("iou", prediction, truth)


def score_case(
    case: str,
    prediction: NDArray[Any],
    truth: NDArray[Any],
    classes: Sequence[str],
    *,
    spacing_mm: Sequence[float] | None = None,
    tolerance: float = 1.0,
    scores: Collection[str] | None = None,
) -> list[CaseClassScore]:
    """Score every class of one case.

    Args:
        case: name of the case, for the rows and for errors.
        prediction: (h, w, d) or (h, w) integer labels: 0 background, k for ``classes[k - 1]``.
            A case of one slice is measured in 2D: its surfaces are contours.
        truth: the same shape and meaning, with ``IGNORED`` where the class is not known.
        classes: class names in the order of their labels 1..K.
        spacing_mm: (row, column, slice) in mm; None: lengths are in pixels.
        tolerance: of the normalised surface Dice, in mm, or in pixels without spacing.
        scores: names of the scores to take; None: all of ``SCORES``.

    Returns:
        One row for each class, in the order of ``classes``; none if every voxel is ignored.

    Raises:
        DataError: the shapes differ, labels are not integers, or a label is outside 0..K.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise DataError(
            f"case {case!r}: prediction and ground truth must have one shape; got "
            f"{prediction.shape} and {truth.shape}"
        )
    unknown = truth == IGNORED
    ignored = int(np.count_nonzero(unknown))
    if ignored:
        # Ignored voxels become background in both, which no score counts.
        prediction, truth = np.where(unknown, 0, prediction), np.where(unknown, 0, truth)
    if ignored and ignored == truth.size:
        return []
    # Row: label of the truth. Column: label of the prediction. All overlaps follow from it.
    joint = _joint_counts(case, prediction, truth, len(classes) + 1)
    voxel_size = math.prod(spacing_mm) if spacing_mm is not None else 1.0
    # A single slice is measured in 2D, without a surface in front and behind.
    if prediction.ndim == 3 and prediction.shape[2] == 1:
        prediction, truth = prediction[..., 0], truth[..., 0]
    chosen = [SCORES[name] for name in (SCORES if scores is None else scores)]
    steps = (1.0,) * prediction.ndim if spacing_mm is None else tuple(map(float, spacing_mm))
    boxes = _ClassBoxes(prediction, truth, len(classes))
    truth_voxels, prediction_voxels = joint.sum(axis=1), joint.sum(axis=0)
    rows = []
    for label, name in enumerate(classes, start=1):
        p, t = int(prediction_voxels[label]), int(truth_voxels[label])
        masks = ClassMasks(
            crop=partial(boxes.crop, label),
            prediction_voxels=p,
            truth_voxels=t,
            intersection=int(joint[label, label]),
            shape=prediction.shape,
            spacing=steps[: prediction.ndim],
            voxel_size=voxel_size,
            is_mm=spacing_mm is not None,
            tolerance=tolerance,
        )
        # A class that is empty in both masks has no score; see the table above.
        values = {s.name: s.measure(masks) if p or t else math.nan for s in chosen}
        unit = "px" if spacing_mm is None else "mm"
        counts = t, p, masks.intersection
        rows.append(CaseClassScore(case, name, values, *counts, unit, ignored, truth.size))
    return rows


def summarise(
    rows: Iterable[CaseClassScore], classes: Sequence[str], *, intervals: bool = False
) -> dict[str, Any]:
    """Average the rows over the cases of each class, then over classes.

    Args:
        rows: scores of any number of cases; each (case, class) at most once.
        classes: all class names. A class without rows is listed with the reason.
        intervals: whether to add the 95 % intervals of ``statistics.interval_of``.

    Returns:
        ``{score: mean, "per_class": {name: {score: mean, "cases", "both_empty", "truth_empty",
        "prediction_empty", "detail"}}, "detail"}``. ``cases`` counts the cases in the mean, which
        are all but ``both_empty``. ``detail[score]`` has the ``unit``, the number of ``cases`` that
        have the score (over classes: of ``classes``), and with ``intervals`` the ``interval``
        [low, high] of the mean, or None and a ``reason``. If voxels were ignored, each class and
        the whole have ``ignored``: ``{"voxels", "share"}``. If there is nothing to average, the
        scores are None beside a ``"reason"``, and the class is left out of the mean over classes.

    Raises:
        DataError: a class is not in ``classes``, or a (case, class) occurs twice.
    """
    rows = list(rows)
    table = score_table(rows, classes)
    units = _units(rows)
    # Lengths in mm and in pixels cannot be averaged: such scores get no mean.
    columns = [n for n, name in enumerate(table.scores) if units[name] is not None]
    mixed = [name for name in table.scores if units[name] is None]
    values = table.values
    values[:, :, [n for n in range(len(table.scores)) if n not in columns]] = np.nan
    means = class_means(values)
    per_class = {}
    for k, name in enumerate(classes):
        entry = _class_entry(name, [row for row in rows if row.class_name == name], table.scores)
        entry |= _named(table.scores, means[k])
        entry["detail"] = _detail(values[:, [k]], table.scores, units, "cases", intervals)
        per_class[name] = entry | _ignored(row for row in rows if row.class_name == name)
    with np.errstate(invalid="ignore"):
        overall = np.nansum(means, axis=0) / np.isfinite(means).sum(axis=0)
    summary: dict[str, Any] = {**_named(table.scores, overall), "per_class": per_class}
    summary["detail"] = _detail(values, table.scores, units, "classes", intervals)
    summary |= _ignored(rows)
    if mixed:
        summary["reason"] = f"some cases are in mm and some in px: no mean of {', '.join(mixed)}"
    if summary["dice"] is None:
        summary["reason"] = (
            "no case has any class, in the ground truth or in the prediction"
            if rows
            else "no case was scored"
        )
    return summary


@dataclass(frozen=True)
class ScoreTable:
    """Rows as an array.

    Attributes:
        cases: names of the cases, in the order of the rows.
        scores: names of the scores.
        values: (cases, classes, scores) float64; NaN if there is no score.
    """

    cases: list[str]
    scores: list[str]
    values: NDArray[np.float64]


def score_table(rows: Sequence[CaseClassScore], classes: Sequence[str]) -> ScoreTable:
    """Arrange rows by case, class and score.

    Raises:
        DataError: a class is not in ``classes``, or a (case, class) occurs twice.
    """
    cases = list(dict.fromkeys(row.case for row in rows))
    names = list(rows[0].values) if rows else ["dice", "iou"]
    values = np.full((len(cases), len(classes), len(names)), np.nan)
    places = {case: n for n, case in enumerate(cases)}, {name: n for n, name in enumerate(classes)}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        if row.class_name not in places[1]:
            raise DataError(
                f"case {row.case!r} has a score of class {row.class_name!r}; expected one of "
                f"{list(classes)}"
            )
        if (row.case, row.class_name) in seen:
            raise DataError(f"case {row.case!r} has two scores of class {row.class_name!r}")
        seen.add((row.case, row.class_name))
        values[places[0][row.case], places[1][row.class_name]] = [row.values[n] for n in names]
    return ScoreTable(cases, names, values)


def _class_entry(name: str, rows: list[CaseClassScore], scores: Sequence[str]) -> dict[str, Any]:
    """Return the counts of the cases of a class, and the reason if there is no mean."""
    flags = Counter(row.flag for row in rows)
    scored = len(rows) - flags["both_empty"]
    entry: dict[str, Any] = {**dict.fromkeys(scores), "cases": scored}
    entry |= {flag: flags[flag] for flag in ("both_empty", "truth_empty", "prediction_empty")}
    if not rows:
        entry["reason"] = f"no case was scored for class {name!r}"
    elif not scored:
        entry["reason"] = (
            f"class {name!r} is empty, in the ground truth and in the prediction, in all "
            f"{len(rows)} cases"
        )
    return entry


def _ignored(rows: Iterable[CaseClassScore]) -> dict[str, Any]:
    """Return how many voxels were ignored, over classes and cases; {} if none."""
    rows = list(rows)
    ignored = sum(row.ignored_voxels for row in rows)
    share = ignored / max(sum(row.voxels for row in rows), 1)
    return {"ignored": {"voxels": ignored, "share": share}} if ignored else {}


def _detail(
    values: NDArray[np.float64],
    scores: Sequence[str],
    units: Mapping[str, str | None],
    counted: str,
    intervals: bool,
) -> dict[str, Any]:
    """Return unit, count and interval of the mean of each score of (n, K, scores) values."""
    has = np.isfinite(values)
    counts = has.any(axis=0).sum(axis=0) if counted == "classes" else has[:, 0].sum(axis=0)
    detail = {
        name: {"unit": units[name], counted: int(count)}
        for name, count in zip(scores, counts, strict=True)
    }
    if intervals:
        for n, name in enumerate(scores):
            detail[name] |= interval_of(values[:, :, n])
    return detail


def _units(rows: Sequence[CaseClassScore]) -> dict[str, str | None]:
    """Return the unit of each score; None if cases differ, because their mean has no meaning."""
    found = {row.length_unit for row in rows}
    units: dict[str, str | None] = {}
    for name in rows[0].values if rows else ("dice", "iou"):
        score = SCORES[name]
        options = {score.unit(unit == "mm") for unit in found} or {""}
        units[name] = options.pop() if len(options) == 1 else None
    return units


def _named(scores: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the value of each score, None for NaN."""
    pairs = zip(scores, values.tolist(), strict=True)
    return {name: value if math.isfinite(value) else None for name, value in pairs}


class _ClassBoxes:
    """The bounding box of each class, which holds its prediction and its truth."""

    def __init__(self, prediction: NDArray[Any], truth: NDArray[Any], count: int) -> None:
        """Take the labels; the boxes are found when the first one is needed."""
        self.labels = (prediction, truth)
        self.count = count
        self._found: list[list[Any]] | None = None

    def crop(self, label: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the prediction and the truth of a label as booleans, cropped to its box."""
        from scipy.ndimage import find_objects

        if self._found is None:
            self._found = [find_objects(labels, self.count) for labels in self.labels]
        found = [boxes[label - 1] for boxes in self._found if boxes[label - 1] is not None]
        # The union of the boxes of prediction and truth
        box = tuple(
            slice(min(part.start for part in parts), max(part.stop for part in parts))
            for parts in zip(*found, strict=True)
        )
        prediction, truth = (labels[box] == label for labels in self.labels)
        return prediction, truth


def _joint_counts(
    case: str, prediction: NDArray[Any], truth: NDArray[Any], count: int
) -> NDArray[np.int64]:
    """Count voxels by label of the truth and of the prediction: (count, count)."""
    joint = np.zeros(count * count, np.int64)
    parts = zip(
        _labels(case, "ground truth", truth, count),
        _labels(case, "prediction", prediction, count),
        strict=True,
    )
    for t, p in parts:
        # A pair of labels is one number: truth * count + prediction.
        joint += np.bincount(t.astype(np.int64) * count + p, minlength=count * count)
    return joint.reshape(count, count)


def _labels(case: str, what: str, labels: NDArray[Any], count: int) -> Iterator[NDArray[Any]]:
    """Yield the labels in flat blocks, after a check that they are integers in 0..count - 1."""
    if labels.dtype.kind not in "iub":
        raise DataError(f"case {case!r}: {what} must hold integer labels; got {labels.dtype}")
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if low < 0 or high >= count:
        raise DataError(
            f"case {case!r}: {what} labels must be 0 (background) to {count - 1}; "
            f"got {low} to {high}"
        )
    flat = labels.reshape(-1)
    return (flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK))


def _overlap(score: str, prediction: ArrayLike, truth: ArrayLike) -> float:
    p, t = np.asarray(prediction, dtype=bool), np.asarray(truth, dtype=bool)
    if p.shape != t.shape:
        raise DataError(f"prediction and truth must have one shape; got {p.shape} and {t.shape}")
    (row,) = score_case("", p.astype(np.uint8), t.astype(np.uint8), ["mask"], scores=[score])
    return row.values[score]
