"""Unpack compressed streams piece by piece, so a small file cannot fill the memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

_CHUNK = 1 << 20
"""Packed bytes that are read at once."""
_PIECE = 1 << 22
"""Most bytes that are unpacked at once."""
GZIP, RAW_DEFLATE, ZLIB = 31, -15, 15
"""Values for ``wbits`` of ``zlib``: which header and checksum surround the deflate stream."""


GZIP_MARK = b"\x1f\x8b"
"""First bytes of a gzip file."""


class Source(Protocol):
    """Anything that bytes can be read from."""

    def read(self, count: int, /) -> bytes:
        """Return the next ``count`` bytes; fewer at the end."""


class Inflated:
    """The unpacked content of a deflate stream, or of several gzip members one after another.

    Args:
        file: is at the beginning of the stream.
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
        # The last piece may hold more than was asked for; keep the rest for the next call.
        last = parts.pop()
        cut = len(last) - max(held - count, 0)
        self._rest = last[cut:]
        return b"".join([*parts, last[:cut]])

    def skip(self, count: int) -> int:
        """Unpack ``count`` bytes without keeping them; return how many there were.

        Raises:
            EOFError, zlib.error: see ``read``.
        """
        held, last = len(self._rest), self._rest
        while held < count and (piece := next(self._pieces, b"")):
            held, last = held + len(piece), piece
        self._rest = last[len(last) - max(held - count, 0) :]
        return min(held, count)


def gunzipped(file: BinaryIO, layers: int) -> Source:
    """Return the content of a file, without its layers of gzip.

    Args:
        file: is read from its beginning.
        layers: how many layers of gzip are unpacked at most.

    Raises:
        EOFError, zlib.error: see ``Inflated.read``.
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
            # ``unconsumed_tail`` is what remains because the piece is full.
            piece = stream.decompress(packed, _PIECE)
            packed = stream.unconsumed_tail
            if piece:
                yield piece
        if wbits != GZIP:
            return
        packed = (stream.unused_data or file.read(_CHUNK)).lstrip(b"\0")  # tapes pad with zeros
