"""Scribbles and masks that a user gives at prediction, for the objects of one slice.

A scribble is a list of points (x, y). An object has one or several of them, inside the object or in
the background. They reach the model as points at equal distances along each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from samadapt.errors import PromptError
from samadapt.prompts.scribbles import resampled
from samadapt.system.arrays import Array

SliceScribbles = Sequence[Any] | Mapping[int, Sequence[Any] | None] | None
"""Scribbles of an image, or of a volume: the same for every slice, or by slice index."""

SliceMasks = ArrayLike | Mapping[int, ArrayLike] | None
"""Mask prompts of an image, or of a volume by slice index: (h, w) object numbers, or (p, h, w)."""


@dataclass(frozen=True)
class Drawings:
    """What a user draws.

    Attributes:
        scribbles: a curve (k, 2) for one object; or for each of p objects a curve, a list of
            curves, or None. Or such values by slice index.
        scribble_labels: in the place of each curve 1 (inside) or 0 (background); None: all inside.
        masks: see ``SliceMasks``.
        count: number of points that a curve is turned into.
    """

    scribbles: SliceScribbles = None
    scribble_labels: SliceScribbles = None
    masks: SliceMasks = None
    count: int = 8


def points_of_scribbles(
    values: Sequence[Any] | None, labels: Any, count: int, where: str
) -> tuple[tuple[int, ...] | None, Array | None, Array | None]:
    """Return the points of the scribbles of one slice.

    Args:
        values: scribbles of the slice; see ``Drawings``.
        labels: their labels.
        count: number of points of a curve.
        where: what a message starts with.

    Returns:
        The number of each object, points (p, k, 2) float32 and labels (p, k), -1 for padding. None
        without scribbles.

    Raises:
        PromptError: says what was expected and what was found.
    """
    if values is None:
        if labels is not None:
            raise PromptError(f"{where}scribble_labels were given without scribbles")
        return None, None, None
    objects = [values] if _is_curve(values) else values
    if not isinstance(objects, list | tuple | np.ndarray):
        raise PromptError(f"{where}{_WANTED}; got {values!r}")
    marks = [labels] if _is_curve(values) or labels is None else labels
    marks = [None] * len(objects) if labels is None else marks
    if not isinstance(marks, list | tuple) or len(marks) != len(objects):
        raise PromptError(
            f"{where}scribble_labels must be 1 (inside) or 0 (background) in the place of each of "
            f"the scribbles of {len(objects)} objects; got {labels!r}"
        )
    drawn = {
        number: _points_of_object(curves, mark, count, where)
        for number, (curves, mark) in enumerate(zip(objects, marks, strict=True), start=1)
        if curves is not None
    }
    most = max((len(marks) for _, marks in drawn.values()), default=0)
    if not most:
        return None, None, None
    points = np.zeros((len(drawn), most, 2), np.float32)
    signs = np.full((len(drawn), most), -1, np.int64)
    for row, (own, own_signs) in enumerate(drawn.values()):
        points[row, : len(own)], signs[row, : len(own)] = own, own_signs
    return tuple(drawn), points, signs


def masks_of_slice(
    values: ArrayLike | None, shape: tuple[int, int], where: str
) -> tuple[tuple[int, ...] | None, Array | None]:
    """Return the mask prompts of one slice.

    Args:
        values: (h, w) with the number of the object at each pixel, 0 for none; or (p, h, w), a mask
            for each object.
        shape: (h, w) of the slice.
        where: what a message starts with.

    Returns:
        The number of each object, and masks (p, h, w) bool; None without masks.

    Raises:
        PromptError: says what was expected and what was found.
    """
    if values is None:
        return None, None
    wanted = f"{where}masks must be (h, w) = {shape} object numbers, or (p, h, w) masks of 0 and 1"
    array = np.asarray(values)
    if array.dtype.kind not in "biu" or array.ndim not in (2, 3) or array.shape[-2:] != shape:
        raise PromptError(f"{wanted}; got {array.dtype} {array.shape}")
    if array.min(initial=0) < 0 or (array.ndim == 3 and array.max(initial=0) > 1):
        raise PromptError(f"{wanted}; got values from {array.min()} to {array.max()}")
    if array.ndim == 3:
        masks = array.astype(bool)
        found = np.flatnonzero(masks.any(axis=(1, 2)))
        return tuple((found + 1).tolist()), masks[found]
    numbers = np.unique(array[array > 0])
    return tuple(numbers.tolist()), np.asarray(array == numbers[:, None, None])


_WANTED = (
    "scribbles must be a list of points [[x, y], ...] for one object, or for each object such a "
    "list, a list of several, or null"
)


def _points_of_object(
    curves: Sequence[Any], labels: Any, count: int, where: str
) -> tuple[Array, Array]:
    """Return the points (k, 2) and labels (k,) of one object's scribbles."""
    each = [curves] if _is_curve(curves) else curves
    marks = [labels] * len(each) if labels is None or isinstance(labels, int) else list(labels)
    if len(marks) != len(each) or any(mark not in (None, 0, 1) for mark in marks) or not len(each):
        raise PromptError(
            f"{where}scribble_labels must be 1 (inside) or 0 (background) for each of the "
            f"{len(each)} scribbles of an object; got {labels!r}"
        )
    points = [resampled(_checked_curve(curve, where), count) for curve in each]
    signs = np.array([1 if mark is None else mark for mark in marks], np.int64).repeat(count)
    return np.concatenate(points), signs


def _checked_curve(curve: Any, where: str) -> Array:
    """Return a curve (k, 2) float of at least two points."""
    try:
        array = np.asarray(curve, dtype=np.float32)
    except (TypeError, ValueError):
        raise PromptError(f"{where}{_WANTED}; got {curve!r}") from None
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        raise PromptError(f"{where}{_WANTED}; got {curve!r}")
    if len(array) < 2:
        raise PromptError(
            f"{where}a scribble needs two points or more; got {array.tolist()}. Give a single "
            "point as points=[[x, y]]"
        )
    return array


def _is_curve(values: Any) -> bool:
    """Whether values are a list of points and not of curves."""
    if isinstance(values, np.ndarray):
        return values.ndim == 2
    first = values[0] if isinstance(values, list | tuple) and len(values) else None
    is_point = isinstance(first, list | tuple | np.ndarray) and len(first) > 0
    return is_point and isinstance(first[0], int | float | np.number)  # type: ignore[index]
