"""Read the contours of an RTSTRUCT object as labels on the grid of their series.

A contour is a polygon in patient coordinates, in the plane of a slice (ROI Contour, PS3.3
C.8.8.6). A voxel belongs to a region if its centre lies inside the polygon, or on its line. Several
contours of a region in one plane are combined by exclusive or, so that a contour within another is
a hole. A keyhole (one contour that reaches its hole through a narrow channel) needs no special
case.

The steps are: turn contours into voxel coordinates (``_to_plane``), give each slice the nearest
plane of contours (``_rasterise``), and fill the polygons of that plane (``_fill``).
``skimage.measure.grid_points_in_poly`` decides whether a point is inside. rt-utils rounds contours
to whole pixels before it fills them; platipy works as we do, but is not available for pydicom 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.findings import Finding, fault, warning_finding
from samadapt.data.formats.dicom.files import read_file
from samadapt.data.formats.shared.stored_volume import LPS_TO_RAS, StoredVolume
from samadapt.system.arrays import Array

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_AGAIN = "export the structure set again, for this series"
_DIGITS = 3
"""Contours are rounded to a thousandth of a voxel, so that the rounding of decimal text does not
decide whether a voxel's centre lies on the line."""
_STRIPS_FROM = 4_000_000
"""Comparisons of a pixel with an edge from which on a polygon is cut into strips of rows."""
_STRIP = 8
"""Rows of a strip."""


@dataclass
class _Region:
    """One region of a structure set.

    Attributes:
        name: ROIName.
        planes: polygons (n, 2) of (row, column), in voxels, by their place along the stack, in
            slices.
    """

    name: str
    planes: dict[float, list[Array]] = field(default_factory=dict)


@dataclass
class _Doubts:
    """What a user of the labels should know.

    Attributes:
        farthest: largest distance of a contour's plane from its slice, in slices.
        gaps: names of regions that lack contours between their first and last slice.
        crossing: names of regions with contours that cross in a slice.
    """

    farthest: float = 0.0
    gaps: list[str] = field(default_factory=list)
    crossing: list[str] = field(default_factory=list)


def region_names(path: Path) -> dict[int, str]:
    """Return the name of each region that has closed contours, by its number.

    Raises:
        FindingError: the file is broken or holds no such region.
    """
    return _names(path, read_file(path, ["StructureSetROISequence", "ROIContourSequence"]))


def _names(path: Path, header: Any) -> dict[int, str]:
    try:
        names = {
            int(item.ROINumber): str(item.get("ROIName") or "").strip()
            for item in header.get("StructureSetROISequence") or []
        }
        closed = {number for number, _ in _closed_contours(header)}
    except Exception as error:  # pydicom decodes elements only now; its text may quote the header
        message = f"its list of regions cannot be read ({type(error).__name__})"
        raise fault("bad_segmentation", path, message, _AGAIN) from None
    found = {number: name for number, name in names.items() if number in closed and name}
    if not found:
        message = "it holds no named region with a closed contour"
        raise fault("bad_segmentation", path, message, _AGAIN)
    return found


def load_contours(
    path: Path, image: StoredVolume, values: Mapping[str, int], files: Sequence[Path]
) -> StoredVolume:
    """Read the regions of an RTSTRUCT object as labels on the grid of an image.

    Args:
        path: the object.
        image: the series that the contours were drawn on.
        values: label value of each region's name; other regions are left out.
        files: the files of the series.

    Returns:
        The labels (column, row, slice), int32, and warnings.

    Raises:
        FindingError: the file is broken, a region has another frame of reference, contours lie
            outside the image or across slices, or regions overlap.
    """
    header = read_file(path)
    names = {number: name for number, name in _names(path, header).items() if name in values}
    _check_frames(path, header, names, files)
    regions: dict[int, _Region] = {}
    to_voxel = np.linalg.inv(image.affine)
    for number, contour in _closed_contours(header):
        if number not in names:
            continue
        region = regions.setdefault(number, _Region(names[number]))
        place, polygon = _to_plane(path, region.name, contour, to_voxel)
        region.planes.setdefault(place, []).append(polygon)
    labels = np.zeros(image.values.shape, dtype=np.int32)
    owners = {value: name for name, value in values.items()}
    doubts = _Doubts()
    for region in sorted(regions.values(), key=lambda region: region.name):
        name = region.name
        mask = _rasterise(path, region, labels.shape, doubts)
        taken = labels[mask]
        taken = taken[(taken != 0) & (taken != values[name])]  # two regions may have one name
        if taken.size:
            other = owners[int(taken[0])]
            message = f"its regions {other!r} and {name!r} share {taken.size} voxels"
            fix = "choose regions that do not overlap with data.classes=[…]"
            raise fault("overlapping_segments", path, message, fix)
        labels[mask] = values[name]
    return StoredVolume(labels, image.affine, findings=tuple(_findings(path, doubts)))


def _closed_contours(header: Any) -> Iterator[tuple[int, Any]]:
    """Yield each closed contour of at least three points, with the number of its region."""
    for item in header.get("ROIContourSequence") or []:
        for contour in item.get("ContourSequence") or []:
            kind = str(contour.get("ContourGeometricType") or "")
            if kind in _CLOSED and len(contour.get("ContourData") or []) >= 9:
                yield int(item.ReferencedROINumber), contour


def _check_frames(path: Path, header: Any, names: Mapping[int, str], files: Sequence[Path]) -> None:
    """Refuse regions that have another frame of reference than the image."""
    frame = str(read_file(files[0], ["FrameOfReferenceUID"]).get("FrameOfReferenceUID") or "")
    for item in header.get("StructureSetROISequence") or []:
        own = str(item.get("ReferencedFrameOfReferenceUID") or "")
        if int(item.ROINumber) in names and frame and own and own != frame:
            message = f"its region {names[int(item.ROINumber)]!r} is drawn in another frame of "
            message += "reference than the image's, so its place in the image is unknown"
            raise fault("other_frame", path, message, "register it, or remove that region")


def _to_plane(path: Path, name: str, contour: Any, to_voxel: Array) -> tuple[float, Array]:
    """Return the place of a contour along the stack, in slices, and its polygon.

    Args:
        path: the file, for the messages.
        name: of the region.
        contour: an item of ContourSequence. Its ContourData list x, y, z in mm LPS+ of each point.
        to_voxel: (4, 4) RAS+ mm to (column, row, slice).

    Returns:
        The place, and the polygon (n, 2) of (row, column) in voxels.
    """
    try:
        points = np.array([float(side) for side in contour.ContourData]).reshape(-1, 3)
        points = points * np.diag(LPS_TO_RAS)[:3]
    except (TypeError, ValueError):
        points = np.full((1, 3), np.nan)
    if not np.isfinite(points).all():
        message = f"a contour of its region {name!r} is not a list of points"
        raise fault("bad_contours", path, message, _AGAIN)
    voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    # Rounded text moves a point by far less than 0.2 slices; an oblique contour spans more.
    if np.ptp(voxels[:, 2]) > 0.2:
        message = f"a contour of its region {name!r} spans {np.ptp(voxels[:, 2]):.1f} slices; it "
        message += "must lie in one slice of the image"
        raise fault("bad_contours", path, message, "export it for the series it was drawn on")
    return round(float(voxels[:, 2].mean()), 2), np.round(voxels[:, 1::-1], _DIGITS)


def _rasterise(path: Path, region: _Region, shape: Sequence[int], doubts: _Doubts) -> Array:
    """Return the voxels (column, row, slice) of a region as bool.

    Each slice takes the nearest plane of contours; nothing is interpolated between slices.
    """
    mask = np.zeros(shape, dtype=bool)
    nearest: dict[int, float] = {}
    for place in sorted(region.planes):
        index = int(np.floor(place + 0.5 + 1e-4))  # halves are all rounded up
        if not 0 <= index < shape[2]:
            message = f"its region {region.name!r} extends beyond the slices of the image"
            raise fault("outside_image", path, message, _AGAIN)
        doubts.farthest = max(doubts.farthest, abs(place - index))
        if index not in nearest or abs(place - index) < abs(nearest[index] - index):
            nearest[index] = place
    for index, place in nearest.items():
        plane, crosses = _fill(region.planes[place], (shape[1], shape[0]))
        if crosses and region.name not in doubts.crossing:
            doubts.crossing.append(region.name)
        mask[:, :, index] = plane.T
    if nearest and not mask.any() and _has_area(region):
        message = f"its region {region.name!r} lies outside of the image"
        raise fault("outside_image", path, message, _AGAIN)
    missing = max(nearest) - min(nearest) + 1 - len(nearest) if nearest else 0
    if missing:
        doubts.gaps.append(f"{region.name} ({missing})")
    return mask


def _has_area(region: _Region) -> bool:
    """Return whether a contour is so large that it covers a voxel's centre wherever it lies."""
    sides = [np.ptp(polygon, axis=0).min() for held in region.planes.values() for polygon in held]
    return max(sides, default=0.0) > 2


def _fill(polygons: Sequence[Array], shape: tuple[int, int]) -> tuple[Array, bool]:
    """Fill the polygons of one plane.

    The lines themselves belong to the region, including those around a hole. Programs that trace
    masks through the centres of the outermost voxels are read back exactly in this way.

    Returns:
        (rows, columns) bool, and whether some of the polygons cross.
    """
    inside, on_line = np.zeros(shape, bool), np.zeros(shape, bool)
    crosses = False
    seen: list[Array] = []
    for polygon in polygons:
        if any(np.array_equal(polygon, other) for other in seen):
            continue  # exclusive or would remove a contour that is listed twice
        seen.append(polygon)
        window, within, line = _points_of(polygon, shape)
        before = inside[window]
        shared = np.count_nonzero(before & within)
        # A hole lies wholly in what is there; a second part lies wholly outside of it.
        nested = shared in (0, np.count_nonzero(within), np.count_nonzero(before))
        crosses |= not nested
        inside[window] ^= within
        on_line[window] |= line
    return inside | on_line, crosses


def _points_of(polygon: Array, shape: tuple[int, int]) -> tuple[Any, Array, Array]:
    """Return the window of a polygon, and which pixel centres lie inside it and on its line."""
    low = np.clip(np.floor(polygon.min(axis=0)).astype(int), 0, shape)
    high = np.clip(np.ceil(polygon.max(axis=0)).astype(int) + 1, low, shape)
    window = np.s_[low[0] : high[0], low[1] : high[1]]
    size = tuple(int(side) for side in high - low)
    if min(size) == 0:
        nothing = np.zeros(size, bool)
        return window, nothing, nothing
    kinds = _kinds(polygon - low, size)
    return window, kinds == 1, kinds > 1


def _kinds(polygon: Array, size: tuple[int, ...]) -> Array:
    """Return for each pixel of a window: 0 outside, 1 inside, above 1 on the line.

    The library compares every pixel with every edge, which takes 0.66 s for an outline of the body
    in a slice of 512 x 512 pixels. So large polygons are first cut into strips, halfway between two
    rows, and each pixel is compared with few edges (0.04 s).
    """
    from skimage.measure import grid_points_in_poly

    if len(polygon) * size[0] * size[1] < _STRIPS_FROM:
        return np.asarray(grid_points_in_poly(size, polygon, binarize=False))
    from matplotlib.path import Path as Outline
    from matplotlib.transforms import Bbox

    # matplotlib has (x, y), skimage (row, column).
    outline = Outline(np.vstack([polygon, polygon[:1]])[:, ::-1], closed=True)
    kinds = np.zeros(size, dtype=np.uint8)
    for start in range(0, size[0], _STRIP):
        stop = min(start + _STRIP, size[0])
        strip = Bbox([[-0.5, start - 0.5], [size[1] - 0.5, stop - 0.5]])
        part = np.asarray(outline.clip_to_bbox(strip, inside=True).vertices)[:, ::-1]
        if len(part):
            held = (stop - start, size[1])
            kinds[start:stop] = grid_points_in_poly(held, part - [start, 0], binarize=False)
    return kinds


def _findings(path: Path, doubts: _Doubts) -> Iterator[Finding]:
    """Return warnings of what a user of the labels should know."""
    if doubts.farthest > 0.1:
        message = f"its contours lie up to {doubts.farthest:.2f} slices away from the slices of "
        message += "the image; each slice takes the nearest"
        fix = "check that it was drawn on this series"
        yield warning_finding("contours_between_slices", path, message, fix)
    if doubts.gaps:
        message = "regions without a contour on some slices between their first and last: "
        message += f"{', '.join(doubts.gaps[:12])}; nothing is interpolated"
        fix = "interpolate them in the planning system, unless they are gaps"
        yield warning_finding("contour_gaps", path, message, fix)
    if doubts.crossing:
        message = (
            f"regions with contours that cross on a slice: {', '.join(doubts.crossing[:12])}; "
        )
        message += "the area that two of them share is left out"
        fix = "look at the overlays; join the contours where they mean one area"
        yield warning_finding("contours_cross", path, message, fix)
