"""The ground truth of objects on the slices of a clip, on the first of which they are prompted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from samadapt.errors import DataError

if TYPE_CHECKING:
    from samadapt.data.types import Sample
    from samadapt.prompts.policy import Objects
    from samadapt.sam.types import ImagePrompts
    from samadapt.system.arrays import Array


def through_clip(
    objects: ImagePrompts, samples: Sequence[Sample], kind: Objects
) -> list[ImagePrompts]:
    """Return the objects of a clip's first slice with their ground truth on each slice.

    An object that ends before the last slice has an empty mask on those that follow.

    Args:
        objects: the objects that are prompted on the first slice.
        samples: the slices of the clip in their order.
        kind: what an object is: all of a class; or what has its number on the other slices, or,
            without numbers, what is connected with it within the clip (26 neighbours).

    Raises:
        DataError: the objects come without ground truth.
    """
    if objects.truth is None:
        raise DataError("objects without ground truth cannot be trained on")
    carried = [
        _carried(mask, int(class_id), samples, kind)
        for mask, class_id in zip(objects.truth, objects.class_ids, strict=True)
    ]
    # (clip, p, h, w)
    return [replace(objects, truth=truth) for truth in np.stack(carried, axis=1)]


def _carried(mask: Array, class_id: int, samples: Sequence[Sample], kind: Objects) -> Array:
    """Return the masks (clip, h, w) of the object that has ``mask`` on the first slice."""
    planes = [sample.maps.reshape(-1, *mask.shape) == class_id for sample in samples]
    of_class = np.stack([plane.any(axis=0) for plane in planes])
    if kind == "class":
        found = of_class
    else:
        parts = parts_of_class(of_class, samples)
        own = np.unique(parts[0][mask])
        found = np.isin(parts, own[own > 0])
    # What meets the object on a later slice may be another object on the first.
    return np.concatenate([mask[None], found[1:]])


def parts_of_class(of_class: Array, samples: Sequence[Sample]) -> Array:
    """Return the number of the object of a class at each voxel (n, h, w), 0 outside.

    Args:
        of_class: (n, h, w) bool, the class on n slices.
        samples: the slices. If all of them number their objects, these numbers count; otherwise
            what is connected (26 neighbours) is an object.
    """
    from skimage.measure import label

    numbers = [sample.instances for sample in samples if sample.instances is not None]
    if len(numbers) == len(samples):
        return np.asarray(np.stack(numbers) * of_class)
    return np.asarray(label(of_class, connectivity=3))
