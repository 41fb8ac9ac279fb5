"""Arrays on the wire of nnInteractive's remote protocol: a header and chunks of blosc2.

::

    bytes  4     1        1      1     1        dtype_len  8 each    4
           NNIA  version  codec  ndim  dtype_len  dtype      shape     chunks
    then for each chunk
           8               8               compressed
           uncompressed    compressed      blosc2 frame

Numbers are little-endian. The protocol is that of nninteractive-client 2.6. What a header declares
is checked before memory is taken for it.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.errors import MissingExtraError
from samadapt.serving.refused import RefusedError

if TYPE_CHECKING:
    from samadapt.system.arrays import Array

MAGIC, VERSION = b"NNIA", 1
ZSTD, LZ4 = 1, 2
DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64"),
    *("float16", "float32", "float64"),
)
MOST_AXES = 4
CHUNK = 1 << 30
"""Bytes of a chunk at most: blosc2 counts in 32 bits."""


def pack(values: Array) -> bytes:
    """Return an array as the client unpacks it."""
    blosc2 = _blosc2()
    values = np.ascontiguousarray(values)
    name = values.dtype.name.encode("ascii")
    raw = values.reshape(-1).view(np.uint8).data
    parts = [
        struct.pack("<4s4B", MAGIC, VERSION, ZSTD, values.ndim, len(name)),
        name,
        struct.pack(f"<{values.ndim}q", *values.shape),
        struct.pack("<I", -(-len(raw) // CHUNK)),
    ]
    for start in range(0, len(raw), CHUNK):
        part = raw[start : start + CHUNK]
        # The size of an element, as blosc2 cannot read back zeros whose length is no multiple.
        packed = blosc2.compress2(
            part,
            typesize=values.itemsize,
            codec=blosc2.Codec.ZSTD,
            clevel=1,
            filters=[blosc2.Filter.NOFILTER],
            nthreads=1,
        )
        parts += [struct.pack("<QQ", len(part), len(packed)), packed]
    return b"".join(parts)


def unpack(body: bytes, most: int) -> Array:
    """Return the array that a client packed.

    Args:
        body: the body of a request.
        most: elements that are accepted.

    Raises:
        RefusedError: it is broken (400), or has more elements (413).
    """
    try:
        return _unpacked(body, most)
    except (struct.error, UnicodeDecodeError, ValueError, RuntimeError, OverflowError) as error:
        raise RefusedError(400, f"the packed array is broken ({type(error).__name__})") from None


def _unpacked(body: bytes, most: int) -> Array:
    magic, version, codec, ndim, length = struct.unpack_from("<4s4B", body, 0)
    if magic != MAGIC or version != VERSION or codec not in (ZSTD, LZ4):
        raise RefusedError(
            400,
            "expected an array as nninteractive-client 2.6 packs it: NNIA, version 1, zstd or lz4",
        )
    name = body[8 : 8 + length].decode("ascii")
    if name not in DTYPES or not 1 <= ndim <= MOST_AXES:
        raise RefusedError(
            400, f"expected numbers along 1 to {MOST_AXES} axes; got {name[:20]!r} along {ndim}"
        )
    at = 8 + length
    shape = struct.unpack_from(f"<{ndim}q", body, at)
    if min(shape) < 1:
        raise RefusedError(400, f"each axis must have at least one element; got {shape}")
    if math.prod(shape) > most:
        raise RefusedError(
            413, f"the array has {math.prod(shape):,} elements; at most {most:,} are accepted"
        )
    at += 8 * ndim
    (chunks,) = struct.unpack_from("<I", body, at)
    return _filled(body, at + 4, chunks, np.dtype(name), shape)


def _filled(
    body: bytes, at: int, chunks: int, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Array:
    """Unpack the chunks that begin at a byte of the body."""
    blosc2 = _blosc2()
    values = np.empty(math.prod(shape), dtype)
    view, done = memoryview(body), 0
    for _ in range(chunks):
        plain, packed = struct.unpack_from("<QQ", body, at)
        at += 16
        frame = view[at : at + packed]
        if len(frame) != packed or plain % dtype.itemsize or done + plain > values.nbytes:
            raise RefusedError(400, "a chunk of the packed array does not fit its shape")
        # blosc2 trusts the sizes in the frame, so they are compared before it unpacks.
        declared, stored, _ = blosc2.get_cbuffer_sizes(frame)
        if declared != plain or stored != packed:
            raise RefusedError(400, "a chunk of the packed array does not have the declared size")
        first = done // dtype.itemsize
        blosc2.decompress2(frame, dst=values[first : first + plain // dtype.itemsize])
        done, at = done + plain, at + packed
    if done != values.nbytes:
        raise RefusedError(400, "the packed array is shorter than its shape")
    return values.reshape(shape)


def _blosc2() -> Any:
    try:
        import blosc2
    except ImportError:
        raise MissingExtraError("blosc2", "serve") from None
    return blosc2
