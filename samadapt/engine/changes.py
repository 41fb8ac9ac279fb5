"""What a person changed in a proposed mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from samadapt.evaluation.case_scores import dice
from samadapt.evaluation.instances import components, match_objects
from samadapt.system.arrays import Array

NEEDED = 0.9
"""Dice below which a mask counts as one that needed correction. Nearly every mask differs from a
second drawing in some pixels of its border, so "any pixel" would count nearly all."""


@dataclass(frozen=True)
class Changes:
    """What a person changed.

    Attributes:
        pixels: share of all pixels whose value is another.
        of_foreground: the same pixels as a share of those that are foreground before or after.
        dice: mean over the classes that occur before or after; of objects: of the foreground. 1:
            nothing was changed.
        objects_before: number of objects: components of each class, or numbered objects.
        objects_after: likewise.
        added: objects without one before that has an IoU above 0.5 with them.
        removed: objects before without one after.
    """

    pixels: float
    of_foreground: float
    dice: float
    objects_before: int
    objects_after: int
    added: int
    removed: int

    @property
    def needed(self) -> bool:
        """Whether the mask needed correction: Dice below ``NEEDED``, or other objects."""
        return self.dice < NEEDED or self.added > 0 or self.removed > 0

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, and ``needed``, as plain values."""
        return {
            "pixels": self.pixels,
            "of_foreground": self.of_foreground,
            "dice": self.dice,
            "objects_before": self.objects_before,
            "objects_after": self.objects_after,
            "added": self.added,
            "removed": self.removed,
            "needed": self.needed,
        }


def measure_changes(before: Array, after: Array, classes: int, *, objects: bool) -> Changes:
    """Compare a proposed mask (h, w, d) with the accepted one.

    Args:
        before: class numbers, or object numbers.
        after: likewise.
        classes: number of classes.
        objects: the masks number objects.
    """
    is_set = (before > 0) | (after > 0)
    if objects:
        # Numbers may be exchanged without any change, so outlines are compared.
        pairs = [(before, after)]
        changed = _outlined_differently(before, after)
        overlaps = [dice(before > 0, after > 0)] if is_set.any() else []
    else:
        pairs = [(components(before == k), components(after == k)) for k in range(1, classes + 1)]
        changed = before != after
        overlaps = [
            dice(before == k, after == k)
            for k in range(1, classes + 1)
            if (before == k).any() or (after == k).any()
        ]
    had, has, kept = 0, 0, 0
    for old, new in pairs:
        found = match_objects("", "", old, new)
        kept += len(found.overlaps)
        had += len(found.scores)
        has += found.true_objects
    count = int(np.count_nonzero(changed))
    return Changes(
        pixels=count / max(before.size, 1),
        of_foreground=count / max(int(np.count_nonzero(is_set)), 1),
        dice=float(np.mean(overlaps)) if overlaps else 1.0,
        objects_before=had,
        objects_after=has,
        added=has - kept,
        removed=had - kept,
    )


def _outlined_differently(before: Array, after: Array) -> Array:
    """Return the pixels whose object is not the one that their old object mostly became."""
    changed: Array = (before > 0) != (after > 0)
    both = (before > 0) & (after > 0)
    old, new = before[both].astype(np.int64), after[both].astype(np.int64)
    if not old.size:
        return changed
    pairs, counts = np.unique(np.stack([old, new]), axis=1, return_counts=True)
    partner: dict[int, int] = {}
    for k in np.argsort(counts):  # the largest overlap comes last and stays
        partner[int(pairs[0, k])] = int(pairs[1, k])
    expected = np.vectorize(partner.__getitem__, otypes=[np.int64])(old)
    changed[both] = expected != new
    return changed
