"""Check what a TIFF file declares, before tifffile follows it.

tifffile trusts the file in three ways, which are checked here:

- It walks the chain of pages without remembering where it was, so that a chain that leads back into
  itself keeps it busy for hours. The chain is walked here first.
- It opens the files that an OME description names, wherever they are. The names are checked.
- It unpacks a strip, however large the result is. A strip that could fill the memory is unpacked
  once without keeping it.

A page is an image file directory (IFD): a number of tags, the tags, and the offset of the next page
(TIFF 6.0, section 2). BigTIFF has the same layout with wider numbers.
"""

from __future__ import annotations

import lzma
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree as Xml

from samadapt.data.findings import FindingError, check_bytes, fault, too_large
from samadapt.data.formats.shared.inflate import ZLIB, Inflated
from samadapt.system.limits import lies_inside, max_bytes

MAX_PAGES = 1 << 18
"""Pages of one file: four times the largest stacks in use."""
_MAX_TAGS = 4096
_DESCRIPTION = 270  # the tag ImageDescription
_DEFLATE, _LZMA = (8, 32946), (34925,)  # values of the tag Compression
_DENSEST = {**dict.fromkeys(_DEFLATE, 1040), **dict.fromkeys(_LZMA, 8000)}
"""At most how many times larger a strip becomes when it is unpacked. Other compressions unpack to
what the page declares."""
_PLAIN = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000)
"""Compressions of plain samples: none, fax, LZW, deflate, PackBits, LZMA and Zstandard."""
_PICTURES = (6, 7, 33003, 33005, 34712, 34933, 50001)
"""Compressions with strips that are pictures and state a size of their own: JPEG, JPEG 2000, PNG
and WebP."""
_COUNT_FROM = 1 << 27
"""Bytes from which on the unpacked size of a strip is counted first."""
_AGAIN = "copy it again, or save it uncompressed"


def check_tiff(path: Path) -> None:
    """Walk the pages of a TIFF file, and check the names in its description.

    Raises:
        FindingError: the chain of pages leads back into itself, there are too many pages, or the
            description names files outside of the folder.
    """
    try:
        with path.open("rb") as file:
            for index, page in enumerate(_pages(path, file)):
                if index == 0:
                    _check_description(path, _description(file, page))
    except (struct.error, OverflowError):
        message = "its chain of pages is cut off or damaged"
        raise fault("truncated_file", path, message, _AGAIN) from None


@dataclass(frozen=True)
class _PageHeader:
    """Where a page lies in the file, and how its numbers are written.

    Attributes:
        order: byte order as ``struct`` names it, ``"<"`` or ``">"``.
        big: whether the file is BigTIFF.
        start: offset of the first tag in the file.
        tags: number of tags.
    """

    order: str
    big: bool
    start: int
    tags: int


def _pages(path: Path, file: BinaryIO) -> Iterator[_PageHeader]:
    """Yield the pages in turn; none for a file that is not TIFF."""
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        return
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    width = 8 if big else 4
    count_form, offset_form = order + ("Q" if big else "H"), order + ("Q" if big else "I")
    count_size, tag_size = (8, 20) if big else (2, 12)
    offset = struct.unpack(offset_form, head[8:16] if big else head[4:8])[0]
    size, seen = path.stat().st_size, set[int]()
    while offset:
        if offset in seen:
            message = f"page {len(seen)} is followed by an earlier page: the file is damaged"
            raise fault("bad_header", path, message, _AGAIN)
        if len(seen) >= MAX_PAGES:
            raise too_large(path, f"it has more than {MAX_PAGES:,} pages")
        seen.add(offset)
        if offset >= size:
            return  # tifffile stops here; the reader reports the missing page
        file.seek(offset)
        tags = struct.unpack(count_form, file.read(count_size))[0]
        if tags > _MAX_TAGS:
            message = f"page {len(seen)} declares {tags} tags: the file is damaged"
            raise fault("bad_header", path, message, _AGAIN)
        yield _PageHeader(order, big, offset + count_size, tags)
        file.seek(offset + count_size + tags * tag_size)
        following = file.read(width)
        if len(following) < width:
            return
        offset = struct.unpack(offset_form, following)[0]


def _description(file: BinaryIO, page: _PageHeader) -> bytes:
    """Return the text of a page's ImageDescription, or nothing.

    A tag is (code, type, count, value). A value that does not fit into its 4 or 8 bytes is stored
    elsewhere, and the tag holds its offset.
    """
    size, inline = (20, 8) if page.big else (12, 4)
    form = page.order + ("HHQ" if page.big else "HHI")
    file.seek(page.start)
    table = file.read(size * page.tags)
    for at in range(0, len(table) - size + 1, size):
        code, _, count = struct.unpack_from(form, table, at)
        if code != _DESCRIPTION:
            continue
        if count <= inline:
            return table[at + size - inline :][:count]
        place = table[at + size - inline : at + size]
        file.seek(struct.unpack(page.order + ("Q" if page.big else "I"), place)[0])
        return file.read(count)
    return b""


def _check_description(path: Path, text: bytes) -> None:
    """Check the files that an OME description names and the sizes that it declares."""
    text = text.strip(b"\0 \r\n\t")
    if not text.endswith(b"OME>"):
        return
    if b"<!" in text.replace(b"<!--", b""):
        message = "its OME description declares entities, which are not read"
        raise fault("bad_header", path, message, "save it again with another program")
    try:
        root = Xml.fromstring(text)
    except (Xml.ParseError, ValueError):
        return  # tifffile reads such a file without it
    for element in root.iter():
        _check_element(path, element)


def _check_element(path: Path, element: Xml.Element) -> None:
    """Check one element of an OME description."""
    name = element.get("FileName")
    if name is not None:
        if not lies_inside(name, path.parent):
            message = "its OME description names a file outside of the folder"
            raise fault("path_outside", path, message, "keep the files of a set in one folder")
        other = path.parent / name
        if other.is_file() and name != path.name:
            with other.open("rb") as file:
                for _ in _pages(other, file):  # tifffile walks the chain of this file, too
                    pass
    pages = path.stat().st_size  # a page takes more than a byte
    for key in ("IFD", "PlaneCount", "FirstC", "FirstT", "FirstZ"):
        if _number(element.get(key, "0")) > pages:
            raise fault("bad_header", path, f"its OME description has a wrong {key}", _AGAIN)
    for axis in "XYZCT":
        if _number(element.get(f"Size{axis}", "1")) > max_bytes():
            raise fault("bad_header", path, f"its OME description has a wrong Size{axis}", _AGAIN)


def _number(text: str) -> float:
    """Return a whole number; infinity for any other text, so that no limit accepts it."""
    return int(text) if text.isdecimal() and len(text) < 19 else math.inf


def check_strips(path: Path, page: Any) -> None:
    """Refuse a page with strips or tiles that unpack to more than the page declares.

    Args:
        path: the file.
        page: a page of tifffile.

    Raises:
        FindingError: naming the page.
    """
    count = math.prod(int(side) for side in page.chunked)
    if min(len(page.dataoffsets), len(page.databytecounts)) < count:
        message = f"page {page.index} declares {count:,} strips or tiles, and names fewer"
        raise fault("truncated_file", path, message, _AGAIN)
    expected = math.prod(int(side) for side in page.chunks) * int(page.dtype.itemsize)
    check_bytes(path, expected)
    if page.compression in _PICTURES:
        _check_pictures(path, page)
    elif page.compression not in _PLAIN:
        message = f"page {page.index} has a compression that is not supported"
        raise fault("unreadable_image", path, message, "save it uncompressed, or with LZW")
    densest = _DENSEST.get(int(page.compression), 1)
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if densest == 1 or count * densest <= _COUNT_FROM:
            continue
        with path.open("rb") as file:
            file.seek(offset)
            if not _fits(file.read(count), expected + 1, lzma_coded=page.compression in _LZMA):
                raise _unpacks_to_more(path, page.index)


def _check_pictures(path: Path, page: Any) -> None:
    """Refuse strips or tiles that are larger pictures than the page says."""
    from PIL import Image

    most = 4 * math.prod(int(side) for side in page.chunks)  # programs pad blocks of 16
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        with path.open("rb") as file:
            file.seek(offset)
            with Image.open(BytesIO(file.read(count))) as opened:
                if math.prod(opened.size) > most:
                    raise _unpacks_to_more(path, page.index)


def _fits(packed: bytes, most: int, *, lzma_coded: bool) -> bool:
    """Return whether a strip unpacks to less than ``most`` bytes.

    A broken strip fits: tifffile reports it.
    """
    try:
        if lzma_coded:
            stream = lzma.LZMADecompressor(memlimit=_COUNT_FROM)
            held = 0
            while not stream.eof and held < most:
                held += len(stream.decompress(packed, 1 << 24))
                packed = b""
                if stream.needs_input:
                    break
            return held < most
        return Inflated(BytesIO(packed), ZLIB).skip(most) < most
    except Exception:  # zlib, lzma and EOF errors
        return True


def _unpacks_to_more(path: Path, index: int) -> FindingError:
    message = f"a strip of page {index} unpacks to more than the page declares"
    return too_large(path, message)
