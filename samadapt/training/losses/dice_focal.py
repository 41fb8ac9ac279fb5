"""Dice with focal loss: pixels that are already right count less (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.training.losses.base import (
    WITHOUT_PROMPTS,
    DiceWeight,
    FocalWeight,
    NamedLoss,
    Target,
    register,
)

if TYPE_CHECKING:
    from samadapt.training.mask_losses import LossFunction


@register("dice_focal")
@dataclass(frozen=True)
class DiceFocal(NamedLoss):
    """Dice loss over the batch and focal loss, 1 to 20 as in SAM; for objects there is ``sam``.

    The focal loss is (1 - p)^gamma times the cross-entropy -log p, where p is the probability of
    the true class. MONAI computes it.
    """

    summary: ClassVar[str] = (
        "Dice loss and focal loss, in which pixels that are already right count less"
    )
    fits: ClassVar[frozenset[Target]] = WITHOUT_PROMPTS

    focal: FocalWeight = 20.0
    dice: DiceWeight = 1.0
    # Below 1 the gradient of the focal loss is infinite where a pixel is right.
    focal_gamma: float = Field(
        default=2.0,
        ge=1,
        description="exponent of the focal loss; the higher, the less do easy pixels count",
    )

    def build(
        self, target: Target, classes: int, weights: Sequence[float] | None = None
    ) -> LossFunction:
        """Return the loss of classes or of regions."""
        from samadapt.training.mask_losses import region_loss, semantic_loss

        make = region_loss if target == "regions" else semantic_loss
        return make(
            classes,
            cross_entropy=self.focal,
            dice=self.dice,
            gamma=self.focal_gamma,
            weights=weights,
        )
