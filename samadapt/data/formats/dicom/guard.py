"""What a DICOM file declares, looked at before pydicom takes memory for it.

pydicom unpacks a deflated file whole, whatever comes out of it, also where the header alone is
wanted. Here it is unpacked once without keeping it, up to what its header declares.
"""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

from samadapt.data.formats.shared.inflate import RAW_DEFLATE, Inflated
from samadapt.data.types import check_bytes, fault, too_large

MAX_FRAMES = 1 << 16
"""Frames of one file; the largest multi-frame objects of radiology have some thousands."""
_BESIDE_PIXELS = 1 << 25
"""Bytes that all of a file but its pixels may take: 32 MB of header."""
_SIZES = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated")


def check_deflated(path: Path) -> None:
    """Refuse a deflated file that unpacks to more than its header declares.

    Raises:
        FindingError: naming the file; what else is wrong with it pydicom says later.
    """
    import pydicom
    from pydicom.filereader import _read_file_meta_info, read_preamble

    with path.open("rb") as file:
        try:
            read_preamble(file, True)
            syntax = str(_read_file_meta_info(file).get("TransferSyntaxUID", ""))
        except Exception:  # pydicom raises many kinds for a broken header
            return
        if syntax != pydicom.uid.DeflatedExplicitVRLittleEndian:
            return
        content = Inflated(file, RAW_DEFLATE)
        try:
            first = content.read(_BESIDE_PIXELS)
            if len(first) < _BESIDE_PIXELS:
                return
            declared = _declared(first)
            check_bytes(path, declared)
            if content.skip(declared + 1) > declared:
                message = f"its header declares {declared:,} bytes of pixels; it unpacks to more"
                raise too_large(path, message)
        except (EOFError, zlib.error):
            return


def _declared(first: bytes) -> int:
    """Return the bytes of pixels that the beginning of a data set declares; 0 where it does not."""
    import pydicom

    try:
        header: Any = pydicom.dcmread(
            BytesIO(first), force=True, stop_before_pixels=True, specific_tags=list(_SIZES)
        )
        rows, columns, frames, samples, bits = (int(header.get(key) or 1) for key in _SIZES)
    except Exception:  # pydicom raises many kinds for a broken header
        return 0
    return max(rows * columns * frames * samples * -(-bits // 8), 0)


def check_frames(path: Path, count: int) -> None:
    """Refuse a number of frames that would take memory for itself alone.

    Raises:
        FindingError: it is below 1, above ``MAX_FRAMES``, or above the bytes of the file.
    """
    held = path.stat().st_size
    if not 1 <= count <= MAX_FRAMES or count > held:
        message = f"it declares {count:,} frames in {held:,} bytes; at most {MAX_FRAMES:,} are read"
        raise fault("too_large", path, message, "export it again, or cut it into parts")
