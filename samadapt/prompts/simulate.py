"""Find the objects of a label map and simulate prompts for them, in the original frame.

Coordinates are (x, y). The pixel in row r and column c covers x from c to c + 1 and y from r to
r + 1, so the box of one pixel is (c, r, c + 1, r + 1). ``np.argwhere`` gives (row, column), which
is the reverse order.

Clicks that correct a mask come later: in training from ``training/click_rounds.py``, in evaluation
from ``clicker.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from samadapt.prompts.clicks import deepest
from samadapt.prompts.drawings import with_drawings
from samadapt.sam.types import ImagePrompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.prompts.policy import Objects, PromptPolicy


Noise = Literal["normal", "uniform"]
"""Distribution of the noise on the sides of a box."""

SAM_SIDE = 1024.0
"""Longest side of the images for which SAM states its bound of the jitter (SAM, appendix A)."""


MARGIN = 0.05
"""Share of a predicted mask's box by which it grows on each side when it becomes a prompt: of its
longer side, at least one pixel. Without a margin a box can only shrink; with a wide one it takes in
the neighbours. Of the values 0 to 0.15, those from 0.05 to 0.08 gave the best Dice for four organs
of a CT that were carried from slice to slice with LiteMedSAM."""


def objects_in(
    labels: Array, objects: Objects, min_area: int = 0, instances: Array | None = None
) -> tuple[Array, Array]:
    """Return the objects of a label map.

    Args:
        labels: (h, w) integers; 0 is background, and pixels below 0 are unknown and not prompted.
            Or (n, h, w) if classes overlap, each map with other classes.
        objects: an object is a connected component (8 neighbours) of a class, or a whole class.
        min_area: objects of fewer pixels are left out.
        instances: (h, w) object numbers, 0 for none. They replace the components.

    Returns:
        Class ids (p,) int64 and masks (p, h, w) bool, sorted by class, then by position.
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
        # parts (h, w) holds the number of each pixel's object, and 0 outside of the class.
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

    Scribbles and rough masks are those of ``prompts/drawings.py``.
    With clicks (``interactive``) and ``rng`` each object gets a box and a point, of which a round
    of the training draws one. Without ``rng`` it gets the first click.

    Args:
        labels: (h, w) integers, or (n, h, w); see ``objects_in``.
        policy: kind of prompt, what an object is, and the noise.
        rng: source of the noise in training. Without it boxes are exact and points are those
            farthest from the object's border, so that an evaluation can be repeated.
        instances: (h, w) object numbers, or None.
    """
    ids, masks = objects_in(labels, policy.objects, policy.min_area, instances)
    if policy.is_drawing:
        return with_drawings(ImagePrompts(ids, masks), labels, policy, rng)
    boxes = points = point_labels = None
    if policy.kind == "box" or (policy.is_interactive and rng is not None):
        boxes = boxes_of(masks)
        if rng is not None:
            boxes = noisy_boxes(boxes, labels.shape[-2:], policy, rng)
    if policy.kind != "box":
        points = points_in(masks, rng)
        point_labels = np.ones(points.shape[:2], dtype=np.int64)
    return ImagePrompts(ids, masks, boxes=boxes, points=points, point_labels=point_labels)


def noisy_boxes(
    boxes: Array, shape: tuple[int, ...], policy: PromptPolicy, rng: np.random.Generator
) -> Array:
    """Move every side of boxes (p, 4) by the noise of a policy."""
    uniform = policy.is_interactive and policy.variant == "sam2"
    noise: Noise = "uniform" if uniform else "normal"
    return jitter_boxes(boxes, shape, policy.jitter, policy.max_jitter_px, rng, noise)


def boxes_of(masks: Array) -> Array:
    """Return the boxes (p, 4) float32 XYXY of masks (p, h, w); an empty mask gets the image."""
    return np.array([_box(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)


def points_in(masks: Array, rng: np.random.Generator | None = None) -> Array:
    """Return a point (x, y) in each of the masks (p, h, w), as (p, 1, 2) float32.

    It is the pixel farthest from the mask's border, or with ``rng`` any pixel of the mask.
    """
    return np.array([_point(mask, rng) for mask in masks], dtype=np.float32).reshape(-1, 1, 2)


def jitter_boxes(
    boxes: Array,
    shape: tuple[int, ...],
    jitter: float,
    max_jitter_px: float,
    rng: np.random.Generator,
    noise: Noise = "normal",
) -> Array:
    """Move every side of boxes by random noise.

    The boxes stay in the image and keep at least one pixel of width and height.

    Args:
        boxes: (p, 4) XYXY pixels.
        shape: (h, w) of the image.
        jitter: standard deviation of normal noise, bound of uniform noise, as a share of the box's
            side.
        max_jitter_px: bound of a move, in pixels of an image whose longest side is 1024.
        rng: source of the noise.
        noise: its distribution. Normal noise is cut at the bound (SAM, appendix A); uniform noise
            is drawn up to the smaller of the two bounds (SAM 2, ``sample_box_points``).
    """
    # SAM states the bound for its input size; here it is scaled to the original image.
    height, width = shape[:2]
    # (p, 4): width, height, width, height
    sides = np.concatenate([boxes[:, 2:] - boxes[:, :2]] * 2, axis=1)
    bound = max_jitter_px * max(height, width) / SAM_SIDE
    if noise == "uniform":
        moves = rng.uniform(-1, 1, size=boxes.shape) * np.minimum(jitter * sides, bound)
    else:
        moves = np.clip(rng.normal(size=boxes.shape) * jitter * sides, -bound, bound)
    moved = boxes + moves
    # ``low`` stays a pixel away from the far edges, so that ``high`` can be at least one more.
    low = np.clip(moved[:, :2], 0, [width - 1, height - 1])
    high = np.clip(np.maximum(moved[:, 2:], low + 1), 1, [width, height])
    return np.concatenate([low, high], axis=1).astype(np.float32)


def widened(boxes: Array, shape: tuple[int, ...]) -> Array:
    """Grow boxes (p, 4) XYXY by the margin on each side, within an image of ``shape`` (h, w)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    margin = np.maximum(1, MARGIN * sides.max(axis=1, keepdims=True))
    grown = np.concatenate([boxes[:, :2] - margin, boxes[:, 2:] + margin], axis=1)
    height, width = shape
    return np.asarray(np.clip(grown, 0, [width, height] * 2), dtype=np.float32)


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
