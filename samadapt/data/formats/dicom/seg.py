"""Read the labels of a DICOM SEG object (PS3.3 C.8.20), frame by frame, on the grid of its series.

A SEG stores one plane a frame, with its own position, and leaves out empty planes. A BINARY object
has frames of one segment each. In a LABELMAP object, pixel values are segment numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.findings import fault
from samadapt.data.formats.dicom.files import read_file
from samadapt.data.formats.dicom.frames import frames_of, plane_affine
from samadapt.data.formats.dicom.pixels import stored_pixels
from samadapt.data.formats.shared.stored_volume import SAME_PLACE, StoredVolume
from samadapt.system.arrays import Array

_FIX = "export the segmentation again on the image's grid"


def segment_names(path: Path) -> dict[int, str]:
    """Return the label of each segment by its number.

    Raises:
        FindingError: the file is broken or lists no segment.
    """
    return _names(path, read_file(path, ["SegmentSequence"]))


def _names(path: Path, header: Any) -> dict[int, str]:
    try:
        items = header.get("SegmentSequence") or []
        names = {int(item.SegmentNumber): str(item.SegmentLabel).strip() for item in items}
    except (AttributeError, TypeError, ValueError):
        names = {}
    names.pop(0, None)  # 0 is the background of a label map
    if not names or not all(names.values()):
        message = "it lists no segments with number and label"
        raise fault("bad_segmentation", path, message, "export the segmentation again")
    return names


def load_segmentation(path: Path, image: StoredVolume, values: Mapping[str, int]) -> StoredVolume:
    """Read a SEG object as labels on the grid of an image.

    Args:
        path: a SEG object, BINARY or LABELMAP.
        image: the series that it segments.
        values: label value of each segment's name.

    Returns:
        The labels (column, row, slice), int32.

    Raises:
        FindingError: the file is broken, fractional, or on another grid; or segments overlap.
    """
    header = read_file(path, ["SegmentationType", "SegmentSequence"])
    kind = str(header.get("SegmentationType"))
    if kind not in ("BINARY", "LABELMAP"):
        message = "expected a BINARY segmentation or a LABELMAP; it is FRACTIONAL"
        message = message if kind == "FRACTIONAL" else "it does not say that it is BINARY"
        raise fault("fractional_segments", path, message, "export it as a BINARY segmentation")
    names = _names(path, header)
    frames = frames_of(path)
    pixels = stored_pixels(path)
    labels = np.zeros(image.values.shape, dtype=np.int32)
    to_voxel = np.linalg.inv(image.affine)
    table = np.zeros(max(names) + 1, dtype=np.int32)  # from segment number to label value
    for number, name in names.items():
        table[number] = values[name]
    for frame in frames:
        plane = pixels[frame.index]
        if kind == "BINARY":
            plane = (plane > 0) * np.int64(frame.segment)
        if not plane.any():
            continue
        if int(plane.max()) >= len(table):
            message = f"frame {frame.index} belongs to segment {int(plane.max())}, not listed"
            raise fault("bad_segmentation", path, message, _FIX)
        column, row = np.nonzero(plane.T)
        points = np.stack([column, row, np.zeros_like(row), np.ones_like(row)])
        placed = (to_voxel @ plane_affine(frame) @ points)[:3]
        voxels = np.rint(placed).astype(np.int64)
        _put(path, labels, voxels, placed, table[plane.T[column, row]])
    return StoredVolume(labels, image.affine)


def _put(path: Path, labels: Array, voxels: Array, placed: Array, values: Array) -> None:
    """Write values into free voxels of the labels.

    Args:
        path: the file, for the messages.
        labels: (column, row, slice), changed in place.
        voxels: (3, n) whole indices.
        placed: (3, n) the same before they were rounded.
        values: (n,) the label values.
    """
    off = float(np.abs(placed - voxels).max())
    side = np.array(labels.shape)[:, None]
    if off > SAME_PLACE or (voxels < 0).any() or (voxels >= side).any():
        message = f"its pixels do not lie on the image's grid: they are up to {off:.2f} voxels off"
        if off <= SAME_PLACE:
            message = "some of its pixels lie outside the image"
        raise fault("grid_mismatch", path, message, _FIX)
    x, y, z = voxels
    before = labels[x, y, z]
    if ((before != 0) & (before != values)).any():
        message = "two of its segments share voxels; a label map has one class for each voxel"
        raise fault("overlapping_segments", path, message, "export segments that do not overlap")
    labels[x, y, z] = values
