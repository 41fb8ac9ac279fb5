"""From the axes of a volume file to upright slices, and the exact inverse.

The voxels are rearranged and never resampled. The steps:

1. Bring the array (i, j, k) to RAS+ order, as ``nibabel.as_closest_canonical`` does: axis 0 runs to
   the patient's right, axis 1 to anterior, axis 2 to superior.
2. Move the slicing axis to the end. The two axes that remain span the slice.
3. Reverse both and transpose them, because row 0 of a picture is at the top.

So slices have the radiological orientation (R and L are the patient's right and left, A and P
anterior and posterior, S and I superior and inferior):

      A            S            S
    R + L        R + L        A + P
      P            I            I
    axial       coronal      sagittal
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.types import SourceGrid
from samadapt.errors import DataError
from samadapt.system.arrays import Array

# NIfTI-1 `xyzt_units`: 1 is metre, 2 millimetre, 3 micrometre. Without a unit, lengths are mm.
_MM_OF_UNIT = {1: 1e3, 3: 1e-3}
# nibabel's orientation of an array that is in RAS+ order already: (axis, direction) for each axis.
_RAS = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])


def made_header(shape: tuple[int, ...], affine: Array) -> Any:
    """Return a NIfTI header for the grid of a file of another format.

    Its sform and qform have the code "scanner", and its unit is mm.

    Args:
        shape: sides of the volume, 3 axes.
        affine: (4, 4) voxel to RAS+ mm.
    """
    import nibabel as nib

    # NIfTI-1 stores the sides in int16 (field `dim`).
    header: Any = nib.Nifti1Header() if max(shape) < 1 << 15 else nib.Nifti2Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")  # a sheared grid gets the nearest rotation
    header.set_xyzt_units("mm")
    return header


def source_grid(header: Any, axis: int | None, affine: Array | None = None) -> SourceGrid:
    """Describe the grid of a file.

    Args:
        header: NIfTI header.
        axis: canonical axis to slice along: 0 sagittal, 1 coronal, 2 axial. None: the axis with
            the largest spacing.
        affine: (4, 4) voxel to RAS+ mm in float64. None: the header's, which is rounded to float32.
    """
    affine = np.asarray(header.get_best_affine() if affine is None else affine, dtype=np.float64)
    orientation = np.asarray(_orientations().io_orientation(affine))
    shape = tuple(int(side) for side in header.get_data_shape()[:3])
    if axis is None:
        sides = np.ones(3, dtype=int)
        spacing = np.ones(3)
        order = orientation[:, 0].astype(int)  # canonical axis of each axis of the file
        spacing[order] = _voxel_sizes(affine)
        sides[order] = (*shape, 1)[:3] if len(shape) == 2 else shape
        axis = _axis_of_largest_spacing(spacing, sides)
    return SourceGrid(header.copy(), shape, affine, orientation, axis)


def _axis_of_largest_spacing(spacing: Array, sides: Array) -> int:
    """Return the axis to slice along; axial where several spacings are within 1 % of the largest.

    An image of one slice is sliced along the axis that has the side 1.
    """
    flat = np.flatnonzero(sides == 1)
    if flat.size == 1:
        return int(flat[0])
    largest = np.flatnonzero(spacing >= spacing.max() * 0.99)
    return int(largest[-1]) if largest.size == 1 else 2


def spacing_of(source: SourceGrid) -> tuple[float, float, float]:
    """Return the spacing (between rows, between columns, between slices) of the slices in mm."""
    spacing = np.ones(3)
    unit = int(source.header["xyzt_units"]) & 7  # bits 0-2: unit of length; bits 3-5: of time
    sizes = _voxel_sizes(source.affine) * _MM_OF_UNIT.get(unit, 1.0)
    spacing[source.orientation[:, 0].astype(int)] = sizes
    # In canonical order, the first of the two axes of a slice becomes its columns.
    column, row = (side for index, side in enumerate(spacing) if index != source.axis)
    return float(row), float(column), float(spacing[source.axis])


def to_slices(values: Array, source: SourceGrid) -> Array:
    """Arrange an array in the axes of the file as (h, w, d), with upright slices.

    Args:
        values: (i, j, k), or (i, j, k, c) with several channels, which stay the last axis.
        source: the grid of the file.

    Returns:
        A view of a (d, h, w) array: each slice is contiguous in memory. Axial files have the same
        order, so that the copy is fast.
    """
    slices = np.moveaxis(slices_view(values, source), 2, 0)  # (d, h, w), or (d, h, w, c)
    return np.moveaxis(np.ascontiguousarray(slices), 0, 2)


def slices_view(values: Array, source: SourceGrid) -> Array:
    """Return what ``to_slices`` does as a view: what is written to it changes ``values``."""
    canonical = _orientations().apply_orientation(values, source.orientation)
    flipped = np.moveaxis(canonical, source.axis, 2)[::-1, ::-1]
    return np.swapaxes(flipped, 0, 1)


def to_source(slices: Array, source: SourceGrid) -> Array:
    """Undo ``to_slices``: bring (h, w, d) back to the axes of the file."""
    canonical = np.moveaxis(slices.transpose(1, 0, 2)[::-1, ::-1], 2, source.axis)
    back = _orientations().ornt_transform(_RAS, source.orientation)
    return np.ascontiguousarray(_orientations().apply_orientation(canonical, back)).reshape(
        source.shape
    )


def check_prediction(prediction: Array, source: SourceGrid, path: Path) -> None:
    """Refuse a prediction (h, w, d) that does not have the shape of the sliced volume.

    Raises:
        DataError: the shape differs from the source's.
    """
    empty = np.broadcast_to(np.uint8(0), (*source.shape, 1)[:3])
    expected = to_slices(empty, source).shape
    if prediction.shape != expected:
        raise DataError(
            f"{path}: the prediction must have the volume's shape {expected}; "
            f"got {prediction.shape}"
        )


def _voxel_sizes(affine: Array) -> Array:
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def _orientations() -> Any:
    return import_module("nibabel.orientations")  # it has no types, and takes 0.2 s to import
