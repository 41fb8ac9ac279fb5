"""Read one DICOM file: safely, and without quoting text of its header.

pydicom unpacks a deflated file (PS3.5 A.5) whole, however large the result is, even where only the
header is wanted. So such a file is first unpacked without keeping it, up to the size that its
header declares.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from samadapt.data.findings import FindingError, check_bytes, fault, too_large
from samadapt.data.formats.dicom.signature import is_dicom
from samadapt.data.formats.shared.inflate import RAW_DEFLATE, Inflated

MAX_FRAMES = 1 << 16
"""Frames of one file; the largest multi-frame objects of radiology have some thousands."""
_LONGEST_HEADER = 1 << 25
"""Bytes of a file without its pixels: 32 MB."""
_SIZES = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated")


def load_pydicom() -> Any:
    """Import pydicom, and keep it from quoting header values in warnings and logs."""
    import pydicom

    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    return pydicom


def read_file(path: Path, tags: Sequence[str] | None = None) -> Any:
    """Read a DICOM file as a pydicom ``Dataset``.

    Args:
        path: the file.
        tags: keywords of the elements to read, without pixels; None: everything.

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
    try:
        with path.open("rb") as file:
            check_deflated(path, file)
            try:
                return pydicom.dcmread(file, **options)
            except pydicom.errors.InvalidDicomError:
                if not is_dicom(path):
                    raise
                file.seek(0)
                return pydicom.dcmread(file, **options, force=True)  # no preamble and no prefix
    except FindingError:
        raise
    except pydicom.errors.InvalidDicomError:
        message = "expected a DICOM file; it has neither DICM at byte 128 nor a data element at 0"
        raise fault("not_dicom", path, message, "remove it, or copy it again") from None
    except Exception as error:  # its text may quote the header
        message = f"its header cannot be read ({type(error).__name__})"
        raise fault("truncated_file", path, message, "copy or export the series again") from None


def check_deflated(path: Path, file: BinaryIO) -> None:
    """Refuse a deflated file that unpacks to more than its header declares.

    Other faults are left to pydicom, which reads the file next. The file is at its beginning before
    and afterwards.

    Raises:
        FindingError: naming the file.
    """
    import pydicom
    from pydicom.filereader import _read_file_meta_info, read_preamble

    try:
        read_preamble(file, True)
        syntax = str(_read_file_meta_info(file).get("TransferSyntaxUID", ""))
        if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
            _check_unpacked(path, Inflated(file, RAW_DEFLATE))
    except FindingError:
        raise
    except Exception:  # pydicom raises many kinds for a broken header
        return
    finally:
        file.seek(0)


def _check_unpacked(path: Path, content: Inflated) -> None:
    """Count what a deflated file unpacks to, as far as needed, without keeping it."""
    first = content.read(_LONGEST_HEADER)
    if len(first) < _LONGEST_HEADER:
        return
    declared = _declared_pixel_bytes(first)
    check_bytes(path, declared)
    if content.skip(declared + 1) > declared:
        message = f"its header declares {declared:,} bytes of pixels; it unpacks to more"
        raise too_large(path, message)


def _declared_pixel_bytes(first: bytes) -> int:
    """Return the bytes of pixels that the beginning of a data set declares; 0 if it is broken."""
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
    """Refuse a number of frames for which a list alone would take a lot of memory.

    Raises:
        FindingError: it is below 1, above ``MAX_FRAMES``, or above the bytes of the file.
    """
    held = path.stat().st_size
    if not 1 <= count <= MAX_FRAMES or count > held:
        message = f"it declares {count:,} frames in {held:,} bytes; at most {MAX_FRAMES:,} are read"
        raise fault("too_large", path, message, "export it again, or cut it into parts")
