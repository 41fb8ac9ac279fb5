"""How sure a model is of the masks of an image, without knowing the truth.

Masks without prompts come with the IoU that SAM's decoder predicts and with a stability. A model
that predicts classes, or draws what boxes and points show, gives a probability p of each pixel.
From it follows what the same two numbers mean there, for each class that was found:

    expected IoU    sum of p inside the mask / (pixels of the mask + sum of p outside of it)
    stability       pixels above 0 + 1 logit / pixels above 0 - 1 logit

The first is the IoU that the mask has on average, to first order, if the probabilities are
calibrated. Several views (adapters of several folds, or the image and its mirrored copy) also
disagree: of probabilities by their mutual information, in shares of 0..1 over the pixels that may
be foreground; of masks without prompts by one minus their mean best IoU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from samadapt.data.types import Volume
from samadapt.engine.proposals import Proposer
from samadapt.inference.automatic import MaskFinder
from samadapt.inference.volumes import SlicePictures
from samadapt.sam.automatic_masks import FoundMask
from samadapt.sam.mask_tools import decode_mask
from samadapt.system.arrays import Array

FAINT = 0.05
"""Probability below which a pixel counts as background. A softmax leaves a little everywhere, and
summed over all pixels it would outweigh the object."""

UPPER, LOWER = (1 / (1 + math.exp(-offset)) for offset in (1.0, -1.0))
"""Probabilities of 0 + 1 and 0 - 1 logits."""

MOST_PIXELS = 256
"""Side that masks without prompts are thinned out to, before those of two views are matched."""


@dataclass(frozen=True)
class Quality:
    """How sure a model is of the masks of an image; None where it cannot be said.

    Attributes:
        predicted_iou: mean over the masks, or over the classes that were found; None: there is
            nothing.
        stability: the same.
        disagreement: 0..1, between several views; None: there is one view.
    """

    predicted_iou: float | None
    stability: float | None
    disagreement: float | None

    @property
    def values(self) -> dict[str, float | None]:
        """The three numbers by name."""
        return asdict(self)


def measure(proposer: Proposer, name: str, volume: Volume, *, several: bool) -> Quality:
    """Look at an image with a model and say how sure it is.

    Args:
        proposer: draws the masks.
        name: of the image.
        volume: the image.
        several: whether there are several views, so that they can disagree.
    """
    if finders := proposer.finders:
        return _of_masks(finders, volume, mirrored=several and len(finders) == 1)
    uncertainty = "mutual_information" if several else False
    options = proposer.options_of(name, probabilities=True, uncertainty=uncertainty)
    found = proposer.segmenter.segment_volume(volume, options)
    if found.probabilities is None:
        return Quality(None, None, None)
    classes = range(1, len(proposer.segmenter.classes) + 1)
    masks = [found.labels == k for k in classes]
    return of_probabilities(found.probabilities, masks, found.mutual_information)


def of_probabilities(
    probabilities: Array, masks: Sequence[Array], mutual_information: Array | None
) -> Quality:
    """Return how sure a model is of class masks.

    Args:
        probabilities: (K, h, w, d) uint8, 255 for 1.
        masks: (h, w, d) bool for each class.
        mutual_information: (h, w, d), 0..1; None: there was one view.
    """
    ious, stabilities = [], []
    region = np.zeros(probabilities.shape[1:], bool)
    for shares, mask in zip(probabilities, masks, strict=True):
        p = shares.astype(np.float32) / 255
        p[p < FAINT] = 0
        region |= p > 0
        if not mask.any():
            continue
        inside = float(p[mask].sum())
        ious.append(inside / (np.count_nonzero(mask) + float(p.sum()) - inside))
        wide = np.count_nonzero(p > LOWER)
        stabilities.append(np.count_nonzero(p > UPPER) / wide if wide else 0.0)
    disagreement = None
    if mutual_information is not None:
        disagreement = float(mutual_information[region].mean()) if region.any() else 0.0
    if not ious:
        return Quality(None, None, disagreement)
    return Quality(float(np.mean(ious)), float(np.mean(stabilities)), disagreement)


def _of_masks(finders: Sequence[MaskFinder], volume: Volume, *, mirrored: bool) -> Quality:
    """Return how sure models are of the masks that they find without prompts, over all slices."""
    ious, stabilities, apart = [], [], []
    rule = finders[0].segmenter.intensity
    pictures = SlicePictures(volume, rule, None)
    for index in range(volume.shape[2]):
        picture = pictures(index)
        views = [finder.in_picture(picture) for finder in finders]
        thin = [[_thinned(decode_mask(mask.runs)) for mask in view] for view in views]
        if mirrored:
            turned = finders[0].in_picture(np.ascontiguousarray(picture[:, ::-1]))
            thin.append([_thinned(decode_mask(mask.runs)[:, ::-1]) for mask in turned])
        ious += [mask.iou for mask in _all(views)]
        stabilities += [mask.stability for mask in _all(views)]
        apart += [disagreement(thin[0], other) for other in thin[1:]]
    if not ious:
        return Quality(None, None, float(np.mean(apart)) if apart else None)
    return Quality(
        float(np.mean(ious)),
        float(np.mean(stabilities)),
        float(np.mean(apart)) if apart else None,
    )


def _all(views: Sequence[Sequence[FoundMask]]) -> list[FoundMask]:
    return [mask for view in views for mask in view]


def _thinned(mask: Array) -> Array:
    """Return every n-th row and column, so that neither side is above ``MOST_PIXELS``."""
    step = max(1, -(-max(mask.shape) // MOST_PIXELS))
    return mask[::step, ::step].ravel()


def disagreement(first: Sequence[Array], second: Sequence[Array]) -> float:
    """Return one minus the mean best IoU of the masks (n,) of two views, from both sides.

    A mask without a partner counts with an IoU of 0; two views without masks agree.
    """
    if not first and not second:
        return 0.0
    if not first or not second:
        return 1.0
    a, b = (np.stack(view).astype(np.float32) for view in (first, second))
    common = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None] - common
    iou = common / np.maximum(union, 1)
    return float(1 - (iou.max(1).sum() + iou.max(0).sum()) / (len(a) + len(b)))
