"""Masks of everything in a photograph: decoder and post-processing, for a given embedding.

It compares samadapt's generator with segment-anything's, at LiteMedSAM's published weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import skimage.data
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import Call, Comparison
from samadapt.sam.automatic_masks import SamAutomaticMaskGenerator
from samadapt.sam.model import Sam
from samadapt.sam.predictor import SamPredictor
from samadapt.sam.weights.loading import load_sam

MASK_THRESHOLD = -0.1
CHOICES = {
    "points_per_side": 16,
    "pred_iou_thresh": 0.15,
    "stability_score_thresh": 0.5,
    "stability_score_offset": 0.02,
}
"""LiteMedSAM was trained with boxes on medical images. For points on a photograph its logits lie
between -0.4 and 0, so these thresholds are lower than SAM's; with them, some masks are good enough.
There are 16 points a side instead of 32, with which segment-anything takes two minutes."""

Record = dict[str, Any]


class Given(nn.Module):
    """An image encoder that returns an embedding that was computed before."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedding (1, c, g, g) and ignore the images."""
        del images
        embedding: Tensor = self.get_buffer("embedding")
        return embedding


def rows() -> Iterator[Comparison]:
    """Yield one photograph of 300 x 451 pixels."""
    yield row("lite_medsam", skimage.data.chelsea(), CHOICES, MASK_THRESHOLD)


def row(
    model: str, image: NDArray[np.uint8], choices: Mapping[str, Any], mask_threshold: float = 0.0
) -> Comparison:
    """Compare the generators; ``model`` is a name for ``load_sam``."""
    h, w = image.shape[:2]
    given = partial(with_embedding, model, image, mask_threshold)
    return Comparison(
        name=f"{model}, {w} x {h} pixels",
        contenders={
            "samadapt": partial(ours, given, image, choices),
            "segment-anything": partial(segment_anything, given, image, choices),
        },
        compare=same_masks,
    )


def same_masks(found: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Return how many masks each found, and the lowest IoU of our masks with their best match."""
    ours, theirs = found.values()
    facts: dict[str, Any] = {f"masks of {name}": len(found[name]) for name in found}
    best_matches = [
        max((_iou(one, other) for other in theirs if _prompt(other) == _prompt(one)), default=0.0)
        for one in ours
    ]
    return facts | {"lowest IoU": round(min(best_matches), 5) if best_matches else None}


def _prompt(record: Record) -> tuple[float, ...]:
    return tuple(round(value, 3) for value in record["point_coords"][0])


def _iou(one: Record, other: Record) -> float:
    a, b = one["segmentation"], other["segmentation"]
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0


def with_embedding(model: str, image: NDArray[np.uint8], mask_threshold: float) -> Sam:
    """Return a model whose encoder returns the embedding of this image without computing it."""
    sam = load_sam(model)
    sam.mask_threshold = mask_threshold
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    sam.image_encoder = Given(predictor.get_image_embedding())  # type: ignore[assignment]
    return sam


def ours(make: Callable[[], Sam], image: NDArray[np.uint8], choices: Mapping[str, Any]) -> Call:
    """Build samadapt's call for a model that ``make`` returns."""
    generator = SamAutomaticMaskGenerator(make(), **choices)
    return lambda: generator.generate(image)


def segment_anything(
    make: Callable[[], Sam], image: NDArray[np.uint8], choices: Mapping[str, Any]
) -> Call:
    """Build segment-anything's call for the same model."""
    from segment_anything import SamAutomaticMaskGenerator as Theirs

    sam = make()
    peer = peers.segment_anything(sam)
    peer.mask_threshold = sam.mask_threshold
    generator = Theirs(peer, **choices)
    return lambda: generator.generate(image)
