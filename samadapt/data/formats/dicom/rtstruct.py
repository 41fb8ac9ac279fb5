"""Contours of an RTSTRUCT object as labels on the grid of the series that they were drawn on.

A contour is a polygon in patient coordinates, in the plane of a slice. A voxel belongs to a region
if its centre lies inside, or on the line. Several contours of a region in one plane are combined
by exclusive or, so that a contour within another is a hole; a keyhole (one contour that reaches its
hole through a channel) needs no more. ``skimage.measure.grid_points_in_poly`` tells where a point
lies; rt-utils rounds contours to whole pixels before it fills them, and platipy, which proceeds as
we do, is not available for pydicom 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.findings import Finding, fault
from samadapt.data.formats.dicom.files import read_file
from samadapt.data.formats.shared.stored_volume import StoredVolume
from samadapt.system.arrays import Array

_LPS = np.array([-1.0, -1.0, 1.0])
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_AGAIN = "export the structure set again, for this series"
_DIGITS = 3
"""Contours are rounded to a thousandth of a voxel, so that the rounding of decimal text does not
decide whether a voxel's centre lies on the line."""

_MANY = 4_000_000
"""Comparisons of a pixel with an edge from which on a polygon is cut into strips."""
_STRIP = 8


@dataclass
class _Region:
    """One region: polygons (n, 2) of (row, column), by their place along the stack."""

    name: str
    planes: dict[float, list[Array]] = field(default_factory=dict)


@dataclass
class _Doubts:
    """What a reader of the masks should know."""

    farthest: float = 0.0
    gaps: list[str] = field(default_factory=list)
    crossing: list[str] = field(default_factory=list)


def region_names(path: Path) -> dict[int, str]:
    """Return the name of each region that has closed contours, by its number.

    Raises:
        FindingError: the file is broken or holds none.
    """
    header = read_file(path, ["StructureSetROISequence", "ROIContourSequence"])
    try:
        names = {
            int(item.ROINumber): str(item.get("ROIName") or "").strip()
            for item in header.get("StructureSetROISequence") or []
        }
        closed = {number for number, _ in _contours(header)}
    except Exception as error:  # pydicom decodes now, and its text may quote the header
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
        values: label value of each region's name; regions that are not in it are left out.
        files: of the series.

    Raises:
        FindingError: the file is broken, a region is of another frame of reference, contours lie
            outside the image or in no slice, or regions overlap.
    """
    names = {number: name for number, name in region_names(path).items() if name in values}
    header = read_file(path)
    _check_frames(path, header, names, files)
    regions: dict[int, _Region] = {}
    to_voxel = np.linalg.inv(image.affine)
    for number, contour in _contours(header):
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


def _contours(header: Any) -> Iterator[tuple[int, Any]]:
    """List the closed contours with the number of their region."""
    for item in header.get("ROIContourSequence") or []:
        for contour in item.get("ContourSequence") or []:
            kind = str(contour.get("ContourGeometricType") or "")
            if kind in _CLOSED and len(contour.get("ContourData") or []) >= 9:
                yield int(item.ReferencedROINumber), contour


def _check_frames(path: Path, header: Any, names: Mapping[int, str], files: Sequence[Path]) -> None:
    """Refuse regions of another frame of reference than the image's."""
    frame = str(read_file(files[0], ["FrameOfReferenceUID"]).get("FrameOfReferenceUID") or "")
    for item in header.get("StructureSetROISequence") or []:
        own = str(item.get("ReferencedFrameOfReferenceUID") or "")
        if int(item.ROINumber) in names and frame and own and own != frame:
            message = f"its region {names[int(item.ROINumber)]!r} is drawn in another frame of "
            message += "reference than the image's, so its place in the image is unknown"
            raise fault("other_frame", path, message, "register it, or remove that region")


def _to_plane(path: Path, name: str, contour: Any, to_voxel: Array) -> tuple[float, Array]:
    """Return a contour's place along the stack and its (row, column), in voxels."""
    try:
        points = np.array([float(side) for side in contour.ContourData]).reshape(-1, 3) * _LPS
    except (TypeError, ValueError):
        points = np.full((1, 3), np.nan)
    if not np.isfinite(points).all():
        message = f"a contour of its region {name!r} is no list of points"
        raise fault("bad_contours", path, message, _AGAIN)
    voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    if np.ptp(voxels[:, 2]) > 0.2:
        message = f"a contour of its region {name!r} spans {np.ptp(voxels[:, 2]):.1f} slices; it "
        message += "lies in no slice of the image"
        raise fault("bad_contours", path, message, "export it for the series it was drawn on")
    return round(float(voxels[:, 2].mean()), 2), np.round(voxels[:, 1::-1], _DIGITS)


def _rasterise(path: Path, region: _Region, shape: Sequence[int], doubts: _Doubts) -> Array:
    """Return the voxels (x, y, z) of a region; each slice takes the nearest plane of contours."""
    mask = np.zeros(shape, dtype=bool)
    nearest: dict[int, float] = {}
    for place in sorted(region.planes):
        index = int(np.floor(place + 0.5 + 1e-4))  # halves go up, all alike
        if not 0 <= index < shape[2]:
            message = f"its region {region.name!r} reaches beyond the slices of the image"
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
        message = f"its region {region.name!r} lies beside the image"
        raise fault("outside_image", path, message, _AGAIN)
    missing = max(nearest) - min(nearest) + 1 - len(nearest) if nearest else 0
    if missing:
        doubts.gaps.append(f"{region.name} ({missing})")
    return mask


def _has_area(region: _Region) -> bool:
    """Whether a contour is large enough to hold a voxel's centre wherever it lies."""
    sides = [np.ptp(polygon, axis=0).min() for held in region.planes.values() for polygon in held]
    return max(sides, default=0.0) > 2


def _fill(polygons: Sequence[Array], shape: tuple[int, int]) -> tuple[Array, bool]:
    """Return the pixels (rows, columns) of the polygons of one plane, and whether some cross.

    The lines themselves belong to the region, also those around a hole: programs that trace masks
    through the centres of the outermost voxels are then read back exactly.
    """
    inside, on_line = np.zeros(shape, bool), np.zeros(shape, bool)
    crosses = False
    seen: list[Array] = []
    for polygon in polygons:
        if any(np.array_equal(polygon, other) for other in seen):
            continue  # the same contour twice would remove itself
        seen.append(polygon)
        place, within, line = _points_of(polygon, shape)
        before = inside[place]
        shared = np.count_nonzero(before & within)
        # A hole lies wholly in what is there, a second part wholly outside of it.
        nested = shared in (0, np.count_nonzero(within), np.count_nonzero(before))
        crosses |= not nested
        inside[place] ^= within
        on_line[place] |= line
    return inside | on_line, crosses


def _points_of(polygon: Array, shape: tuple[int, int]) -> tuple[Any, Array, Array]:
    """Return the window of a polygon, and which pixel centres lie inside it and on its line."""
    low = np.clip(np.floor(polygon.min(axis=0)).astype(int), 0, shape)
    high = np.clip(np.ceil(polygon.max(axis=0)).astype(int) + 1, low, shape)
    place = np.s_[low[0] : high[0], low[1] : high[1]]
    size = tuple(int(side) for side in high - low)
    if min(size) == 0:
        nothing = np.zeros(size, bool)
        return place, nothing, nothing
    kinds = _kinds(polygon - low, size)
    return place, kinds == 1, kinds > 1


def _kinds(polygon: Array, size: tuple[int, ...]) -> Array:
    """Return 0 outside, 1 inside, above 1 on the line, for each pixel of a window.

    The library compares every pixel with every edge: 0.66 s for an outline of the body in a slice
    of 512 x 512. Large polygons are cut into strips of rows first (0.04 s), between two rows, so
    that each pixel meets few edges.
    """
    from skimage.measure import grid_points_in_poly

    if len(polygon) * size[0] * size[1] < _MANY:
        return np.asarray(grid_points_in_poly(size, polygon, binarize=False))
    from matplotlib.path import Path as Outline
    from matplotlib.transforms import Bbox

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
    """Report what a reader of the masks should know."""
    if doubts.farthest > 0.1:
        message = f"its contours lie up to {doubts.farthest:.2f} slices beside those of the image; "
        message += "each slice takes the nearest"
        fix = "check that it was drawn on this series"
        yield Finding("contours_between_slices", "warning", str(path), message, fix)
    if doubts.gaps:
        message = "regions without a contour on some slices between their first and last: "
        message += f"{', '.join(doubts.gaps[:12])}; nothing is interpolated"
        fix = "interpolate them in the planning system, unless they are gaps"
        yield Finding("contour_gaps", "warning", str(path), message, fix)
    if doubts.crossing:
        message = f"regions whose contours cross on a slice: {', '.join(doubts.crossing[:12])}; "
        message += "what two of them share is left out"
        fix = "look at the overlays; join the contours where they mean one area"
        yield Finding("contours_cross", "warning", str(path), message, fix)
