"""Run two models on the same image and prompts, and measure how much their outputs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional

from samadapt.sam.decode import class_logits
from samadapt.sam.embed import embed_features
from samadapt.sam.types import MaskOutput, Prompts

if TYPE_CHECKING:
    from samadapt.sam.dense_head import DenseHead
    from samadapt.sam.model import Sam


class ProbedModel(Protocol):
    """The two calls that are compared: of ``Sam`` itself, or of a wrapper of another model."""

    def encode(self, images: Tensor) -> Tensor:
        """Embed preprocessed images (b, 3, s, s) as (b, c, g, g)."""

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> MaskOutput:
        """Decode p objects in each of b images."""


@runtime_checkable
class ProbedTokenModel(Protocol):
    """The call that is also compared for a model whose classes have tokens of their own."""

    def decode_classes(self, embeddings: Tensor) -> MaskOutput:
        """Predict the classes of b images."""


@runtime_checkable
class ProbedClassModel(Protocol):
    """The one call that is compared for an export of a model with a dense head."""

    def classify(self, image: Tensor, picture: Tensor) -> Tensor:
        """Return class logits (1, K, d, d) of a model with a dense head, from both its inputs."""


@dataclass(frozen=True)
class Difference:
    """How much two models differ on the probe.

    Attributes:
        logits: largest difference of a logit.
        iou: largest difference of an IoU estimate.
        largest: the largest logit, as a scale.
        disagreement: share of pixels whose logits have different signs.
        limit: allowed difference as a share of the largest logit (at least 1); None: any.
    """

    logits: float
    iou: float
    largest: float
    disagreement: float
    limit: float | None

    @property
    def is_small(self) -> bool:
        """Whether the differences are within the limit."""
        if self.limit is None:
            return True
        return max(self.logits, self.iou) <= self.limit * max(1.0, self.largest)

    def __str__(self) -> str:
        """Return the differences in one line."""
        limit = "" if self.limit is None else f"; limit {self.limit:g} of the largest"
        return (
            f"largest difference {self.logits:.2e} in logits (to {self.largest:.3g}{limit}), "
            f"{self.iou:.2e} in IoU estimates, {self.disagreement:.4%} of the pixels"
        )


def answers(
    model: ProbedModel | ProbedClassModel, like: Sam | None = None, *, classes: bool = False
) -> list[MaskOutput]:
    """Run the probe on a model.

    Args:
        model: the model to run.
        like: a ``Sam`` with the same sizes; None: the model itself.
        classes: also ask for the classes, if the model has tokens for them.
    """
    sam: Sam = model if like is None else like  # type: ignore[assignment]
    side = sam.image_size
    # With fixed seeds, both models get the same image and prompts.
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 16, 16, generator=generator)
    noise = 0.3 * torch.randn(1, 3, side, side, generator=generator)
    image = functional.interpolate(coarse, (side, side), mode="bilinear") + noise
    if sam.preprocessing.normalization == "min_max":
        # The weights expect values in [0, 1].
        image = (image - image.amin()) / (image.amax() - image.amin())
    if sam.dense_head is not None:
        return [_classes(model, sam, sam.dense_head, image, generator)]
    if isinstance(model, ProbedClassModel):
        raise TypeError("a model of classes is compared with one that has a dense head")
    with torch.no_grad():
        embeddings = model.encode(image.to(sam.device, sam.dtype))
        found = [
            model.decode(embeddings, prompts, multimask=multimask)
            for prompts, multimask in questions(side, 4 * sam.embedding_size)
        ]
        if classes and sam.class_tokens is not None and isinstance(model, ProbedTokenModel):
            found.append(model.decode_classes(embeddings))
        return found


@torch.no_grad()
def _classes(
    model: ProbedModel | ProbedClassModel,
    sam: Sam,
    head: DenseHead,
    image: Tensor,
    generator: torch.Generator,
) -> MaskOutput:
    """Run the probe on a model that predicts classes with a dense head."""
    side = head.settings.side
    shape = (1, head.settings.channels, side, side)
    picture = torch.randint(0, 256, shape, generator=generator).to(sam.device, sam.dtype)
    image = image.to(sam.device, sam.dtype)
    if isinstance(model, ProbedClassModel):
        logits = model.classify(image, picture)[:, None]
    else:
        packed = torch.cat([image.flatten(1), picture.flatten(1)], dim=1)  # nothing is frozen
        logits = class_logits(sam, embed_features(sam, packed, -1), head.classes)
    return MaskOutput(logits=logits, iou=logits.new_zeros(logits.shape[:3]))


def questions(side: int, low: int) -> list[tuple[Prompts, bool]]:
    """Return prompts of every kind, each with whether several masks are requested.

    Args:
        side: side of the model's square in pixels.
        low: side of a mask prompt in pixels.
    """
    boxes = side * torch.tensor([[[0.1, 0.15, 0.6, 0.7], [0.3, 0.2, 0.9, 0.8]]])
    points = side * torch.tensor([[[[0.4, 0.3], [0.7, 0.8]], [[0.5, 0.5], [0.1, 0.9]]]])
    labels = torch.tensor([[[1, 0], [1, 1]]])
    # Mask prompts are logits, here a few units around 0.
    masks = 4 * torch.randn(1, 1, 1, low, low, generator=torch.Generator().manual_seed(1))
    return [
        (Prompts(boxes=boxes), True),
        (Prompts(boxes=boxes[:, :1]), False),
        (Prompts(points=points, point_labels=labels), True),
        (Prompts(), True),
        (Prompts(boxes=boxes[:, :1], masks=masks), True),
    ]


def compare(
    expected: Sequence[MaskOutput], found: Sequence[MaskOutput], limit: float | None
) -> Difference:
    """Compare the outputs of two models."""
    pairs = list(zip(expected, found, strict=True))
    pixels = sum(want.logits.numel() for want in expected)
    crossed = sum(int(((w.logits > 0) != (f.logits > 0)).sum()) for w, f in pairs)
    return Difference(
        logits=max(float((w.logits - f.logits).abs().max()) for w, f in pairs),
        iou=max(float((w.iou - f.iou).abs().max()) for w, f in pairs),
        largest=max(float(want.logits.abs().max()) for want in expected),
        disagreement=crossed / pixels,
        limit=limit,
    )
