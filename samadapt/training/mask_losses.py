"""What the named losses are made of: losses of prompted objects, of classes and of regions.

Objects are trained as in the SAM paper, classes as in SAMed. The files in ``losses/`` give these
functions a name and put other terms into them.

Focal and Dice loss equal MONAI's, which the tests check. MONAI is not imported for them, because
that takes 2 s for which the first step would have to wait.

Logits lie on a grid of any side, often the mask decoder's (4g, 4g), and targets on the same grid.
Targets are 1 and above inside, 0 outside, and -1 for the padding of the model's square and for
ignored pixels. Neither the loss nor its gradient depends on the logits of such pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer, Shaped
from torch import Tensor
from torch.nn import functional

from samadapt.sam.types import MaskOutput, at_least_fp32
from samadapt.system.collectives import own_part, total

SURELY_NOT = -20.0
"""Logit of ignored pixels: probability and gradient vanish in every term of the loss."""

SMOOTH = 1e-5
"""Added to numerator and denominator of Dice, so that the loss is 0 if both masks are empty."""

LossFunction = Callable[[MaskOutput, Tensor], "LossTerms"]
"""Maps what the model returned and its targets to a loss."""

SumUp = Callable[[Tensor], Tensor]
"""Adds to sums over the planes of a mask those over its planes in other processes."""

MaskTerm = Callable[[Tensor, Tensor, Tensor, SumUp], Tensor]
"""A loss of n masks (n,) from probabilities, truth of 0 and 1, and which pixels are known.

All three are (n, c, h, w): a mask may have c planes, such as those of a class in the c images of a
batch. Where a pixel is not known, its probability is a constant near 0 and its truth is 0. The term
passes every sum over planes through the fourth argument before it divides.
"""


@dataclass(frozen=True)
class LossTerms:
    """A loss and its parts, for the log.

    Attributes:
        total: the scalar to minimise.
        parts: detached scalars by name, without their weights.
    """

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]


@dataclass(frozen=True)
class ExtraTerm:
    """One more term of a loss, which compares whole masks.

    Attributes:
        name: names the term in ``LossTerms.parts``.
        weight: factor of the term.
        measure: computes it.
    """

    name: str
    weight: float
    measure: MaskTerm


def dice_of_masks(predicted: Tensor, truth: Tensor, known: Tensor, sum_up: SumUp) -> Tensor:
    """Return 1 - Dice (n,) over all planes of a mask; a ``MaskTerm``."""
    del known
    return dice_loss(predicted.flatten(1), truth.flatten(1), sum_up)


def as_they_are(sums: Tensor) -> Tensor:
    """Return sums over masks that lie in this process alone; a ``SumUp``."""
    return sums


def object_loss(
    *,
    focal: float = 20.0,
    dice: float = 1.0,
    iou: float = 1.0,
    object_score: float = 1.0,
    overlap: MaskTerm = dice_of_masks,
    extra: ExtraTerm | None = None,
) -> LossFunction:
    """Return SAM's loss for prompted objects: focal, Dice, and the IoU head's squared error.

    The output of SAM 2 also has the cross-entropy of the object's score. SAM 2 trains nothing else
    on an object that is not there, because its videos hide the mask of such an object. Images show
    it, so here its mask is trained to be empty.

    The focal term is a mean over pixels (gamma 2, alpha 0.25). If three masks are predicted, only
    the mask with the lowest focal and Dice loss is trained (SAM, appendix A), because one prompt
    can mean several nested objects. The IoU head learns from all masks. The loss is the mean over
    the objects of this process.

    Args:
        focal: weight of the focal term. The paper weights focal to Dice 20 to 1.
        dice: weight of the Dice term.
        iou: weight of the squared error of the IoU head.
        object_score: weight of the cross-entropy of the object's score, if the model gives one.
        overlap: what is computed in the place of Dice.
        extra: one more term; it takes part in the choice of the mask.

    Returns:
        A function of a ``MaskOutput`` (b, p, m, h, w) and targets (b, p, h, w).
    """

    def loss(output: MaskOutput, targets: Integer[Tensor, "b p h w"]) -> LossTerms:
        b, p, m, h, w = output.logits.shape
        # Every mask of every object becomes one row: (b p m, 1, h, w).
        valid = (targets >= 0)[:, :, None].expand(b, p, m, h, w).reshape(-1, 1, h, w)
        truth = (targets > 0)[:, :, None].expand(b, p, m, h, w).reshape(-1, 1, h, w)
        logits = at_least_fp32(output.logits).reshape(-1, 1, h, w).masked_fill(~valid, SURELY_NOT)
        truth = truth.to(logits.dtype)
        pixels = valid.flatten(1).sum(1).clamp(min=1)
        focal_term = focal_loss(logits, truth).flatten(1).sum(1) / pixels
        predicted = logits.sigmoid()
        dice_term = overlap(predicted, truth, valid, as_they_are)
        rows = focal * focal_term + dice * dice_term
        parts = {"focal": focal_term, "dice": dice_term}
        if extra is not None:
            parts[extra.name] = extra.measure(predicted, truth, valid, as_they_are)
            rows = rows + extra.weight * parts[extra.name]
        masks = rows.reshape(b, p, m)
        best = masks.argmin(dim=-1, keepdim=True)
        error = functional.mse_loss(
            at_least_fp32(output.iou),
            mask_iou(logits, truth).reshape(b, p, m).to(logits.dtype),
            reduction="none",
        )
        summed = masks.gather(-1, best).mean() + iou * error.mean()
        # Rows of the chosen masks, for the log.
        chosen = best.flatten() + m * torch.arange(b * p, device=best.device)
        shown = {name: part[chosen].mean().detach() for name, part in parts.items()}
        shown["iou"] = error.mean().detach()
        if output.object_score is not None:
            presence = presence_loss(output.object_score, targets)
            summed = summed + object_score * presence
            shown["object_score"] = presence.detach()
        return LossTerms(summed, shown)

    return loss


def presence_loss(
    scores: Float[Tensor, "b p 1"], targets: Integer[Tensor, "b p h w"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of whether each object is in its image.

    An object is there if its targets have a pixel of it. Where no pixel is known, the loss is 0.

    Args:
        scores: (b, p, 1) logits.
        targets: (b, p, h, w), 1 in the object, 0 outside, -1 where nothing is known.
    """
    logits, pixels = at_least_fp32(scores)[..., 0], targets.flatten(2)
    is_there = (pixels > 0).any(2).to(logits.dtype)
    is_known = (pixels >= 0).any(2).to(logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, is_there, weight=is_known)


def semantic_loss(
    classes: int,
    *,
    cross_entropy: float = 1.0,
    dice: float = 1.0,
    gamma: float = 0.0,
    overlap: MaskTerm = dice_of_masks,
    extra: ExtraTerm | None = None,
    weights: Sequence[float] | None = None,
) -> LossFunction:
    """Return Dice with cross-entropy over the background and one mask token a class.

    The logit of the background is fixed at 0, so a class is predicted where its mask is positive
    and the highest. Dice is computed over the whole batch, because it is ill-defined for a slice
    that lacks a class. With several processes the batch is that of all, and each returns its part
    of the loss.

    Args:
        classes: number K of classes; the first K masks belong to them.
        cross_entropy: weight of the cross-entropy, or of the focal loss.
        dice: weight of the Dice term.
        gamma: exponent of the focal loss, 1 or more, which takes the place of the cross-entropy; 0:
            cross-entropy.
        overlap: what is computed in the place of Dice. A mask is a class in all images.
        extra: one more term.
        weights: K + 1 weights, that of the background first; None: all are equal. Cross-entropy is
            the weighted mean over pixels, and the terms of masks the weighted mean over classes.

    Returns:
        A function of a ``MaskOutput`` (b, 1, m >= K, h, w) and targets (b, h, w) in 0..K, or planes
        (b, K, h, w) of 1, 0 and -1. The logit of a class is ignored where it is -1.
    """
    factors = {"cross_entropy" if gamma == 0 else "focal": cross_entropy, "dice": dice}

    def loss(
        output: MaskOutput,
        targets: Integer[Tensor, "b h w"] | Integer[Tensor, "b K h w"],
    ) -> LossTerms:
        is_partial = targets.ndim == 4
        known = targets >= 0 if is_partial else (targets >= 0)[:, None]
        logits = at_least_fp32(output.logits[:, 0, :classes]).masked_fill(~known, SURELY_NOT)
        scores = torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
        predicted = scores.softmax(1)[:, 1:]
        if is_partial:
            wanted = (targets > 0).long()
            truth = torch.where(wanted.any(1), wanted.argmax(1) + 1, 0)  # at most one plane is 1
            predicted = predicted * known
        else:
            truth = targets.clamp(min=0)
            wanted = functional.one_hot(truth, classes + 1)[..., 1:].movedim(-1, 1)
        entropy = _entropy(scores, truth, known.any(1), gamma, weights)
        masks = _MaskBatch(predicted, wanted, known.expand_as(logits), weights, is_partial)
        return _total(factors, entropy, masks, overlap, extra)

    return loss


def region_loss(
    classes: int,
    *,
    cross_entropy: float = 1.0,
    dice: float = 1.0,
    gamma: float = 0.0,
    overlap: MaskTerm = dice_of_masks,
    extra: ExtraTerm | None = None,
    weights: Sequence[float] | None = None,
) -> LossFunction:
    """Return Dice with binary cross-entropy for classes that may overlap, one mask token each.

    A sigmoid decides about each class separately. Dice is computed over the whole batch, as in
    ``semantic_loss``.

    Args:
        classes: number K of classes; the first K masks belong to them.
        cross_entropy: weight of the cross-entropy, or of the focal loss.
        dice: weight of the Dice term.
        gamma: see ``semantic_loss``.
        overlap: see ``semantic_loss``.
        extra: see ``semantic_loss``.
        weights: see ``semantic_loss``; regions have no background, so the first is not used.

    Returns:
        A function of a ``MaskOutput`` (b, 1, m >= K, h, w) and targets (b, K, h, w) of 1, 0 and -1.
        Pixels of -1 are ignored.
    """
    factors = {"cross_entropy" if gamma == 0 else "focal": cross_entropy, "dice": dice}

    def loss(output: MaskOutput, targets: Integer[Tensor, "b K h w"]) -> LossTerms:
        known = targets >= 0
        logits = at_least_fp32(output.logits[:, 0, :classes]).masked_fill(~known, SURELY_NOT)
        wanted = (targets > 0).to(logits.dtype)
        entropy = _binary_entropy(logits, wanted, known, gamma, weights)
        masks = _MaskBatch(logits.sigmoid() * known, wanted, known, weights, is_partial=True)
        return _total(factors, entropy, masks, overlap, extra)

    return loss


def targets_at(targets: Integer[Tensor, "b ..."], side: int) -> Integer[Tensor, "b ..."]:
    """Return targets (b, h, w) or (b, n, h, w) on a square grid of another side, by nearest pixel.

    Numbers of classes up to 2^24 are exact.
    """
    if targets.shape[-1] == side:
        return targets
    planes = targets[:, None] if targets.ndim == 3 else targets
    resized = functional.interpolate(planes.float(), (side, side), mode="nearest-exact")
    return (resized[:, 0] if targets.ndim == 3 else resized).to(targets.dtype)


@dataclass(frozen=True)
class _MaskBatch:
    """The masks of K classes in b images, for terms that compare whole masks.

    Other processes may hold further images of the batch.

    Attributes:
        predicted, wanted, known: (b, K, h, w) probabilities, truth of 0 and 1, known pixels.
        weights: K + 1 weights, that of the background first; None: all are equal.
        is_partial: leave out classes without a known pixel.
    """

    predicted: Tensor
    wanted: Tensor
    known: Tensor
    weights: Sequence[float] | None
    is_partial: bool = False

    def mean(self, term: MaskTerm) -> Float[Tensor, ""]:
        """Return this process's part of the mean of a term over the classes."""
        return own_part(self._mean(term))

    def _mean(self, term: MaskTerm) -> Float[Tensor, ""]:
        # (K, b, h, w): a mask is a class in the whole batch.
        known = self.known.transpose(0, 1)
        each = term(self.predicted.transpose(0, 1), self.wanted.transpose(0, 1), known, total)
        counts = total(known.flatten(1).any(1).long()) > 0 if self.is_partial else None
        if self.weights is None:
            if counts is None:
                return each.mean()
            return (each * counts).sum() / counts.sum().clamp(min=1)
        shares = each.new_tensor(self.weights[1:])
        shares = shares if counts is None else shares * counts
        return (each * shares).sum() / shares.sum().clamp(min=torch.finfo(each.dtype).tiny)


def _total(
    factors: dict[str, float],
    entropy: Float[Tensor, ""],
    masks: _MaskBatch,
    overlap: MaskTerm,
    extra: ExtraTerm | None,
) -> LossTerms:
    """Return the weighted sum of the terms of pixels (``entropy``) and of masks.

    ``factors`` has the names and weights of the first two, in this order.
    """
    of_pixels, of_masks = factors.values()
    measured = masks.mean(overlap)
    parts = dict(zip(factors, (entropy, measured), strict=True))
    summed = of_pixels * entropy + of_masks * measured
    if extra is not None:
        parts[extra.name] = masks.mean(extra.measure)
        summed = summed + extra.weight * parts[extra.name]
    return LossTerms(summed, {name: part.detach() for name, part in parts.items()})


def _entropy(
    scores: Float[Tensor, "b C h w"],
    truth: Integer[Tensor, "b h w"],
    known: Bool[Tensor, "b h w"],
    gamma: float,
    weights: Sequence[float] | None,
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy or focal loss of known pixels; others have a loss of 0.

    The mean is over the pixels of all processes, and each returns its part.
    """
    weight = None if weights is None else scores.new_tensor(weights)
    if gamma:
        from monai.losses.focal_loss import softmax_focal_loss

        wanted = functional.one_hot(truth, scores.shape[1]).movedim(-1, 1).to(scores.dtype)
        each = softmax_focal_loss(scores, wanted, gamma).sum(1)
        summed = (each if weight is None else each * weight[truth]).sum()
    else:
        summed = functional.cross_entropy(scores, truth, weight, reduction="sum")
    if weight is None:
        return summed / total(known.sum()).clamp(min=1)
    # As torch's weighted mean: pixels of a class with twice the weight count as two.
    pixels = total((weight[truth] * known).sum())
    return summed / pixels.clamp(min=torch.finfo(scores.dtype).tiny)


def _binary_entropy(
    logits: Float[Tensor, "b K h w"],
    wanted: Float[Tensor, "b K h w"],
    known: Bool[Tensor, "b K h w"],
    gamma: float,
    weights: Sequence[float] | None,
) -> Float[Tensor, ""]:
    """Return the mean binary cross-entropy or focal loss of known pixels of all classes.

    The mean is over the pixels of all processes, and each returns its part.
    """
    weight = None if weights is None else logits.new_tensor(weights[1:])[:, None, None]
    if gamma:
        from monai.losses.focal_loss import sigmoid_focal_loss

        each = sigmoid_focal_loss(logits, wanted, gamma)
        summed = (each if weight is None else each * weight).sum()
    else:
        summed = functional.binary_cross_entropy_with_logits(
            logits, wanted, weight, reduction="sum"
        )
    if weight is None:
        return summed / total(known.sum()).clamp(min=1)
    pixels = total((known * weight).sum())
    return summed / pixels.clamp(min=torch.finfo(logits.dtype).tiny)


def focal_loss(
    logits: Float[Tensor, "*n"], truth: Float[Tensor, "*n"], alpha: float = 0.25
) -> Float[Tensor, "*n"]:
    """Return the focal loss of each pixel with gamma 2, for logits and truth 0 or 1, all (...)."""
    # The logit of being wrong: its sigmoid is 1 - p_t, and its softplus is -log p_t.
    wrong = torch.where(truth > 0, -logits, logits)
    weight = torch.where(truth > 0, alpha, 1 - alpha)
    return weight * wrong.sigmoid() ** 2 * functional.softplus(wrong)


def dice_loss(
    predicted: Float[Tensor, "n pixels"],
    truth: Shaped[Tensor, "n pixels"],
    sum_up: SumUp = as_they_are,
) -> Float[Tensor, " n"]:
    """Return 1 - Dice, (n,), of probabilities (n, pixels) and truth (n, pixels) of 0 and 1."""
    shared, sizes = (predicted * truth).sum(1), predicted.sum(1) + truth.sum(1)
    sums = sum_up(torch.stack([shared, sizes]))
    return 1 - (2 * sums[0] + SMOOTH) / (sums[1] + SMOOTH)


def mask_iou(
    logits: Float[Tensor, "n 1 h w"], truth: Shaped[Tensor, "n 1 h w"]
) -> Float[Tensor, " n"]:
    """Return the IoU (n,) of ``logits > 0`` and truth (n, 1, h, w); 1 if both are empty."""
    predicted, wanted = (logits > 0).flatten(1), (truth > 0).flatten(1)
    union = (predicted | wanted).sum(1)
    shared = (predicted & wanted).sum(1)
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0).detach()
