"""The Tversky loss, in which misses can cost more than false alarms (Salehi et al. 2017)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.training.losses.base import MaskTermLoss, register

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.training.mask_losses import MaskTerm, SumUp

SMOOTH = 1e-5
"""Added to numerator and denominator, as in MONAI, so that two empty masks have no loss."""

LEAST = 1e-6
"""A power below 1 has no finite gradient at 0, so smaller losses are constant."""


@register("tversky")
@dataclass(frozen=True)
class Tversky(MaskTermLoss):
    """Tversky loss in the place of Dice, with the smoothing of MONAI.

    It is 1 - TP / (TP + alpha FP + beta FN), which is the Dice loss for alpha = beta = 0.5. With an
    exponent below 1 (0.75 in Abraham and Khan 2019: focal Tversky) classes that are almost right
    still train.
    """

    summary: ClassVar[str] = (
        "Tversky loss in the place of Dice: what is missed costs more than what is too much"
    )

    tversky_alpha: float = Field(default=0.3, gt=0, description="cost of a false-positive pixel")
    tversky_beta: float = Field(default=0.7, gt=0, description="cost of a missed pixel")
    tversky_gamma: float = Field(
        default=1.0, gt=0, description="exponent of the Tversky loss; 0.75 gives focal Tversky"
    )

    def overlap(self) -> MaskTerm:
        """Return the Tversky loss of each mask."""

        def measure(predicted: Tensor, truth: Tensor, known: Tensor, sum_up: SumUp) -> Tensor:
            import torch

            del known
            # (3, n): sums over all planes of a mask.
            shared = (predicted * truth).flatten(1).sum(1)
            sizes = [predicted.flatten(1).sum(1), truth.flatten(1).sum(1).to(shared.dtype)]
            sums = sum_up(torch.stack([shared, *sizes]))
            hits = sums[0]
            false, missed = sums[1] - hits, sums[2] - hits
            wrong = self.tversky_alpha * false + self.tversky_beta * missed
            each: Tensor = 1 - (hits + SMOOTH) / (hits + wrong + SMOOTH)
            return each if self.tversky_gamma == 1 else each.clamp(LEAST) ** self.tversky_gamma

        return measure
