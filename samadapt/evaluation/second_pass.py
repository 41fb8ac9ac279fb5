"""Refine what a model found without prompts by prompting the base model with it.

The components of each class become prompts of SAM: the box around the component, a little wider,
and the logits of its mask. SAM's answer counts as much as the first pass, but only where the two
agree: an answer with another shape shows that the component is no object for SAM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn import functional

from samadapt.evaluation.instances import components
from samadapt.prompts.simulate import boxes_of, widened
from samadapt.sam.decode import OBJECTS_PER_DECODE, object_logits, region_labels, semantic_labels
from samadapt.sam.embed import embed
from samadapt.sam.mean_prediction import MeanLogits
from samadapt.sam.segmentation_model import SegmentationModel
from samadapt.sam.types import Frame, ImagePrompts
from samadapt.system.arrays import Array

SPECK = 0.05
"""Share of the largest component of a class on a slice, below which a component is a speck, which
prompts nothing."""

AGREEMENT = 0.7
"""Least IoU of a component with SAM's mask of it at which SAM's mask counts."""

CERTAIN = 10.0
"""Logits of mask prompts lie between the negative of this and this, as those of SAM mostly do."""


@dataclass(frozen=True)
class SecondPass:
    """A promptable model that refines classes which another model found without prompts.

    Attributes:
        sam: the model, usually the base of the one that found the classes.
    """

    sam: SegmentationModel

    @torch.no_grad()
    def add_to(self, mean: MeanLogits, image: Array) -> None:
        """Add the second pass to the mean of all first ones, and give it the weight of them all.

        A component whose answer is not taken stays as it is. If there is no other, nothing is
        added.

        Args:
            mean: the logits (K, h, w) of the classes; changed.
            image: (h, w, 3) uint8, as the first passes saw it, but not mirrored.
        """
        first = mean.logits
        parts = list(_parts(first, exclusive=mean.exclusive))
        if not parts:
            return
        rivals = _rivals(first) if mean.exclusive else torch.zeros_like(first)
        embeddings, (frame,) = embed(self.sam, [image])
        # The logit of each class against all others; -inf where no answer is taken.
        found = torch.full_like(first, -torch.inf)
        for start in range(0, len(parts), OBJECTS_PER_DECODE):
            chunk = parts[start : start + OBJECTS_PER_DECODE]
            answers = self._answers(chunk, first - rivals, embeddings, frame)
            for part, answer in zip(chunk, answers, strict=True):
                mask = torch.from_numpy(part.mask).to(answer.device)
                either = mask | (answer > self.sam.mask_threshold)
                both = mask & (answer > self.sam.mask_threshold)
                if both.sum() >= AGREEMENT * either.sum():
                    row = found[part.class_id - 1]
                    torch.maximum(row, answer.where(either, -torch.inf), out=row)
        if found.isfinite().any():
            # The other classes and the background keep their ratios.
            mean.add(torch.where(found.isfinite(), found + rivals, first), weight=mean.count)

    def _answers(
        self,
        parts: list[_FoundComponent],
        own: Float[Tensor, "K h w"],
        embeddings: Float[Tensor, "1 c g g"],
        frame: Frame,
    ) -> Float[Tensor, "p h w"]:
        """Return the logits of the masks that the model gives for some components."""
        planes = torch.stack([own[part.class_id - 1] for part in parts])
        elsewhere = torch.from_numpy(np.stack([part.elsewhere for part in parts]))
        planes = planes.masked_fill(elsewhere.to(planes.device), -CERTAIN)
        masks = np.stack([part.mask for part in parts])
        prompts = ImagePrompts(
            class_ids=np.array([part.class_id for part in parts], np.int64),
            boxes=widened(boxes_of(masks), frame.original),
            mask_logits=mask_prompts(planes, frame, 4 * self.sam.embedding_size).cpu().numpy(),
        )
        ((logits, _),) = object_logits(self.sam, embeddings, [frame], [prompts])
        return self.sam.postprocess(logits[None].float(), frame)[0, :, 0]


def mask_prompts(
    planes: Float[Tensor, "p h w"], frame: Frame, side: int
) -> Float[Tensor, "p 1 {side} {side}"]:
    """Bring logits from the original frame into the grid of SAM's mask prompts.

    This is the way back of ``SegmentationModel.postprocess``. The padding is certain background.

    Args:
        planes: (p, h, w) logits, of size ``frame.original``; bounded by ``CERTAIN``.
        frame: the frame of the image.
        side: 4g.
    """
    height, width = frame.resized
    bounded = planes.float().clamp(-CERTAIN, CERTAIN)[:, None]
    resized = functional.interpolate(bounded, (height, width), mode="bilinear", antialias=True)
    padding = (0, frame.size - width, 0, frame.size - height)
    square = functional.pad(resized, padding, value=-CERTAIN)
    return functional.interpolate(square, (side, side), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class _FoundComponent:
    """A component of a class on a slice.

    Attributes:
        class_id: 1..K.
        number: of the component, from 1.
        numbers: (h, w) the number of each pixel's component of this class; 0: none. All components
            of the class share it.
    """

    class_id: int
    number: int
    numbers: Int32[np.ndarray, "h w"]

    @property
    def mask(self) -> Array:
        """(h, w) bool."""
        return np.asarray(self.numbers == self.number)

    @property
    def elsewhere(self) -> Array:
        """(h, w) bool, the other components of the class."""
        return np.asarray((self.numbers > 0) & (self.numbers != self.number))


def _parts(logits: Float[Tensor, "K h w"], *, exclusive: bool) -> Iterator[_FoundComponent]:
    """Yield the components of each class, without specks."""
    count = len(logits)
    label = semantic_labels if exclusive else region_labels
    labels = label(logits[None, None], count)[0].cpu().numpy()
    for class_id in range(1, count + 1):
        numbers = components((labels if exclusive else labels[class_id - 1]) == class_id)
        areas = np.bincount(numbers.ravel())[1:]
        for index in np.flatnonzero(areas >= SPECK * areas.max(initial=0)):
            yield _FoundComponent(class_id, int(index) + 1, numbers)


def _rivals(logits: Float[Tensor, "K h w"]) -> Float[Tensor, "K h w"]:
    """Return for each class the log-sum-exp of the other classes and of the background, 0."""
    background = torch.zeros_like(logits[:1])
    others = [
        torch.cat([background, logits[:k], logits[k + 1 :]]).logsumexp(0)
        for k in range(len(logits))
    ]
    return torch.stack(others)
