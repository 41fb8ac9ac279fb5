"""An object of a volume that a user prompts with a box and corrects with clicks.

The model sees slices. So the box prompts its middle slice, and the object is carried both ways
within the slices of the box (``propagate.py``). A click corrects its slice: the model gets the
slice's box, if it has one, all clicks on it and its previous logits. The corrected mask is carried
both ways, in the place of what was found before, up to the next slice that was prompted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from samadapt.inference.propagate import Propagation, Walk
from samadapt.prompts.clicker import with_click
from samadapt.sam.types import ImagePrompts

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.prompts.volume_clicker import VolumeBox

NUMBER = 1
"""Number of the object in its walks, of which each object has its own."""


@dataclass
class CorrectedObject:
    """One object and its mask.

    Attributes:
        make_propagation: returns what carries the object, for one walk.
        box: the box that the user gave.
        logits: (1, 4g, 4g) in the model frame, by slice on which the object was found.
    """

    make_propagation: Callable[[], Propagation]
    box: VolumeBox
    logits: dict[int, Float[Tensor, "1 _ _"]] = field(default_factory=dict)
    _prompts: dict[int, ImagePrompts] = field(init=False, default_factory=dict)

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
        known = self._prompts.get(index, ImagePrompts(np.ones(1, dtype=np.int64)))
        prompts = with_click(known, (column + 0.5, row + 0.5), label)
        previous = self.logits.get(index)
        if previous is not None:
            prompts = replace(prompts, mask_logits=previous[None].float().cpu().numpy())
        first, last = min(self.box.low, index), max(self.box.high, index)
        low = max((i + 1 for i in self._prompts if i < index), default=first)
        high = min((i - 1 for i in self._prompts if i > index), default=last)
        self._carry(index, prompts, low, high)

    def _carry(self, index: int, prompts: ImagePrompts, low: int, high: int) -> None:
        """Segment the object on a slice, and carry it to the slices ``low`` to ``high``."""
        self._prompts[index] = replace(prompts, mask_logits=None)
        up, down = Walk(NUMBER, index, high), Walk(NUMBER, index, low)
        propagation = self.make_propagation()
        walk = propagation({index: prompts}, [up], [down])
        found = {place: logits[NUMBER] for place, logits in walk}
        # A mask that the click has emptied cannot be carried: the other slices keep theirs.
        is_carried = bool((found[index] > propagation.threshold).any())
        for place in range(low, high + 1) if is_carried else [index]:
            self.logits.pop(place, None)
        self.logits |= found
