"""Write class ids as NIfTI on the grid of the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.formats.shared.volume_slices import check_prediction, to_source
from samadapt.data.types import SourceGrid
from samadapt.errors import DataError
from samadapt.system import atomic
from samadapt.system.arrays import Array

SUFFIXES = (".nii.gz", ".nii")


def save_labels(prediction: Array, source: SourceGrid, path: Path) -> None:
    """Write class ids (h, w, d) on the grid of the source, with its affine and form codes.

    Text fields and extensions of the source's header are not copied, because they may name a
    patient.

    Raises:
        DataError: the shape differs from the source's, or the file name has another ending.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: a volume is written as .nii.gz or .nii; choose such a name")
    check_prediction(prediction, source, path)
    dtype = np.uint8 if prediction.size == 0 or prediction.max() < 256 else np.int16
    _save(to_source(prediction.astype(dtype, copy=False), source), source, path)


def save_shares(shares: Array, source: SourceGrid, path: Path) -> None:
    """Write K volumes of shares as 4D NIfTI on the grid of the source.

    The header's slope is 1/255, so that programs that read NIfTI see numbers from 0 to 1.

    Args:
        shares: (K, h, w, d) uint8; 255 stands for 1.
        source: the grid of the source.
        path: the file to write.
    """
    grid = (*source.shape, 1)[:3]
    # Fortran order is the order of the file: each volume is written in one piece.
    values = np.empty((*grid, len(shares)), dtype=np.uint8, order="F")
    for index, share in enumerate(shares):
        values[..., index] = to_source(share, source).reshape(grid)
    _save(values, source, path, slope=1 / 255)


def save_map(values: Array, source: SourceGrid, path: Path) -> None:
    """Write numbers (h, w, d) as float32 NIfTI on the grid of the source."""
    _save(to_source(values.astype(np.float32, copy=False), source), source, path)


def _save(values: Array, source: SourceGrid, path: Path, slope: float = 1.0) -> None:
    """Write an array in the axes of the file under a cleaned copy of the source's header."""
    import nibabel as nib

    header = source.header.copy()
    header.extensions.clear()
    header.set_data_dtype(values.dtype)
    for name in ("aux_file", "db_name", "data_type", "intent_name"):  # text that may name somebody
        if name in header:
            header[name] = b""
    header["descrip"] = b"samadapt"
    header["intent_code"] = header["intent_p1"] = header["intent_p2"] = header["intent_p3"] = 0
    header["cal_min"], header["cal_max"] = 0, 0
    # `sizeof_hdr` is 348 in NIfTI-1 and 540 in NIfTI-2.
    image_class: Any = nib.Nifti2Image if header["sizeof_hdr"] == 540 else nib.Nifti1Image
    image = image_class(values, source.affine, header)
    image.header.set_slope_inter(slope, 0)  # the constructor resets the slope
    with atomic.file(path) as part:
        nib.save(image, part)
