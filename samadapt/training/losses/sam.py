"""SAM's own loss for prompted objects (Kirillov et al. 2023, appendix A)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from samadapt.training.losses.base import (
    DiceWeight,
    FocalWeight,
    IouWeight,
    NamedLoss,
    ObjectScoreWeight,
    Target,
    register,
)

if TYPE_CHECKING:
    from samadapt.training.mask_losses import LossFunction


@register("sam")
@dataclass(frozen=True)
class SamLoss(NamedLoss):
    """Focal and Dice loss, 20 to 1, and the errors of the predicted IoU and the object score."""

    summary: ClassVar[str] = (
        "focal and Dice loss of each object's mask, and the errors of the predicted IoU and of the "
        "object score of SAM 2"
    )
    fits: ClassVar[frozenset[Target]] = frozenset({"objects"})

    focal: FocalWeight = 20.0
    dice: DiceWeight = 1.0
    iou: IouWeight = 1.0
    object_score: ObjectScoreWeight = 1.0

    def build(
        self, target: Target, classes: int, weights: Sequence[float] | None = None
    ) -> LossFunction:
        """Return the loss of prompted objects."""
        from samadapt.training.mask_losses import object_loss

        del target, classes, weights
        return object_loss(
            focal=self.focal, dice=self.dice, iou=self.iou, object_score=self.object_score
        )
