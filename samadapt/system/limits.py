"""Limits on what one data file may use: memory, reading time, and paths outside its folder.

Readers look at the size that a header declares before they allocate memory, and never read more
than that. ``data.max_gb`` bounds the declared size. The compression ratio is no criterion, because
an empty label map shrinks a thousandfold.

The limits hold for the whole process: they describe the machine, not the data set.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

MAX_GB = 8.0
"""GB (2**30 bytes) that one file may declare: 2**31 voxels of float32."""
MAX_SECONDS = 300.0
"""Seconds that reading one file may take; a large volume on a slow disk needs some minutes."""

_GB = 1 << 30


class _Limits:
    """The limits in effect."""

    gb = MAX_GB
    seconds = MAX_SECONDS


def set_limits(max_gb: float | None = None, max_seconds: float | None = None) -> None:
    """Change the limits; None leaves a limit as it is.

    Args:
        max_gb: GB (2**30 bytes) that the header of a file may declare, uncompressed.
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
    """Return how many voxels one file may declare, at four bytes (float32) each."""
    return max_bytes() // 4


def max_seconds() -> float:
    """Return how many seconds reading one file may take."""
    return _Limits.seconds


def scaled(default: int) -> int:
    """Return a limit that grows with ``data.max_gb``, given its value ``default`` at ``MAX_GB``."""
    return int(default * _Limits.gb / MAX_GB)


def lies_inside(name: str, folder: Path, root: Path | None = None) -> bool:
    """Return whether a path that a file names lies inside the folder of that file.

    Symbolic links are followed, because those in the folder are the user's own.

    Args:
        name: the path as it is written in the file, relative to ``folder``, with either slash.
        folder: the folder of the file that names the path.
        root: the folder of the data set, where paths may lie as well; None if there is none.
    """
    plain = name.replace("\\", "/")
    windows = PureWindowsPath(name)
    if PurePosixPath(plain).is_absolute() or windows.drive or windows.root or "\0" in name:
        return False
    target = os.path.normpath(folder.absolute() / plain)
    places = [folder] if root is None else [folder, root]
    return any(Path(target).is_relative_to(os.path.normpath(place.absolute())) for place in places)
