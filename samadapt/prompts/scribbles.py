"""Scribbles: smooth curves through an object, which reach the model as points along them.

A simulated scribble is a path through the middle of the object: the cheapest one between two of its
pixels, if a pixel costs the more the nearer it is to the border. In training the two ends are drawn
at random, and a second curve may run through the background around the object. In an evaluation
the ends are the two that are farthest apart, as on the object's medial axis, and the curve stops
short of them, because nobody draws up to the border.
"""

from __future__ import annotations

import numpy as np

from samadapt.system.arrays import Array

LONGEST = 64
"""Cells along the longer side of the grid on which paths are looked for. It bounds the time; the
curve is smoothed afterwards."""

ENDS = 0.1
"""Share of a curve that is cut off at each end in an evaluation."""

NEAR, FAR = 0.1, 0.6
"""The band of a scribble outside of an object: its distances from the object, as shares of the
object's largest width. It is at least ``BAND`` pixels wide."""

BAND = 3.0


def scribbles_in(masks: Array, count: int, rng: np.random.Generator | None = None) -> Array:
    """Return the points (p, count, 2) float32 (x, y) of a scribble in each of the masks (p, h, w).

    Args:
        masks: (p, h, w) bool. In a mask of several parts one part gets the scribble: that of a
            random pixel, or without ``rng`` that of the deepest one.
        count: number of points, at equal distances along the curve. All lie inside the mask.
        rng: draws the ends of the curves. Without it they are as far apart as they can be.
    """
    curves = [_curve(mask, count, rng) for mask in masks]
    return np.array(curves, dtype=np.float32).reshape(-1, count, 2)


def scribbles_around(
    masks: Array, known: Array, count: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return scribbles in the background near each object.

    Args:
        masks: (p, h, w) bool.
        known: (h, w) bool, the pixels whose truth is known; no scribble goes elsewhere.
        count: number of points.
        rng: draws the curves.

    Returns:
        Points (p, count, 2) float32, and whether (p,) there was room for them.
    """
    bands = np.array([_band(mask) & known for mask in masks], dtype=bool).reshape(-1, *known.shape)
    found = np.asarray(bands.any(axis=(1, 2)))
    points = np.zeros((len(bands), count, 2), np.float32)
    points[found] = scribbles_in(bands[found], count, rng)
    return points, found


def resampled(curve: Array, count: int) -> Array:
    """Return ``count`` points at equal distances along a curve of n >= 1 points (n, 2) float32.

    The first and the last point are those of the curve; one point lies in its middle.
    """
    steps = np.hypot(*np.diff(curve, axis=0).T) if len(curve) > 1 else np.zeros(0)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    wanted = np.linspace(0, along[-1], count) if count > 1 else along[-1:] / 2
    columns = [np.interp(wanted, along, curve[:, axis]) for axis in (0, 1)]
    return np.stack(columns, axis=1).astype(np.float32)


def _band(mask: Array) -> Array:
    """Return the pixels (h, w) outside of an object and near it."""
    from scipy.ndimage import distance_transform_edt

    width = 2 * float(distance_transform_edt(np.pad(mask, 1)).max())
    away = distance_transform_edt(~mask)
    near = max(1.0, NEAR * width)
    return np.asarray((away > near) & (away <= max(near + BAND, FAR * width)))


def _curve(mask: Array, count: int, rng: np.random.Generator | None) -> Array:
    """Return the points (count, 2) of a scribble in a mask (h, w) that is not empty."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter1d
    from skimage.measure import block_reduce

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    depth, nearest = distance_transform_edt(np.pad(crop, 1)), None
    side = -(-max(crop.shape) // LONGEST)
    cells = block_reduce(depth[1:-1, 1:-1], side, np.max)
    path = (np.array(_path(cells, rng), dtype=float) + 0.5) * side  # (n, 2), row and column
    if rng is None:
        cut = int(ENDS * len(path))
        path = path[cut : len(path) - cut]
    smooth = gaussian_filter1d(path, 2.0, axis=0, mode="nearest")
    points = resampled(smooth, count)
    # Smoothing, or a cell that is only partly inside, may have left the mask: such a point moves
    # to the centre of the nearest pixel of the mask.
    at = np.minimum(points.astype(int), np.array(crop.shape) - 1)
    outside = ~crop[tuple(at.T)]
    if outside.any():
        nearest = distance_transform_edt(~crop, return_distances=False, return_indices=True)
        points[outside] = nearest[:, at[outside, 0], at[outside, 1]].T + 0.5
    corner = np.array([rows[0], columns[0]])
    return np.asarray(points + corner)[:, ::-1]  # (x, y)


def _path(depth: Array, rng: np.random.Generator | None) -> list[tuple[int, int]]:
    """Return the cells (row, column) of a path through the middle of a region.

    Args:
        depth: (h, w), positive in the region; the larger, the farther from its border.
        rng: draws the ends; None: they are the two that are farthest apart.
    """
    from skimage.graph import MCP_Geometric

    inside = depth > 0
    # A negative cost closes a cell to a path.
    open_cells = np.where(inside, 1.0, -1.0)

    def distances(start: tuple[int, ...]) -> Array:
        reached, _ = MCP_Geometric(open_cells).find_costs([start])
        return np.where(np.isfinite(reached), reached, -1.0)

    def farthest(start: tuple[int, ...]) -> tuple[int, ...]:
        reached = distances(start)
        return tuple(int(i) for i in np.unravel_index(int(reached.argmax()), reached.shape))

    if rng is None:
        middle = tuple(int(i) for i in np.unravel_index(int(depth.argmax()), depth.shape))
        start = farthest(middle)
        end = farthest(start)
    else:
        start = tuple(rng.choice(np.argwhere(inside)).tolist())
        reached = distances(start)
        # A short dash would be a click, so the end is in the farther half.
        end = tuple(rng.choice(np.argwhere(reached >= reached.max() / 2)).tolist())
    costs = np.where(inside, depth.max() / np.maximum(depth, 1e-6), -1.0)
    search = MCP_Geometric(costs)
    search.find_costs([start], [end])
    path: list[tuple[int, int]] = search.traceback(end)
    return path
