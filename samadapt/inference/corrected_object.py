"""An object of a volume that a user prompts with a box and corrects with clicks.

The model sees slices. So the box prompts its middle slice, and the object is carried both ways
within the slices of the box. A click corrects its slice: the model gets the slice's box, if it has
one, all clicks on it and its previous logits. ``prompted_object.py`` says how far it is carried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from samadapt.inference.prompted_object import PromptedObject
from samadapt.prompts.clicker import with_click
from samadapt.sam.types import ImagePrompts

if TYPE_CHECKING:
    from samadapt.prompts.volume_clicker import VolumeBox


@dataclass
class CorrectedObject(PromptedObject):
    """One object in a box, and its mask.

    Attributes:
        box: the box that the user gave.
    """

    box: VolumeBox

    def __post_init__(self) -> None:
        """Segment the object in its box."""
        box = self.box
        prompts = ImagePrompts(np.ones(1, dtype=np.int64), boxes=box.box[None])
        self._carry(box.middle, prompts, box.low, box.high)

    def click(self, voxel: tuple[int, int, int], label: int) -> None:
        """Correct the object.

        Args:
            voxel: (z, y, x). If its slice lies beyond the box, the slices between them are reached
                too.
            label: 1 inside, 0 outside.
        """
        index, row, column = voxel
        known = self.prompts.get(index, ImagePrompts(np.ones(1, dtype=np.int64)))
        prompts = with_click(known, (column + 0.5, row + 0.5), label)
        previous = self.logits.get(index)
        shown = None if previous is None else previous[None].float().cpu().numpy()
        first, last = min(self.box.low, index), max(self.box.high, index)
        low, high = self.reach(index, first, last)
        self._carry(index, replace(prompts, mask_logits=shown), low, high)

    def _carry(self, index: int, prompts: ImagePrompts, low: int, high: int) -> None:
        for _ in self.steps(index, prompts, low, high):
            pass
