"""Objects of a label map, and the prompts that stand for them; all in the original frame.

Coordinates are (x, y): pixel (row r, column c) covers x in [c, c+1) and y in [r, r+1), so the box
of one pixel is (c, r, c+1, r+1). ``np.argwhere`` gives (row, column), the reverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from samadapt.prompts.clicks import deepest
from samadapt.sam.types import ImagePrompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.prompts.policy import Objects, PromptPolicy


SAM_SIDE = 1024.0
"""Longest side of the images on which SAM's jitter bound is stated (SAM, appendix A)."""


def objects_in(
    labels: Array, objects: Objects, min_area: int = 0, instances: Array | None = None
) -> tuple[Array, Array]:
    """Return the objects of a label map.

    Args:
        labels: (h, w) integers, 0 is background; below 0 nothing is known and nothing prompted.
            Or (n, h, w) where classes overlap, each map with other classes.
        objects: one per connected component (8 neighbours) of a class, or one per class.
        min_area: objects of fewer pixels are left out.
        instances: (h, w) numbers that tell objects apart, 0 none; then they stand for the
            components.

    Returns:
        class ids (p,) int64 and masks (p, h, w) bool, by class, then by position.
    """
    from skimage.measure import label

    if labels.ndim == 3:
        found = [objects_in(plane, objects, min_area, instances) for plane in labels]
        return np.concatenate([ids for ids, _ in found]), np.concatenate([m for _, m in found])
    ids: list[int] = []
    masks: list[Array] = []
    for class_id in np.unique(labels[labels > 0]):
        of_class = labels == class_id
        parts = of_class.astype(int)
        if objects == "component":
            parts = label(of_class, connectivity=2) if instances is None else instances * of_class
        for part in np.unique(parts[parts > 0]):
            mask = parts == part
            if mask.sum() >= max(min_area, 1):
                ids.append(int(class_id))
                masks.append(mask)
    stacked = np.stack(masks) if masks else np.zeros((0, *labels.shape), dtype=bool)
    return np.asarray(ids, dtype=np.int64), stacked


def simulate(
    labels: Array,
    policy: PromptPolicy,
    rng: np.random.Generator | None = None,
    instances: Array | None = None,
) -> ImagePrompts:
    """Prompt every object of a label map as the SAM paper does.

    Args:
        labels: (h, w) integers, or (n, h, w); see ``objects_in``.
        policy: kind of prompt, what an object is, noise; ``"semantic"`` is not prompted.
        rng: source of the noise in training; without it the box is exact and the point is the one
            farthest from the object's border, so that an evaluation can be repeated.
        instances: (h, w) numbers that tell objects apart, or None.
    """
    ids, masks = objects_in(labels, policy.objects, policy.min_area, instances)
    if policy.kind == "box":
        boxes = boxes_of(masks)
        if rng is not None:
            boxes = jitter_boxes(boxes, labels.shape[-2:], policy.jitter, policy.max_jitter_px, rng)
        return ImagePrompts(ids, masks, boxes=boxes)
    points = points_in(masks, rng)
    return ImagePrompts(
        ids, masks, points=points, point_labels=np.ones(points.shape[:2], dtype=np.int64)
    )


def boxes_of(masks: Array) -> Array:
    """Return each mask's box, (p, h, w) to (p, 4) float32 XYXY; an empty one's is the image."""
    return np.array([_box(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)


def points_in(masks: Array, rng: np.random.Generator | None = None) -> Array:
    """Return a point in each mask, (p, h, w) to (p, 1, 2) float32 (x, y).

    It is the pixel farthest from the mask's border; with ``rng`` any pixel of it.
    """
    return np.array([_point(mask, rng) for mask in masks], dtype=np.float32).reshape(-1, 1, 2)


def jitter_boxes(
    boxes: Array,
    shape: tuple[int, ...],
    jitter: float,
    max_jitter_px: float,
    rng: np.random.Generator,
) -> Array:
    """Move every side by Gaussian noise, within the image, keeping a pixel of width and height.

    Args:
        boxes: (p, 4) XYXY pixels.
        shape: (h, w) of the image.
        jitter: standard deviation, as a share of the box's side.
        max_jitter_px: largest move, in pixels of an image whose longest side is 1024.
        rng: source of the noise.
    """
    height, width = shape[:2]
    sides = np.concatenate([boxes[:, 2:] - boxes[:, :2]] * 2, axis=1)
    bound = max_jitter_px * max(height, width) / SAM_SIDE
    noise = np.clip(rng.normal(size=boxes.shape) * jitter * sides, -bound, bound)
    moved = boxes + noise
    low = np.clip(moved[:, :2], 0, [width - 1, height - 1])
    high = np.clip(np.maximum(moved[:, 2:], low + 1), 1, [width, height])
    return np.concatenate([low, high], axis=1).astype(np.float32)


def _box(mask: Array) -> tuple[float, float, float, float]:
    if not mask.any():
        return 0, 0, mask.shape[1], mask.shape[0]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _point(mask: Array, rng: np.random.Generator | None) -> tuple[float, float]:
    """Return the centre of a uniformly drawn pixel, or of the one deepest inside the object."""
    if rng is not None:
        row, column = rng.choice(np.argwhere(mask))
        return float(column) + 0.5, float(row) + 0.5
    return deepest(mask)[0]
