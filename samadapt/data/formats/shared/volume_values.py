"""The voxel values that images and masks of every volume format may have."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samadapt.data.findings import fault
from samadapt.system.arrays import Array


def finite_image(path: Path, values: Array) -> Array:
    """Return the voxels of an image as uint8, int16, uint16 or float32.

    Integers of 8 and 16 bits keep their type, because a large CT takes half of the memory of
    float32 then. All other values are tested after the cast, so that a number above the largest
    float32 is found as well.

    Raises:
        FindingError: voxels are NaN or infinite, or become infinite as float32.
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind in "iub" and size <= 2:
        # The named types have this machine's byte order, whatever the file has.
        small = np.int16 if kind == "i" else (np.uint16 if size == 2 else np.uint8)
        return values.astype(small, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(np.float32, copy=False)
    bad = int(cast.size - np.isfinite(cast).sum())
    if bad:
        kinds = "NaN, infinite or above the largest float32 (3.4e38)"
        message = f"{bad} of {cast.size} voxels are {kinds}"
        fix = "replace them by the background's value and save the file again"
        raise fault("non_finite_voxels", path, message, fix)
    return cast


def whole_labels(path: Path, values: Array) -> Array:
    """Return the voxels of a mask as integers of at most 32 bits.

    A value may differ from a whole number by less than 0.001: scaled files store 2 as 1.9999999.

    Raises:
        FindingError: a value is a fraction, NaN, infinite or too large.
    """
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 4:
        return values
    if values.dtype.kind in "iub":
        if values.max() > 2**31 - 1 or values.min() < -(2**31):
            raise fault("label_value", path, "label values exceed 32 bits", "renumber the labels")
        return values.astype(np.int32)
    with np.errstate(invalid="ignore"):
        whole = np.rint(values)
        # NaN fails the first comparison. 128 is the step of float32 just below 2**31.
        wrong = ~(np.abs(values - whole) < 1e-3) | (np.abs(whole) > 2**31 - 128)
    if wrong.any():
        raise fault(
            "non_integer_labels",
            path,
            f"label voxels must be whole numbers; {int(wrong.sum())} are not, "
            f"for example {float(values[wrong][0]):g}",
            "export the mask again without interpolation (nearest neighbour); if the values are "
            "probabilities, set data.mask_threshold, for example to 0.5",
        )
    return whole.astype(np.int32)
