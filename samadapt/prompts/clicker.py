"""The simulated user of the number of clicks (NoC), by the rules that papers compare with.

They are those of RITM (Sofiiuk et al. 2021, ``isegm/inference/clicker.py``), which SimpleClick (Liu
et al. 2023) and later work use unchanged:

1. The error has two parts: the missed one, where the mask lacks the object, and the exceeding one,
   where the mask leaves the object. Pixels whose truth is not known belong to neither.
2. The depth of a pixel is its L2 distance to the nearest pixel outside its part. Pixels beyond the
   edge of the image are outside.
3. Pixels that were clicked before have depth 0.
4. The click is positive only if the missed part is strictly deeper; if both are equally deep, it is
   negative.
5. It lands on the deepest pixel of that part, the first one by rows if there are several. If every
   wrong pixel was clicked before, that is the first pixel of the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from samadapt.prompts.clicks import deepest
from samadapt.sam.types import ImagePrompts
from samadapt.system.arrays import Array

PROBABILITY = 0.49
"""Probability above which a pixel belongs to the mask, in the published protocol."""


@dataclass
class Clicker:
    """A user who corrects the mask of one object, click by click.

    Attributes:
        truth: (h, w) bool, the object, which is not empty.
        known: (h, w) bool, the pixels whose truth is known.
    """

    truth: Array
    known: Array
    _free: Array = field(init=False)

    def __post_init__(self) -> None:
        self._free = np.ones(self.truth.shape, dtype=bool)

    def click(self, found: Array) -> tuple[tuple[float, float], int]:
        """Click where the mask is most wrong.

        Args:
            found: (h, w) bool, the mask so far; it is empty before the first click.

        Returns:
            The centre (x, y) of the clicked pixel, and its label: 1 inside, 0 outside.
        """
        missed = deepest(self.truth & ~found & self.known, self._free)
        exceeding = deepest(found & ~self.truth & self.known, self._free)
        positive = missed[1] > exceeding[1]
        (x, y), _ = missed if positive else exceeding
        self._free[int(y), int(x)] = False
        return (x, y), int(positive)


def with_click(prompts: ImagePrompts, point: tuple[float, float], label: int) -> ImagePrompts:
    """Return the prompts of one object with one more click (x, y); -1 is a label of padding."""
    added = np.array(point, dtype=np.float32).reshape(1, 1, 2), np.array([[label]], dtype=np.int64)
    if prompts.points is None or prompts.point_labels is None:
        return replace(prompts, points=added[0], point_labels=added[1])
    return replace(
        prompts,
        points=np.concatenate([prompts.points, added[0]], axis=1),
        point_labels=np.concatenate([prompts.point_labels, added[1]], axis=1),
    )
