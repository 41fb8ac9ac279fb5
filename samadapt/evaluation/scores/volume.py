"""Errors of the volume, regardless of its place."""

from __future__ import annotations

import math

from samadapt.evaluation.scores.base import ClassMasks, Score, register

MM3_PER_ML = 1000.0


def volume_error(masks: ClassMasks) -> float:
    """Return (|P| - |T|) / |T|: positive if too much was predicted, NaN for an empty truth.

    The relative volume difference of Heimann et al., "Comparison and evaluation of methods for
    liver segmentation from CT datasets" (2009), as a fraction. Its mean is a bias: errors of
    opposite sign cancel.
    """
    if not masks.truth_voxels:
        return math.nan
    return (masks.prediction_voxels - masks.truth_voxels) / masks.truth_voxels


def volume_error_abs(masks: ClassMasks) -> float:
    """Return | |P| - |T| | in ml, in pixels without spacing. Errors do not cancel in the mean."""
    size = masks.voxel_size / MM3_PER_ML if masks.is_mm else 1.0
    return abs(masks.prediction_voxels - masks.truth_voxels) * size


register(
    Score("volume_error", "vol. error", volume_error, best="zero"),
    Score("volume_error_abs", "|vol. error|", volume_error_abs, best="low", kind="volume"),
)
