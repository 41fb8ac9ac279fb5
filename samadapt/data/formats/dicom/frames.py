"""The planes of DICOM files and where they lie: one frame a file, or many in a multi-frame file.

Geometry is that of DICOM PS3.3 C.7.6.2 (Image Plane). For the pixel at (row r, column c):

    place = ImagePositionPatient
            + c * spacing between columns * ImageOrientationPatient[0:3]
            + r * spacing between rows    * ImageOrientationPatient[3:6]

    ImagePositionPatient
      x---------> rising column index: ImageOrientationPatient[0:3], step PixelSpacing[1]
      |
      v  rising row index: ImageOrientationPatient[3:6], step PixelSpacing[0]

PixelSpacing lists the distance between rows first (PS3.3 10.7.1.3). Places are in mm in the LPS+
frame: x to the patient's left, y to posterior, z to the head. Affines here are in RAS+, as nibabel
has them: the signs of x and y are turned.

Messages name files and numbers of the geometry only, because text of a header may name a patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.findings import FindingError, check_size, fault
from samadapt.data.formats.dicom.files import check_frames, read_file
from samadapt.data.formats.shared.stored_volume import LPS_TO_RAS
from samadapt.system.arrays import Array

_AGAIN = "copy or export the series again"
_ORIGINAL = "export the original series"
GREY = ("MONOCHROME1", "MONOCHROME2")
VOLUME_MODALITIES = ("CT", "MR", "PT", "NM")
"""Modalities with images that always lie somewhere in the patient. Pictures of other modalities
(X-ray, ultrasound) may have no position."""
_CENTIMETRES = 3
"""PhysicalUnitsXDirection of an ultrasound region in cm (PS3.3 C.8.5.5)."""
TAGS = (
    "SOPClassUID",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SequenceOfUltrasoundRegions",
    "ImagePosition",  # ACR-NEMA, the standard before DICOM
    "ImageOrientation",
    "SpacingBetweenSlices",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "AcquisitionNumber",
    "EchoNumbers",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)


@dataclass(frozen=True)
class DicomFrame:
    """One plane: a file, or a frame of a multi-frame file.

    Attributes:
        file: the file that holds it.
        index: its number in the file, from 0.
        shape: (rows, columns).
        position: (3,) mm LPS+, centre of the first pixel; None where the file does not say.
        axes: (3, 2) unit vectors LPS+, along a rising column index and along a rising row index;
            None where the file does not say.
        spacing: (between columns, between rows) in mm; None where the file does not say.
        thickness: distance to the next slice as the file states it, else the slice's thickness,
            in mm; 0 where the file states neither.
        slope, intercept: of the rescale from stored values to the modality's unit, for CT HU.
        segment: number of the segment that a frame of a DICOM SEG shows, else 0.
        acquisition: numbers and times that differ between repeated scans of the same place.
        modality: as the file says.
        is_colour: whether its pixels are colours, and not one grey value each.
    """

    file: Path
    index: int
    shape: tuple[int, int]
    position: Array | None
    axes: Array | None
    spacing: tuple[float, float] | None
    thickness: float
    slope: float = 1.0
    intercept: float = 0.0
    segment: int = 0
    acquisition: tuple[str, ...] = ()
    modality: str = ""
    is_colour: bool = False

    @property
    def is_unplaced(self) -> bool:
        """Whether it is a picture, or a frame of a film, that has no place in the patient."""
        is_placed = self.position is not None and self.axes is not None
        return not is_placed and self.modality not in VOLUME_MODALITIES


def frames_of(path: Path) -> list[DicomFrame]:
    """Return the frames of one file, from its header.

    Raises:
        FindingError: the header is broken, or declares a size that is not read.
    """
    header = read_file(path, TAGS)
    try:
        return list(_frames(path, header))
    except FindingError:
        raise
    except Exception as error:  # pydicom decodes an element when it is asked for
        message = f"its geometry or size cannot be read ({type(error).__name__})"
        raise fault("bad_geometry", path, message, _AGAIN) from None


def _frames(path: Path, header: Any) -> Iterator[DicomFrame]:
    shape = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    count = int(header.get("NumberOfFrames") or 1)
    check_size(path, (*shape, count))
    check_frames(path, count)
    shared = _first(header.get("SharedFunctionalGroupsSequence"))
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    if groups and len(groups) != count:
        message = f"it declares {count} frames and describes {len(groups)}"
        raise fault("bad_geometry", path, message, _AGAIN)
    for index in range(count):
        sources = [group for group in (groups[index] if groups else None, shared) if group]
        yield _frame(path, index, shape, header, sources)


def _frame(
    path: Path, index: int, shape: tuple[int, int], header: Any, sources: list[Any]
) -> DicomFrame:
    """Read one frame's geometry.

    A multi-frame file states it in functional groups (PS3.3 C.7.6.16): in the group of the frame,
    else in the group that all frames share. Other files state it at the top level.
    """

    def find(group: str, key: str) -> Any:
        for source in sources:
            item = _first(source.get(group))
            if item is not None and item.get(key) is not None:
                return item.get(key)
        return header.get(key)

    position = find("PlanePositionSequence", "ImagePositionPatient") or header.get("ImagePosition")
    axes = find("PlaneOrientationSequence", "ImageOrientationPatient")
    axes = axes or header.get("ImageOrientation")
    spacing = find("PixelMeasuresSequence", "PixelSpacing") or _other_spacing(header)
    thickness = find("PixelMeasuresSequence", "SpacingBetweenSlices")
    thickness = thickness or find("PixelMeasuresSequence", "SliceThickness") or 0
    rows, columns = (float(side) for side in spacing) if spacing else (0.0, 0.0)
    slope = find("PixelValueTransformationSequence", "RescaleSlope")
    intercept = find("PixelValueTransformationSequence", "RescaleIntercept")
    names = ("AcquisitionNumber", "EchoNumbers", "TemporalPositionIdentifier", "TriggerTime")
    return DicomFrame(
        path,
        index,
        shape,
        _vector(position, 3) if position else None,
        _vector(axes, 6).reshape(2, 3).T if axes else None,
        (columns, rows) if spacing else None,
        abs(float(thickness)),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        int(find("SegmentIdentificationSequence", "ReferencedSegmentNumber") or 0),
        tuple(str(header.get(name)) for name in names),
        str(header.get("Modality") or ""),
        is_colour(header),
    )


def is_colour(header: Any) -> bool:
    """Return whether a file holds colours, or the indices of a palette."""
    kind = str(header.get("PhotometricInterpretation") or GREY[1])
    return int(header.get("SamplesPerPixel") or 1) != 1 or kind not in GREY


def colour_fault(path: Path) -> FindingError:
    """Return the error of colours in a volume or a film, which must have grey values."""
    message = (
        "expected one grey value for each pixel (MONOCHROME1 or 2); it is a colour image, and "
    )
    message += "not a single picture of 8 bits"
    fix = "leave it out, or save its frames as pictures and use data=folder"
    return fault("colour_dicom", path, message, fix)


def _other_spacing(header: Any) -> Sequence[float] | None:
    """Return (between rows, between columns) in mm of a projection or an ultrasound picture."""
    for name in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        if header.get(name):
            return [float(side) for side in header.get(name)]
    regions = header.get("SequenceOfUltrasoundRegions") or []
    sides = {
        (10 * abs(float(region.PhysicalDeltaY)), 10 * abs(float(region.PhysicalDeltaX)))  # cm
        for region in regions
        if region.get("PhysicalUnitsXDirection") == _CENTIMETRES
        and region.get("PhysicalUnitsYDirection") == _CENTIMETRES
    }
    return list(sides.pop()) if len(sides) == 1 else None  # regions of several scales: unknown


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _vector(values: Any, length: int) -> Array:
    vector = np.array([float(value) for value in values])
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise ValueError
    return vector


def plane_affine(frame: DicomFrame) -> Array:
    """Return the (4, 4) affine of one frame, (column, row, slice) to RAS+ mm.

    The slice axis is the normal of the plane. It is as long as the distance to the next slice that
    the file states, or 1 mm.

    Raises:
        FindingError: the frame has no usable geometry.
    """
    if frame.position is None or frame.axes is None:
        message = "it does not say where its slices lie (ImagePositionPatient, …Orientation…)"
        raise fault("missing_geometry", frame.file, message, _ORIGINAL)
    lengths, across = np.linalg.norm(frame.axes, axis=0), float(frame.axes[:, 0] @ frame.axes[:, 1])
    # Decimal text of six digits is within 1e-6; some programs write only three or four digits.
    if np.abs(lengths - 1).max() > 1e-3 or abs(across) > 1e-3:
        message = "ImageOrientationPatient must be two unit vectors at a right angle"
        raise fault("bad_geometry", frame.file, message, _AGAIN)
    affine = np.eye(4)
    affine[:3, :2] = frame.axes * check_spacing(frame)
    affine[:3, 2] = np.cross(frame.axes[:, 0], frame.axes[:, 1]) * (frame.thickness or 1.0)
    affine[:3, 3] = frame.position
    return np.asarray(LPS_TO_RAS @ affine)


def check_spacing(frame: DicomFrame) -> tuple[float, float]:
    """Return the spacing (between columns, between rows) in mm.

    Raises:
        FindingError: the frame states none, or one that is not positive.
    """
    if frame.spacing is None:
        message = "PixelSpacing is missing, so that its pixels have no size in mm"
        raise fault("bad_spacing", frame.file, message, _ORIGINAL)
    if not (np.isfinite(frame.spacing).all() and min(frame.spacing) > 0):
        message = f"PixelSpacing must be positive; it is {frame.spacing}"
        raise fault("bad_spacing", frame.file, message, _ORIGINAL)
    return frame.spacing
