"""Draw objects that are given as polygons or run lengths (COCO, SA-1B) into label maps.

Where objects overlap, the smaller one (by area, then by order) is drawn over the larger one, so
that a part is not hidden by the whole. A crowd region (``iscrowd``) belongs to its class but is not
an object of its own.

Run lengths are COCO's: a mask (h, w) is read down its columns, and the numbers are the lengths of
runs of 0 and 1 in turn, starting with 0. The mask below has the run lengths 1 3 2::

    0 1
    1 0
    1 0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samadapt.system.arrays import Array


@dataclass(frozen=True)
class OutlinedObject:
    """One object of a picture.

    Attributes:
        value: label value of its class.
        runs: its run lengths; see the module.
        is_crowd: it is a region with many objects.
        shown: its name in findings.
    """

    value: int
    runs: list[int]
    is_crowd: bool
    shown: str


def read_segmentation(
    segmentation: Any, height: int, width: int, *, scaled: bool = False
) -> list[int]:
    """Return the run lengths of polygons, or of either kind of COCO's run lengths.

    Args:
        segmentation: ``[[x0, y0, x1, y1, ...], ...]`` in pixels, or ``{"size": [h, w],
            "counts": [...]}`` where the counts are integers or COCO's compressed text.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        scaled: the file holds fractions, which were multiplied by the size of the picture. Then a
            polygon inside the corner pixel is no sign of a mistake.

    Raises:
        ValueError: it cannot be used; the message says why. pycocotools itself does not check.
    """
    if isinstance(segmentation, list):
        polygons = [_polygon(polygon, height, width) for polygon in segmentation]
        if not scaled and _hold_fractions(polygons):
            raise ValueError(
                "its polygons contain only numbers from 0 to 1: expected pixels, got fractions; "
                f"multiply x by the picture's width, {width}, and y by its height, {height}"
            )
        if not polygons:
            raise ValueError("segmentation is an empty list")
        from pycocotools import mask as coco

        merged = coco.merge(coco.frPyObjects(polygons, height, width))
        return _runs(merged["counts"].decode())
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError(
            f"segmentation must be polygons or run lengths; got {_brief(segmentation)}"
        )
    size, counts = segmentation["size"], segmentation["counts"]
    if size != [height, width]:
        raise ValueError(f"its run lengths are of size {_brief(size)}; expected {[height, width]}")
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError(f"run lengths must be whole numbers from 0; got {_brief(counts)}")
    if sum(runs) != height * width:
        raise ValueError(
            f"its run lengths cover {sum(runs)} pixels; the picture has {height * width}"
        )
    return runs


def decode_runs(runs: Sequence[int], height: int, width: int) -> Array:
    """Return the mask (h, w) bool of run lengths."""
    # Runs alternate: the first is of 0, the second of 1.
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def encode_runs(mask: Array) -> list[int]:
    """Return the run lengths of a mask (h, w) bool."""
    flat = mask.ravel(order="F")
    # A run begins wherever the value changes.
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = [0, *edges.tolist(), flat.size]
    runs = np.diff(bounds).tolist()
    return [0, *runs] if flat[0] else runs


def paint(
    objects: Sequence[OutlinedObject], height: int, width: int
) -> tuple[Array, Array, list[str]]:
    """Draw the objects, larger ones first.

    Args:
        objects: with run lengths for this size.
        height: of the picture, in pixels.
        width: likewise.

    Returns:
        Labels (h, w) int32 with class values; instances (h, w) int32 with numbers from 1 in the
        order of ``objects`` (0: no object, or a crowd region); and the names of objects that are
        completely covered.
    """
    labels = np.zeros((height, width), dtype=np.int32)
    instances = np.zeros((height, width), dtype=np.int32)
    # Every second run is of 1, so their sum is the area.
    areas = [sum(item.runs[1::2]) for item in objects]
    # Crowd regions first, then from large to small: what is drawn later covers what was before.
    for index in sorted(range(len(objects)), key=lambda i: (not objects[i].is_crowd, -areas[i])):
        item = objects[index]
        inside = decode_runs(item.runs, height, width)
        labels[inside] = item.value
        instances[inside] = 0 if item.is_crowd else index + 1
    left = set(np.unique(instances).tolist())
    hidden = [
        item.shown
        for index, item in enumerate(objects)
        if not item.is_crowd and index + 1 not in left
    ]
    return labels, instances, hidden


def _polygon(polygon: Any, height: int, width: int) -> list[float]:
    usable = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
    if not usable or not all(type(v) in (int, float) and math.isfinite(v) for v in polygon):
        raise ValueError(
            f"a polygon must be at least three points [x, y, ...]; got {_brief(polygon)}"
        )
    # One pixel of slack: programs draw up to the outer edge, and some count from 1.
    for side, name, values in ((width, "x", polygon[0::2]), (height, "y", polygon[1::2])):
        if min(values) < -1 or max(values) > side + 1:
            raise ValueError(
                f"a polygon is outside the picture: {name} from {min(values):g} to "
                f"{max(values):g}, expected 0..{side}"
            )
    return [float(value) for value in polygon]


def _hold_fractions(polygons: Sequence[Sequence[float]]) -> bool:
    """Return whether coordinates must be fractions of the picture, since nobody draws in one pixel.

    Programs do export polygons of the corner pixel, but these have whole numbers.
    """
    values = [value for polygon in polygons for value in polygon]
    return all(0 <= value <= 1 for value in values) and not all(v in (0, 1) for v in values)


def _runs(text: str) -> list[int]:
    """Decode COCO's compressed text of run lengths.

    Each character holds 5 bits, from the lowest on; 32 marks that more follow, and 16 in the last
    one that the number is negative. From the fourth number on, a number is the difference to the
    one two places before. Source: ``rleFrString`` of pycocotools, with every bound checked.

    Raises:
        ValueError: it is not such a text.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError("run lengths contain a character that is not allowed")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("run lengths end in the middle of a number")
    return runs


def _brief(value: Any) -> str:
    """Describe a value without quoting it: annotations may name patients."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return type(value).__name__
