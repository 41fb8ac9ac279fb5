"""The affine of a NIfTI header: whether it can be used, and whether the header contradicts it.

A header states the voxel size twice: in ``pixdim[1..3]``, and as the lengths of the columns of the
sform (``srow_x``, ``srow_y``, ``srow_z``). nibabel and FSL's viewers use the sform; ITK uses
``pixdim``. Where the two differ, every distance in mm is wrong in one of these programs, so the
file is refused until the user says which size is true.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from samadapt.data.findings import fault
from samadapt.errors import ConfigError
from samadapt.system.arrays import Array

SpacingSource = Literal["affine", "pixdim"]

TOLERANCE = 0.01
"""Relative difference of two voxel sizes that counts as rounding: 0.49 for 0.488 is 0.4 %."""

SINGULAR = 1e-6
"""Smallest determinant of the affine's unit columns for which the inverse is trusted. Orthogonal
axes have 1, and a gantry tilt of 30 degrees has 0.87."""


def check_spacing_source(spacing: str | None) -> None:
    """Refuse a value that ``data.spacing`` does not have.

    Raises:
        ConfigError: it is neither ``"affine"``, ``"pixdim"`` nor None.
    """
    if spacing is not None and spacing not in get_args(SpacingSource):
        raise ConfigError(f"data.spacing must be affine, pixdim or null; got {spacing!r}")


def is_singular(affine: Array) -> bool:
    """Return whether the axes of a (4, 4) or (3, 3) affine fail to span the space.

    The lengths of the columns do not matter, so that the unit (mm or m) makes no difference.
    """
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    if not np.isfinite(affine).all():
        return True
    lengths = np.linalg.norm(matrix, axis=0)
    if not (lengths > 0).all():
        return True
    return abs(float(np.linalg.det(matrix / lengths))) < SINGULAR


def settled_header(path: Path, header: Any, spacing: str | None) -> Any:
    """Return a header in which affine and ``pixdim`` agree.

    Args:
        path: the file, for the messages.
        header: NIfTI header.
        spacing: which voxel size is true where the two differ: ``"affine"`` or ``"pixdim"``. None:
            such a file is refused. Directions and origin come from the affine in any case.

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
            "find out which one is true and set data.spacing=affine or data.spacing=pixdim "
            "(predict: spacing=), or correct the header"
        )
        raise fault("spacing_conflict", path, message, fix)
    header = header.copy()
    if spacing == "affine":
        header["pixdim"][1 : 1 + axes] = np.linalg.norm(affine[:3, :axes], axis=0)
    else:
        affine[:3, :axes] *= declared / np.linalg.norm(affine[:3, :axes], axis=0)
        header.set_sform(affine)  # keeps sform_code
    return header


def agree(affine: Array, pixdim: Array) -> bool:
    """Return whether the voxel sizes in ``pixdim`` are those of an affine, within ``TOLERANCE``.

    In a sheared grid (gantry tilt), the distance between two slices is shorter than the column of
    the affine. Some programs write the one as ``pixdim``, some the other. Both are accepted, and
    everything between them.
    """
    axes = len(pixdim)
    along = np.linalg.norm(affine[:3, :3], axis=0)[:axes]  # lengths of the columns
    # A row of the inverse is a normal of the planes of one axis, and its length is 1 / distance.
    across = 1 / np.linalg.norm(np.linalg.inv(affine[:3, :3]), axis=1)[:axes]
    low, high = (1 - TOLERANCE) * np.minimum(along, across), (1 + TOLERANCE) * along
    return bool(((pixdim >= low) & (pixdim <= high)).all())
