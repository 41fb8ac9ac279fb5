"""Which image series a SEG or RTSTRUCT object belongs to.

An object belongs to the series that it names (ReferencedSeriesSequence). Older exporters leave that
out. Then these decide, in this order:

1. the images that its frames or contours name,
2. study and frame of reference,
3. the grid of its frames,
4. its folder.

An object that names only series or images that are not here belongs to none of the others, however
similar they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from samadapt.data.findings import FindingError
from samadapt.data.formats.dicom.files import read_file
from samadapt.data.formats.dicom.folder_contents import DicomMask, DicomSeries
from samadapt.data.formats.dicom.frames import frames_of, plane_affine
from samadapt.data.formats.dicom.slice_order import order_frames

_IMAGE_SEQUENCES = ("SourceImageSequence", "ReferencedInstanceSequence", "ContourImageSequence")


def belongs_to(mask: DicomMask, series: Sequence[DicomSeries]) -> tuple[list[DicomSeries], str]:
    """Return the series that an object belongs to, and the reason if it is not exactly one."""
    if mask.series:
        named = [one for one in series if one.uid in mask.series]
        return named, "" if named else "the series that it refers to is not here"
    images = _named_images(mask)
    by_image = [one for one in series if one.instances & images]
    if by_image:
        return by_image, ""
    if images:
        return [], "the images that it refers to are not here"
    left = [one for one in series if one.frame in mask.frames and mask.study in ("", one.study)]
    if not left:
        return [], "it names no series, and no series has its frame of reference"
    if len(left) > 1:
        left = _on_grid(mask, left) or left
    if len(left) > 1:
        left = [one for one in left if one.folder == mask.path.parent] or left
    return left, "" if len(left) == 1 else f"its frame of reference and grid fit {len(left)} series"


def _named_images(mask: DicomMask) -> set[str]:
    """Return the SOPInstanceUIDs of the images that an object's frames or contours name."""
    tags = (
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *("ReferencedInstanceSequence", "ROIContourSequence"),
        "ReferencedFrameOfReferenceSequence",
    )
    found: set[str] = set()

    def look(dataset: Any, element: Any) -> None:
        if element.keyword in _IMAGE_SEQUENCES:
            uids = (image.get("ReferencedSOPInstanceUID") for image in element.value)
            found.update(str(uid) for uid in uids if uid)

    try:
        read_file(mask.path, tags).walk(look)
    except Exception:  # a broken object is reported where its labels are read
        return set()
    return found


def _on_grid(mask: DicomMask, series: list[DicomSeries]) -> list[DicomSeries]:
    """Return the series that have a slice at the place of each frame of a SEG."""
    try:
        frames = [plane_affine(frame) for frame in frames_of(mask.path)]
    except FindingError:
        return []
    return [one for one in series if _holds(one, frames)]


def _holds(series: DicomSeries, frames: Sequence[Any]) -> bool:
    """Return whether the affines (4, 4) of frames are those of slices of a series."""
    try:
        slices = [frame for path in series.files for frame in frames_of(path)]
        affine = order_frames(series.folder, slices)[1]
    except FindingError:
        return False
    # The affine of each frame in voxels of the series: its corner should be at (0, 0, slice), and
    # its columns and rows should run along the first two axes.
    placed = np.array([np.linalg.inv(affine) @ frame for frame in frames])
    corner = placed[:, :3, 3]
    axes = np.abs(placed[:, :3, :2] - np.eye(3)[:, :2]).max()
    inside = (corner[:, 2] > -0.5) & (corner[:, 2] < len(slices) - 0.5)
    return bool(np.abs(corner - np.rint(corner)).max() < 0.1 and axes < 0.01 and inside.all())
