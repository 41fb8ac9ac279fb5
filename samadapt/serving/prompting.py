"""What a user does to an object, in the slices of the model: clicks, boxes, curves and regions.

A viewer draws in the axes of its own view, and a model sees slices. So everything is brought into
these first: a box across slices prompts its middle slice and bounds the object, a scribble gives a
curve on each slice that it crosses, and a drawn region a box.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from samadapt.errors import PromptError
from samadapt.prompts.scribbles import scribbles_in
from samadapt.prompts.simulate import boxes_of, points_in
from samadapt.system.arrays import Array

SHORT = 4
"""Pixels of a scribble on a slice up to which it is a click."""


@dataclass(frozen=True)
class SlicePrompt:
    """A prompt on one slice.

    Attributes:
        index: the slice.
        points: (k, 2) float (x, y) in pixels of the upright slice, or None.
        inside: whether the points are in the object, or in the background.
        box: (4,) XYXY around the object, or None.
        mask: (h, w) bool, a rough mask of the object, or None.
        first: first slice of the object if the user bounds it, else None.
        last: last slice of the object, likewise.
    """

    index: int
    points: Array | None = None
    inside: bool = True
    box: Array | None = None
    mask: Array | None = None
    first: int | None = None
    last: int | None = None


def click(shape: tuple[int, int, int], index: int, points: Array, *, inside: bool) -> SlicePrompt:
    """Return clicks (k, 2) on a slice of an image (h, w, d).

    Raises:
        PromptError: one lies outside of the image.
    """
    _check_slice(shape, index)
    height, width = shape[:2]
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise PromptError(f"points must be [[x, y], ...]; got an array of shape {points.shape}")
    fits = np.isfinite(points).all() and (points >= 0).all() and (points <= [width, height]).all()
    if not fits:
        raise PromptError(
            f"points must lie within the image of width {width} and height {height}; got "
            f"{points[:3].tolist()}"
        )
    return SlicePrompt(index, points=points.astype(np.float32), inside=inside)


def box_between(
    shape: tuple[int, int, int], box: Array, first: int, last: int, *, inside: bool
) -> SlicePrompt:
    """Return the prompt of a box on the slices ``first`` to ``last``.

    A box on one slice does not bound the object across slices. A negative box is a click into the
    background in its centre, and so is one without an area, as it is drawn in another plane than
    the model's; then the click is in the object.

    Args:
        shape: (h, w, d) of the image.
        box: (4,) XYXY in pixels of the upright slice.
        first: first slice.
        last: last slice.
        inside: whether it is around the object, or in the background.

    Raises:
        PromptError: the box lies outside of the image.
    """
    _check_slice(shape, first)
    _check_slice(shape, last)
    height, width = shape[:2]
    if box.shape != (4,) or not np.isfinite(box).all():
        raise PromptError(f"box must be [x0, y0, x1, y1]; got {box.tolist()}")
    x0, y0, x1, y1 = box
    if not (x0 <= x1 and y0 <= y1 and x0 < width and y0 < height and x1 > 0 and y1 > 0):
        raise PromptError(
            f"box must be x0 < x1, y0 < y1 and reach into the image of width {width} and height "
            f"{height}; got {box.tolist()}"
        )
    bounds = (first, last) if first < last and inside else (None, None)
    middle = (first + last) // 2
    if not inside or x1 - x0 <= 1 or y1 - y0 <= 1:
        centre = np.clip([[(x0 + x1) / 2, (y0 + y1) / 2]], 0, [width, height])
        points = centre.astype(np.float32)
        return SlicePrompt(middle, points, inside=inside, first=bounds[0], last=bounds[1])
    return SlicePrompt(middle, box=box.astype(np.float32), first=bounds[0], last=bounds[1])


def scribble(drawn: Array, count: int, *, inside: bool) -> Iterator[SlicePrompt]:
    """Yield the curve of a scribble on each slice that it crosses.

    Args:
        drawn: (h, w, d), other than 0 where it was drawn.
        count: number of points along a curve.
        inside: whether it is in the object, or in the background.

    Raises:
        PromptError: nothing was drawn.
    """
    for index in _drawn_slices(drawn):
        mask = drawn[:, :, index] != 0
        short = mask.sum() <= SHORT
        points = points_in(mask[None]) if short else scribbles_in(mask[None], count)
        yield SlicePrompt(index, points=points[0], inside=inside)


def lasso(drawn: Array, *, inside: bool) -> Iterator[SlicePrompt]:
    """Yield the box around a region on each slice that it crosses.

    A region in the background is a click, where it is deepest.

    Args:
        drawn: (h, w, d), other than 0 in the region or on its outline.
        inside: whether it is around the object, or in the background.

    Raises:
        PromptError: nothing was drawn.
    """
    from scipy.ndimage import binary_fill_holes

    for index in _drawn_slices(drawn):
        mask = np.asarray(binary_fill_holes(drawn[:, :, index] != 0))
        if inside:
            yield SlicePrompt(index, box=boxes_of(mask[None])[0])
        else:
            yield SlicePrompt(index, points=points_in(mask[None])[0], inside=False)


def rough_masks(drawn: Array) -> Iterator[SlicePrompt]:
    """Yield the mask of a segmentation (h, w, d) on each slice that it reaches.

    Raises:
        PromptError: it is empty.
    """
    for index in _drawn_slices(drawn):
        yield SlicePrompt(index, mask=drawn[:, :, index] != 0)


def polygon(shape: tuple[int, int, int], index: int, points: Array) -> Array:
    """Return the region (h, w, d) of a polygon (k, 2), (x, y), on a slice.

    Raises:
        PromptError: it has less than three corners, or a corner outside of the image.
    """
    from skimage.draw import polygon2mask

    click(shape, index, points, inside=True)
    if len(points) < 3:
        raise PromptError(f"a lasso needs at least three points; got {len(points)}")
    drawn = np.zeros(shape, np.uint8)
    # Pixel (row, column) has its centre half a pixel further.
    drawn[:, :, index] = polygon2mask(shape[:2], points[:, ::-1] - 0.5)
    return drawn


def _drawn_slices(drawn: Array) -> list[int]:
    found = np.flatnonzero(drawn.any(axis=(0, 1))).tolist()
    if not found:
        raise PromptError("the drawing is empty; it must mark at least one pixel")
    return [int(index) for index in found]


def _check_slice(shape: tuple[int, int, int], index: int) -> None:
    if not 0 <= index < shape[2]:
        raise PromptError(f"slice must be 0 to {shape[2] - 1}; got {index}")
