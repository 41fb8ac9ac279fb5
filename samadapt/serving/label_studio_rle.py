"""Label Studio's run lengths of brush labels.

A stream of bits, the highest bit of a byte first::

    32 bits   number n of values
    5 bits    bits of a value, less 1
    4 x 4     bits of the four lengths of runs, less 1 each: 3, 4, 8 and 16 here
    then until n values:
      1, 2 bits k, length less 1 in the k-th number of bits, value     a run of equal values

The stream is filled up to whole bytes with zeros. A mask is written as a picture of four channels,
red, green, blue and alpha, which are all 0 or 255.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from samadapt.system.arrays import Array

VALUE_BITS = 8
LENGTH_BITS = (3, 4, 8, 16)
CHANNELS = 4


def brush_runs(mask: Array) -> list[int]:
    """Return the bytes of a mask (h, w), as Label Studio's key ``rle`` has them."""
    flat = (mask != 0).ravel()
    edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    ends = np.concatenate([[0], edges, [flat.size]])
    bits = [_bits(CHANNELS * flat.size, 32), _bits(VALUE_BITS - 1, 5)]
    bits += [_bits(size - 1, 4) for size in LENGTH_BITS]
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        value, left = _bits(255 if flat[start] else 0, VALUE_BITS), CHANNELS * (end - start)
        while left:
            length = min(left, 1 << LENGTH_BITS[-1])
            kind = next(k for k, size in enumerate(LENGTH_BITS) if length <= 1 << size)
            bits.append(f"1{_bits(kind, 2)}{_bits(length - 1, LENGTH_BITS[kind])}{value}")
            left -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _bits(value: int, size: int) -> str:
    return f"{value:0{size}b}"
