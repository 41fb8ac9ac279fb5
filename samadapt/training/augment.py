"""Random changes of a training slice, on image, labels and given prompts together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from samadapt.data.types import Sample


def augment(sample: Sample, names: Sequence[str], rng: np.random.Generator) -> Sample:
    """Apply each named change with probability 1/2; ``"flip"`` exchanges left and right."""
    for name in names:
        if name == "flip" and rng.random() < 0.5:
            sample = flip(sample)
    return sample


def flip(sample: Sample) -> Sample:
    """Exchange left and right of image, labels, boxes and points."""
    width = sample.labels.shape[1]
    boxes, points = sample.boxes, sample.points
    if boxes is not None:
        boxes = np.stack(
            [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1
        )
    if points is not None:
        points = np.stack([width - points[:, 0], points[:, 1]], axis=1)
    return replace(
        sample,
        image=np.ascontiguousarray(sample.image[:, ::-1]),
        labels=np.ascontiguousarray(sample.labels[:, ::-1]),
        boxes=boxes,
        points=points,
    )
