"""Find the page of a TIFF file that is the picture, and read its stored values.

Scanners, slide software and Photoshop add smaller versions of the same picture: thumbnails and the
levels of a pyramid, in any order, as pages of their own or below a page (SubIFDs). The page at full
resolution is the picture. Pages of equal size are a stack, and not a picture.

tifffile decodes the pages, because PIL inverts WhiteIsZero files and reduces colours to 8 bits.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.findings import check_bytes, check_size, fault
from samadapt.data.formats.tiff.safety import check_strips
from samadapt.system.arrays import Array

_REDUCED, _MASK = 1, 4  # bits of the tag NewSubfileType
_AGAIN = "copy it again, or save it uncompressed"


def tifffile() -> Any:
    """Return the module, without its log messages: the readers report faults as findings."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    return tifffile


def main_series(tif: Any) -> list[Any]:
    """Return the series of pages with the largest planes, and others of the same shape.

    tifffile calls each page that it wrote by itself a series; together they are a stack.
    """
    largest = max(tif.series, key=_plane_pixels)
    shape = largest.axes, largest.shape, largest.dtype
    return [series for series in tif.series if (series.axes, series.shape, series.dtype) == shape]


def main_page(path: Path, tif: Any) -> Any:
    """Return the page that holds the picture at full resolution.

    Raises:
        FindingError: there are several pages that are not smaller versions of one.
    """
    pages = [page for page in _all_pages(tif) if not int(page.subfiletype) & _MASK]
    full = [page for page in pages if not int(page.subfiletype) & _REDUCED] or pages
    if not full:
        raise fault("unreadable_image", path, "the file has no page", _AGAIN)
    largest = max(full, key=_area)
    if any(not _is_smaller_version(page, largest) for page in full if page is not largest):
        sizes = ", ".join(f"{page.imagelength} x {page.imagewidth}" for page in full[:6])
        more = ", ..." if len(full) > 6 else ""
        message = f"expected one page; the file has {len(full)} (h x w: {sizes}{more})"
        fix = "save each page as a file, or read stacks with data=tiff"
        raise fault("several_pages", path, message, fix)
    return largest


def page_values(path: Path, page: Any) -> Array:
    """Return the stored values of a page: (h, w) or (h, w, samples).

    Raises:
        FindingError: the file is cut off, or the values are not one real number a sample.
    """
    check_size(path, page.shape)
    if page.dtype is None or page.dtype.kind not in "iufb":
        message = f"expected one real number for each sample; its type is {page.dtype}"
        raise fault("unsupported_dtype", path, message, "save it as 8 or 16 bits, or float32")
    check_bytes(path, math.prod(page.shape) * page.dtype.itemsize)
    check_complete(path, page, path.stat().st_size)
    values = np.asarray(page.asarray())
    axes = page.axes
    if axes == "SYX":
        values, axes = np.moveaxis(values, 0, 2), "YXS"
    if axes not in ("YX", "YXS"):
        message = f"expected a picture; its axes are {axes} {page.shape}"
        raise fault("bad_shape", path, message, "save each picture as a file")
    return values


def check_complete(path: Path, page: Any, held: int) -> None:
    """Refuse a page with data beyond the ``held`` bytes of the file, or that unpack to too much.

    Raises:
        FindingError: naming the page.
    """
    ends = zip(page.dataoffsets, page.databytecounts, strict=True)
    if any(count == 0 or offset + count > held for offset, count in ends):
        message = f"page {page.index} extends beyond the end of the file ({held} bytes)"
        raise fault("truncated_file", path, message, _AGAIN)
    check_strips(path, page)


def _all_pages(tif: Any) -> Iterator[Any]:
    """Yield the pages of the file, and those below a page (SubIFDs)."""
    for page in tif.pages:
        page = page.aspage()
        yield page
        if page.subifds:
            yield from (below.aspage() for below in page.pages)


def _area(page: Any) -> int:
    return int(page.imagelength) * int(page.imagewidth)


def _is_smaller_version(page: Any, largest: Any) -> bool:
    """Return whether a page has at most half the area, and sides in the same ratio.

    Rounding changes a side by up to 2 pixels, or 2 % in some pyramids.
    """
    share = page.imagewidth / largest.imagewidth
    tolerance = max(2.0, 0.02 * page.imagelength)
    same_ratio = abs(page.imagelength - share * largest.imagelength) <= tolerance
    return bool(2 * _area(page) <= _area(largest) and same_ratio)


def _plane_pixels(series: Any) -> int:
    """Return the pixels (height x width) of a plane of a series."""
    sides = dict(zip(series.axes, series.shape, strict=True))
    return int(sides.get("Y", 1)) * int(sides.get("X", 1))
