"""What the values of masks mean where no classes are declared.

Without a class list every value would become a class. Four kinds of values are not classes, and
each gives an error that names the solution:

- **grey levels**: the mask was drawn or resized with anti-aliasing. Most pixels with a middle value
  are on a slope, that is, between a lower and a higher value. Pixels of class regions are not.
- **object numbers**: each number is one object of one class (Cellpose, micro-sam, StarDist). Each
  value is then one connected region, and the values have no gaps.
- **two encodings**: 1 and 255, the foreground of two different programs.
- **void**: 255 beside small numbers, which PASCAL VOC uses for pixels without a class.

Negative values and values above 31 bits are errors of single files.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from samadapt.data.findings import Finding, error_finding
from samadapt.data.mask_rules import LARGEST_VALUE, without_ignored
from samadapt.data.types import Case, MaskEvidence
from samadapt.system.arrays import Array

VOID = 255
"""The value by which PASCAL VOC, Cityscapes and COCO-Stuff mark pixels without a class."""
_HIGHEST = (VOID, 65535)
"""The highest values of 8 and 16 bits, which have the same meaning in masks of that depth."""

MANY, SOME = 20, 4
"""More values than MANY in most masks count objects. More than SOME do if their number differs
between masks, because the number of classes would not."""
_SINGLE = 0.9
"""If at least this share of the values are one connected component each, they number objects."""
_SLOPE = 0.5
"""Share of middle pixels on a slope above which values are grey levels. Measured: 0.6 to 1 in masks
that were resized, blurred or saved as JPEG (with up to 255 levels), and 0 to 0.25 in maps of up to
1,500 small classes or objects."""
_RIM = 0.9
"""The same share for masks of two values, where a rim one pixel wide may be a class."""
_NEAR = 8
"""Values this close to 0 or 255 are JPEG noise in a mask of two values."""
_GREY_TOP = 50
"""Masks with a lower highest value have too few levels to be anti-aliased."""
_SMALL = 32
"""Values up to this are class numbers beside a void value of 255. Larger ones are a grey scale of
classes."""
_WINDOW = 1 << 25
"""Most voxels that are measured; larger masks are cut to their middle. A component map needs 8
bytes for each voxel."""


def measure_mask(
    values: Sequence[int], labels: Array, ignored: Collection[int] = ()
) -> MaskEvidence:
    """Measure what distinguishes grey levels and object numbers from classes.

    Masks with few small values cannot be either, and cost nothing.

    Args:
        values: the values that occur, sorted, without 0.
        labels: (h, w, d) values of the mask.
        ignored: values of pixels that are not annotated.
    """
    used = [value for value in values if value not in ignored]
    if not used or used[0] < 0:
        return MaskEvidence()
    numbered = len(used) > SOME and used == list(range(1, len(used) + 1))
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
    if used and used[0] < 0:  # for example -1 where nobody labelled
        message = f"it holds values below 0 ({used[0]}), which are not taken as classes"
        fix = (
            f"treat them as not annotated with data.ignore={used[0]}, or list the classes with "
            "data.classes={name: value}"
        )
        return [error_finding("label_value", file, message, fix)]
    if used and used[-1] > LARGEST_VALUE:
        message = f"its values reach {used[-1]}; expected class numbers of at most {LARGEST_VALUE}"
        fix = "export the mask again with small class numbers"
        return [error_finding("label_value", file, message, fix)]
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
        return [error_finding("grey_levels", file, message, fix)]
    return []


def common_value_findings(
    cases: Sequence[Case], root: str, ignored: Collection[int] = ()
) -> list[Finding]:
    """Return the errors of a data set whose masks, taken together, hold no classes.

    Args:
        cases: those without errors of their own.
        root: the folder that the finding names, because no single file is wrong.
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
            f"{len(counts)} masks, up to {most} in one, and nearly every value is one connected "
            "region"
        )
        fix = (
            "set data.instances=true (each number is one object of one class), or list "
            "the classes with data.classes={name: value}"
        )
        return [error_finding("object_numbers", root, message, fix)]
    for void in _HIGHEST:
        if found == {1, void}:
            ones = sum(1 in values for _, values in counts)
            others = sum(void in values for _, values in counts)
            message = (
                f"{ones} masks hold the value 1 and {others} hold {void}: two encodings of one "
                f"class, or {void} for pixels without a class"
            )
            fix = (
                f"for one class set data.classes={{foreground: [1, {void}]}}; if {void} means "
                f"not annotated, set data.ignore={void}"
            )
            return [error_finding("mixed_encodings", root, message, fix)]
    return [finding for void in _HIGHEST for finding in _void_findings(sorted(found), void, root)]


def _are_grey_levels(used: Sequence[int], evidence: MaskEvidence) -> bool:
    """Return whether values come from smoothed edges, or from JPEG noise around 0 and 255."""
    if evidence.slope > (_SLOPE if len(used) > 2 else _RIM):
        return True
    noisy = bool(used) and used[-1] == VOID and any(VOID - _NEAR <= v < VOID for v in used)
    return noisy and not any(_NEAR < value < VOID - _NEAR for value in used)


def _are_objects(cases: Sequence[Case], counts: Sequence[int]) -> bool:
    """Return whether the values of most masks number objects."""
    evidence = [case.evidence or MaskEvidence() for case in cases]
    numbered = [one for one in evidence if one.numbers]
    if not numbered or 2 * len(numbered) <= len(cases):
        return False
    if sum(one.single for one in numbered) < _SINGLE * sum(one.numbers for one in numbered):
        return False
    # More than half of the masks must agree.
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
        f"set data.ignore={void} if it means not annotated, or list the classes with "
        "data.classes={name: value}; values that are not listed are background"
    )
    return [error_finding("void_value", root, message, fix)]


def _is_even(values: Sequence[int]) -> bool:
    """Return whether values code classes in equal steps up to 255, such as 28, 57, 85 ... 255."""
    # 28 is about 255 / 9, so the scale would be 28, 57, 85, ... 255.
    steps = round(VOID / min(values))
    if len(values) < steps / 2:  # 15 and 255 are not a scale, although 255 is 17 x 15
        return False
    nearest = [round(value * steps / VOID) * VOID / steps for value in values]
    off = [abs(value - even) for value, even in zip(values, nearest, strict=True)]
    return min(values) >= 10 and max(off) < 1.5


def _cropped(labels: Array) -> Array:
    """Return the box around all values other than 0, with a border of one pixel if there is one."""
    box = []
    for axis in range(labels.ndim):
        rest = tuple(other for other in range(labels.ndim) if other != axis)
        filled = np.flatnonzero(labels.any(axis=rest))
        box.append(slice(max(int(filled[0]) - 1, 0), int(filled[-1]) + 2))
    return labels[tuple(box)]


def _window(labels: Array) -> Array:
    """Halve the longest axis of a large mask until it is small enough, keeping the middle."""
    while labels.size > _WINDOW:
        axis = int(np.argmax(labels.shape))
        side = labels.shape[axis]
        labels = np.take(labels, np.arange(side // 4, side - side // 4), axis)
    return labels


def _components(labels: Array) -> tuple[int, int]:
    """Return the number of values, and how many of them are one connected component each."""
    from skimage.measure import label

    # One pass for all values: neighbours with the same value, also at corners, share a component.
    parts = label(labels.astype(np.int32), background=0, connectivity=labels.ndim)
    # All pixels of a component have one value, so any of them may be written here.
    value_of = np.zeros(int(parts.max()) + 1, dtype=np.int64)
    value_of[parts.ravel()] = labels.ravel()
    _, counts = np.unique(value_of[1:], return_counts=True)
    return len(counts), int((counts == 1).sum())


def _slope(labels: Array, top: int) -> float:
    """Return the share of middle pixels that have a lower and a higher one among 8 neighbours."""
    from scipy.ndimage import maximum_filter, minimum_filter

    # A slope has a lower and a higher value beside it, within the slice.
    middle = (labels > 0) & (labels < top)
    higher = maximum_filter(labels, (3, 3, 1)) > labels
    lower = minimum_filter(labels, (3, 3, 1)) < labels
    count = int(np.count_nonzero(middle))
    return int(np.count_nonzero(middle & higher & lower)) / count if count else 0.0
