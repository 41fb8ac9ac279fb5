"""What the values of masks mean where nobody declares classes.

Without a class list every value would become a class. Four kinds of values are no classes, and
each gives an error that names the way out:

- **grey levels**: a mask that was drawn or resized with anti-aliasing. Most of its middle values
  lie on a slope, with a lower and a higher value beside them; regions of classes do not.
- **object numbers**: each number is one object of one class (Cellpose, micro-sam, StarDist).
- **two encodings**: 1 and 255, the foreground of two programs.
- **void**: 255 beside small numbers, as in PASCAL VOC, for pixels that have no class.

Negative values and values above 31 bits are errors of their file.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from samadapt.data.findings import Finding
from samadapt.data.mask_rules import LARGEST_VALUE, without_ignored
from samadapt.data.types import Case, MaskEvidence
from samadapt.system.arrays import Array

VOID = 255
"""PASCAL VOC, Cityscapes and COCO-Stuff mark pixels without a class by it."""
_HIGHEST = (VOID, 65535)
"""The highest values of 8 and of 16 bits, which mean the same in masks of that depth."""

MANY, SOME = 20, 4
"""Numbers a picture above which they count as objects: always, or where pictures differ."""
_SINGLE = 0.9
"""Share of the numbers that are one connected component each, from which nearly all are."""
_SLOPE = 0.5
"""Share of middle pixels on a slope: 0.6 to 1 where masks were resized, blurred or saved as JPEG
(and up to 255 levels appeared), 0 to 0.25 in maps of up to 1,500 small classes or objects."""
_RIM = 0.9
"""The same share for a mask of two values, since a rim of one pixel may be a class."""
_NEAR = 8
"""Values this near to 0 and to 255 are noise of JPEG around a mask of two values."""
_GREY_TOP = 50
"""Masks whose highest value is lower have too few levels to be anti-aliased."""
_SMALL = 32
"""Highest number that counts as small beside 255; a coarser grey scale codes classes."""
_WINDOW = 1 << 25
"""Voxels that are measured at most, in the middle of a mask: their components take 8 bytes each."""


def measure_mask(
    values: Sequence[int], labels: Array, ignored: Collection[int] = ()
) -> MaskEvidence:
    """Measure what tells grey levels and object numbers from classes; ordinary masks cost nothing.

    Args:
        values: those that occur, sorted, without 0.
        labels: (h, w, d) values of the mask.
        ignored: values of pixels that are not annotated.
    """
    used = [value for value in values if value not in ignored]
    if not used or used[0] < 0:
        return MaskEvidence()
    numbered = len(used) > SOME and _is_gapless(used)
    grey = len(used) > 1 and used[-1] >= _GREY_TOP
    if not (numbered or grey):
        return MaskEvidence()
    inside = _window(_cropped(without_ignored(labels, ignored)))
    numbers, single = _components(inside) if numbered else (0, 0)
    return MaskEvidence(numbers, single, _slope(inside, used[-1]) if grey else 0.0)


def value_findings(case: Case, ignored: Collection[int] = ()) -> list[Finding]:
    """Return the errors of one mask whose values cannot be classes."""
    file = str(case.labels or case.image)
    used = [value for value in case.values if value not in ignored]
    if used and used[0] < 0:  # such as -1 for what nobody labelled
        message = f"it holds values below 0 ({used[0]}), which are no class unless it is said"
        fix = (
            f"take them as not annotated with data.ignore={used[0]}, or list the classes with "
            "data.classes={name: value}"
        )
        return [Finding("label_value", "error", file, message, fix)]
    if used and used[-1] > LARGEST_VALUE:
        message = f"its values reach {used[-1]}; expected class numbers of at most {LARGEST_VALUE}"
        fix = "export the mask again with small class numbers"
        return [Finding("label_value", "error", file, message, fix)]
    if _are_grey_levels(used, case.evidence or MaskEvidence()):
        message = (
            f"its {len(used)} values up to {used[-1]} are the grey levels of an anti-aliased or "
            "interpolated mask, not classes"
        )
        half = (used[-1] + 1) // 2
        fix = (
            f"make two values of them with data.mask_threshold={half} (this value and higher ones "
            "are foreground), or name the values that are classes with data.classes={name: value}"
        )
        return [Finding("grey_levels", "error", file, message, fix)]
    return []


def common_value_findings(
    cases: Sequence[Case], root: str, ignored: Collection[int] = ()
) -> list[Finding]:
    """Return the errors of a data set whose values are no classes, taken together.

    Args:
        cases: those without errors of their own.
        root: named as the place, since no single file is at fault.
        ignored: values of pixels that are not annotated.
    """
    counts = [
        (case, [value for value in case.values if value not in ignored])
        for case in cases
        if set(case.values) - set(ignored)
    ]
    found = {value for _, values in counts for value in values}
    if _are_objects([case for case, _ in counts], [len(values) for _, values in counts]):
        most = max(len(values) for _, values in counts)
        message = (
            f"the values of the masks are object numbers: 1 to n without gaps in most of the "
            f"{len(counts)} masks, up to {most} in one, nearly each one connected region"
        )
        fix = (
            "say so with data.instances=true (each number is one object of one class), or list "
            "the classes with data.classes={name: value}"
        )
        return [Finding("object_numbers", "error", root, message, fix)]
    for void in _HIGHEST:
        if found == {1, void}:
            ones = sum(1 in values for _, values in counts)
            others = sum(void in values for _, values in counts)
            message = (
                f"{ones} masks hold the value 1 and {others} hold {void}: two encodings of one "
                f"class, or {void} for pixels without a class"
            )
            fix = (
                f"for one class give data.classes={{foreground: [1, {void}]}}; where {void} means "
                f"not annotated give data.ignore={void}"
            )
            return [Finding("mixed_encodings", "error", root, message, fix)]
    return [finding for void in _HIGHEST for finding in _void_findings(sorted(found), void, root)]


def _are_grey_levels(used: Sequence[int], evidence: MaskEvidence) -> bool:
    """Whether values are those of smoothed edges, or of JPEG noise beside 0 and 255."""
    if evidence.slope > (_SLOPE if len(used) > 2 else _RIM):
        return True
    noisy = bool(used) and used[-1] == VOID and any(VOID - _NEAR <= v < VOID for v in used)
    return noisy and not any(_NEAR < value < VOID - _NEAR for value in used)


def _is_gapless(values: Sequence[int]) -> bool:
    return bool(values) and values[0] == 1 and values[-1] == len(values)


def _are_objects(cases: Sequence[Case], counts: Sequence[int]) -> bool:
    """Whether the numbers of most masks count objects, by the rule of the module."""
    evidence = [case.evidence or MaskEvidence() for case in cases]
    numbered = [one for one in evidence if one.numbers]
    if not numbered or 2 * len(numbered) <= len(cases):
        return False
    if sum(one.single for one in numbered) < _SINGLE * sum(one.numbers for one in numbered):
        return False
    many = 2 * sum(count > MANY for count in counts) > len(counts)
    some = 2 * sum(count > SOME for count in counts) > len(counts)
    return many or (some and len(set(counts)) > 1)


def _void_findings(found: Sequence[int], void: int, root: str) -> list[Finding]:
    others = [value for value in found if value != void]
    if void not in found or not others or others[0] > _SMALL or others[-1] >= void - 1:
        return []
    if void == VOID and _is_even(found):
        return []
    listed = ", ".join(map(str, others[:8])) + (" ..." if len(others) > 8 else "")
    message = (
        f"the masks hold {void} beside small class numbers ({listed}): void pixels, most likely"
    )
    fix = (
        f"give data.ignore={void} where it means not annotated, or list the classes with "
        "data.classes={name: value}; values that are not listed are background"
    )
    return [Finding("void_value", "error", root, message, fix)]


def _is_even(values: Sequence[int]) -> bool:
    """Whether grey values code classes at equal steps up to 255, such as 28, 57, 85 ... 255."""
    steps = round(VOID / min(values))
    if len(values) < steps / 2:  # 15 and 255 alone are no scale, though 255 is 17 x 15
        return False
    nearest = [round(value * steps / VOID) * VOID / steps for value in values]
    off = [abs(value - even) for value, even in zip(values, nearest, strict=True)]
    return min(values) >= 10 and max(off) < 1.5


def _cropped(labels: Array) -> Array:
    """Return the box around what is not 0, with a border of one pixel where there is one."""
    box = []
    for axis in range(labels.ndim):
        rest = tuple(other for other in range(labels.ndim) if other != axis)
        filled = np.flatnonzero(labels.any(axis=rest))
        box.append(slice(max(int(filled[0]) - 1, 0), int(filled[-1]) + 2))
    return labels[tuple(box)]


def _window(labels: Array) -> Array:
    """Return the middle part of a large mask."""
    while labels.size > _WINDOW:
        axis = int(np.argmax(labels.shape))
        side = labels.shape[axis]
        labels = np.take(labels, np.arange(side // 4, side - side // 4), axis)
    return labels


def _components(labels: Array) -> tuple[int, int]:
    """Return how many values there are, and how many are one connected component each."""
    from skimage.measure import label

    # One pass over all values: neighbours of equal value, corners too, share a component.
    parts = label(labels.astype(np.int32), background=0, connectivity=labels.ndim)
    value_of = np.zeros(int(parts.max()) + 1, dtype=np.int64)
    value_of[parts.ravel()] = labels.ravel()
    _, counts = np.unique(value_of[1:], return_counts=True)
    return len(counts), int((counts == 1).sum())


def _slope(labels: Array, top: int) -> float:
    """Return the share of middle pixels with a lower and a higher pixel among the 8 around."""
    from scipy.ndimage import maximum_filter, minimum_filter

    middle = (labels > 0) & (labels < top)
    higher = maximum_filter(labels, (3, 3, 1)) > labels
    lower = minimum_filter(labels, (3, 3, 1)) < labels
    count = int(np.count_nonzero(middle))
    return int(np.count_nonzero(middle & higher & lower)) / count if count else 0.0
