"""The pixel values of DICOM frames: grey values in the modality's unit (HU for CT), and colours.

Stored values become the modality's by ``value = stored * RescaleSlope + RescaleIntercept``, or by a
look-up table (PS3.3 C.11.1). Frames of one series may have different slopes: PET has.
pydicom's own messages are never shown, because they quote the header, which may name a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.findings import FindingError, check_size, fault, warning_finding
from samadapt.data.formats.dicom.files import load_pydicom, read_file
from samadapt.data.formats.dicom.frames import GREY, DicomFrame, check_spacing, colour_fault
from samadapt.data.formats.shared.stored_volume import StoredVolume
from samadapt.system.arrays import Array


def read_pixels(folder: Path, ordered: Sequence[DicomFrame], affine: Array) -> StoredVolume:
    """Read the planes of ordered frames, one file at a time, in the modality's unit.

    Args:
        folder: the folder that a finding of the whole series names.
        ordered: the frames from the first slice to the last.
        affine: (4, 4) of the stack, (column, row, slice) to RAS+ mm.

    Returns:
        The volume (column, row, slice), float32.

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
                raise fault("truncated_file", path, message, "copy or export the series again")
            # An overflow gives infinity, which is found when the volume is checked.
            with np.errstate(over="ignore", invalid="ignore"):
                planes[slot] = stored[frame.index] * np.float64(frame.slope) + frame.intercept
    return StoredVolume(planes.transpose(2, 1, 0), affine)


def read_picture(folder: Path, frames: Sequence[DicomFrame]) -> StoredVolume | None:
    """Read a picture, or the frames of one film, that has no place in the patient.

    Rows run down and columns to the right, as stored. The frames of a film are its slices. Lengths
    are in mm only for a single picture, if its file states the size of its pixels.

    Returns:
        The volume with ``is_placed=False``: (column, row, slice), or (column, row, 1, 3) of a
        colour picture. None where the frames have positions.

    Raises:
        FindingError: as ``read_pixels``.
    """
    first = frames[0]
    single = len(frames) == 1 and (first.position is None or first.axes is None)
    is_film = all(frame.is_unplaced and frame.file == first.file for frame in frames)
    if not (single or is_film):
        return None
    x, y = check_spacing(first) if first.spacing is not None else (1.0, 1.0)
    affine = np.diag([-x, -y, 1.0, 1.0])  # upright: columns to the left, rows to posterior
    findings = []
    if not first.is_unplaced:  # a CT or MR image, which lies somewhere
        message = "it does not say where it lies: taken as an axial slice"
        fix = "do nothing if it is one picture"
        findings = [warning_finding("assumed_axial", first.file, message, fix)]
    if len(frames) > 1:
        message = f"its {len(frames)} frames have no position; they are read as slices, in order"
        fix = "do nothing for ultrasound or another film; scores are in pixels"
        findings = [warning_finding("frames_as_slices", first.file, message, fix)]
    in_mm = first.spacing is not None and len(frames) == 1
    read = _read_colours if first.is_colour else read_pixels
    stored = read(folder, frames, affine)
    return stored._replace(axis=2, in_mm=in_mm, is_placed=False, findings=tuple(findings))


def stored_pixels(path: Path) -> Array:
    """Return the stored pixels (frames, rows, columns) of a file; low values are dark.

    MONOCHROME1, where low values are bright (PS3.3 C.7.6.3.1.2), is inverted.

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


def _inverted(pixels: Array, header: Any) -> Array:
    """Turn the values of MONOCHROME1 round within the range of its stored bits."""
    if pixels.dtype.kind == "f":
        return np.asarray(pixels.max() - pixels)
    bits, is_signed = int(header.BitsStored), int(header.PixelRepresentation) == 1
    ends = -1 if is_signed else (1 << bits) - 1  # lowest + highest value
    return ends - pixels.astype(np.int64)


def _read_colours(folder: Path, frames: Sequence[DicomFrame], affine: Array) -> StoredVolume:
    """Read a colour picture as (column, row, 1, 3) uint8; grey stored as RGB without colours.

    Raises:
        FindingError: the frames of a film have colours, or pixels cannot be read.
    """
    path = frames[0].file
    header = read_file(path)
    try:
        _complete(header)
        planes = _rgb_planes(path, header)
    except FindingError:
        raise
    except Exception as error:  # its text may quote the header
        raise _no_pixels(path, header, error) from None
    if (planes == planes[..., :1]).all():
        return StoredVolume(planes[..., 0].transpose(2, 1, 0), affine)
    if len(frames) > 1:
        raise colour_fault(path)
    return StoredVolume(planes.transpose(2, 1, 0, 3), affine)


def _rgb_planes(path: Path, header: Any) -> Array:
    """Return the colours (frames, rows, columns, 3) of a file as uint8 RGB.

    Raises:
        FindingError: its colours have more than 8 bits.
        Exception: of pydicom, if the pixels cannot be decoded.
    """
    pixels = load_pydicom().pixels
    if str(header.PhotometricInterpretation) == "PALETTE COLOR":
        indices = np.asarray(header.pixel_array)
        planes = np.asarray(pixels.apply_color_lut(indices, header))[..., :3]
        # The third number of the descriptor is the bits of a palette's entry (PS3.3 C.7.6.3.1.5).
        bits = int(header.RedPaletteColorLookupTableDescriptor[2])
        planes = planes >> 8 if bits == 16 else planes
    else:
        planes = np.asarray(pixels.pixel_array(header))  # converts YBR to RGB
    if planes.dtype == np.uint16 and planes.max() < 256:
        planes = planes.astype(np.uint8)
    if planes.dtype != np.uint8 or planes.shape[-1] != 3:
        raise colour_fault(path)
    return planes if planes.ndim == 4 else planes[None]


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
        return fault("truncated_file", path, message, "copy or export the series again")
    message = f"its pixels are compressed as {name}, which needs another package"
    fix = "decompress the series (gdcmconv --raw, dcmdjpeg), or install pylibjpeg's plugins"
    return fault("compressed_dicom", path, message, fix)
