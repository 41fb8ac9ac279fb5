"""Measure what adaptation costs outside the domain: the adapted model and its base on photographs.

The photographs come with scikit-image, so nothing is downloaded. They have no ground truth. The
masks of the base model are the reference, and an adapter that changes nothing scores 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samadapt.sam.decode import object_logits
from samadapt.sam.embed import embed
from samadapt.sam.types import ImagePrompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.sam.model import Sam


PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
GRID = 4
"""Number of boxes along each side. Each box is a third of the image wide and high."""


def photographs() -> dict[str, Array]:
    """Return the photographs (h, w, 3) uint8 by name; they are part of scikit-image."""
    from skimage import data

    return {name: np.asarray(getattr(data, name)()) for name in PHOTOGRAPHS}


def grid_boxes(shape: tuple[int, ...]) -> Array:
    """Return boxes (16, 4) XYXY in pixels that overlap each other and cover an image (h, w)."""
    height, width = shape[:2]
    third = np.array([width, height]) / 3
    steps = [np.linspace(0, 2 * side, GRID) for side in third]
    low = np.stack(np.meshgrid(*steps), axis=-1).reshape(-1, 2)
    return np.concatenate([low, low + third], axis=1)


@torch.no_grad()
def answers(
    sam: Sam,
    autocast: Callable[[], AbstractContextManager[Any]],
    images: Mapping[str, Array],
    stack: int = 1,
) -> dict[str, Array]:
    """Return the masks (16, h, w) bool of a model for the boxes of each image.

    Args:
        sam: the model.
        autocast: returns the context of forward passes.
        images: the images (h, w, 3) by name.
        stack: number of slices that the encoder sees together. An image is repeated as often, as
            a slice without neighbours is.
    """
    found = {}
    with autocast():
        for name, image in images.items():
            embeddings, frames = embed(sam, [image] * stack)
            boxes = grid_boxes(image.shape)
            # All 16 boxes are decoded in one call; the class of an object does not matter here.
            prompts = ImagePrompts(np.ones(len(boxes), np.int64), boxes=boxes)
            ((logits, _),) = object_logits(sam, embeddings[:1], frames[:1], [prompts])
            planes = sam.postprocess(logits[None].float(), frames[0])[0, :, 0]
            found[name] = (planes > sam.mask_threshold).cpu().numpy()
    return found


def forgetting(base: Mapping[str, Array], adapted: Mapping[str, Array]) -> dict[str, Any]:
    """Compare the adapted model's masks with the base's.

    Args:
        base: masks (n, h, w) bool by image. Empty ones are not compared.
        adapted: the masks of the same boxes.

    Returns:
        ``iou``: the mean over images of the mean over their masks; 1 if nothing changed.
        ``images``: for each image its ``iou``, ``lowest`` IoU and number of ``masks``.
        ``masks``: their number in all images. If the base finds nothing anywhere, ``iou`` is None
        beside a ``reason``.
    """
    images: dict[str, Any] = {}
    for name, reference in base.items():
        # An empty reference mask has no meaningful IoU.
        useful = reference.any(axis=(1, 2))
        true, found = reference[useful], adapted[name][useful]
        both = (true & found).sum(axis=(1, 2))
        overlaps = both / (true | found).sum(axis=(1, 2))
        if len(overlaps):
            images[name] = {
                "iou": float(overlaps.mean()),
                "lowest": float(overlaps.min()),
                "masks": len(overlaps),
            }
    if not images:
        reason = "the base model finds nothing in any photograph"
        return {"iou": None, "masks": 0, "images": {}, "reason": reason}
    return {
        "iou": float(np.mean([one["iou"] for one in images.values()])),
        "masks": sum(one["masks"] for one in images.values()),
        "images": images,
    }
