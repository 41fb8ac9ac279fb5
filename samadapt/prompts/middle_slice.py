"""Prompt each object of a volume on its middle slice, from which it is carried to the others.

The middle slice is the one that holds the object's middle voxel, if voxels are counted slice by
slice, as in ``volume_clicker.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from samadapt.prompts.simulate import simulate
from samadapt.prompts.through_clip import parts_of_class
from samadapt.sam.types import ImagePrompts, joined_prompts

if TYPE_CHECKING:
    from samadapt.data.types import Sample
    from samadapt.prompts.policy import PromptPolicy
    from samadapt.system.arrays import Array


@dataclass(frozen=True)
class VolumeObject:
    """An object of a volume, with a prompt on its middle slice.

    Attributes:
        number: its number among the prompted objects, from 1.
        class_id: its class.
        middle: position of its middle slice.
        prompt: the prompt there, with its number.
        parts: (n, h, w) numbers of all objects of the class on the slices.
        part: its own number among them.
    """

    number: int
    class_id: int
    middle: int
    prompt: ImagePrompts
    parts: Array = field(repr=False)
    part: int

    def on(self, place: int) -> Array:
        """Return its mask (h, w) on the slice at a position."""
        mask: Array = self.parts[place] == self.part
        return mask


def objects_of_volume(samples: Sequence[Sample], policy: PromptPolicy) -> list[VolumeObject]:
    """Prompt all objects of a volume, each on one slice and without noise.

    Args:
        samples: the slices in order. Slices that are left out between them, because nobody has
            annotated them, do not divide an object.
        policy: kind of prompt, and what an object is: all of a class; or what has its number, or,
            without numbers, what is connected (26 neighbours).

    Returns:
        The objects. Those whose middle slice has fewer than ``policy.min_area`` pixels are left
        out.
    """
    whole = replace(policy, objects="class")
    found: list[VolumeObject] = []
    for class_id, middle, parts, part in _objects(samples, policy.objects == "class"):
        prompt = simulate(np.where(parts[middle] == part, class_id, 0), whole)
        if len(prompt):
            number = len(found) + 1
            prompt = replace(prompt, object_numbers=np.array([number]))
            found.append(VolumeObject(number, class_id, middle, prompt, parts, part))
    return found


def by_middle_slice(objects: Sequence[VolumeObject]) -> dict[int, ImagePrompts]:
    """Return the prompts of objects by position of their slice, with the number of each object."""
    found: dict[int, list[ImagePrompts]] = {}
    for one in objects:
        found.setdefault(one.middle, []).append(one.prompt)
    return {middle: joined_prompts(prompts) for middle, prompts in found.items()}


def prompts_on_middle_slices(
    samples: Sequence[Sample], policy: PromptPolicy
) -> dict[int, ImagePrompts]:
    """Return the prompts of ``objects_of_volume`` by position of their slice in ``samples``."""
    return by_middle_slice(objects_of_volume(samples, policy))


def _objects(samples: Sequence[Sample], per_class: bool) -> Iterator[tuple[int, int, Array, int]]:
    """Yield the class of each object, its middle slice, all objects of the class, and its part."""
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
            yield int(class_id), middle, parts, number
