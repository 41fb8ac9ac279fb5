"""Random changes of a training slice, on image, labels and given prompts together."""

from __future__ import annotations

import hashlib
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


def vary(sample: Sample, names: Sequence[str], seed: int, variant: int) -> Sample:
    """Return one of a slice's fixed versions: 0 is the slice itself, the others are augmented.

    It depends on nothing but the seed, the case, the slice's number and the variant, so that its
    features can be computed before training, and again in another run.
    """
    if variant == 0:
        return sample
    identity = hashlib.sha256(f"{sample.case}\0{sample.index}".encode()).digest()
    words = np.frombuffer(identity, np.uint32).tolist()
    return augment(sample, names, np.random.default_rng([seed, variant, *words]))


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
