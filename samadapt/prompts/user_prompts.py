"""Prompts that a user gives at prediction: for an image, or slice by slice for a volume.

The k-th box (or set of points) of a slice belongs to object k, which is the same object on every
slice that has a k-th one. ``None`` in its place means that the object has no prompt on that slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from samadapt.data.annotations import are_fractions
from samadapt.errors import PromptError, nearest
from samadapt.prompts.user_drawings import Drawings, masks_of_slice, points_of_scribbles
from samadapt.sam.types import ImagePrompts
from samadapt.system.arrays import Array

if TYPE_CHECKING:
    from samadapt.data.tiles import PictureTile

ObjectValues = ArrayLike | Sequence[ArrayLike | None]
"""Boxes or points of the objects of one slice; None in the place of an object that has none."""

SlicePrompts = ObjectValues | Mapping[int, ObjectValues] | None
"""Prompts of an image, or of a volume: the same for every slice, or by slice index."""


def slice_prompts(
    boxes: SlicePrompts,
    points: SlicePrompts,
    point_labels: SlicePrompts,
    shape: tuple[int, int, int],
    drawings: Drawings | None = None,
) -> dict[int, ImagePrompts]:
    """Check prompts and sort them by slice.

    Args:
        boxes: (p, 4) or (4,) XYXY pixels of the original image, or ``{slice index: boxes}``.
        points: (k, 2) (x, y) for one object, or (p, k, 2), or by slice index.
        point_labels: (k,) or (p, k); 1 foreground, 0 background, -1 padding; None: all 1.
        shape: (h, w, d) of the volume; d = 1 for an image.
        drawings: scribbles and masks; the points of a scribble follow those of ``points``.

    Returns:
        The prompts of every slice, or of those that a mapping names, with object numbers. The
        classes are not known yet, so all objects are of class 1.

    Raises:
        PromptError: names the slice, what was expected and what was found.
    """
    drawn = drawings or Drawings()
    given = (boxes, points, point_labels, drawn.scribbles, drawn.scribble_labels, drawn.masks)
    prompts = {}
    for index in _named_slices(given, shape[2]):
        where = f"slice {index}: " if shape[2] > 1 else ""
        box_numbers, present = _without_missing(_at(boxes, index))
        checked_boxes = _check_boxes(present, shape, where)
        point_numbers, present = _without_missing(_at(points, index))
        _, present_labels = _without_missing(_at(point_labels, index))
        checked_points, checked_labels = _check_points(present, present_labels, shape, where)
        curve_numbers, curves, curve_labels = points_of_scribbles(
            _at(drawn.scribbles, index), _at(drawn.scribble_labels, index), drawn.count, where
        )
        _check_points(curves, curve_labels, shape, f"{where}scribbles: ")
        mask_numbers, masks = masks_of_slice(_at(drawn.masks, index), shape[:2], where)
        of_objects = (
            (box_numbers, checked_boxes),
            (point_numbers, checked_points),
            (curve_numbers, curves),
            (mask_numbers, masks),
        )
        objects = _shared_numbers(of_objects, where)
        checked_points = joined_points(checked_points, curves)
        checked_labels = joined_points(checked_labels, curve_labels)
        prompts[index] = ImagePrompts(
            class_ids=np.ones(len(objects), dtype=np.int64),
            boxes=checked_boxes,
            points=checked_points,
            point_labels=checked_labels,
            masks=masks,
            object_numbers=objects,
        )
    return prompts


def _shared_numbers(
    of_objects: Iterable[tuple[tuple[int, ...] | None, Array | None]], where: str
) -> Array:
    """Return the numbers (p,) of the objects, which all kinds of prompts of a slice share."""
    numbers = {
        _object_numbers(found, array, where) for found, array in of_objects if array is not None
    }
    if len(numbers) > 1:
        raise PromptError(
            f"{where}boxes, points, scribbles and masks together must be for the same objects; got "
            f"those for {' and '.join(str(list(n)) for n in sorted(numbers))}. Give points as "
            "(p, k, 2)"
        )
    return np.array(numbers.pop() if numbers else (), dtype=np.int64)


def joined_points(first: Array | None, second: Array | None) -> Array | None:
    """Return the points (p, k, ...), or labels, of the same objects one after the other."""
    if first is None or second is None:
        return second if first is None else first
    return np.concatenate([first, second], axis=1)


def tile_prompts(prompts: ImagePrompts, tile: PictureTile) -> ImagePrompts:
    """Return the prompts of the objects that a tile sees a part of.

    These are the objects with a part of their box, or one of their foreground points, or a part of
    their mask in the tile. Boxes and masks are clipped to the tile and points outside of it are
    left out.

    Args:
        prompts: of a picture, in its pixels.
        tile: a tile of that picture.

    Returns:
        The prompts in pixels of the tile.
    """
    seen = np.zeros(len(prompts), dtype=bool)
    boxes = points = point_labels = None
    if prompts.boxes is not None:
        boxes, seen = tile.boxes(prompts.boxes)
    if prompts.points is not None and prompts.point_labels is not None:
        points, inside = tile.points(prompts.points)
        # A point outside of the tile becomes padding, because all objects have equally many points.
        point_labels = np.where(inside, prompts.point_labels, -1)
        if prompts.boxes is None:
            seen = (point_labels == 1).any(axis=1)
    masks = None
    if prompts.masks is not None:
        masks = np.stack([tile.cut(mask) for mask in prompts.masks])
        if prompts.boxes is None:
            seen = seen | masks.any(axis=(1, 2))
    moved = replace(
        prompts, truth=None, boxes=boxes, points=points, point_labels=point_labels, masks=masks
    ).take(np.flatnonzero(seen))
    return _without_padding(moved)


def _without_padding(prompts: ImagePrompts) -> ImagePrompts:
    """Put the points of each object first, and drop columns that are padding for all objects."""
    points, point_labels = prompts.points, prompts.point_labels
    if points is None or point_labels is None:
        return prompts
    # Padding is no more than a label of -1, but each padded point is a token that changes the mask.
    order = np.argsort(point_labels < 0, axis=1, kind="stable")
    most = int((point_labels >= 0).sum(axis=1).max(initial=0))
    if most == 0:
        return replace(prompts, points=None, point_labels=None)
    return replace(
        prompts,
        points=np.take_along_axis(points, order[..., None], axis=1)[:, :most],
        point_labels=np.take_along_axis(point_labels, order, axis=1)[:, :most],
    )


def object_classes(labels: str | Sequence[str] | None, count: int, classes: Sequence[str]) -> Array:
    """Return the class id of each object.

    Args:
        labels: a class name for each object, or one name for all; None if there is one class.
        count: number p of objects.
        classes: names of the adapter's classes; id k is ``classes[k - 1]``.

    Returns:
        (p,) int64 ids.

    Raises:
        PromptError: a name is unknown, the number of names differs, or they are missing although
            there are several classes.
    """
    known = ", ".join(classes)
    if labels is None:
        if len(classes) > 1:
            raise PromptError(
                f"this adapter knows {len(classes)} classes ({known}): name the class of each box "
                f"or set of points, as labels=[{classes[0]}], or one for all, as labels="
                f"{classes[0]}"
            )
        return np.ones(count, dtype=np.int64)
    names = [labels] * count if isinstance(labels, str) else list(labels)
    if len(names) != count:
        raise PromptError(
            f"labels must name a class for each of the {count} objects, or one for all; "
            f"got {len(names)}: {names}"
        )
    if wrong := [name for name in names if name not in classes]:
        raise PromptError(
            f"labels: the adapter has no class {wrong[0]!r}; it has {known}"
            f"{nearest(str(wrong[0]), classes)}"
        )
    return np.array([classes.index(name) + 1 for name in names], dtype=np.int64)


def _named_slices(given: Sequence[Any], depth: int) -> list[int]:
    """Return the slices that get a prompt: those that mappings name, or all.

    Raises:
        PromptError: the volume does not have such a slice.
    """
    named = [set(value) for value in given if isinstance(value, Mapping)]
    if not named:
        return list(range(depth))
    # If one value is given by slice, values that are the same for every slice apply only there.
    indices = set.union(*named)
    wrong = [index for index in indices if not isinstance(index, int) or not 0 <= index < depth]
    if wrong:
        raise PromptError(f"slice indices must be 0 to {depth - 1}; got {wrong}")
    return sorted(indices)


def _at(value: Any, index: int) -> Any:
    return value.get(index) if isinstance(value, Mapping) else value


def _without_missing(values: Any) -> tuple[tuple[int, ...] | None, ArrayLike | None]:
    """Drop the objects that are ``None``.

    Returns:
        The numbers of the objects that are left, or None if none was dropped, and their values.
    """
    if not isinstance(values, list | tuple) or all(value is not None for value in values):
        return None, values
    numbers = tuple(k for k, value in enumerate(values, start=1) if value is not None)
    # If every object is missing, the slice has no prompt of this kind.
    return numbers, [value for value in values if value is not None] or None


def _object_numbers(numbers: tuple[int, ...] | None, array: Array, where: str) -> tuple[int, ...]:
    """Return the object number of each box or set of points; 1..p if none is missing."""
    if numbers is None:
        return tuple(range(1, len(array) + 1))
    if len(numbers) != len(array):
        raise PromptError(f"{where}beside a null, give the points of each object as [[x, y], ...]")
    return numbers


def _check_boxes(values: ArrayLike | None, shape: tuple[int, int, int], where: str) -> Array | None:
    """Return boxes (p, 4) float32, each of which reaches into the image."""
    boxes = _as_floats(values, 2, 4, f"{where}boxes must be (p, 4) XYXY pixels")
    if boxes is None:
        return None
    height, width = shape[:2]
    # A box may leave the image but must share a pixel with it.
    x0, y0, x1, y1 = boxes.T
    fits = (x0 < x1) & (y0 < y1) & (x0 < width) & (y0 < height) & (x1 > 0) & (y1 > 0)
    if not fits.all():
        raise PromptError(
            f"{where}a box must be x0 < x1, y0 < y1 and reach into the image of width {width} and "
            f"height {height}; got {boxes[~fits][0].tolist()}"
        )
    _refuse_fractions(boxes, shape, f"{where}boxes")
    # One box may be given in fractions although the others are in pixels.
    for index in np.flatnonzero((boxes % 1).any(axis=1)):
        _refuse_fractions(boxes[index : index + 1], shape, f"{where}boxes[{index}]")
    return boxes


def _check_points(
    values: ArrayLike | None,
    labels: ArrayLike | None,
    shape: tuple[int, int, int],
    where: str,
) -> tuple[Array, Array] | tuple[None, None]:
    """Return points (p, k, 2) float32 in the image and their labels (p, k) int64."""
    points = _as_floats(values, 3, 2, f"{where}points must be (k, 2) or (p, k, 2) pixels")
    if points is None:
        if labels is not None:
            raise PromptError(f"{where}point_labels were given without points")
        return None, None
    marks = np.ones(points.shape[:2]) if labels is None else np.atleast_2d(np.asarray(labels))
    if marks.shape != points.shape[:2] or not np.isin(marks, (-1, 0, 1)).all():
        raise PromptError(
            f"{where}point_labels must be 1 (foreground), 0 (background) or -1 (padding), one for "
            f"each point, {points.shape[:2]}; got {marks.tolist()}"
        )
    height, width = shape[:2]
    # The coordinates of padding points mean nothing and are not checked.
    _refuse_fractions(points[marks >= 0], shape, f"{where}points")
    outside = ((points < 0) | (points > (width, height))).any(axis=-1) & (marks >= 0)
    if outside.any():
        raise PromptError(
            f"{where}a point (x, y) must lie in the image of width {width} and height {height}; "
            f"got {points[outside][0].tolist()}"
        )
    return points, marks.astype(np.int64)


def _refuse_fractions(values: Array, shape: tuple[int, int, int], what: str) -> None:
    """Refuse coordinates that all lie in the first pixel, since they are probably fractions.

    Raises:
        PromptError: asks whether fractions of the image's sides were meant.
    """
    height, width = shape[:2]
    if are_fractions(values, height, width):
        raise PromptError(
            f"{what}: every coordinate is within 0 and 1, the first pixel of an image of width "
            f"{width} and height {height}; were fractions of its sides meant? Give pixels: "
            f"multiply x by {width} and y by {height}"
        )


def _as_floats(values: ArrayLike | None, axes: int, last: int, wanted: str) -> Array | None:
    """Return finite float32 values with ``axes`` axes; one object gets the leading axis.

    Raises:
        PromptError: the shape is another one, or a value is not a finite number.
    """
    if values is None:
        return None
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise PromptError(f"{wanted}; got {values!r}") from None
    if array.ndim == axes - 1 and array.size:
        array = array[None]
    if array.ndim != axes or array.shape[-1] != last or 0 in array.shape[1:]:
        raise PromptError(f"{wanted}; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise PromptError(f"{wanted}; got NaN or infinity")
    return array
