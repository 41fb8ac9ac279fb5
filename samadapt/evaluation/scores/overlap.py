"""Dice and IoU of one class; the rule for empty masks is in ``evaluation/case_scores.py``."""

from __future__ import annotations

from samadapt.evaluation.scores.base import ClassMasks, Score, register


def dice(masks: ClassMasks) -> float:
    """Return 2·|P∩T| / (|P| + |T|)."""
    return 2 * masks.intersection / (masks.prediction_voxels + masks.truth_voxels)


def iou(masks: ClassMasks) -> float:
    """Return |P∩T| / (|P| + |T| - |P∩T|)."""
    union = masks.prediction_voxels + masks.truth_voxels - masks.intersection
    return masks.intersection / union


register(
    Score("dice", "Dice", dice, in_table="interval"), Score("iou", "IoU", iou, in_table="mean")
)
