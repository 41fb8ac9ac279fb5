"""Average the predictions of several models, or of one model on mirrored images.

A pass is one way from an image to logits. What is averaged are probabilities: a softmax over the
classes and the background, whose logit is 0, where classes exclude each other; a sigmoid where
classes overlap and for prompted objects. The mean is given as logits again. So labels, the merging
of objects and thresholds are the same as those of a single pass, whose logits stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from samadapt.sam.decode import OBJECTS_PER_DECODE
from samadapt.sam.mirror import Mirror, turned_back

if TYPE_CHECKING:
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.sam.types import Frame
    from samadapt.system.arrays import Array


class MeanLogits:
    """The mean of the passes over one image, to which one pass after the other is added.

    The sum of the probabilities is kept as a logarithm and in double precision. Thus certain
    pixels, whose probabilities a float rounds to 1, keep their order, and the mean of equal passes
    is what each of them says.

    Args:
        exclusive: logits (n, h, w) are of classes that exclude each other, and the background has
            the logit 0. Otherwise each of the n planes is decided by itself.
    """

    def __init__(self, *, exclusive: bool) -> None:
        self.exclusive, self.count = exclusive, 0
        self._first: Tensor | None = None
        # The logarithm of the summed probabilities, and the summed entropies of the passes.
        self._sums: tuple[Tensor, Tensor] | None = None

    def add(self, logits: Tensor, weight: int = 1) -> None:
        """Add the logits (n, h, w) of a pass, in the frame that all passes share.

        Args:
            logits: of the pass.
            weight: how many passes it counts as. The first one counts as one.
        """
        if self._first is None:
            self._first, self.count = logits, 1
            return
        self.count += weight
        if self._sums is None:
            start = self._log_probabilities(self._first)
            self._sums = start, _entropy(start)
        log_sum, entropies = self._sums
        found = self._log_probabilities(logits)
        entropies = entropies + weight * _entropy(found)
        self._sums = torch.logaddexp(log_sum, found + math.log(weight)), entropies

    @property
    def logits(self) -> Tensor:
        """The logits (n, h, w) of the mean; of a single pass those that were added.

        Raises:
            RuntimeError: no pass was added.
        """
        if self._sums is None:
            return self._only
        # The number of passes cancels: the logarithm of a ratio of two sums.
        log_sum, _ = self._sums
        outside, inside = (log_sum[:1], log_sum[1:]) if self.exclusive else log_sum
        return (inside - outside).to(self._only.dtype)

    @property
    def probabilities(self) -> Tensor:
        """The mean probabilities (n, h, w) of the planes; that of the background is left out."""
        logits = self.logits
        if not self.exclusive:
            return logits.sigmoid()
        return torch.cat([torch.zeros_like(logits[:1]), logits]).softmax(0)[1:]

    def entropy(self) -> Tensor:
        """Return the predictive entropy (h, w): that of the mean, as a share of the largest, 0..1.

        The largest entropy is that of equal probabilities: log2(n + 1) bits if the planes exclude
        each other. Otherwise each plane has at most one bit, and the most uncertain one counts.
        """
        return self._reduced(_entropy(self._log_mean()))

    def mutual_information(self) -> Tensor:
        """Return how much the passes disagree (h, w): entropy of the mean minus mean entropy.

        It is a share of the largest entropy, 0..1, and 0 where all passes say the same, however
        uncertain each of them is.
        """
        if self._sums is None:
            return torch.zeros_like(self.entropy())
        _, entropies = self._sums
        spread = _entropy(self._log_mean()) - entropies / self.count
        return self._reduced(spread.clamp(min=0))

    @property
    def _only(self) -> Tensor:
        if self._first is None:
            raise RuntimeError("the mean of no pass: add the logits of one first")
        return self._first

    def _log_mean(self) -> Tensor:
        if self._sums is None:
            return self._log_probabilities(self._only)
        return self._sums[0] - math.log(self.count)

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        """Return (n + 1, h, w) with the background first; (2, n, h, w), outside and inside."""
        # Apple's GPUs know no double precision.
        precise = logits.float() if logits.device.type == "mps" else logits.double()
        if self.exclusive:
            return torch.cat([torch.zeros_like(precise[:1]), precise]).log_softmax(0)
        return torch.stack([functional.logsigmoid(-precise), functional.logsigmoid(precise)])

    def _reduced(self, shares: Tensor) -> Tensor:
        """Return one plane (h, w) in float32: of independent planes the largest share."""
        return (shares if self.exclusive else shares.amax(0)).float()


def _entropy(log_probabilities: Tensor) -> Tensor:
    """Return the entropy over the first axis as a share of the largest one."""
    terms = log_probabilities.exp() * log_probabilities
    return -terms.sum(0) / math.log(len(log_probabilities))


@dataclass(frozen=True)
class DecodedObjects:
    """The objects of one image, as one pass decoded them.

    Attributes:
        sam: the model of the pass.
        logits: (p, 1, 4g, 4g) in the frame of the model.
        frame: where the image lies in the model's square.
        mirror: the axes that were reversed in this pass.
    """

    sam: SegmentationModel
    logits: Tensor
    frame: Frame
    mirror: Mirror = ()


def object_means(
    passes: Sequence[DecodedObjects], rows: Array
) -> Iterator[tuple[Array, MeanLogits]]:
    """Average the masks of objects over passes, in the frame of the image.

    Args:
        passes: the same p objects of the same image, as each pass decoded them.
        rows: (q,) positions of the objects that are wanted.

    Yields:
        Up to ``OBJECTS_PER_DECODE`` of ``rows``, and the mean of their logits (q', h, w).
    """
    for start in range(0, len(rows), OBJECTS_PER_DECODE):
        part = rows[start : start + OBJECTS_PER_DECODE]
        mean = MeanLogits(exclusive=False)
        for one in passes:
            chosen = one.logits[torch.as_tensor(part, device=one.logits.device)]
            planes = one.sam.postprocess(chosen[None].float(), one.frame)[0, :, 0]
            mean.add(turned_back(planes, one.mirror))
        yield part, mean
