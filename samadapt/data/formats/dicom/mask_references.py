"""Which image series a SEG or RTSTRUCT object belongs to.

By the series that it names. Where it names none (older exporters leave ReferencedSeriesSequence
out): by the images that its frames or contours name, else by study and frame of reference, then by
the grid of its frames, then by its folder. An object that names only series that are not here
belongs to none of the others, however alike they are.
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


def belongs_to(item: DicomMask, series: Sequence[DicomSeries]) -> tuple[list[DicomSeries], str]:
    """Return the series that an object belongs to, and why if it is not exactly one."""
    if item.series:
        named = [other for other in series if other.uid in item.series]
        return named, "" if named else "the series that it refers to is not here"
    images = _named_images(item)
    by_image = [other for other in series if other.instances & images]
    if by_image:
        return by_image, ""
    if images:
        return [], "the images that it refers to are not here"
    left = [
        other for other in series if other.frame in item.frames and item.study in ("", other.study)
    ]
    if not left:
        return [], "it names no series, and its frame of reference is that of none"
    for narrower in (_on_grid, _in_folder):
        if len(left) > 1:
            left = narrower(item, left) or left
    return left, "" if len(left) == 1 else f"its frame of reference and grid fit {len(left)} series"


def _in_folder(item: DicomMask, series: list[DicomSeries]) -> list[DicomSeries]:
    return [other for other in series if other.folder == item.path.parent]


def _named_images(item: DicomMask) -> set[str]:
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
        read_file(item.path, tags).walk(look)
    except Exception:  # a broken object is reported where its labels are read
        return set()
    return found


def _on_grid(item: DicomMask, series: list[DicomSeries]) -> list[DicomSeries]:
    """Return the series whose slices are where the frames of a SEG are."""
    try:
        frames = [plane_affine(frame) for frame in frames_of(item.path)]
    except FindingError:
        return []
    return [other for other in series if _holds(other, frames)]


def _holds(series: DicomSeries, frames: Sequence[Any]) -> bool:
    try:
        slices = [frame for path in series.files for frame in frames_of(path)]
        affine = order_frames(series.folder, slices)[1]
    except FindingError:
        return False
    places = np.array([np.linalg.inv(affine) @ frame for frame in frames])
    corner = places[:, :3, 3]
    axes = np.abs(places[:, :3, :2] - np.eye(3)[:, :2]).max()
    inside = (corner[:, 2] > -0.5) & (corner[:, 2] < len(slices) - 0.5)
    return bool(np.abs(corner - np.rint(corner)).max() < 0.1 and axes < 0.01 and inside.all())
