"""Prompt each object of a volume on its middle slice, from which it is carried to the others.

The middle slice is the one that holds the object's middle voxel, if voxels are counted slice by
slice, as in ``volume_clicker.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from samadapt.prompts.simulate import simulate
from samadapt.prompts.through_clip import parts_of_class
from samadapt.sam.types import ImagePrompts, joined_prompts

if TYPE_CHECKING:
    from samadapt.data.types import Sample
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.system.arrays import Array


def prompts_on_middle_slices(
    samples: Sequence[Sample], policy: PromptPolicy
) -> dict[int, ImagePrompts]:
    """Prompt all objects of a volume, each on one slice and without noise.

    Args:
        samples: the slices in order. Slices that are left out between them, because nobody has
            annotated them, do not divide an object.
        policy: kind of prompt, and what an object is: all of a class; or what has its number, or,
            without numbers, what is connected (26 neighbours).

    Returns:
        The prompts by position of their slice in ``samples``, with the number of each object.
        Objects whose middle slice has fewer than ``policy.min_area`` pixels are left out.
    """
    whole = replace(policy, objects="class")
    found: dict[int, list[ImagePrompts]] = {}
    number = 0
    for class_id, middle, mask in _objects(samples, policy.objects == "class"):
        one = simulate(np.where(mask, class_id, 0), whole)
        if len(one):
            number += 1
            found.setdefault(middle, []).append(replace(one, object_numbers=np.array([number])))
    return {middle: joined_prompts(prompts) for middle, prompts in found.items()}


def _objects(samples: Sequence[Sample], per_class: bool) -> Iterator[tuple[int, int, Array]]:
    """Yield the class of each object, its middle slice, and its mask (h, w) there."""
    from scipy.ndimage import find_objects

    # (n, maps, h, w), with several maps where classes overlap
    maps = np.stack([sample.maps.reshape(-1, *sample.labels.shape) for sample in samples])
    for class_id in np.unique(maps[maps > 0]):
        of_class = (maps == class_id).any(axis=1)
        parts = of_class.astype(np.int32) if per_class else parts_of_class(of_class, samples)
        for number, box in enumerate(find_objects(parts), start=1):
            if box is None:
                continue
            slices = np.nonzero(parts[box] == number)[0]  # of each voxel, in ascending order
            middle = int(box[0].start + slices[len(slices) // 2])
            yield int(class_id), middle, parts[middle] == number
