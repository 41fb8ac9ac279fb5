"""Check that a PNG contains as many pixels as it declares, before memory is allocated for them.

PIL first allocates the memory for the whole picture. If the compressed stream is too short but ends
properly, PIL accepts it, and the rest of the picture is black.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from samadapt.data.findings import fault, too_large

_MAGIC = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples for each pixel by colour type: grey, RGB, palette, grey and alpha, RGBA."""
_ADAM7: tuple[tuple[int, int, int, int], ...] = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""First column and row of each pass of an interlaced picture, and the steps between them
(PNG specification, section 8.2)."""
_COUNTED, _USUAL_RATIO = 1 << 24, 16
"""Pixels are counted if they need more than 16 MB and more than 16 times the size of the file."""


def check_png(path: Path) -> None:
    """Refuse a PNG with more or fewer pixels than its header declares.

    Raises:
        FindingError: naming the file. Other problems are left to PIL.
    """
    with path.open("rb") as file:
        head = file.read(33)
    if head[:8] != _MAGIC or len(head) < 33:
        return
    # 8 bytes of magic, 4 of length, 4 of the name IHDR, then the 13 bytes of the header.
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", head[16:29])
    bits = depth * _SAMPLES.get(kind, 1)
    # Adam7 stores a picture as seven smaller ones, each with its own rows.
    declared = _bytes_of(width, height, bits)
    if interlaced:
        passes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in _ADAM7]
        declared = sum(_bytes_of(w, h, bits) for w, h in passes)
    if declared <= _COUNTED or declared <= _USUAL_RATIO * path.stat().st_size:
        return
    held = _count(path, declared + 1)
    if held < declared:
        message = f"its header declares {declared:,} bytes of pixels; it holds {held:,}"
        raise fault("truncated_file", path, message, "copy it again")
    if held > declared:
        raise too_large(path, f"its header declares {declared:,} bytes of pixels; it holds more")


def _bytes_of(width: int, height: int, bits: int) -> int:
    """Return the bytes of all rows, each with one byte for its filter; 0 if there is no pixel."""
    return height * (1 + -(-width * bits // 8)) if width > 0 and height > 0 else 0


def _count(path: Path, most: int) -> int:
    """Return the number of bytes that the stream of pixels unpacks to, at most ``most``."""
    stream, held = zlib.decompressobj(), 0
    try:
        for packed in _pieces(path):
            while packed and held < most and not stream.eof:
                held += len(stream.decompress(packed, 1 << 22))
                packed = stream.unconsumed_tail
    except zlib.error:
        return held
    return min(held, most)


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield the content of the IDAT chunks, piece by piece."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            left, kind = struct.unpack(">I4s", head)
            if kind != b"IDAT":
                file.seek(left + 4, 1)  # the content and its checksum of 4 bytes
                continue
            while left > 0 and (piece := file.read(min(left, 1 << 20))):
                left -= len(piece)
                yield piece
            file.seek(4, 1)
