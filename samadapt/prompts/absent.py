"""Prompts for objects that are not there, so that an empty mask is an answer.

A box or a click of an object is moved to a place in the same image where nothing is. It looks like
any other prompt, and only the image says that there is nothing to find. In a volume such prompts
occur by themselves: a box that is carried from slice to slice arrives where its object has ended.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from samadapt.errors import DataError

if TYPE_CHECKING:
    from samadapt.data.types import Sample
    from samadapt.sam.types import ImagePrompts
    from samadapt.system.arrays import Array


def occupied_pixels(sample: Sample) -> Array:
    """Return where (h, w) an object of any class is, or may be."""
    maps = sample.maps.reshape(-1, *sample.maps.shape[-2:])
    return np.asarray((maps != 0).any(axis=0))


def move_to_nothing(
    objects: ImagePrompts, occupied: Array, share: float, rng: np.random.Generator
) -> ImagePrompts:
    """Move the prompts of some objects to where nothing is; the truth of these objects is empty.

    An object for whose prompts the image has no free place stays where it is.

    Args:
        objects: prompted objects with their ground truth.
        occupied: (h, w) bool, where there is or may be an object.
        share: chance of an object to be moved, 0 to 1.
        rng: decides which objects are moved, and where to.

    Raises:
        DataError: the objects come without ground truth, or with mask logits, which cannot be
            moved.
    """
    if objects.truth is None or objects.mask_logits is not None:
        raise DataError("only prompts in pixels with their ground truth can be moved to nothing")
    truth = objects.truth.copy()
    boxes = None if objects.boxes is None else objects.boxes.copy()
    points = None if objects.points is None else objects.points.copy()
    masks = None if objects.masks is None else objects.masks.copy()
    for number in np.flatnonzero(rng.random(len(objects)) < share):
        low, high = _window(objects, int(number), occupied.shape)
        place = free_place(occupied, high - low, rng)
        if place is None:
            continue
        move = (place - low).astype(np.float32)
        if boxes is not None:
            boxes[number] += np.tile(move, 2)
        if points is not None:
            points[number] += move
        if masks is not None:
            # The window holds the whole mask, so nothing of it leaves one side to enter another.
            masks[number] = np.roll(masks[number], (place - low)[::-1], axis=(0, 1))
        truth[number] = False
    return replace(objects, truth=truth, boxes=boxes, points=points, masks=masks)


def free_place(occupied: Array, size: Array, rng: np.random.Generator) -> Array | None:
    """Return the top left (x, y) of a window without an occupied pixel, drawn among all of them.

    Args:
        occupied: (h, w) bool.
        size: (width, height) of the window in pixels.
        rng: draws the place.

    Returns:
        The place, or None if there is none.
    """
    width, height = map(int, size)
    # sums[r, c] is the number of occupied pixels above row r and left of column c.
    sums = np.pad(occupied, ((1, 0), (1, 0))).astype(np.int64).cumsum(0).cumsum(1)
    if height >= sums.shape[0] or width >= sums.shape[1]:
        return None
    inside = (
        sums[height:, width:]
        - sums[:-height, width:]
        - sums[height:, :-width]
        + sums[:-height, :-width]
    )
    free = np.argwhere(inside == 0)
    return free[rng.integers(len(free))][::-1] if len(free) else None


def _window(objects: ImagePrompts, number: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return the corners (x, y) of the smallest window of pixels around an object's prompts."""
    corners = [np.zeros((0, 2))]
    if objects.boxes is not None:
        corners.append(objects.boxes[number].reshape(2, 2))
    if objects.points is not None and objects.point_labels is not None:
        corners.append(objects.points[number][objects.point_labels[number] >= 0])
    for shapes in (objects.truth, objects.masks):
        if shapes is None or not shapes[number].any():
            continue
        rows, columns = np.nonzero(shapes[number])
        corners.append(np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]))
    every = np.concatenate(corners)
    if not len(every):  # a mask prompt of an annotated object that is not there
        every = np.zeros((1, 2))
    low = np.clip(np.floor(every.min(axis=0)), 0, None)
    high = np.clip(np.ceil(every.max(axis=0)), low + 1, np.maximum(shape[::-1], low + 1))
    return low.astype(np.int64), high.astype(np.int64)
