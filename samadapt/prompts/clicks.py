"""Clicks as a careful person gives them: into the object, then where the mask is most wrong.

The usual protocol of interactive segmentation (SAM, appendix on evaluation): the first click is the
pixel of the object farthest from its border, each further one the pixel of the error region
farthest from the border of that region. No chance is involved, so a score can be repeated.

If the missed and the exceeding region are equally deep, the click is negative, as in RITM (Sofiiuk
et al. 2021, ``isegm/inference/clicker.py``): it is positive only if what is missed is strictly
deeper.
"""

from __future__ import annotations

import numpy as np

from samadapt.system.arrays import Array

Clicks = tuple[Array, Array]
"""(p, 1, 2) float32 (x, y) in pixels, and (p, 1) int64: 1 in the object, 0 outside of it."""


def first_clicks(masks: Array) -> Clicks:
    """Return a click into each of p objects (p, h, w), none of which is empty."""
    points = np.array([deepest(mask)[0] for mask in masks], dtype=np.float32).reshape(-1, 1, 2)
    return points, np.ones(points.shape[:2], dtype=np.int64)


def next_clicks(truth: Array, predicted: Array) -> Clicks:
    """Return the click that corrects each mask most: where it misses or where it exceeds.

    The click is positive only if the missed region is strictly deeper than the exceeding one.

    Args:
        truth: (p, h, w) bool, the objects.
        predicted: (p, h, w) bool, their masks so far.

    Returns:
        Clicks; the label is -1 where a mask has no error left.
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
    """Return the centre (x, y) of the pixel farthest from a region's border, and how far it is.

    Args:
        mask: (h, w) bool; outside of the image is outside of the region.
    """
    if not mask.any():
        return (0.0, 0.0), 0.0
    from scipy.ndimage import distance_transform_edt

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = rows[0], columns[0]
    depth = distance_transform_edt(np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1))
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return (float(left + column) - 0.5, float(top + row) - 0.5), float(depth[row, column])
