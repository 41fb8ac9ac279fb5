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

PICTURE = ("flip", "rotate", "zoom", "intensity", "noise", "colour")
"""For colour pictures and for those under a microscope: an object may be near or far, on either
side, under any lamp and in any stain. Quarter turns are no part of it: with five pictures and 54
steps they lowered the Dice of polyps (0.82 to 0.77) and of axons (0.75 to 0.73)."""

LOOKED_AT = 20
"""Training pictures that are read to see whether they have colours."""


def changes_for(asked: Literal["auto"] | Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    """Return the names of the random changes that ``train.augment`` asks for.

    ``auto`` follows the kind of the training images. Volumes and grey pictures get ``PATIENT``.
    Colour pictures and those with ``data.intensity=microscopy`` get ``PICTURE``, without ``flip``
    where a class names a side and without ``colour`` where the channels are no colours.

    Args:
        asked: the value of the key.
        dataset: the data set of the run.
    """
    if asked != "auto":
        return tuple(asked)
    if any(dataset.case(name).axis is not None for name in dataset.train):
        return PATIENT
    rules = dataset.intensity.inputs or dataset.intensity.channels or (dataset.intensity,)
    kinds = {rule.kind for rule in rules}
    if kinds != {"all_percentile"} and not (kinds == {"rgb"} and _has_colours(dataset)):
        return PATIENT
    left_out = {"flip"} if sided(dataset.classes) else set()
    # The channels of several rules or files are stains and no colours: a hue would mix them.
    left_out |= {"colour"} if len(rules) > 1 else set()
    return tuple(name for name in PICTURE if name not in left_out)


def _has_colours(dataset: Dataset) -> bool:
    """Whether most of the first training pictures are not grey."""
    images = [dataset.samples(name)[0].image for name in dataset.train[:LOOKED_AT]]
    return 2 * sum(bool((image != image[..., :1]).any()) for image in images) > len(images)
