"""EXIF orientation: how a viewer turns a picture, and on which pixels its masks were drawn.

Cameras store pixels as the sensor sees them, and the EXIF tag ``Orientation`` says how to turn
them. Viewers and labelling programs obey the tag; OpenCV before version 3, pycocotools and plain
array readers do not. So a mask may be drawn on the stored or on the turned pixels. Its size does
not show which one if the picture is square, mirrored or turned upside down.

The orientations, with the stored first row on the side that a viewer shows (Exif 2.32, 4.6.4 A)::

    1 top    2 top, mirrored    3 bottom    4 bottom, mirrored
    5 left   6 right            7 right     8 left              (rows become columns)
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from samadapt.data.findings import FindingError, fault
from samadapt.errors import ConfigError
from samadapt.system.arrays import Array

Exif = Literal["apply", "ignore"]
"""``apply``: masks and annotations were drawn on the turned picture. ``ignore``: they were drawn on
the stored pixels, so nothing is turned."""

UPRIGHT = 1
"""The orientation of pictures that are not turned."""
TAG = 0x0112
"""Number of the tag ``Orientation`` in EXIF and TIFF."""
_IGNORE = (
    "set data.exif=ignore to use the stored pixels of pictures and masks, or draw it on the "
    "picture as viewers show it"
)
_CHOOSE = (
    "set data.exif=apply if it was drawn on the picture as viewers show it, or data.exif=ignore if "
    "on the stored pixels (as pycocotools and OpenCV's IMREAD_UNCHANGED see them)"
)


def parse_exif(choice: object) -> Exif | None:
    """Check a value of ``data.exif`` and return it.

    Raises:
        ConfigError: it is another value.
    """
    if choice is not None and choice not in get_args(Exif):
        raise ConfigError(f"data.exif must be {', '.join(get_args(Exif))} or null; got {choice!r}")
    return cast("Exif | None", choice)


def known_orientation(value: object) -> int:
    """Return an EXIF orientation of 1 to 8; other values become 1 (upright), as in viewers."""
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT


def turn_upright(pixels: Array, orientation: int) -> Array:
    """Return stored pixels (h, w, ...) as a viewer shows them.

    Args:
        pixels: (h, w, ...).
        orientation: EXIF, 1 to 8. 2 and 4 mirror, 3 turns by 180 degrees, 6 turns by 90 degrees
            clockwise, 8 anticlockwise, 5 and 7 mirror along a diagonal.

    Returns:
        (h, w, ...) for orientations 1 to 4, (w, h, ...) for 5 to 8.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # After this each orientation is one of four: as it is, mirrored along one axis, or along both.
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turned_size(stored: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the (h, w) that a viewer shows for stored pixels (h, w)."""
    return (stored[1], stored[0]) if orientation >= 5 else stored


def check_frame(
    drawn: Path,
    picture: Path,
    stored: tuple[int, int],
    orientation: int,
    size: tuple[int, int] | None,
) -> None:
    """Refuse a mask or annotation unless its size shows that it was drawn on the turned picture.

    Args:
        drawn: file of the mask or annotation.
        picture: file of the picture.
        stored: (h, w) of the picture's stored pixels.
        orientation: of the picture; if it is 1, nothing is checked.
        size: (h, w) that the mask has or the annotation declares; None if it declares none.

    Raises:
        FindingError: the size is that of the stored pixels, or it fits both.
    """
    if orientation == UPRIGHT:
        return
    upright = turned_size(stored, orientation)
    # Width and height are exchanged, so the size shows that the file was turned too.
    if upright != stored and size == upright:
        return
    if size is None or size == upright:
        reason = "the sizes do not show on which of the two this file was drawn"
        raise frame_fault(drawn, picture, orientation, reason, _CHOOSE)
    if size == stored:
        raise frame_fault(
            drawn,
            picture,
            orientation,
            f"this file has the size of the stored pixels, {_size(stored)}, instead of that of the "
            f"turned picture, {_size(upright)}",
        )


def frame_fault(
    drawn: Path, picture: Path, orientation: int, reason: str, fix: str = _IGNORE
) -> FindingError:
    """Return the error about a mask or annotation that may be drawn on the stored pixels.

    Args:
        drawn: file of the mask or annotation.
        picture: file of the picture.
        orientation: of the picture.
        reason: why the check failed.
        fix: what to do.
    """
    message = (
        f"the EXIF orientation {orientation} of {picture.name} turns the picture, so viewers "
        f"show it differently from the stored pixels; {reason}"
    )
    return fault("exif_orientation", drawn, message, fix)


def frame_hint(stored: tuple[int, int], orientation: int, size: tuple[int, int]) -> str:
    """Return a note for messages about different sizes if EXIF explains them, else ``""``."""
    if orientation == UPRIGHT or size != stored:
        return ""
    return (
        f" (it has the size of the stored pixels, which EXIF orientation {orientation} turns: "
        "data.exif=ignore)"
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} (h x w)"
