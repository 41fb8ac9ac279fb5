"""Sensitivity and precision over voxels.

Sensitivity is NaN if the truth is empty, and precision if the prediction is empty. NaN is left out
of the mean, as in MONAI and with scikit-learn's ``zero_division=nan``. ``per_class.NAME.detail`` of
the summary says how many cases each mean has.
"""

from __future__ import annotations

import math

from samadapt.evaluation.scores.base import ClassMasks, Score, register


def sensitivity(masks: ClassMasks) -> float:
    """Return |P∩T| / |T|, the share of the truth that was found (recall)."""
    return masks.intersection / masks.truth_voxels if masks.truth_voxels else math.nan


def precision(masks: ClassMasks) -> float:
    """Return |P∩T| / |P|, the share of the prediction that is correct."""
    return masks.intersection / masks.prediction_voxels if masks.prediction_voxels else math.nan


register(Score("sensitivity", "sens.", sensitivity), Score("precision", "prec.", precision))
