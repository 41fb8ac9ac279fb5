"""Mirror images and their prompts, and turn logits back, to average over mirrored copies."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from samadapt.sam.types import ImagePrompts

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.system.arrays import Array

Mirror = tuple[int, ...]
"""The axes of an image (h, w) that are reversed: (1,) left and right, (0,) top and bottom."""

AS_IT_IS: Mirror = ()
"""No axis is reversed."""


def mirrored(image: Array, mirror: Mirror) -> Array:
    """Return an image (h, w, ...) with the axes of ``mirror`` reversed."""
    return np.ascontiguousarray(np.flip(image, mirror)) if mirror else image


def mirrored_prompts(prompts: ImagePrompts, mirror: Mirror, shape: tuple[int, int]) -> ImagePrompts:
    """Return the boxes and points of an image as they lie in the mirrored image.

    Args:
        prompts: in pixels of the image; ground truth and mask prompts are left out.
        mirror: the axes that are reversed.
        shape: (h, w) of the image.
    """
    if not mirror:
        return prompts
    boxes, points = prompts.boxes, prompts.points
    for axis in mirror:
        at = 1 - axis  # x belongs to the columns, axis 1, and y to the rows, axis 0
        if boxes is not None:
            boxes = boxes.copy()
            # The near side becomes the far one: pixel c covers the places from c to c + 1.
            boxes[:, [at, at + 2]] = shape[axis] - boxes[:, [at + 2, at]]
        if points is not None:
            points = points.copy()
            points[..., at] = shape[axis] - points[..., at]
    return replace(prompts, truth=None, mask_logits=None, boxes=boxes, points=points)


def turned_back(planes: Tensor, mirror: Mirror) -> Tensor:
    """Return planes (..., h, w) of the mirrored image as those of the image itself."""
    return planes.flip([axis - 2 for axis in mirror]) if mirror else planes
