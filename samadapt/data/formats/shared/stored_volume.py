"""A volume as its file holds it: voxels with an affine, before it is cut into slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from samadapt.data.findings import Finding, FindingError, error_finding
from samadapt.data.formats.shared.volume_slices import made_header
from samadapt.data.formats.shared.volume_values import finite_image
from samadapt.system.arrays import Array

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's and ITK's frame (x to the left, y to posterior) to nibabel's (right, anterior)."""
SAME_PLACE = 0.1
"""Voxels by which two grids may differ and still count as one. Rounding of headers moves a voxel
by about 0.001; a real difference is at least half a voxel (a centre against a corner)."""


class StoredVolume(NamedTuple):
    """A volume as its file holds it.

    Attributes:
        values: (i, j, k), or (i, j, k, c) with several channels, of any real type. The axes are
            those of the affine's columns; in DICOM they are column, row and slice.
        affine: (4, 4) float64, voxel index to RAS+ mm.
        header: NIfTI header for predictions; None: one is made from the affine.
        axis: canonical axis to slice along where the user names none; None: the one with the
            largest spacing.
        in_mm: whether lengths of the affine are mm. A file that states no spacing has none.
        findings: warnings.
        is_placed: whether the affine says where the image lies in the patient. A picture or a film
            lies nowhere, and its mask is compared by shape alone.
        files: the files that it was read from, where their folder holds others as well.
    """

    values: Array
    affine: Array
    header: Any = None
    axis: int | None = None
    in_mm: bool = True
    findings: tuple[Finding, ...] = ()
    is_placed: bool = True
    files: tuple[Path, ...] = ()

    @property
    def nifti_header(self) -> Any:
        """The NIfTI header of the file, or one made for its grid."""
        return (
            made_header(self.values.shape[:3], self.affine) if self.header is None else self.header
        )


def stack_without_orientation(
    planes: Array, spacing: tuple[float, float, float] | None
) -> StoredVolume:
    """Return a stack of planes that has no place in a patient; its planes are the slices.

    Args:
        planes: (z, y, x), or (c, z, y, x) with several channels.
        spacing: (x, y, z) in mm, or None where it is unknown.
    """
    x, y, z = spacing or (1.0, 1.0, 1.0)
    # x to the left and y to the back are the directions of an upright axial slice, so that
    # `to_slices` gives the planes exactly as they are stored.
    affine = np.diag([-x, -y, z, 1.0])
    return StoredVolume(planes.T, affine, axis=2, in_mm=spacing is not None)


def join_channels(paths: Sequence[Path], volumes: Sequence[StoredVolume]) -> StoredVolume:
    """Return one volume (i, j, k, c) of several files, each of which holds one channel.

    Raises:
        FindingError: voxels are not finite, or a file does not lie on the grid of the first.
    """
    first, channels = volumes[0], []
    for path, volume in zip(paths, volumes, strict=True):
        found = compare_grids(paths[0], path, first, volume)
        if found:
            volume = with_axes_of(volume, first.affine)
            if compare_grids(paths[0], path, first, volume):
                raise FindingError(
                    replace(found[0], fix="resample the channels of a case to one grid")
                )
        channels.append(finite_image(path, volume.values))
    findings = tuple(finding for volume in volumes for finding in volume.findings)
    return first._replace(values=np.stack(channels, axis=-1), findings=findings)


def compare_grids(
    image: Path, labels: Path, first: StoredVolume, second: StoredVolume
) -> list[Finding]:
    """Compare the grids of an image and its mask.

    Their shapes must be equal, and each of the eight corners must lie at the same place within
    ``SAME_PLACE`` of the shortest side of a voxel. The corners move the most, so that the voxels
    between them agree at least as well.
    """
    shapes = first.values.shape[:3], second.values.shape[:3]
    if shapes[0] != shapes[1]:
        message = f"its shape {shapes[1]} differs from {shapes[0]} of the image {image}"
        fix = "export image and mask on the same grid"
        return [error_finding("shape_mismatch", labels, message, fix)]
    corners = np.indices((2, 2, 2)).reshape(3, -1) * (np.array(shapes[0])[:, None] - 1)
    corners = np.vstack([corners, np.ones(8)])
    distance = float(np.abs((first.affine - second.affine) @ corners)[:3].max())
    if distance <= SAME_PLACE * float(np.linalg.norm(first.affine[:3, :3], axis=0).min()):
        return []
    message = f"its grid lies up to {distance:.3g} mm from that of the image {image}"
    fix = "resample the mask to the image's grid, or copy the image's affine if it is the true one"
    return [error_finding("grid_mismatch", labels, message, fix)]


def with_axes_of(volume: StoredVolume, affine: Array) -> StoredVolume:
    """Return a volume with its axes in the order and direction of another affine.

    The voxels stay where they are in the patient; only their order in memory changes. Programs
    that convert DICOM mirror axes, so that a mask drawn on the converted image has the same voxels
    as the series in another order.
    """
    from nibabel.orientations import (
        apply_orientation,
        inv_ornt_aff,
        io_orientation,
        ornt_transform,
    )

    change = ornt_transform(io_orientation(volume.affine), io_orientation(affine))
    values = apply_orientation(volume.values, change)
    moved = volume.affine @ inv_ornt_aff(change, volume.values.shape)
    return volume._replace(values=values, affine=moved)
