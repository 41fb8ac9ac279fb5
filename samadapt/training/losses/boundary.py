"""A loss of distances: wrong pixels cost more the farther they are from the border."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.training.losses.base import MaskTermLoss, register

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.training.mask_losses import ExtraTerm, SumUp


@register("boundary")
@dataclass(frozen=True)
class Boundary(MaskTermLoss):
    """Dice and cross-entropy, and a soft Hausdorff distance from distance maps, from MONAI.

    The squared error of a pixel is multiplied by its squared distances to the true and to the
    predicted border (Karimi and Salcudean 2019, equation 8), and the logarithm of 1 plus the mean
    is taken. Distances are percent of the square's side, so the loss does not depend on the grid.
    It cannot train alone: a mask that is empty has no border to pull at.
    """

    summary: ClassVar[str] = (
        "adds a distance loss, in which wrong pixels cost more the farther they are from the border"
    )

    boundary: float = Field(default=0.1, ge=0, description="weight of the distance loss")

    def extra(self) -> ExtraTerm:
        """Return the distance loss of each mask, the mean over its planes."""
        import torch

        from samadapt.training.mask_losses import ExtraTerm

        def measure(predicted: Tensor, truth: Tensor, known: Tensor, sum_up: SumUp) -> Tensor:
            from monai.losses.hausdorff_loss import HausdorffDTLoss

            n, c, h, w = predicted.shape
            # Every plane is a mask of its own here, because distances do not cross planes.
            planes = predicted.reshape(n * c, 1, h, w), truth.reshape(n * c, 1, h, w)
            loss = HausdorffDTLoss(include_background=True, reduction="none")
            each = loss(planes[0], planes[1].to(predicted.dtype)).reshape(n, c)
            # MONAI's mean counts ignored pixels too, whose error is 0.
            pixels = known.flatten(2).sum(2)
            percent = each * (h * w / pixels.clamp(min=1)) * (100 / w) ** 2
            return sum_up(torch.log1p(percent).sum(1)) / sum_up((pixels > 0).sum(1)).clamp(min=1)

        return ExtraTerm("boundary", self.boundary, measure)
