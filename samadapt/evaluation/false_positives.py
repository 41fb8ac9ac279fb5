"""What is predicted where there is nothing: false positives of a model without prompts.

Dice says little about images without an object: it is undefined if nothing is predicted there, and
0 if a single pixel is. So these are counted: cases and slices in which a class does not occur, how
many of them have a prediction of it, and its voxels there. Components that touch no true voxel are
counted in all slices, as in the detection of lesions. Prompts say that something is there, so a
prompted model is measured otherwise (``absent_prompts.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.data.types import IGNORED
from samadapt.evaluation.instances import components

if TYPE_CHECKING:
    from samadapt.system.arrays import Array

COUNTS = (
    *("cases", "absent_cases", "false_cases"),
    *("empty_slices", "false_slices", "false_voxels", "false_components"),
)
"""What is added up over cases."""


@dataclass(frozen=True)
class FalsePositives:
    """What was predicted of one class in one case where there is nothing of it.

    Attributes:
        case: name of the case.
        class_name: name of the class.
        absent_cases: 1 if the class does not occur in the case, else 0.
        false_cases: 1 if it does not occur and is predicted, else 0.
        empty_slices: slices in which it does not occur; a picture is one slice.
        false_slices: those of them in which it is predicted.
        false_voxels: predicted voxels in those.
        false_components: connected components of the prediction (also across corners) that touch no
            true voxel, in all slices together.
        cases: 1, so that sums count the cases.
    """

    case: str
    class_name: str
    absent_cases: int
    false_cases: int
    empty_slices: int
    false_slices: int
    false_voxels: int
    false_components: int
    cases: int = 1


def count_false_positives(
    case: str, class_name: str, predicted: Array, truth: Array, slices: Sequence[int]
) -> FalsePositives | None:
    """Count what is predicted of a class where there is nothing of it.

    Args:
        case: name of the case.
        class_name: name of the class.
        predicted: (h, w, d) bool.
        truth: (h, w, d) integers: 1 in the class, 0 outside, ``IGNORED`` where that is not known.
        slices: indices among the d slices of those that were scored.

    Returns:
        The counts; None if nothing is known of the class in this case.
    """
    known, true = truth != IGNORED, truth == 1
    if not known.any():
        return None
    predicted = predicted & known
    scored = np.zeros(truth.shape[2], bool)
    scored[list(slices)] = True
    is_empty = scored & known.any(axis=(0, 1)) & ~true.any(axis=(0, 1))
    voxels = predicted.sum(axis=(0, 1))[is_empty]
    is_absent = not true.any()
    return FalsePositives(
        case,
        class_name,
        absent_cases=int(is_absent),
        false_cases=int(is_absent and bool(predicted.any())),
        empty_slices=int(is_empty.sum()),
        false_slices=int((voxels > 0).sum()),
        false_voxels=int(voxels.sum()),
        false_components=_false_components(predicted, true),
    )


def summarise_false_positives(
    rows: Sequence[FalsePositives], classes: Sequence[str]
) -> dict[str, Any]:
    """Add up the counts of all cases.

    Args:
        rows: the counts of any number of cases and classes.
        classes: all class names.

    Returns:
        ``COUNTS`` over all classes, ``components_per_case``, and the same by class in
        ``per_class``. Over classes, ``cases`` are the cases, and the other counts are sums.
    """
    per_class = {name: _added([row for row in rows if row.class_name == name]) for name in classes}
    return {**_added(rows), "per_class": per_class}


def _added(rows: Sequence[FalsePositives]) -> dict[str, Any]:
    values = [asdict(row) for row in rows]
    counts: dict[str, Any] = {name: sum(one[name] for one in values) for name in COUNTS}
    counts["cases"] = cases = len({row.case for row in rows})
    counts["components_per_case"] = counts["false_components"] / cases if cases else None
    return counts


def _false_components(predicted: Array, true: Array) -> int:
    """Return the number of components of the prediction (h, w, d) without a true voxel."""
    marked = [np.flatnonzero(predicted.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(marked[0]):
        return 0
    # The box around the prediction is much smaller than most volumes.
    box = tuple(slice(own[0], own[-1] + 1) for own in marked)
    numbers = components(predicted[box])
    touched = np.unique(numbers[true[box] & (numbers > 0)])
    return int(numbers.max()) - len(touched)
