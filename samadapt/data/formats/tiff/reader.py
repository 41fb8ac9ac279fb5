"""TIFF stacks as volumes: ``images/`` + ``masks/``, or ``data.image`` and ``data.label``.

A stack has one axis beside rows and columns: Z, time, or an unnamed one, as ImageJ, OME-TIFF and
plain multi-page files write it. Its planes are the slices. Spacing comes from the metadata of
ImageJ or OME; without it, distances in mm are unknown. A mask is a stack of the same shape. Its own
spacing is ignored, because most programs do not write it. Pictures of one page are read by the
reader ``folder``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree as Xml

import numpy as np

from samadapt.data.channels import Indices, need_one, pick
from samadapt.data.findings import (
    Finding,
    FindingError,
    check_bytes,
    check_size,
    error_finding,
    fault,
)
from samadapt.data.formats.base import register_reader
from samadapt.data.formats.shared.stored_volume import StoredVolume, stack_without_orientation
from samadapt.data.formats.shared.volume_reader import VolumeReader
from samadapt.data.formats.tiff.pages import check_complete, main_series, tifffile
from samadapt.data.formats.tiff.safety import check_tiff
from samadapt.data.types import Case
from samadapt.system.arrays import Array

SUFFIXES = (".ome.tiff", ".ome.tif", ".tiff", ".tif")
# Millimetres in a unit, as ImageJ or OME names it.
_MM = {"nm": 1e-6, "um": 1e-3, "micron": 1e-3, "microns": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1e3}
# Micrometres are written with either of two characters for mu, or with an escaped one.
_MM |= {"\N{MICRO SIGN}m": 1e-3, "\N{GREEK SMALL LETTER MU}m": 1e-3, "\\u00b5m": 1e-3, "inch": 25.4}
_AGAIN = "copy it again, or save it uncompressed"


@register_reader("tiff")
class TiffReader(VolumeReader):
    """Reads TIFF stacks."""

    summary = "TIFF stacks (several pages, ImageJ, OME): images/ + masks/, one volume a file"
    takes_channels: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    default_intensity = "rgb"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Return whether it is a TIFF stack; another reader reads pictures."""
        return super().accepts(path) and is_stack(path)

    def sources(self, case: Case) -> Sequence[Path] | None:
        """Return None: an OME-TIFF may hold planes in other files."""
        return None

    def load(self, path: Path, channel: Indices = None) -> StoredVolume:
        """Read one stack."""
        return load_stack(path, channel)

    def compare(self, case: Case, image: StoredVolume, labels: StoredVolume) -> list[Finding]:
        """Compare the shapes alone, because stacks have no place in a patient."""
        shapes = image.values.shape[:3], labels.values.shape[:3]
        if shapes[0] == shapes[1]:
            return []
        message = f"its shape {shapes[1]} differs from {shapes[0]} of the image {case.image}"
        fix = "export image and mask at the same size"
        return [error_finding("shape_mismatch", case.labels or case.image, message, fix)]


def is_stack(path: Path) -> bool:
    """Return whether a file is a TIFF with more axes than a picture has."""
    if not path.name.lower().endswith(SUFFIXES) or not path.is_file():
        return False
    try:
        check_tiff(path)
        with tifffile().TiffFile(path) as tif:
            return not _sizes(main_series(tif)).keys() <= set("YXSC")
    except Exception:  # the reader of pictures reports a broken file
        return False


def load_stack(path: Path, channel: Indices = None) -> StoredVolume:
    """Read a TIFF file as a volume; a picture becomes a volume of one slice.

    Args:
        path: a ``.tif`` or ``.tiff`` file.
        channel: index of the channel of a file with several, or several of them.

    Raises:
        FindingError: the file is missing, broken or of a kind that cannot be used.
    """
    if not path.is_file():
        raise fault("missing_file", path, "there is no such file", "check the path")
    if path.stat().st_size == 0:
        raise fault("empty_file", path, "the file is empty (0 bytes)", "copy it again")
    try:
        check_tiff(path)
        with tifffile().TiffFile(path) as tif:
            series = main_series(tif)
            sizes = _sizes(series)
            check_size(path, tuple(sizes.values()))
            for part in series:
                _check(path, part, sizes)
            _check_chain(path, tif)
            values = _values(path, series, sizes, channel)
            spacing = _spacing(tif)
    except FindingError:
        raise
    except Exception as problem:  # tifffile raises many kinds
        message = f"it cannot be read as TIFF ({type(problem).__name__})"
        raise fault("unreadable_image", path, message, _AGAIN) from None
    return stack_without_orientation(values, spacing)


def _sizes(series: list[Any]) -> dict[str, int]:
    """Return the side of each axis, in their order, by its letter (tifffile: Y, X, Z, T, S, C).

    Axes of length 1 are left out, except for rows (Y) and columns (X). Several series form an axis
    ``several`` before the others.
    """
    pairs = zip(series[0].axes, series[0].shape, strict=True)
    sizes = {axis: int(side) for axis, side in pairs if side != 1 or axis in "YX"}
    return sizes if len(series) == 1 else {"several": len(series), **sizes}


def _check(path: Path, series: Any, sizes: dict[str, int]) -> None:
    """Refuse a series with other axes than one stack, of another type, or that is cut off."""
    check_size(path, series.shape)
    stacks = [axis for axis in sizes if axis not in "YXSC"]
    if len(stacks) > 1 or not {"Y", "X"} <= set(sizes):
        message = f"expected one stack of pages; its axes are {series.axes} {series.shape}"
        raise fault("bad_shape", path, message, "save each volume as a file")
    if series.dtype is None or series.dtype.kind not in "iufb":
        message = f"expected one real number for each pixel; its type is {series.dtype}"
        raise fault("unsupported_dtype", path, message, "save it as 8 or 16 bits, or float32")
    check_bytes(path, math.prod(series.shape) * series.dtype.itemsize)
    held = path.stat().st_size
    for page in series.pages:
        if page is None:
            raise fault("truncated_file", path, "a page of the series is missing", _AGAIN)
        check_complete(path, page.aspage(), held)


def _check_chain(path: Path, tif: Any) -> None:
    """Refuse a file with a last page that names a further one, which tifffile ignores."""
    count = len(tif.pages)
    tif.filehandle.seek(tif.pages.next_page_offset)
    following = tif.filehandle.read(tif.tiff.offsetsize)
    if len(following) < tif.tiff.offsetsize or any(following):
        message = f"page {count} is not in the file: the file is cut off"
        raise fault("truncated_file", path, message, _AGAIN)


def _values(path: Path, series: list[Any], sizes: dict[str, int], channel: Indices) -> Array:
    """Return the pages (z, y, x), or (c, z, y, x) for several channels."""
    parts = [part.asarray() for part in series]
    values = parts[0] if len(parts) == 1 else np.stack(parts)
    values = values.reshape(tuple(sizes.values()))
    order = list(sizes)
    for axis in "SC":  # samples (as RGB) and channels
        if axis in order:
            values = pick(path, np.moveaxis(values, order.index(axis), -1), channel)
            order.remove(axis)
            # `pick` leaves an axis "*" of the chosen channels if there are several.
            order += ["*"] if isinstance(channel, tuple) else []
            channel = None
    need_one(path, channel)
    stack = [axis for axis in order if axis not in "YX*"]
    picked = [axis for axis in order if axis == "*"]
    values = values.transpose([order.index(axis) for axis in [*picked, *stack, "Y", "X"]])
    return np.asarray(values if stack else np.expand_dims(values, len(picked)))


def _spacing(tif: Any) -> tuple[float, float, float] | None:
    """Return (x, y, z) in mm as ImageJ or OME state it, or None."""
    if tif.is_ome and tif.ome_metadata:
        return _ome_spacing(tif.ome_metadata)
    if not tif.is_imagej or not tif.imagej_metadata:
        return None
    unit = _MM.get(str(tif.imagej_metadata.get("unit", "")).strip().lower())
    tags = tif.pages[0].tags
    # A resolution is the fraction pixels / units; "spacing" is the distance of two planes.
    sides = []
    for name in ("XResolution", "YResolution"):
        count, length = tags[name].value if name in tags else (0, 1)
        sides.append(length / count if count else 0.0)
    sides.append(float(tif.imagej_metadata.get("spacing", 0.0)))
    return _known([side * unit for side in sides]) if unit else None


def _ome_spacing(text: str) -> tuple[float, float, float] | None:
    """Return (x, y, z) in mm of the first picture that an OME description gives all three for."""
    if "<!" in text.replace("<!--", ""):  # no entity is expanded, no external file named
        return None
    for element in Xml.fromstring(text).iter():
        if element.tag.endswith("}Pixels") or element.tag == "Pixels":
            units = [_MM.get(element.get(f"PhysicalSize{a}Unit", "um").lower()) for a in "XYZ"]
            sides = [element.get(f"PhysicalSize{axis}") for axis in "XYZ"]
            if all(sides) and all(units):
                return _known([float(s or 0) * (u or 0) for s, u in zip(sides, units, strict=True)])
    return None


def _known(sides: list[float]) -> tuple[float, float, float] | None:
    """Return the sides, or None if one of them is not a positive number."""
    x, y, z = sides
    return (x, y, z) if all(math.isfinite(s) and s > 0 for s in sides) else None
