"""Boxes, points and labels that a person drew on a picture: ``annotations/<stem>.json``.

The file holds one JSON object, and every key may be left out. Coordinates are pixels of the
original image after its EXIF orientation, as a viewer shows it. x runs to the right and y down;
(0, 0) is the outer corner of the top left pixel::

    {
      "boxes": [[x0, y0, x1, y1], ...],    # x0 < x1, y0 < y1, inside the image; one per object
      "points": [[x, y], ...],             # inside the image
      "point_labels": [1, 0, ...],         # 1 foreground, 0 background; one per point; default 1
      "labels": ["cell", ...]              # class name of each box; without boxes, of each point
    }
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.findings import FindingError, fault
from samadapt.data.types import Annotation
from samadapt.errors import nearest
from samadapt.system.arrays import Array

SMALLEST = 8
"""In images up to this many pixels wide or high, coordinates of 0 to 1 may be meant as pixels."""

_KEYS = ("boxes", "points", "point_labels", "labels")


def read_annotation(path: Path, height: int, width: int) -> Annotation:
    """Read and check the annotations of an image.

    Args:
        path: the JSON file.
        height: of the image, in pixels.
        width: likewise.

    Raises:
        FindingError: the file is missing, is not JSON or does not follow the module's schema; a
            box or point is outside the image; or coordinates are fractions.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _schema(path, f"is not a JSON file ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise _schema(path, f"expected an object; got {type(content).__name__}")
    for key, value in content.items():
        if key not in _KEYS:
            known = ", ".join(_KEYS)
            raise _schema(path, f"unknown key{nearest(key, _KEYS)}; known: {known}")
        if not isinstance(value, list):
            raise _schema(path, f"{key} must be a list; got {type(value).__name__}")
    boxes = [_numbers(path, "boxes", i, box, 4) for i, box in enumerate(content.get("boxes", []))]
    points = [_numbers(path, "points", i, p, 2) for i, p in enumerate(content.get("points", []))]
    _refuse_fractions(path, "boxes", boxes, height, width)
    _refuse_fractions(path, "points", points, height, width)
    for index, box in enumerate(boxes):
        _check_box(path, index, box, height, width)
    for index, (x, y) in enumerate(points):
        if not (0 <= x <= width and 0 <= y <= height):
            message = f"points[{index}] = [{x:g}, {y:g}] is outside the image of {width} x {height}"
            raise fault("point_outside", path, message, "give pixels of the original image")
    return Annotation(
        np.array(boxes, dtype=np.float32).reshape(-1, 4) if boxes else None,
        np.array(points, dtype=np.float32).reshape(-1, 2) if points else None,
        _point_labels(path, content.get("point_labels"), len(points)),
        _labels(path, content.get("labels"), len(boxes) or len(points)),
    )


def _refuse_fractions(
    path: Path, key: str, rows: list[list[float]], height: int, width: int
) -> None:
    if rows and are_fractions(np.array(rows), height, width):
        message = f"{key} contain only numbers from 0 to 1: expected pixels, got fractions"
        fix = f"multiply x by the image's width, {width}, and y by its height, {height}"
        raise fault("relative_coordinates", path, message, fix)


def are_fractions(values: Array, height: int, width: int) -> bool:
    """Return whether coordinates look like fractions of the image size instead of pixels.

    All of them are then in the first pixel of an image that has many. A point with whole
    coordinates may really mean that pixel; a box never does.

    Args:
        values: (n, 4) boxes or (..., 2) points.
        height: of the image, in pixels.
        width: likewise.
    """
    if not values.size or min(height, width) <= SMALLEST or values.min() < 0 or values.max() > 1:
        return False
    return values.shape[-1] == 4 or bool((values % 1).any())


def classes_under(
    boxes: Array | None, points: Array | None, point_labels: Array | None, labels: Array
) -> Array:
    """Return the classes of prompts that name none: the most frequent class under each prompt.

    Args:
        boxes: (n, 4) XYXY in pixels, or None.
        points: (k, 2) (x, y) in pixels, or None. Without boxes all points are of one object.
        point_labels: (k,), 1 foreground, 0 background.
        labels: (h, w) or (h, w, 1) class ids, 0 background.

    Returns:
        (n,) or (k,) int64 class ids; 1 where there is only background.
    """
    if boxes is not None:
        return np.array([most_frequent(labels[box_area(box, labels.shape)]) for box in boxes])
    if points is None or point_labels is None:
        return np.zeros(0, np.int64)
    x, y = np.clip(points.astype(int), 0, (labels.shape[1] - 1, labels.shape[0] - 1)).T
    under = most_frequent(labels[y, x][point_labels == 1])
    return np.full(len(points), under, np.int64)


def box_area(box: Array, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return the rows and columns of an image that a box touches, at least one of each.

    Args:
        box: (4,) XYXY in pixels.
        shape: (h, w, ...) of the image.
    """
    x0, y0 = np.floor(np.maximum(box[:2], 0)).astype(int)
    x1, y1 = np.ceil(box[2:]).astype(int)
    return slice(y0, min(max(y1, y0 + 1), shape[0])), slice(x0, min(max(x1, x0 + 1), shape[1]))


def most_frequent(values: Array) -> int:
    """Return the most frequent class id; 1 where there is only background."""
    counts = np.bincount(values[values > 0].ravel(), minlength=2)
    return int(counts.argmax()) if counts.any() else 1


def _numbers(path: Path, key: str, index: int, value: Any, count: int) -> list[float]:
    usable = isinstance(value, list) and len(value) == count
    if not usable or not all(type(v) in (int, float) and math.isfinite(v) for v in value):
        raise _schema(
            path, f"{key}[{index}] must be {count} numbers, all finite; got {_kind(value)}"
        )
    return [float(v) for v in value]


def _check_box(path: Path, index: int, box: list[float], height: int, width: int) -> None:
    x0, y0, x1, y1 = box
    shown = [f"{v:g}" for v in box]
    if not (x0 < x1 and y0 < y1):
        raise _schema(
            path, f"boxes[{index}] must be [x0, y0, x1, y1] with x0 < x1, y0 < y1; {shown}"
        )
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        message = f"boxes[{index}] = {shown} is outside the image of {width} x {height}"
        raise fault("box_outside", path, message, "give pixels of the original image, XYXY")


def _point_labels(path: Path, value: Any, count: int) -> Any:
    if value is None:
        return np.ones(count, dtype=np.int64) if count else None
    if len(value) != count or not all(type(v) is int and v in (0, 1) for v in value):
        raise _schema(path, f"point_labels must be {count} values of 0 or 1; got {_kind(value)}")
    return np.array(value, dtype=np.int64) if count else None


def _labels(path: Path, value: Any, count: int) -> tuple[str, ...] | None:
    if value is None:
        return None
    if len(value) != count or not all(isinstance(v, str) for v in value):
        raise _schema(path, f"labels must be {count} class names; got {_kind(value)}")
    return tuple(value)


def _kind(value: Any) -> str:
    """Describe a value without quoting it: annotations may name patients."""
    return f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__


def _schema(path: Path, message: str) -> FindingError:
    return fault(
        "annotation_schema", path, message, "see the schema in samadapt/data/annotations.py"
    )
