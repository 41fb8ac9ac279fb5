"""Unpack compressed streams piece by piece, never more than was asked for."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

_CHUNK = 1 << 20
_PIECE = 1 << 22
GZIP, RAW_DEFLATE, ZLIB = 31, -15, 15
"""What ``zlib`` calls ``wbits``: which header and checksum surround the deflate stream."""


GZIP_MARK = b"\x1f\x8b"


class Source(Protocol):
    """Whatever bytes can be read from."""

    def read(self, count: int, /) -> bytes:
        """Return the next ``count`` bytes; fewer at the end."""


class Inflated:
    """The unpacked content of a deflate stream; several gzip members follow each other.

    Args:
        file: opened at the beginning of the stream.
        wbits: ``GZIP``, ``RAW_DEFLATE`` or ``ZLIB``.
    """

    def __init__(self, file: Source, wbits: int = GZIP) -> None:
        self._pieces = _pieces(file, wbits)
        self._rest = b""

    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes; fewer at the end.

        Raises:
            EOFError: the stream is cut off.
            zlib.error: it is damaged.
        """
        parts = [self._rest]
        held = len(self._rest)
        while held < count and (piece := next(self._pieces, b"")):
            parts.append(piece)
            held += len(piece)
        last = parts.pop()
        cut = len(last) - max(held - count, 0)
        self._rest = last[cut:]
        return b"".join([*parts, last[:cut]])

    def skip(self, count: int) -> int:
        """Unpack ``count`` bytes without keeping them; return how many there were."""
        held, last = len(self._rest), self._rest
        while held < count and (piece := next(self._pieces, b"")):
            held, last = held + len(piece), piece
        self._rest = last[len(last) - max(held - count, 0) :]
        return min(held, count)


def gunzipped(file: BinaryIO, layers: int) -> Source:
    """Return the content of a file, out of so many layers of gzip if it has them.

    Raises:
        EOFError, zlib.error: as ``Inflated.read``.
    """
    for depth in range(layers):
        if _nested(file, depth).read(2) != GZIP_MARK:
            return _nested(file, depth)
    return _nested(file, layers)


def _nested(file: BinaryIO, depth: int) -> Source:
    file.seek(0)
    stream: Source = file
    for _ in range(depth):
        stream = Inflated(stream)
    return stream


def _pieces(file: Source, wbits: int) -> Iterator[bytes]:
    packed = file.read(_CHUNK)
    while packed:
        stream = zlib.decompressobj(wbits)
        while not stream.eof:
            if not packed and not (packed := file.read(_CHUNK)):
                raise EOFError("the compressed stream ends before its end mark")
            piece = stream.decompress(packed, _PIECE)
            packed = stream.unconsumed_tail
            if piece:
                yield piece
        if wbits != GZIP:
            return
        packed = (stream.unused_data or file.read(_CHUNK)).lstrip(b"\0")  # padding of tapes
