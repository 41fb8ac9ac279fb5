"""Whether a PNG holds as much as it declares, counted before memory is taken for its pixels.

PIL takes the memory of the whole picture first, and a stream that ends too early, but properly,
passes for a whole one: the rest of the picture is black.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from samadapt.data.findings import fault, too_large

_MAGIC = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7: tuple[tuple[int, int, int, int], ...] = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
"""First column and row of each pass of an interlaced picture, and the steps between them."""
_COUNTED, _USUAL_RATIO = 1 << 24, 16
"""A picture above so many bytes, and so much smaller in its file, is counted."""


def check_png(path: Path) -> None:
    """Refuse a PNG whose stream of pixels is longer or shorter than its header says.

    Raises:
        FindingError: naming the file; other faults are PIL's to report.
    """
    with path.open("rb") as file:
        head = file.read(33)
    if head[:8] != _MAGIC or len(head) < 33:
        return
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", head[16:29])
    bits = depth * _SAMPLES.get(kind, 1)
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
    """Return the bytes of rows, each with one for its filter; none where there is no pixel."""
    return height * (1 + -(-width * bits // 8)) if width > 0 and height > 0 else 0


def _count(path: Path, most: int) -> int:
    """Return how many bytes the picture's stream unpacks to, at most ``most``."""
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
    """Yield what the chunks of pixels hold, a piece at a time."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            left, kind = struct.unpack(">I4s", head)
            if kind != b"IDAT":
                file.seek(left + 4, 1)
                continue
            while left > 0 and (piece := file.read(min(left, 1 << 20))):
                left -= len(piece)
                yield piece
            file.seek(4, 1)
