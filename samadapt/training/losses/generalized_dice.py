"""Generalized Dice: classes count by the inverse of their squared size (Sudre et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic.dataclasses import dataclass

from samadapt.training.losses.base import (
    DiceWeight,
    EntropyWeight,
    NamedLoss,
    Target,
    register,
)

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.training.mask_losses import LossFunction, SumUp

SMALLEST = 1e-12
"""Added to numerator and denominator, for a batch without any known pixel."""


@register("generalized_dice")
@dataclass(frozen=True)
class GeneralizedDice(NamedLoss):
    """Cross-entropy, and one Dice over all classes and the background, as in MONAI.

    The overlap of each class in the batch is divided by the square of its true size, so that small
    classes count as much as large ones. Class weights only change the cross-entropy.
    """

    summary: ClassVar[str] = (
        "cross-entropy and one Dice over all classes, in which small classes count as much as large"
    )
    fits: ClassVar[frozenset[Target]] = frozenset({"classes"})

    cross_entropy: EntropyWeight = 1.0
    dice: DiceWeight = 1.0

    def build(
        self, target: Target, classes: int, weights: Sequence[float] | None = None
    ) -> LossFunction:
        """Return the loss of classes."""
        from samadapt.training.mask_losses import semantic_loss

        del target
        return semantic_loss(
            classes,
            cross_entropy=self.cross_entropy,
            dice=self.dice,
            overlap=_generalized_dice,
            weights=weights,
        )


def _generalized_dice(predicted: Tensor, truth: Tensor, known: Tensor, sum_up: SumUp) -> Tensor:
    """Return the loss of K classes in b images, (K, b, h, w), K times."""
    import torch

    def with_background(planes: Tensor) -> Tensor:
        # (K + 1, pixels): the background is what the classes leave of the known pixels.
        rest = known.any(0).to(planes.dtype) * (1 - planes.sum(0))
        return torch.cat([rest[None], planes]).flatten(1)

    found, wanted = with_background(predicted), with_background(truth.to(predicted.dtype))
    sums = sum_up(torch.stack([(found * wanted).sum(1), found.sum(1), wanted.sum(1)]))
    shared, sizes, true_size = sums[0], sums[1] + sums[2], sums[2]
    # A class that the batch lacks weighs as much as the smallest one that it has.
    weight = 1 / true_size**2
    present = true_size > 0
    largest = torch.where(present, weight, 0).max()
    weight = torch.where(present, weight, largest)
    # The sums are divided by squared sizes, so MONAI's default of 1e-5 would outweigh large masks.
    numerator = 2 * (shared * weight).sum() + SMALLEST
    denominator = (sizes * weight).sum() + SMALLEST
    loss: Tensor = 1 - numerator / denominator
    return loss.expand(len(predicted))
