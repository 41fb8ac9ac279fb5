"""Labels out of a DICOM SEG object, frame by frame on the grid of the series that it segments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from samadapt.data.findings import fault
from samadapt.data.formats.dicom.files import read_file
from samadapt.data.formats.dicom.frames import frames_of, plane_affine
from samadapt.data.formats.dicom.pixels import stored_pixels
from samadapt.data.formats.shared.stored_volume import StoredVolume
from samadapt.system.arrays import Array

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEG = "1.2.840.10008.5.1.4.1.1.66.7"
_MEND = "export the segmentation again on the image's grid"


def segment_names(path: Path) -> dict[int, str]:
    """Return the label of each segment by its number.

    Raises:
        FindingError: the file is broken or lists no segment.
    """
    header = read_file(path, ["SegmentSequence"])
    try:
        items = header.get("SegmentSequence") or []
        names = {int(item.SegmentNumber): str(item.SegmentLabel).strip() for item in items}
    except (AttributeError, TypeError, ValueError):
        names = {}
    names.pop(0, None)
    if not names or not all(names.values()):
        message = "it lists no segments with number and label"
        raise fault("bad_segmentation", path, message, "export the segmentation again")
    return names


def load_segmentation(path: Path, image: StoredVolume, values: Mapping[str, int]) -> StoredVolume:
    """Read a SEG object as labels on the grid of an image.

    Args:
        path: a SEG object, binary or label map.
        image: the series that it segments.
        values: label value of each segment's name.

    Raises:
        FindingError: the file is broken, fractional, or on another grid; or segments overlap.
    """
    kind = str(read_file(path, ["SegmentationType"]).get("SegmentationType"))
    if kind not in ("BINARY", "LABELMAP"):
        message = "expected a BINARY segmentation or a LABELMAP; it is FRACTIONAL"
        message = message if kind == "FRACTIONAL" else "it does not say that it is BINARY"
        raise fault("fractional_segments", path, message, "export it as a BINARY segmentation")
    names = segment_names(path)
    frames = frames_of(path)
    pixels = stored_pixels(path)
    labels = np.zeros(image.values.shape, dtype=np.int32)
    to_voxel = np.linalg.inv(image.affine)
    table = np.zeros(max(names) + 1, dtype=np.int32)
    for number, name in names.items():
        table[number] = values[name]
    for frame in frames:
        plane = pixels[frame.index]
        if kind == "BINARY":
            plane = (plane > 0) * np.int64(frame.segment)
        if int(plane.max()) >= len(table) or not plane.any():
            if plane.any():
                message = f"frame {frame.index} belongs to segment {int(plane.max())}, not listed"
                raise fault("bad_segmentation", path, message, _MEND)
            continue
        column, row = np.nonzero(plane.T)
        points = np.stack([column, row, np.zeros_like(row), np.ones_like(row)])
        placed = (to_voxel @ plane_affine(frame) @ points)[:3]
        voxels = np.rint(placed).astype(np.int64)
        _put(path, labels, voxels, placed, table[plane.T[column, row]])
    return StoredVolume(labels, image.affine)


def _put(path: Path, labels: Array, voxels: Array, placed: Array, values: Array) -> None:
    """Write values at voxels (3, n), where each lies on the grid and nothing else is there."""
    off = float(np.abs(placed - voxels).max())
    side = np.array(labels.shape)[:, None]
    if off > 0.1 or (voxels < 0).any() or (voxels >= side).any():
        message = f"its pixels do not lie on the image's grid (up to {off:.2f} voxels beside it)"
        if off <= 0.1:
            message = "some of its pixels lie outside the image"
        raise fault("grid_mismatch", path, message, _MEND)
    x, y, z = voxels
    before = labels[x, y, z]
    if ((before != 0) & (before != values)).any():
        message = "two of its segments share voxels; a label map holds one class a voxel"
        raise fault("overlapping_segments", path, message, "export segments that do not overlap")
    labels[x, y, z] = values
