"""EXIF orientation: how a viewer turns a picture, and in which frame its masks are drawn.

Cameras store pixels as the sensor sees them and say in the EXIF tag ``Orientation`` how to turn
them. Viewers and labelling programs obey the tag; OpenCV before version 3, pycocotools and plain
array readers do not. So a mask may be drawn on either frame, and on square pictures, or where the
picture is only mirrored or turned upside down, its size does not tell which one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from samadapt.data.findings import FindingError, fault
from samadapt.errors import ConfigError
from samadapt.system.arrays import Array

Exif = Literal["apply", "ignore"]
"""``apply``: masks and annotations are drawn on the turned picture; ``ignore``: on the stored
pixels, so that nothing is turned."""

UPRIGHT = 1
TAG = 0x0112
_IGNORE = (
    "set data.exif=ignore to use the stored pixels of pictures and masks, or draw it on the "
    "picture as viewers show it"
)
_CHOOSE = (
    "set data.exif=apply if it was drawn on the picture as viewers show it, or data.exif=ignore if "
    "on the stored pixels (as pycocotools and OpenCV's IMREAD_UNCHANGED see them)"
)


def parse_exif(choice: object) -> Exif | None:
    """Return a choice of ``data.exif``.

    Raises:
        ConfigError: it is none.
    """
    if choice is not None and choice not in get_args(Exif):
        raise ConfigError(f"data.exif must be {', '.join(get_args(Exif))} or null; got {choice!r}")
    return cast("Exif | None", choice)


def known_orientation(value: object) -> int:
    """Return an EXIF orientation of 1 to 8; other values mean 1, upright, as viewers take them."""
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT


def turn_upright(pixels: Array, orientation: int) -> Array:
    """Return stored pixels (h, w, ...) as a viewer shows them.

    Args:
        pixels: rows and columns first.
        orientation: EXIF, 1 to 8. 2 and 4 mirror, 3 turns by 180 degrees, 6 by 90 degrees
            clockwise, 8 anticlockwise, 5 and 7 mirror along a diagonal.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # After the transposition each orientation is one of four mirrorings.
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turned_size(stored: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return (h, w) of stored pixels as a viewer shows them."""
    return (stored[1], stored[0]) if orientation >= 5 else stored


def check_frame(
    drawn: Path,
    picture: Path,
    stored: tuple[int, int],
    orientation: int,
    size: tuple[int, int] | None,
) -> None:
    """Refuse a mask or annotation of a turned picture unless its size shows that it is turned too.

    Args:
        drawn: file of the mask or annotation.
        picture: file of the picture.
        stored: (h, w) of the picture's stored pixels.
        orientation: of the picture; nothing is checked where it is 1.
        size: (h, w) that the mask has or the annotation declares; None where it has none.

    Raises:
        FindingError: the size is that of the stored pixels, or does not tell.
    """
    if orientation == UPRIGHT:
        return
    upright = turned_size(stored, orientation)
    if upright != stored and size == upright:
        return
    if size is None or size == upright:
        reason = "sizes do not tell on which of the two this file is drawn"
        raise frame_fault(drawn, picture, orientation, reason, _CHOOSE)
    if size == stored:
        raise frame_fault(
            drawn,
            picture,
            orientation,
            f"this file has the size of the stored pixels, {_size(stored)}, and not of the turned "
            f"picture, {_size(upright)}",
        )


def frame_fault(
    drawn: Path, picture: Path, orientation: int, reason: str, fix: str = _IGNORE
) -> FindingError:
    """Return the error of a mask or annotation that may be drawn on the stored pixels."""
    message = (
        f"the EXIF orientation {orientation} of {picture.name} turns the picture, so that what "
        f"viewers show differs from the stored pixels; {reason}"
    )
    return fault("exif_orientation", drawn, message, fix)


def frame_hint(stored: tuple[int, int], orientation: int, size: tuple[int, int]) -> str:
    """Return what a message on different sizes adds where EXIF explains them, or ``""``."""
    if orientation == UPRIGHT or size != stored:
        return ""
    return (
        f" (it has the size of the stored pixels, which EXIF orientation {orientation} turns: "
        "data.exif=ignore)"
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} (h x w)"
