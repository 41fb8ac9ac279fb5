"""Masks of everything in a photograph: decoder and post-processing, the embedding given.

LiteMedSAM's published weights in samadapt's generator and in segment-anything's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from samadapt.sam.weights import load_sam

CHOICES = {"points_per_side": 32, "pred_iou_thresh": 0.8, "stability_score_thresh": 0.9}
"""SAM's own 32 points a side; thresholds that some of LiteMedSAM's masks pass."""

Record = dict[str, Any]


class Given(nn.Module):
    """An image encoder that returns an embedding computed before."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embedding (1, c, g, g), whatever the images."""
        del images
        embedding: Tensor = self.get_buffer("embedding")
        return embedding


def rows() -> Iterator[Comparison]:
    """One photograph, 300 x 451 pixels."""
    yield row("lite_medsam", skimage.data.chelsea(), CHOICES)


def row(model: str, image: NDArray[np.uint8], choices: Mapping[str, Any]) -> Comparison:
    """Compare the generators; ``model`` is what ``load_sam`` takes."""
    h, w = image.shape[:2]
    return Comparison(
        name=f"{model}, {w} x {h} pixels",
        contenders={
            "samadapt": partial(_ours, model, image, choices),
            "segment-anything": partial(_theirs, model, image, choices),
        },
        compare=same_masks,
    )


def same_masks(found: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Return how many masks each found, and the lowest IoU of masks with the same prompt."""
    ours, theirs = (sorted(records, key=_key) for records in found.values())
    facts: dict[str, Any] = {f"masks of {name}": len(found[name]) for name in found}
    if len(ours) == len(theirs) and ours:
        facts["lowest IoU of a pair"] = round(min(map(_iou, ours, theirs)), 5)
    return facts


def _key(record: Record) -> tuple[Any, ...]:
    return (*record["point_coords"][0], *record["bbox"])


def _iou(one: Record, other: Record) -> float:
    a, b = one["segmentation"], other["segmentation"]
    return float((a & b).sum() / max(1, (a | b).sum()))


def _with_embedding(model: str, image: NDArray[np.uint8]) -> Sam:
    sam = load_sam(model)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    sam.image_encoder = Given(predictor.get_image_embedding())  # type: ignore[assignment]
    return sam


def _ours(model: str, image: NDArray[np.uint8], choices: Mapping[str, Any]) -> Call:
    generator = SamAutomaticMaskGenerator(_with_embedding(model, image), **choices)
    return lambda: generator.generate(image)


def _theirs(model: str, image: NDArray[np.uint8], choices: Mapping[str, Any]) -> Call:
    from segment_anything import SamAutomaticMaskGenerator as Theirs

    sam = _with_embedding(model, image)
    peer = peers.segment_anything(sam)
    peer.mask_threshold = sam.mask_threshold
    generator = Theirs(peer, **choices)
    return lambda: generator.generate(image)
