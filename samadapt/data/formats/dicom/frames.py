"""DICOM files to frames and a volume: geometry, order, checks and pixel values.

Slices are ordered by their position along the slice normal (row x column direction of
ImageOrientationPatient, applied to ImagePositionPatient), never by name or number. DICOM's space
is LPS+; turning the signs of x and y gives nibabel's RAS+. Messages name files and numbers of the
geometry only: text of a header may name a patient, and pydicom's own messages quote it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.formats.dicom.colour import colour_fault, load_colours
from samadapt.data.formats.dicom.guard import check_deflated, check_frames
from samadapt.data.formats.dicom.sniff import is_dicom
from samadapt.data.formats.shared.volume_reader import Grid
from samadapt.data.types import Finding, FindingError, check_size, fault
from samadapt.system.arrays import Array

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_AGAIN = "copy or export the series again"
GREY = ("MONOCHROME1", "MONOCHROME2")
VOLUME_MODALITIES = ("CT", "MR", "PT", "NM")
"""Modalities whose images lie somewhere in the patient; pictures of others need no position."""
_CENTIMETRES = 3
"""PhysicalUnitsXDirection of an ultrasound region that is measured in cm."""


@dataclass(frozen=True)
class Frame:
    """One plane: a file, or a frame of a multi-frame file.

    Attributes:
        file: where it is.
        index: its number in the file.
        shape: (rows, columns).
        position: (3,) mm LPS+ of the first pixel's centre; None where the file does not say.
        axes: (3, 2) unit vectors of rising column and rising row index; None likewise.
        spacing: (between columns, between rows) in mm; None where the file does not say.
        thickness: distance to the next slice that the file states, or its thickness, in mm.
        slope: of the rescale to the modality's unit (HU).
        intercept: of the same.
        segment: number of the segment of a DICOM SEG's frame, else 0.
        acquisition: what tells repeated scans apart.
        modality: as the file says.
        is_colour: its pixels are colours, not one grey value each.
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
        """Whether it is a picture, or a frame of a cine, that lies nowhere in particular."""
        is_placed = self.position is not None and self.axes is not None
        return not is_placed and self.modality not in VOLUME_MODALITIES


def load_pydicom() -> Any:
    """Import pydicom, and keep it from quoting header values in warnings and logs."""
    import pydicom

    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    return pydicom


def read_file(path: Path, tags: Sequence[str] | None = None) -> Any:
    """Read a DICOM file: with ``tags`` only these, without pixels.

    Raises:
        FindingError: it is missing, empty, no DICOM, or broken.
    """
    pydicom = load_pydicom()
    if not path.is_file():
        raise fault("missing_file", path, "there is no such file", "check the path")
    if path.stat().st_size == 0:
        raise fault("empty_file", path, "the file is empty (0 bytes)", "copy it again")
    options: dict[str, Any] = {}
    if tags is not None:
        options = {"stop_before_pixels": True, "specific_tags": list(tags)}
    check_deflated(path)
    try:
        try:
            return pydicom.dcmread(path, **options)
        except pydicom.errors.InvalidDicomError:
            if not is_dicom(path):
                raise
            return pydicom.dcmread(path, **options, force=True)  # without preamble and prefix
    except pydicom.errors.InvalidDicomError:
        message = "expected a DICOM file; it begins with neither DICM at byte 128 nor an element"
        raise fault("not_dicom", path, message, "remove it, or copy it again") from None
    except Exception as error:  # its text may quote the header
        message = f"its header cannot be read ({type(error).__name__})"
        raise fault("truncated_file", path, message, _AGAIN) from None


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
    "ImagePosition",  # of ACR-NEMA, before DICOM
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


def frames_of(path: Path) -> list[Frame]:
    """Return the frames of one file, from its header.

    Raises:
        FindingError: the header is broken, or its pixels are no grey values.
    """
    header = read_file(path, TAGS)
    try:
        return list(_frames(path, header))
    except FindingError:
        raise
    except Exception as error:  # pydicom decodes an element when it is asked for
        message = f"its geometry or size cannot be read ({type(error).__name__})"
        raise fault("bad_geometry", path, message, _AGAIN) from None


def _frames(path: Path, header: Any) -> Iterator[Frame]:
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
        places = [group for group in (groups[index] if groups else None, shared) if group]
        yield _frame(path, index, shape, header, places)


def _frame(path: Path, index: int, shape: tuple[int, int], header: Any, places: list[Any]) -> Frame:
    """Read one frame's geometry from the functional groups, else from the file itself."""

    def find(group: str, key: str) -> Any:
        for place in places:
            item = _first(place.get(group))
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
    return Frame(
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
    """Whether a file holds colours, or the indices of a palette."""
    kind = str(header.get("PhotometricInterpretation") or GREY[1])
    return int(header.get("SamplesPerPixel") or 1) != 1 or kind not in GREY


def _other_spacing(header: Any) -> Sequence[float] | None:
    """Return (between rows, between columns) in mm of a projection or ultrasound picture."""
    for name in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        if header.get(name):
            return [float(side) for side in header.get(name)]
    regions = header.get("SequenceOfUltrasoundRegions") or []
    sides = {
        (10 * abs(float(region.PhysicalDeltaY)), 10 * abs(float(region.PhysicalDeltaX)))
        for region in regions
        if region.get("PhysicalUnitsXDirection") == _CENTIMETRES
        and region.get("PhysicalUnitsYDirection") == _CENTIMETRES
    }
    return list(sides.pop()) if len(sides) == 1 else None


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _vector(values: Any, length: int) -> Array:
    vector = np.array([float(value) for value in values])
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise ValueError
    return vector


def plane_affine(frame: Frame) -> Array:
    """Return (4, 4) (column, row, slice) to RAS+ mm of one frame, its slice axis the normal.

    Raises:
        FindingError: the frame has no usable geometry.
    """
    if frame.position is None or frame.axes is None:
        message = "it does not say where its slices lie (ImagePositionPatient, …Orientation…)"
        raise fault("missing_geometry", frame.file, message, "export the original series")
    lengths, across = np.linalg.norm(frame.axes, axis=0), float(frame.axes[:, 0] @ frame.axes[:, 1])
    if np.abs(lengths - 1).max() > 1e-3 or abs(across) > 1e-3:
        message = "ImageOrientationPatient must be two unit vectors at a right angle"
        raise fault("bad_geometry", frame.file, message, _AGAIN)
    affine = np.eye(4)
    affine[:3, :2] = frame.axes * check_spacing(frame)
    affine[:3, 2] = np.cross(frame.axes[:, 0], frame.axes[:, 1]) * (frame.thickness or 1.0)
    affine[:3, 3] = frame.position
    return np.asarray(_LPS @ affine)


def check_spacing(frame: Frame) -> tuple[float, float]:
    """Return (between columns, between rows) in mm, if it is given and positive.

    Raises:
        FindingError: naming the file.
    """
    if frame.spacing is None:
        message = "PixelSpacing is missing, so that its pixels have no size in mm"
        raise fault("bad_spacing", frame.file, message, "export the original series")
    if not (np.isfinite(frame.spacing).all() and min(frame.spacing) > 0):
        message = f"PixelSpacing must be positive; it is {frame.spacing}"
        raise fault("bad_spacing", frame.file, message, "export the original series")
    return frame.spacing


def picture_grid(folder: Path, frames: Sequence[Frame]) -> Grid | None:
    """Read a picture, or the frames of one cine, that has no place in the patient.

    Rows run downwards and columns to the right as stored; the frames of a cine are its slices.
    Lengths are in mm only for a single picture whose file states its pixels' size.

    Returns:
        the grid, ``is_placed`` being False, (x, y, 1, 3) of a colour picture; None where the
        frames have positions.

    Raises:
        FindingError: as ``read_pixels``.
    """
    first = frames[0]
    single = len(frames) == 1 and (first.position is None or first.axes is None)
    is_cine = all(frame.is_unplaced and frame.file == first.file for frame in frames)
    if not (single or is_cine):
        return None
    x, y = check_spacing(first) if first.spacing is not None else (1.0, 1.0)
    affine = np.diag([-x, -y, 1.0, 1.0])
    known = []
    if not first.is_unplaced:
        message = "it does not say where it lies: taken as an axial slice"
        fix = "nothing, if it is one picture"
        known = [Finding("assumed_axial", "warning", str(first.file), message, fix)]
    if len(frames) > 1:
        message = f"its {len(frames)} frames have no position; they are read as slices, in order"
        fix = "nothing, for ultrasound or another film; scores are in pixels"
        known = [Finding("frames_as_slices", "warning", str(first.file), message, fix)]
    in_mm = first.spacing is not None and len(frames) == 1
    grid = colour_grid(frames, affine) if first.is_colour else read_pixels(folder, frames, affine)
    return grid._replace(axis=2, in_mm=in_mm, is_placed=False, findings=tuple(known))


def order_frames(folder: Path, frames: Sequence[Frame]) -> tuple[list[Frame], Array, list[Finding]]:
    """Order the frames of a series and find its affine.

    Args:
        folder: what findings of the whole series name.
        frames: in any order.

    Returns:
        the frames from the first slice to the last, the (4, 4) affine (column, row, slice) to
        RAS+ mm, and warnings.

    Raises:
        FindingError: sizes, directions or spacing differ, positions are double, missing or uneven.
    """
    first = frames[0]
    for frame in frames:
        if frame.is_colour:
            raise colour_fault(frame.file)
        if frame.shape != first.shape:
            message = f"it is {frame.shape} pixels (rows, columns); {first.file.name} {first.shape}"
            raise fault("mixed_sizes", frame.file, message, "keep slices of one size in a series")
    affines = {id(frame): plane_affine(frame) for frame in frames}
    base = affines[id(first)]
    least = min(check_spacing(first))
    for frame in frames:
        if np.abs(affines[id(frame)][:3, :2] - base[:3, :2]).max() > 1e-3 * least:
            message = f"its orientation or spacing differs from that of {first.file.name}"
            fix = (
                "keep slices of one orientation in a series (localizers are a series of their own)"
            )
            raise fault("mixed_orientations", frame.file, message, fix)
    normal = np.cross(base[:3, 0], base[:3, 1])
    normal /= np.linalg.norm(normal) * (1 if _keeps_hand(first, normal) else -1)
    heights = {id(frame): float(affines[id(frame)][:3, 3] @ normal) for frame in frames}
    ordered = sorted(frames, key=lambda frame: heights[id(frame)])
    affine = affines[id(ordered[0])].copy()
    if len(ordered) == 1:
        return ordered, affine, []
    origins = np.array([affines[id(frame)][:3, 3] for frame in ordered])
    _check_steps(folder, ordered, origins @ normal)
    affine[:3, 2] = (origins[-1] - origins[0]) / (len(ordered) - 1)
    return ordered, affine, _check_line(folder, origins, affine, normal)


def _keeps_hand(frame: Frame, normal: Array) -> bool:
    """Whether a RAS+ vector points along DICOM's slice normal."""
    axes = np.zeros((3, 2)) if frame.axes is None else frame.axes
    return float((_LPS[:3, :3] @ np.cross(axes[:, 0], axes[:, 1])) @ normal) > 0


def _check_steps(folder: Path, ordered: Sequence[Frame], heights: Array) -> None:
    """Refuse double, missing and uneven slices; ``heights`` (n,) mm rise along the normal."""
    steps = np.diff(heights)
    usual = float(np.median(steps))
    double = np.flatnonzero(steps < max(1e-3, 0.01 * usual))
    if double.size:
        a, b = ordered[double[0]], ordered[double[0] + 1]
        repeats = len({frame.acquisition for frame in ordered}) > 1
        code = "several_acquisitions" if repeats else "duplicate_position"
        message = f"{b.file.name} lies where {a.file.name} does ({heights[double[0]]:.3f} mm along "
        message += f"the slice normal); {double.size} of {len(ordered)} slices are double"
        message += "; the folder holds several acquisitions, echoes or times" if repeats else ""
        raise fault(code, b.file if repeats else a.file, message, "keep each slice once")
    places = (heights - heights[0]) / usual
    if np.abs(places - np.arange(len(heights))).max() <= 0.1:
        return
    worst = int(np.argmax(np.abs(steps - usual)))
    between = f"{ordered[worst].file.name} and {ordered[worst + 1].file.name}"
    message = f"between {between} lie {steps[worst]:.3f} mm; elsewhere {usual:.3f} mm"
    count = steps / usual
    if np.abs(count - np.rint(count)).max() <= 0.1:
        message += f": {int(np.rint(count).sum()) - len(steps)} slices are missing"
        raise fault("missing_slices", folder, message, "export the whole series again")
    raise fault("uneven_spacing", folder, message, "resample the series to even slices")


def _check_line(folder: Path, origins: Array, affine: Array, normal: Array) -> list[Finding]:
    """Refuse slices beside the line of the others; tell of a tilted gantry."""
    count = np.arange(len(origins))[:, None]
    away = np.linalg.norm(origins - (origins[0] + count * affine[:3, 2]), axis=1)
    if away.max() > 0.1 * float(np.linalg.norm(affine[:3, :3], axis=0).min()):
        message = f"its slices lie up to {away.max():.3f} mm beside a straight line"
        raise fault("uneven_spacing", folder, message, "resample the series to a straight stack")
    step = affine[:3, 2]
    angle = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    if angle < 0.5:
        return []
    message = f"its slices are shifted along the stack (gantry tilt of {angle:.1f} degrees)"
    fix = "nothing: the affine is sheared; resample it where a program needs right angles"
    return [Finding("gantry_tilt", "warning", str(folder), message, fix)]


def read_pixels(folder: Path, ordered: Sequence[Frame], affine: Array) -> Grid:
    """Read the planes of ordered frames one file at a time, in the modality's unit.

    Raises:
        FindingError: pixels are missing, cut off, or compressed in a way that cannot be undone.
    """
    check_size(folder, (len(ordered), *ordered[0].shape))
    planes = np.empty((len(ordered), *ordered[0].shape), dtype=np.float32)
    slots: dict[Path, list[int]] = {}
    for slot, frame in enumerate(ordered):
        slots.setdefault(frame.file, []).append(slot)
    for path, held in slots.items():
        stored = stored_pixels(path)
        for slot in held:
            frame = ordered[slot]
            if stored.shape[1:] != frame.shape or frame.index >= len(stored):
                message = f"its pixels are {stored.shape[1:]}; its header says {frame.shape}"
                raise fault("truncated_file", path, message, _AGAIN)
            with np.errstate(over="ignore", invalid="ignore"):  # found with the whole volume
                planes[slot] = stored[frame.index] * np.float64(frame.slope) + frame.intercept
    return Grid(planes.transpose(2, 1, 0), affine)


def colour_grid(frames: Sequence[Frame], affine: Array) -> Grid:
    """Read a colour picture as (x, y, 1, 3) uint8; grey that is stored as RGB as (x, y, z).

    Raises:
        FindingError: the frames of a film have colours, or pixels cannot be read.
    """
    path = frames[0].file
    header = read_file(path)
    try:
        _complete(header)
        planes = load_colours(path, header, load_pydicom().pixels)
    except FindingError:
        raise
    except Exception as error:  # its text may quote the header
        raise _no_pixels(path, header, error) from None
    if (planes == planes[..., :1]).all():
        return Grid(planes[..., 0].transpose(2, 1, 0), affine)
    if len(frames) > 1:
        raise colour_fault(path)
    return Grid(planes.transpose(2, 1, 0, 3), affine)


def stored_pixels(path: Path) -> Array:
    """Return (frames, rows, columns) as stored, dark for low values (MONOCHROME1 is inverted).

    Raises:
        FindingError: see ``read_pixels``.
    """
    header = read_file(path)
    try:
        _complete(header)
        pixels = np.asarray(header.pixel_array)
        pixels = pixels if pixels.ndim == 3 else pixels[None]
        if header.get("ModalityLUTSequence"):
            pixels = np.asarray(load_pydicom().pixels.apply_modality_lut(pixels, header))
        if header.get("PhotometricInterpretation") == "MONOCHROME1":
            pixels = _inverted(pixels, header)
    except Exception as error:  # its text may quote the header
        raise _no_pixels(path, header, error) from None
    return pixels


def _complete(header: Any) -> None:
    """Add what files from before DICOM leave out and pydicom needs to decode pixels."""
    meta = header.file_meta
    if "TransferSyntaxUID" not in meta and not header["PixelData"].is_undefined_length:
        uid = load_pydicom().uid
        is_implicit, is_little = header.original_encoding
        explicit = uid.ExplicitVRLittleEndian if is_little else uid.ExplicitVRBigEndian
        meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if is_implicit else explicit
    defaults = {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": GREY[1],
        "PixelRepresentation": 0,
        "BitsStored": header.get("BitsAllocated"),
    }
    for name, value in defaults.items():
        if header.get(name) is None:
            setattr(header, name, value)


def _no_pixels(path: Path, header: Any, error: Exception) -> FindingError:
    """Say why pixels cannot be read: compressed in a way that needs a package, or broken."""
    pydicom = load_pydicom()
    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", None)
    name, can_decode = "an unknown syntax", True
    if syntax is not None and syntax in pydicom.uid.AllTransferSyntaxes:
        name = syntax.name
        try:
            can_decode = not syntax.is_compressed or syntax.is_deflated
            can_decode = can_decode or bool(pydicom.pixels.get_decoder(syntax).is_available)
        except NotImplementedError:
            can_decode = False
    if can_decode:
        message = f"its pixels cannot be read ({type(error).__name__}; stored as {name})"
        return fault("truncated_file", path, message, _AGAIN)
    message = f"its pixels are compressed as {name}, which needs another package"
    fix = "decompress the series (gdcmconv --raw, dcmdjpeg), or install pylibjpeg's plugins"
    return fault("compressed_dicom", path, message, fix)


def _inverted(pixels: Array, header: Any) -> Array:
    """Turn MONOCHROME1's values round within the range of its bits."""
    if pixels.dtype.kind == "f":
        return np.asarray(pixels.max() - pixels)
    bits, is_signed = int(header.BitsStored), int(header.PixelRepresentation) == 1
    ends = -1 if is_signed else (1 << bits) - 1  # lowest + highest value
    return ends - pixels.astype(np.int64)
