"""The losses: objects are trained as in the SAM paper, classes as in SAMed.

Focal and Dice loss equal MONAI's, which the tests check. MONAI is not imported, because that takes
2 s for which the first step would have to wait.

Targets lie on the decoder's grid (4g, 4g). They are 1 and above inside, 0 outside, and -1 for the
padding of the model's square and for ignored pixels. Neither the loss nor its gradient depends on
the logits of such pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from samadapt.sam.types import MaskOutput

SURELY_NOT = -20.0
"""Logit of ignored pixels: probability and gradient vanish in every term of the loss."""

SMOOTH = 1e-5
"""Added to numerator and denominator of Dice, so that the loss is 0 if both masks are empty."""

LossFunction = Callable[["MaskOutput", Tensor], "LossTerms"]


@dataclass(frozen=True)
class LossTerms:
    """A loss and its parts, for the log.

    Attributes:
        total: the scalar to minimise.
        parts: detached scalars by name, without their weights.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]


def object_loss(*, focal: float = 20.0, dice: float = 1.0, iou: float = 1.0) -> LossFunction:
    """Return SAM's loss for prompted objects: focal, Dice, and the IoU head's squared error.

    The focal term is a mean over pixels (gamma 2, alpha 0.25). If three masks are predicted, only
    the mask with the lowest focal and Dice loss is trained (SAM, appendix A), because one prompt
    can mean several nested objects. The IoU head learns from all masks.

    Args:
        focal: weight of the focal term. The paper weights focal to Dice 20 to 1.
        dice: weight of the Dice term.
        iou: weight of the squared error of the IoU head.

    Returns:
        A function of a ``MaskOutput`` (b, p, m, 4g, 4g) and targets (b, p, 4g, 4g).
    """

    def loss(output: MaskOutput, targets: Integer[Tensor, "b p h w"]) -> LossTerms:
        b, p, m, h, w = output.logits.shape
        # Every mask of every object becomes one row: (b p m, 1, h, w).
        valid = (targets >= 0)[:, :, None].expand(b, p, m, h, w).reshape(-1, 1, h, w)
        truth = (targets > 0).float()[:, :, None].expand(b, p, m, h, w).reshape(-1, 1, h, w)
        logits = output.logits.float().reshape(-1, 1, h, w).masked_fill(~valid, SURELY_NOT)
        pixels = valid.flatten(1).sum(1).clamp(min=1)
        focal_term = focal_loss(logits, truth).flatten(1).sum(1) / pixels
        dice_term = dice_loss(logits.sigmoid().flatten(1), truth.flatten(1))
        masks = (focal * focal_term + dice * dice_term).reshape(b, p, m)
        best = masks.argmin(dim=-1, keepdim=True)
        error = functional.mse_loss(
            output.iou.float(), mask_iou(logits, truth).reshape(b, p, m), reduction="none"
        )
        total = masks.gather(-1, best).mean() + iou * error.mean()
        # Rows of the chosen masks, for the log.
        chosen = best.flatten() + m * torch.arange(b * p, device=best.device)
        return LossTerms(
            total,
            {
                "focal": focal_term[chosen].mean().detach(),
                "dice": dice_term[chosen].mean().detach(),
                "iou": error.mean().detach(),
            },
        )

    return loss


def semantic_loss(classes: int, *, cross_entropy: float = 1.0, dice: float = 1.0) -> LossFunction:
    """Return Dice with cross-entropy over the background and one mask token a class.

    The logit of the background is fixed at 0, so a class is predicted where its mask is positive
    and the highest. Dice is computed over the whole batch, because it is ill-defined for a slice
    that lacks a class.

    Args:
        classes: number K of classes; the first K masks belong to them.
        cross_entropy: weight of the cross-entropy.
        dice: weight of the Dice term.

    Returns:
        A function of a ``MaskOutput`` (b, 1, m >= K, 4g, 4g) and targets (b, 4g, 4g) in 0..K, or
        planes (b, K, 4g, 4g) of 1, 0 and -1. The logit of a class is ignored where it is -1.
    """

    def loss(
        output: MaskOutput,
        targets: Integer[Tensor, "b h w"] | Integer[Tensor, "b K h w"],
    ) -> LossTerms:
        if targets.ndim == 4:
            return partial(output, targets)
        padding = (targets < 0)[:, None]
        logits = output.logits[:, 0, :classes].float().masked_fill(padding, SURELY_NOT)
        scores = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
        truth = targets.clamp(min=0)
        pixels = (~padding).sum().clamp(min=1)
        entropy = functional.cross_entropy(scores, truth, reduction="sum") / pixels
        wanted = functional.one_hot(truth, classes + 1)[..., 1:].flatten(0, 2).T
        predicted = scores.softmax(1)[:, 1:].transpose(0, 1).flatten(1)
        overlap = dice_loss(predicted, wanted).mean()
        return LossTerms(
            cross_entropy * entropy + dice * overlap,
            {"cross_entropy": entropy.detach(), "dice": overlap.detach()},
        )

    def partial(output: MaskOutput, targets: Integer[Tensor, "b K h w"]) -> LossTerms:
        known = targets >= 0
        logits = output.logits[:, 0, :classes].float().masked_fill(~known, SURELY_NOT)
        scores = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
        wanted = (targets > 0).long()
        truth = torch.where(wanted.any(1), wanted.argmax(1) + 1, 0)  # at most one plane is 1
        pixels = known.any(1).sum().clamp(min=1)
        entropy = functional.cross_entropy(scores, truth, reduction="sum") / pixels
        overlap = _mean_dice(scores.softmax(1)[:, 1:] * known, wanted, known)
        return LossTerms(
            cross_entropy * entropy + dice * overlap,
            {"cross_entropy": entropy.detach(), "dice": overlap.detach()},
        )

    return loss


def region_loss(classes: int, *, cross_entropy: float = 1.0, dice: float = 1.0) -> LossFunction:
    """Return Dice with binary cross-entropy for classes that may overlap, one mask token each.

    A sigmoid decides about each class separately. Dice is computed over the whole batch.

    Args:
        classes: number K of classes; the first K masks belong to them.
        cross_entropy: weight of the cross-entropy.
        dice: weight of the Dice term.

    Returns:
        A function of a ``MaskOutput`` (b, 1, m >= K, 4g, 4g) and targets (b, K, 4g, 4g) of 1, 0
        and -1. Pixels of -1 are ignored.
    """

    def loss(output: MaskOutput, targets: Integer[Tensor, "b K h w"]) -> LossTerms:
        known = targets >= 0
        logits = output.logits[:, 0, :classes].float().masked_fill(~known, SURELY_NOT)
        wanted = (targets > 0).float()
        summed = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        entropy = summed / known.sum().clamp(min=1)
        overlap = _mean_dice(logits.sigmoid() * known, wanted, known)
        return LossTerms(
            cross_entropy * entropy + dice * overlap,
            {"cross_entropy": entropy.detach(), "dice": overlap.detach()},
        )

    return loss


def _mean_dice(
    predicted: Float[Tensor, "b K h w"],
    wanted: Shaped[Tensor, "b K h w"],
    known: Bool[Tensor, "b K h w"],
) -> Float[Tensor, ""]:
    """Return the mean Dice loss of the classes that have a known pixel; all (b, K, h, w)."""

    def by_class(values: Tensor) -> Tensor:
        return values.transpose(0, 1).flatten(1)

    counts = by_class(known).any(1)
    each = dice_loss(by_class(predicted), by_class(wanted))
    return (each * counts).sum() / counts.sum().clamp(min=1)


def focal_loss(
    logits: Float[Tensor, "*n"], truth: Float[Tensor, "*n"], alpha: float = 0.25
) -> Float[Tensor, "*n"]:
    """Return the focal loss of each pixel with gamma 2, for logits and truth 0 or 1, all (...)."""
    # The logit of being wrong: its sigmoid is 1 - p_t, and its softplus is -log p_t.
    wrong = torch.where(truth > 0, -logits, logits)
    weight = torch.where(truth > 0, alpha, 1 - alpha)
    return weight * wrong.sigmoid() ** 2 * functional.softplus(wrong)


def dice_loss(
    predicted: Float[Tensor, "n pixels"], truth: Shaped[Tensor, "n pixels"]
) -> Float[Tensor, " n"]:
    """Return 1 - Dice, (n,), of probabilities (n, pixels) and truth (n, pixels) of 0 and 1."""
    shared = (predicted * truth).sum(1)
    return 1 - (2 * shared + SMOOTH) / (predicted.sum(1) + truth.sum(1) + SMOOTH)


def mask_iou(
    logits: Float[Tensor, "n 1 h w"], truth: Shaped[Tensor, "n 1 h w"]
) -> Float[Tensor, " n"]:
    """Return the IoU (n,) of ``logits > 0`` and truth (n, 1, h, w); 1 if both are empty."""
    predicted, wanted = (logits > 0).flatten(1), (truth > 0).flatten(1)
    union = (predicted | wanted).sum(1)
    shared = (predicted & wanted).sum(1)
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0).detach()
