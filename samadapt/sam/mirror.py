"""Mirror images and their prompts, and turn logits back, to average over mirrored copies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from samadapt.sam.types import ImagePrompts

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.sam.types import Frame
    from samadapt.system.arrays import Array

Mirror = tuple[int, ...]
"""The axes of an image (h, w) that are reversed: (1,) left and right, (0,) top and bottom."""

AS_IT_IS: Mirror = ()
"""No axis is reversed."""


def mirrored(image: Array, mirror: Mirror) -> Array:
    """Return an image (h, w, ...) with the axes of ``mirror`` reversed."""
    return np.ascontiguousarray(np.flip(image, mirror)) if mirror else image


def mirrored_prompts(prompts: ImagePrompts, mirror: Mirror, frame: Frame) -> ImagePrompts:
    """Return the boxes, points and mask prompts of an image as they lie in the mirrored image.

    Args:
        prompts: in pixels of the image; its ground truth is left out.
        mirror: the axes that are reversed.
        frame: where the image lies in the model's square; its mirror image lies there too.
    """
    if not mirror:
        return prompts
    boxes, points = prompts.boxes, prompts.points
    masks, logits = prompts.masks, prompts.mask_logits
    for axis in mirror:
        at = 1 - axis  # x belongs to the columns, axis 1, and y to the rows, axis 0
        if boxes is not None:
            boxes = boxes.copy()
            # The near side becomes the far one: pixel c covers the places from c to c + 1.
            boxes[:, [at, at + 2]] = frame.original[axis] - boxes[:, [at + 2, at]]
        if points is not None:
            points = points.copy()
            points[..., at] = frame.original[axis] - points[..., at]
        if logits is not None:
            logits = _mirrored_logits(logits, axis - 2, frame.resized[axis] / frame.size)
        if masks is not None:
            masks = np.flip(masks, axis - 2)
    return replace(prompts, truth=None, boxes=boxes, points=points, mask_logits=logits, masks=masks)


def _mirrored_logits(logits: Array, axis: int, share: float) -> Array:
    """Reverse the part of mask prompts (p, 1, 4g, 4g) that the image covers; keep the padding.

    Args:
        logits: in the model frame.
        axis: the axis that is reversed.
        share: the part of the axis that the image covers, from its start on.
    """
    side = logits.shape[axis]
    end = share * side  # in cells; the mirror image of the place x is the place end - x
    cells = np.arange(min(side, math.ceil(end)))
    # The centre of a cell falls between those of two cells if the image ends inside a cell.
    source = np.clip(end - 1 - cells, 0, None)
    low = source.astype(int)
    high = np.minimum(low + 1, len(cells) - 1)
    share_of_high = (source - low).astype(logits.dtype)
    moved = np.moveaxis(logits, axis, -1).copy()
    first, second = moved[..., low], moved[..., high]
    moved[..., cells] = first + share_of_high * (second - first)
    return np.moveaxis(moved, -1, axis)


def turned_back(planes: Tensor, mirror: Mirror) -> Tensor:
    """Return planes (..., h, w) of the mirrored image as those of the image itself."""
    return planes.flip([axis - 2 for axis in mirror]) if mirror else planes
