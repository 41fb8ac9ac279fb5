"""Dice of centre lines, for thin structures that must not break (Shit et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from samadapt.system.settings import Whole
from samadapt.training.losses.base import MaskTermLoss, register

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.training.mask_losses import ExtraTerm, SumUp


@register("cl_dice")
@dataclass(frozen=True)
class CentreLineDice(MaskTermLoss):
    """Dice and cross-entropy, and the soft centre-line Dice: vessels, membranes, fibres.

    The share of the predicted centre line that lies in the truth, and the share of the true centre
    line that is predicted, are combined like precision and recall (section 3). MONAI computes the
    centre lines by repeated soft erosion.
    """

    summary: ClassVar[str] = (
        "adds the Dice of centre lines, so that thin structures such as vessels do not break"
    )

    cl_dice: float = Field(default=0.5, ge=0, description="weight of the Dice of centre lines")
    cl_dice_erosions: Whole = Field(
        default=5,
        ge=1,
        description="soft erosions until a centre line is left: at least half the width of the "
        "thickest structure, in pixels of the decoder's grid",
    )

    def extra(self) -> ExtraTerm:
        """Return the loss of the centre lines of each mask."""
        from samadapt.training.mask_losses import ExtraTerm

        def measure(predicted: Tensor, truth: Tensor, known: Tensor, sum_up: SumUp) -> Tensor:
            import torch
            from monai.losses.cldice import soft_skel

            del known
            wanted = truth.to(predicted.dtype)
            lines = soft_skel(predicted, self.cl_dice_erosions)
            true_lines = soft_skel(wanted, self.cl_dice_erosions)

            def share(part: Tensor, whole: Tensor) -> Tensor:
                # Without any line the share is 1, as in MONAI.
                sums = torch.stack([part.flatten(1).sum(1), whole.flatten(1).sum(1)])
                both = sum_up(sums)
                return (both[0] + 1) / (both[1] + 1)

            precision = share(lines * wanted, lines)
            recall = share(true_lines * predicted, true_lines)
            return 1 - 2 * precision * recall / (precision + recall)

        return ExtraTerm("cl_dice", self.cl_dice, measure)
