"""Objects given as polygons or run lengths (COCO, SA-1B) to label maps, through pycocotools.

Where objects overlap, the smaller one lies over the larger one (by area, then by order), so that
a part is not lost behind the whole. A crowd region (``iscrowd``) belongs to its class and is no
object of its own.
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
        runs: lengths of runs of 0 and 1 in turn, down the columns, 0 first, as COCO has them.
        is_crowd: a region of many objects.
        shown: how a finding names it.
    """

    value: int
    runs: list[int]
    is_crowd: bool
    shown: str


def read_segmentation(
    segmentation: Any, height: int, width: int, *, scaled: bool = False
) -> list[int]:
    """Return the run lengths of polygons or of COCO's two kinds of run lengths.

    Args:
        segmentation: ``[[x0, y0, x1, y1, ...], ...]`` in pixels, or ``{"size": [h, w],
            "counts": [...]}`` with counts as integers or as COCO's text.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        scaled: polygons were fractions in the file, so that one may well lie in the corner pixel.

    Raises:
        ValueError: saying what is wrong; pycocotools itself does not check.
    """
    if isinstance(segmentation, list):
        polygons = [_polygon(polygon, height, width) for polygon in segmentation]
        if not scaled and _hold_fractions(polygons):
            raise ValueError(
                "its polygons hold numbers from 0 to 1 alone: expected pixels, got fractions; "
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
    """Return (h, w) bool of run lengths."""
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def encode_runs(mask: Array) -> list[int]:
    """Return the run lengths of (h, w) bool."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = [0, *edges.tolist(), flat.size]
    runs = np.diff(bounds).tolist()
    return [0, *runs] if flat[0] else runs


def paint(
    objects: Sequence[OutlinedObject], height: int, width: int
) -> tuple[Array, Array, list[str]]:
    """Draw the objects, larger ones first.

    Returns:
        labels (h, w) int32 class values, instances (h, w) int32 numbers from 1 in the order of
        ``objects`` (0: none, or a crowd region), and the names of objects of which no pixel is
        left.
    """
    labels = np.zeros((height, width), dtype=np.int32)
    instances = np.zeros((height, width), dtype=np.int32)
    areas = [sum(item.runs[1::2]) for item in objects]
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
    for side, name, values in ((width, "x", polygon[0::2]), (height, "y", polygon[1::2])):
        if min(values) < -1 or max(values) > side + 1:
            raise ValueError(
                f"a polygon lies outside the picture: {name} from {min(values):g} to "
                f"{max(values):g}, expected 0..{side}"
            )
    return [float(value) for value in polygon]


def _hold_fractions(polygons: Sequence[Sequence[float]]) -> bool:
    """Whether coordinates can only be meant as shares of the picture: nobody draws in one pixel.

    Whole numbers alone are a polygon of the corner pixel, which programs do export.
    """
    values = [value for polygon in polygons for value in polygon]
    return all(0 <= value <= 1 for value in values) and not all(v in (0, 1) for v in values)


def _runs(text: str) -> list[int]:
    """Decode COCO's text of run lengths (5 bits a character, each but two a difference).

    Source: ``rleFrString`` of pycocotools, with every bound checked.

    Raises:
        ValueError: it is no such text.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError("run lengths hold a character that none have")
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
    """Return what a value is, without a word of it."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return type(value).__name__
