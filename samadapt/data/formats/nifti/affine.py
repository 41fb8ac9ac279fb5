"""The geometry of a NIfTI header: whether it can be used, and whether it contradicts itself.

A header states the voxel size twice: in ``pixdim`` and as the lengths of the columns of its sform.
nibabel and FSL's viewers use the sform, ITK uses ``pixdim``. Where the two differ, every distance
in mm is wrong for one of them, so nothing is read until the user says which one is true.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from samadapt.data.types import fault
from samadapt.errors import ConfigError
from samadapt.system.arrays import Array

SpacingSource = Literal["affine", "pixdim"]

TOLERANCE = 0.01
"""Relative difference of two voxel sizes that counts as rounding: 0.49 for 0.488 is 0.4 %."""

SINGULAR = 1e-6
"""Volume of the parallelepiped of the affine's unit columns below which no inverse is trusted.
Orthogonal axes have 1, a gantry tilt of 30 degrees 0.87."""


def check_spacing_source(spacing: str | None) -> None:
    """Refuse a value that ``data.spacing`` does not have; raises ``ConfigError``."""
    if spacing is not None and spacing not in get_args(SpacingSource):
        raise ConfigError(f"data.spacing must be affine, pixdim or null; got {spacing!r}")


def is_singular(affine: Array) -> bool:
    """Whether the axes of a (4, 4) or (3, 3) affine do not span the space, whatever their unit."""
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    if not np.isfinite(affine).all():
        return True
    lengths = np.linalg.norm(matrix, axis=0)
    if not (lengths > 0).all():
        return True
    return abs(float(np.linalg.det(matrix / lengths))) < SINGULAR


def settled_header(path: Path, header: Any, spacing: str | None) -> Any:
    """Return a header whose affine and ``pixdim`` agree.

    Args:
        path: the file, for the messages.
        header: NIfTI header.
        spacing: which one is true where they differ: ``"affine"``, ``"pixdim"``, or None: neither
            is believed. Directions and origin are the affine's in any case.

    Raises:
        FindingError: the affine cannot be inverted, or it contradicts ``pixdim`` and ``spacing``
            is None.
    """
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if is_singular(affine):
        message = "its affine (sform or qform) cannot be inverted: an axis has no length"
        raise fault("bad_spacing", path, message, "set the true orientation and spacing")
    axes = min(len(header.get_data_shape()), 3)
    declared = np.asarray(header["pixdim"][1 : 1 + axes], dtype=np.float64)
    if agree(affine, declared):
        return header
    if spacing is None:
        found = " x ".join(f"{side:.4g}" for side in np.linalg.norm(affine[:3, :axes], axis=0))
        other = " x ".join(f"{side:.4g}" for side in declared)
        message = (
            f"its header contradicts itself: the affine (sform) says voxels of {found}, pixdim "
            f"says {other}"
        )
        fix = (
            "find out which one is true and say data.spacing=affine or data.spacing=pixdim "
            "(predict: spacing=), or correct the header"
        )
        raise fault("spacing_conflict", path, message, fix)
    header = header.copy()
    if spacing == "affine":
        header["pixdim"][1 : 1 + axes] = np.linalg.norm(affine[:3, :axes], axis=0)
    else:
        affine[:3, :axes] *= declared / np.linalg.norm(affine[:3, :axes], axis=0)
        header.set_sform(affine)  # the code stays
    return header


def agree(affine: Array, pixdim: Array) -> bool:
    """Whether voxel sizes are those of an affine.

    In a sheared grid (gantry tilt) some programs write the distance of the slices as ``pixdim``,
    which is shorter than the column of the affine; both are accepted.
    """
    axes = len(pixdim)
    along = np.linalg.norm(affine[:3, :3], axis=0)[:axes]
    across = 1 / np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)[:axes]
    low, high = (1 - TOLERANCE) * np.minimum(along, across), (1 + TOLERANCE) * along
    return bool(((pixdim >= low) & (pixdim <= high)).all())
