"""An object that is prompted on some slices of a volume and carried to those between them.

A prompt is answered on its slice, and the answer is carried both ways (``propagate.py``), in the
place of what was found before, up to the next slice that was prompted. So a correction never
changes what the user has prompted elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxtyping import Float

from samadapt.inference.propagate import Propagation, Walk

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.sam.types import ImagePrompts

NUMBER = 1
"""Number of the object in its walks, of which each object has its own."""


@dataclass
class PromptedObject:
    """One object and its mask.

    Attributes:
        make_propagation: returns what carries the object, for one walk.
        logits: (1, 4g, 4g) in the model frame, by slice on which the object was found.
        prompts: by slice, everything that the model was last asked with there.
        predicted_iou: by prompted slice, the IoU that the model predicts for its mask.
    """

    make_propagation: Callable[[], Propagation]
    logits: dict[int, Float[Tensor, "1 _ _"]] = field(init=False, default_factory=dict)
    prompts: dict[int, ImagePrompts] = field(init=False, default_factory=dict)
    predicted_iou: dict[int, float] = field(init=False, default_factory=dict)

    def reach(self, index: int, first: int, last: int) -> tuple[int, int]:
        """Return the slices between ``first`` and ``last`` that a prompt on a slice leads.

        They end before the next prompted slices.
        """
        low = max((i + 1 for i in self.prompts if i < index), default=first)
        high = min((i - 1 for i in self.prompts if i > index), default=last)
        return max(low, first), min(high, last)

    def steps(self, index: int, prompts: ImagePrompts, low: int, high: int) -> Iterator[None]:
        """Segment the object on a slice, and carry it to the slices ``low`` to ``high``.

        Yields:
            After each slice on which the object was found. The masks change at the end, all
            together, so a walk that is abandoned changes none.
        """
        self.prompts[index] = prompts
        up, down = Walk(NUMBER, index, high), Walk(NUMBER, index, low)
        propagation = self.make_propagation()
        found = {}
        for place, logits in propagation({index: prompts}, [up], [down]):
            found[place] = logits[NUMBER]
            yield
        self.predicted_iou[index] = propagation.predicted_iou[index][0]
        # A mask that the prompt has emptied cannot be carried: the other slices keep theirs.
        is_carried = bool((found[index] > propagation.threshold).any())
        for place in range(low, high + 1) if is_carried else [index]:
            self.logits.pop(place, None)
        self.logits |= found
