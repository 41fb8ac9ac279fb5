"""Simulate the clicks of a careful user: into the object, then where the mask is most wrong.

This is the usual protocol of interactive segmentation (Kirillov et al. 2023, "Segment Anything",
appendix on evaluation). The first click is the pixel of the object that is farthest from the
object's border. Each further click is the pixel of the error region that is farthest from the
border of that region. Nothing is drawn at random, so a score can be repeated.

The error region has two parts: the missed one, where the mask lacks the object, and the exceeding
one, where the mask leaves the object. The click is positive only if the missed part is strictly
deeper. If both are equally deep it is negative, as in RITM (Sofiiuk et al. 2021,
``isegm/inference/clicker.py``).
"""

from __future__ import annotations

import numpy as np

from samadapt.system.arrays import Array

Clicks = tuple[Array, Array]
"""Points (p, 1, 2) float32 (x, y) in pixels, and labels (p, 1) int64: 1 inside, 0 outside."""


def first_clicks(masks: Array) -> Clicks:
    """Return a click into each of p objects (p, h, w) bool, none of which is empty."""
    points = np.array([deepest(mask)[0] for mask in masks], dtype=np.float32).reshape(-1, 1, 2)
    return points, np.ones(points.shape[:2], dtype=np.int64)


def next_clicks(truth: Array, predicted: Array) -> Clicks:
    """Return the click that corrects each mask most.

    Args:
        truth: (p, h, w) bool, the objects.
        predicted: (p, h, w) bool, their masks so far.

    Returns:
        Clicks; the label is -1 (padding) if a mask has no error left.
    """
    points = np.zeros((len(truth), 1, 2), dtype=np.float32)
    labels = np.full((len(truth), 1), -1, dtype=np.int64)
    for index, (true, found) in enumerate(zip(truth, predicted, strict=True)):
        missed, exceeded = deepest(true & ~found), deepest(found & ~true)
        if max(missed[1], exceeded[1]) > 0:
            inside = missed[1] > exceeded[1]  # a tie is a negative click, as in RITM
            points[index, 0] = missed[0] if inside else exceeded[0]
            labels[index, 0] = int(inside)
    return points, labels


def deepest(mask: Array) -> tuple[tuple[float, float], float]:
    """Return the centre (x, y) of the pixel farthest from a region's border, and its distance.

    Args:
        mask: (h, w) bool. What lies outside the image is outside the region.
    """
    if not mask.any():
        return (0.0, 0.0), 0.0
    from scipy.ndimage import distance_transform_edt

    # The distance transform runs on the region's box, padded so that the image's edge is a border.
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = rows[0], columns[0]
    depth = distance_transform_edt(np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1))
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    # Padding shifted the pixels by one; the centre of a pixel is half a pixel further.
    return (float(left + column) - 0.5, float(top + row) - 0.5), float(depth[row, column])
