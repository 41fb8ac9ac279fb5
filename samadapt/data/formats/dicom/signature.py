"""Whether a file is DICOM, by its first bytes and never by its name.

A file of today's standard begins with 128 free bytes and ``DICM`` (PS3.10 section 7.1). Older files
(ACR-NEMA, and what some programs still write) begin with the first data element at once. Such a
file is recognised by its first elements: their tags rise, the first is of group 0002 or 0008, and
their lengths are plausible.
"""

from __future__ import annotations

import struct
from pathlib import Path

HEAD = 4096
"""Bytes that are looked at; the first elements of a header are short."""
_PREFIX = slice(128, 132)
# Value representations (PS3.5 section 7.1.2) with a length of four bytes after two reserved ones,
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"}
# and those with a length of two bytes.
_SHORT = {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO"),
    *(b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
_LONGEST = 1 << 16
_NEEDED = 3
"""Elements in a row that must be plausible: fewer than one in 10^12 random files has them."""


def is_dicom(path: Path) -> bool:
    """Return whether a file begins as DICOM does, with or without preamble.

    A file that cannot be opened is none.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return head[_PREFIX] == b"DICM" or begins_with_elements(head)


def begins_with_elements(head: bytes) -> bool:
    """Return whether bytes begin with data elements of DICOM, without preamble.

    Args:
        head: the first ``HEAD`` bytes of a file, or the whole file where it is shorter.
    """
    is_big = head[:2] in (b"\x00\x02", b"\x00\x08")  # the group number, high byte first
    order = ">" if is_big else "<"
    if len(head) < 8 or struct.unpack(order + "H", head[:2])[0] not in (2, 8):
        return False
    place, count, last = 0, 0, (-1, -1)
    while count < _NEEDED:
        if place + 8 > len(head):
            return False
        tag = struct.unpack(order + "HH", head[place : place + 4])
        size = _element_size(head, place, order)
        if tag <= last or size is None:
            return False
        place, count, last = place + size, count + 1, tag
    return True


def _element_size(head: bytes, place: int, order: str) -> int | None:
    """Return how many bytes the element at ``place`` has; None if it is not plausible.

    With explicit VR an element is (tag 4, VR 2, length 2, value), or (tag 4, VR 2, reserved 2,
    length 4, value). With implicit VR it is (tag 4, length 4, value).
    """
    kind = head[place + 4 : place + 6]
    if kind in _SHORT:
        return 8 + int(struct.unpack(order + "H", head[place + 6 : place + 8])[0])
    if kind in _LONG:
        if place + 12 > len(head):
            return None
        length = int(struct.unpack(order + "I", head[place + 8 : place + 12])[0])
        return 12 + length if length < _LONGEST else None
    length = int(struct.unpack(order + "I", head[place + 4 : place + 8])[0])  # implicit VR
    return 8 + length if length < _LONGEST and length % 2 == 0 else None
