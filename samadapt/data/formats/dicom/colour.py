"""Colours of DICOM pictures: RGB, YBR (as ultrasound and endoscopy store them) and palettes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.types import FindingError, fault
from samadapt.system.arrays import Array


def colour_fault(path: Path) -> FindingError:
    """Return the error of colours where grey values are needed: in a volume, or in a film."""
    message = "expected one grey value a pixel (MONOCHROME1 or 2); it is a colour image, and not "
    message += "one picture of 8 bits"
    fix = "leave it out, or save its frames as pictures and use data=folder"
    return fault("colour_dicom", path, message, fix)


def load_colours(path: Path, header: Any, pixels: Any) -> Array:
    """Return (frames, rows, columns, 3) uint8 RGB of a colour file.

    Args:
        path: the file.
        header: as pydicom read it, with its pixels.
        pixels: the module ``pydicom.pixels``.

    Raises:
        FindingError: its colours have more than 8 bits.
        Exception: of pydicom, whose text may quote the header: the pixels cannot be decoded.
    """
    if str(header.PhotometricInterpretation) == "PALETTE COLOR":
        indices = np.asarray(header.pixel_array)
        planes = np.asarray(pixels.apply_color_lut(indices, header))[..., :3]
        bits = int(header.RedPaletteColorLookupTableDescriptor[2])
        planes = planes >> 8 if bits == 16 else planes
    else:
        planes = np.asarray(pixels.pixel_array(header))  # YBR becomes RGB
    if planes.dtype == np.uint16 and planes.max() < 256:
        planes = planes.astype(np.uint8)
    if planes.dtype != np.uint8 or planes.shape[-1] != 3:
        raise colour_fault(path)
    return planes if planes.ndim == 4 else planes[None]
