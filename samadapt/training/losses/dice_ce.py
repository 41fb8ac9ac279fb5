"""Dice with cross-entropy, as SAMed and nnU-Net train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from samadapt.training.losses.base import (
    WITHOUT_PROMPTS,
    DiceWeight,
    EntropyWeight,
    NamedLoss,
    Target,
    register,
)

if TYPE_CHECKING:
    from samadapt.training.mask_losses import LossFunction


@register("dice_ce")
@dataclass(frozen=True)
class DiceCrossEntropy(NamedLoss):
    """Dice loss over the batch and cross-entropy."""

    summary: ClassVar[str] = "Dice loss and cross-entropy over the classes of an image"
    fits: ClassVar[frozenset[Target]] = WITHOUT_PROMPTS

    cross_entropy: EntropyWeight = 1.0
    dice: DiceWeight = 1.0

    def build(
        self, target: Target, classes: int, weights: Sequence[float] | None = None
    ) -> LossFunction:
        """Return the loss of classes, or of regions, each of which has a sigmoid of its own."""
        from samadapt.training.mask_losses import region_loss, semantic_loss

        make = region_loss if target == "regions" else semantic_loss
        return make(classes, cross_entropy=self.cross_entropy, dice=self.dice, weights=weights)
