"""Which random changes suit a kind of image: ``train.augment=auto``.

docs/explanation/augmentation.md tells why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from samadapt.data.mirroring import sided

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samadapt.data.dataset import Dataset

PATIENT = ("rotate", "scale", "intensity", "noise")
"""For slices of a patient and for grey pictures, which may show one: gravity and anatomy have a
direction, and the place of an organ tells what it is."""

PHOTOGRAPH = ("flip", "rotate", "zoom", "intensity", "noise", "colour")
"""For colour pictures: an object may be near or far, on either side, and under any lamp."""

MICROSCOPY = ("flip", "rotate90", "rotate", "scale", "intensity", "noise", "colour")
"""For pictures under a microscope: no side is the upper one. Their magnification is known, so the
range of sizes is the smaller one; stains differ in colour."""

LOOKED_AT = 20
"""Training pictures that are read to see whether they have colours."""


def changes_for(asked: Literal["auto"] | Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    """Return the names of the random changes that ``train.augment`` asks for.

    ``auto`` follows the kind of the training images. Volumes and grey pictures get ``PATIENT``,
    colour pictures ``PHOTOGRAPH`` and pictures with ``data.intensity=microscopy`` ``MICROSCOPY``,
    without ``flip`` and ``rotate90`` where a class names a side.

    Args:
        asked: the value of the key.
        dataset: the data set of the run.
    """
    if asked != "auto":
        return tuple(asked)
    changes: tuple[str, ...] = PATIENT
    if all(dataset.case(name).axis is None for name in dataset.train):
        rules = dataset.intensity.inputs or dataset.intensity.channels or (dataset.intensity,)
        if all(rule.kind == "all_percentile" for rule in rules):
            changes = MICROSCOPY
        elif all(rule.kind == "rgb" for rule in rules) and _has_colours(dataset):
            changes = PHOTOGRAPH
    mirrors = {"flip", "rotate90"} if sided(dataset.classes) else set()
    return tuple(name for name in changes if name not in mirrors)


def _has_colours(dataset: Dataset) -> bool:
    """Whether most of the first training pictures are not grey."""
    images = [dataset.samples(name)[0].image for name in dataset.train[:LOOKED_AT]]
    return 2 * sum(bool((image != image[..., :1]).any()) for image in images) > len(images)
