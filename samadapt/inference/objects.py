"""List the objects of a prediction: class, box, area, and how likely each is a true object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samadapt.evaluation.confidence import ConfidenceCurve
from samadapt.system.arrays import Array


@dataclass(frozen=True)
class FoundObject:
    """An object that was found in a picture or a volume, in the pixels of its upright slices.

    Attributes:
        class_name: its class.
        box: (x0, y0, x1, y1) around it, over all of its slices; the sides x1 and y1 are outside.
        area: number of its pixels, or voxels.
        probability: mean probability of its class over its pixels, 0..1.
        slices: its first and last slice; None in a picture.
        confidence: calibrated chance, 0..1, that it has an IoU of at least 0.5 with a true object;
            None if the adapter has no calibration. See ``evaluation/confidence.py``.
    """

    class_name: str
    box: tuple[int, int, int, int]
    area: int
    probability: float
    slices: tuple[int, int] | None = None
    confidence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the object as plain values for JSON, with ``class`` for its class."""
        found: dict[str, Any] = {"class": self.class_name, "box": list(self.box)}
        if self.slices is not None:
            found["slices"] = list(self.slices)
        found |= {"area": self.area, "probability": round(self.probability, 6)}
        shown = None if self.confidence is None else round(self.confidence, 6)
        return found | {"confidence": shown}


def list_objects(
    instances: Sequence[Array],
    probability: Sequence[Array],
    instance_classes: Sequence[int],
    classes: Sequence[str],
    curves: Sequence[ConfidenceCurve],
) -> dict[int, FoundObject]:
    """Return the objects by their number; numbers without a pixel are left out.

    Args:
        instances: maps (h, w, d) of object numbers from 1. Each number is in one map.
        probability: for each map the probability (h, w, d) of the class at each pixel.
        instance_classes: class id of each object number.
        classes: class names.
        curves: the calibrations of the members; their confidences are averaged. Empty: none.
    """
    from scipy.ndimage import find_objects

    found: dict[int, FoundObject] = {}
    for numbers, shares in zip(instances, probability, strict=True):
        boxes = find_objects(numbers)
        areas, sums = np.zeros(len(boxes) + 1, np.int64), np.zeros(len(boxes) + 1)
        # Slice by slice, because the sums take eight bytes per voxel.
        for index in range(numbers.shape[2]):
            flat = numbers[:, :, index].ravel()
            weights = shares[:, :, index].ravel()
            areas += np.bincount(flat, minlength=len(areas))
            sums += np.bincount(flat, weights=weights, minlength=len(areas))
        for number, box in enumerate(boxes, start=1):
            if box is None:
                continue
            rows, columns, planes = box
            mean = float(sums[number] / areas[number])
            found[number] = FoundObject(
                class_name=classes[instance_classes[number - 1] - 1],
                box=(columns.start, rows.start, columns.stop, rows.stop),
                area=int(areas[number]),
                probability=mean,
                slices=(planes.start, planes.stop - 1) if numbers.shape[2] > 1 else None,
                confidence=_mean(curves, mean),
            )
    return dict(sorted(found.items()))


def _mean(curves: Sequence[ConfidenceCurve], probability: float) -> float | None:
    if not curves:
        return None
    return math.fsum(curve(probability) for curve in curves) / len(curves)
