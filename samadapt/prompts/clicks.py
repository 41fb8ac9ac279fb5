"""The pixel deepest in a region: where a careful user clicks.

The first click of the usual evaluation of interactive segmentation is the pixel of the object that
is farthest from the object's border (Kirillov et al. 2023, "Segment Anything", appendix on
evaluation). Further clicks correct the mask; see ``clicker.py``.
"""

from __future__ import annotations

import numpy as np

from samadapt.system.arrays import Array


def deepest(mask: Array, free: Array | None = None) -> tuple[tuple[float, float], float]:
    """Return the centre (x, y) of the pixel farthest from a region's border, and its distance.

    Of several pixels it is the first one by rows. In an empty region it is the first pixel of the
    image, at distance 0.

    Args:
        mask: (h, w) bool. What lies outside the image is outside the region.
        free: (h, w) bool, the pixels that may be chosen; the others have distance 0. None: all.
    """
    if not mask.any():
        return (0.5, 0.5), 0.0
    from scipy.ndimage import distance_transform_edt

    # The distance transform runs on the region's box, padded so that the image's edge is a border.
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = rows[0], columns[0]
    box = np.s_[top : rows[-1] + 1, left : columns[-1] + 1]
    depth = distance_transform_edt(np.pad(mask[box], 1))[1:-1, 1:-1]
    if free is not None:
        depth *= free[box]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    farthest = float(depth[row, column])
    if not farthest:
        return (0.5, 0.5), 0.0
    return (float(left + column) + 0.5, float(top + row) + 0.5), farthest
