"""What one file may ask for: memory, time, and a place outside its folder.

A header is read before the memory that it declares is taken, and never more than it declares is
read. How far a file is compressed says nothing: an empty label map shrinks a thousandfold. What
counts is the size that the header declares, which ``data.max_gb`` bounds.

The limits hold for the whole program, because they describe the machine and not the data set.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

MAX_GB = 8.0
"""GB (2**30 bytes) that one file may declare: 2**31 voxels of float32."""
MAX_SECONDS = 300.0
"""Seconds that reading one file may take; a large volume on a slow disk takes some."""

_GB = 8.0
"""GB (2**30 bytes) that one file may declare: 2**31 voxels of float32."""
MAX_SECONDS = 300.0
"""Seconds that reading one file may take; a large volume on a slow disk takes some."""
MAX_JSON_BYTES = 1 << 30
"""Bytes of a JSON file: COCO's largest has 0.45 GB, and Python takes several times as much."""

_GB = 1 << 30


class _Limits:
    """The limits in use."""

    gb = MAX_GB
    seconds = MAX_SECONDS


def set_limits(max_gb: float | None = None, max_seconds: float | None = None) -> None:
    """Change what one file may ask for; None leaves a limit as it is.

    Args:
        max_gb: GB that the header of a file may declare, unpacked.
        max_seconds: seconds that reading one file may take.
    """
    if max_gb is not None:
        _Limits.gb = max_gb
    if max_seconds is not None:
        _Limits.seconds = max_seconds


def max_bytes() -> int:
    """Return how many bytes one file may declare."""
    return int(_Limits.gb * _GB)


def max_voxels() -> int:
    """Return how many voxels one file may declare: as many as fit as float32."""
    return max_bytes() // 4


def max_seconds() -> float:
    """Return how long reading one file may take."""
    return _Limits.seconds


def scaled(default: int) -> int:
    """Return a limit that goes with ``data.max_gb``, given its value at ``MAX_GB``."""
    return int(default * _Limits.gb / MAX_GB)


def lies_inside(name: str, folder: Path, root: Path | None = None) -> bool:
    """Whether a file that another file names lies below a folder.

    Args:
        name: as the file has it, relative to ``folder``; with either kind of slash.
        folder: folder of the file that names it.
        root: the data set's folder, where that is a wider one.

    Symbolic links in the folder are the user's own and are followed, as everywhere.
    """
    plain = name.replace("\\", "/")
    windows = PureWindowsPath(name)
    if PurePosixPath(plain).is_absolute() or windows.drive or windows.root or "\0" in name:
        return False
    target = os.path.normpath(folder.absolute() / plain)
    places = [folder] if root is None else [folder, root]
    return any(Path(target).is_relative_to(os.path.normpath(place.absolute())) for place in places)
