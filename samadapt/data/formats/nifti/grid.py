"""One NIfTI file: reading with every check, slices as upright pictures, and the exact inverse.

The array is first brought to RAS+ (``nibabel.as_closest_canonical``), the chosen axis goes last,
and both remaining axes are flipped and transposed. So axial slices show anterior above and the
patient's right on the left, coronal slices superior above and the right on the left, sagittal
slices superior above and anterior on the left. It is a rearrangement of voxels, never a resample.
"""

from __future__ import annotations

import math
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.data.channels import Indices, need_one, pick
from samadapt.data.formats.nifti.affine import settled_header
from samadapt.data.formats.shared.foreign import by_content, by_name
from samadapt.data.formats.shared.inflate import Inflated, gunzipped
from samadapt.data.types import SourceGrid, check_bytes, check_size, fault
from samadapt.errors import DataError
from samadapt.system import atomic
from samadapt.system.arrays import Array

SUFFIXES = (".nii.gz", ".nii")
_AGAIN = "copy or download the file again"
_LAYERS = 3
"""Layers of gzip that are taken off: browsers and scripts compress files that are already so."""
_MM = {
    1: 1e3,
    3: 1e-3,
}  # codes of metre and micron; of a header that names no unit the lengths are mm
_LONGEST_HEADER = 544
"""Bytes of a NIfTI-2 header with its extension flag."""
_FARTHEST = 1 << 28
"""Where the voxels must begin at the latest: extensions of 256 MB are no extensions."""
_PADDING = 4096
"""Zeros that some programs write behind the voxels."""
_COUNTED, _HONEST_RATIO = 1 << 28, 64
"""Above so many bytes, and so much smaller on the disk, a file is unpacked once to count."""
_RAS = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])


def load_grid(path: Path, channel: Indices = None, spacing: str | None = None) -> tuple[Array, Any]:
    """Read a NIfTI file.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.
        channel: index into the fourth axis of a 4D file, or several.
        spacing: which voxel size is true where affine and ``pixdim`` differ; see
            ``nifti_affine.settled_header``.

    Returns:
        The array as stored, scaled by the header's slope, with 3 axes, or 4 for several
        channels, and the header, whose affine and ``pixdim`` agree.

    Raises:
        FindingError: the file is missing, broken or of a kind that cannot be used.
    """
    image_class, content = _read_declared(path)
    try:
        image = image_class.from_bytes(content)
        proxy: Any = image.dataobj
        scaled = (proxy.slope, proxy.inter) != (1, 0)  # which nibabel would return as float64
        values = np.asarray(proxy, np.float32) if scaled else np.asanyarray(proxy)
    except Exception as error:  # nibabel raises many kinds, most without the file's name
        raise fault(
            "truncated_file", path, f"the voxels cannot be read ({error})", _AGAIN
        ) from None
    header = settled_header(path, image.header, spacing)
    return _pick_channel(path, values, channel), header


def finite_image(path: Path, values: Array) -> Array:
    """Return the voxels as uint8, int16, uint16 or float32; NaN or infinity is a finding.

    Integers of 8 and 16 bits stay whole: in a large CT they are half of the memory. Numbers are
    looked at after the cast, so one too large for float32 is found as well.
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind in "iub" and size <= 2:  # in this machine's byte order
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
    """Return label voxels as integers; fractions, NaN and huge values are findings."""
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 4:
        return values
    if values.dtype.kind in "iub":
        if values.max() > 2**31 - 1 or values.min() < -(2**31):
            raise fault("label_value", path, "label values exceed 32 bits", "renumber the labels")
        return values.astype(np.int32)
    with np.errstate(invalid="ignore"):
        whole = np.rint(values)
        wrong = ~(np.abs(values - whole) < 1e-3) | (np.abs(whole) > 2**31 - 128)
    if wrong.any():
        raise fault(
            "non_integer_labels",
            path,
            f"label voxels must be whole numbers; {int(wrong.sum())} are not, "
            f"for example {float(values[wrong][0]):g}",
            "export the mask again without interpolation (nearest neighbour), or make two values "
            "of probabilities with data.mask_threshold, such as 0.5",
        )
    return whole.astype(np.int32)


def source_grid(header: Any, axis: int | None, affine: Array | None = None) -> SourceGrid:
    """Describe a file's grid.

    Args:
        header: NIfTI header.
        axis: canonical axis to slice along; None: the one with the largest spacing.
        affine: (4, 4) voxel to RAS+ mm in float64, where a header rounds it; None: the header's.
    """
    affine = np.asarray(header.get_best_affine() if affine is None else affine, dtype=np.float64)
    orientation = np.asarray(_orientations().io_orientation(affine))
    shape = tuple(int(side) for side in header.get_data_shape()[:3])
    if axis is None:
        sides = np.ones(3, dtype=int)
        spacing = np.ones(3)
        order = orientation[:, 0].astype(int)
        spacing[order] = _voxel_sizes(affine)
        sides[order] = (*shape, 1)[:3] if len(shape) == 2 else shape
        axis = _auto_axis(spacing, sides)
    return SourceGrid(header.copy(), shape, affine, orientation, axis)


def made_header(shape: tuple[int, ...], affine: Array) -> Any:
    """Return a NIfTI header for the grid of another format: sform and qform "scanner", mm.

    Args:
        shape: 3 axes.
        affine: (4, 4) voxel to RAS+ mm.
    """
    import nibabel as nib

    # NIfTI-1 counts voxels along an axis in 16 bits
    header: Any = nib.Nifti1Header() if max(shape) < 1 << 15 else nib.Nifti2Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")  # of a sheared grid the nearest rotation
    header.set_xyzt_units("mm")
    return header


def spacing_of(source: SourceGrid) -> tuple[float, float, float]:
    """Return (row, column, slice) spacing in mm of the arranged volume, from the header's unit."""
    spacing = np.ones(3)
    unit = int(source.header["xyzt_units"]) & 7  # the bits above are the unit of time
    sizes = _voxel_sizes(source.affine) * _MM.get(unit, 1.0)
    spacing[source.orientation[:, 0].astype(int)] = sizes
    column, row = (side for index, side in enumerate(spacing) if index != source.axis)
    return float(row), float(column), float(spacing[source.axis])


def to_slices(values: Array, source: SourceGrid) -> Array:
    """Arrange an array on the source's grid as (h, w, d), slices upright along the last axis.

    Several channels, the fourth axis, stay the fourth. Each slice is contiguous in memory, which
    is also the order of axial files: the copy is fast.
    """
    canonical = _orientations().apply_orientation(values, source.orientation)
    flipped = np.moveaxis(canonical, source.axis, 2)[::-1, ::-1]
    slices = np.ascontiguousarray(np.swapaxes(flipped, 0, 2))  # (d, h, w), or (d, h, w, c)
    return np.moveaxis(slices, 0, 2)


def to_source(slices: Array, source: SourceGrid) -> Array:
    """Undo ``to_slices``: (h, w, d) back to the axes of the file."""
    canonical = np.moveaxis(slices.transpose(1, 0, 2)[::-1, ::-1], 2, source.axis)
    back = _orientations().ornt_transform(_RAS, source.orientation)
    return np.ascontiguousarray(_orientations().apply_orientation(canonical, back)).reshape(
        source.shape
    )


def check_prediction(prediction: Array, source: SourceGrid, path: Path) -> None:
    """Refuse a prediction that is not arranged as the volume.

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


def save_labels(prediction: Array, source: SourceGrid, path: Path) -> None:
    """Write class ids (h, w, d) as NIfTI on the source's grid, same affine and form codes.

    Free-text header fields and extensions of the source are not copied: they may name a patient.

    Raises:
        DataError: the shape differs from the source's, or the file name is not NIfTI's.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: a volume is written as .nii.gz or .nii; choose such a name")
    check_prediction(prediction, source, path)
    dtype = np.uint8 if prediction.size == 0 or prediction.max() < 256 else np.int16
    _save(to_source(prediction.astype(dtype, copy=False), source), source, path)


def save_shares(shares: Array, source: SourceGrid, path: Path) -> None:
    """Write (K, h, w, d) uint8, where 255 is 1, as 4D NIfTI on the source's grid: K volumes.

    Programs that read NIfTI see numbers from 0 to 1: the header's slope is 1/255.
    """
    grid = (*source.shape, 1)[:3]
    values = np.empty((*grid, len(shares)), dtype=np.uint8, order="F")
    for index, share in enumerate(shares):
        values[..., index] = to_source(share, source).reshape(grid)
    _save(values, source, path, slope=1 / 255)


def _save(values: Array, source: SourceGrid, path: Path, slope: float = 1.0) -> None:
    """Write an array in the axes of the file under the source's header."""
    import nibabel as nib

    header = source.header.copy()
    header.extensions.clear()
    header.set_data_dtype(values.dtype)
    for name in ("aux_file", "db_name", "data_type", "intent_name"):  # free text
        if name in header:
            header[name] = b""
    header["descrip"] = b"samadapt"
    header["intent_code"] = header["intent_p1"] = header["intent_p2"] = header["intent_p3"] = 0
    header["cal_min"], header["cal_max"] = 0, 0
    image_class: Any = nib.Nifti2Image if header["sizeof_hdr"] == 540 else nib.Nifti1Image
    image = image_class(values, source.affine, header)
    image.header.set_slope_inter(slope, 0)  # the image forgets what its header was made with
    with atomic.file(path) as part:
        nib.save(image, part)


def _orientations() -> Any:
    return import_module("nibabel.orientations")  # untyped; and 0.2 s to import


def _voxel_sizes(affine: Array) -> Array:
    return np.asarray(np.linalg.norm(affine[:3, :3], axis=0))


def _auto_axis(spacing: Array, sides: Array) -> int:
    flat = np.flatnonzero(sides == 1)
    if flat.size == 1:
        return int(flat[0])
    largest = np.flatnonzero(spacing >= spacing.max() * 0.99)
    return int(largest[-1]) if largest.size == 1 else 2


def _read_declared(path: Path) -> tuple[Any, bytes]:
    """Return nibabel's class for a file and its content, header first, as much as that declares."""
    import nibabel as nib

    if not path.is_file():
        raise fault("missing_file", path, "there is no such file", "check the path")
    if known := by_name(path):
        raise fault("not_read", path, f"it is {known[0]}, which is not read", known[1])
    if path.stat().st_size == 0:
        raise fault("empty_file", path, "the file is empty (0 bytes)", _AGAIN)
    with path.open("rb") as file:
        try:
            stream = gunzipped(file, _LAYERS)  # the content decides, whatever the name says
            head = stream.read(_LONGEST_HEADER)
            _check_kind(path, head)
            wide = head[4:7] == b"n+2"
            image_class = nib.Nifti2Image if wide else nib.Nifti1Image
            needed = _check_header(path, head, image_class.header_class)
            if needed > _COUNTED and needed > _HONEST_RATIO * path.stat().st_size:
                _count(path, needed)
            rest = stream.read(max(needed - len(head), 0))
            if len(head) + len(rest) < needed:
                message = f"expected {needed} bytes by its header; it holds {len(head + rest)}"
                raise fault("truncated_file", path, message, _AGAIN)
            _check_end(path, needed, head[needed:] + stream.read(_PADDING + 1))
        except (EOFError, OSError, zlib.error) as error:
            message = f"the gzip file is truncated or damaged ({error})"
            raise fault("truncated_file", path, message, _AGAIN) from None
    return image_class, head[:needed] + rest


def _check_kind(path: Path, head: bytes) -> None:
    """Refuse what is no single-file NIfTI by its first bytes, and say what it is."""
    if head[344:347] == b"n+1" or head[4:7] == b"n+2":
        return
    what, fix = by_content(head) or ("", "convert it to NIfTI again")
    message = f"expected a NIfTI file; {f'it is {what}' if what else 'its content is not'}"
    raise fault("not_nifti", path, message, fix)


def _count(path: Path, needed: int) -> None:
    """Unpack a suspicious file once without keeping it, so that a refusal takes no memory."""
    with path.open("rb") as file:
        counted = gunzipped(file, _LAYERS)
        if not isinstance(counted, Inflated):
            return
        held = counted.skip(needed)
        if held < needed:
            message = f"expected {needed} bytes by its header; it holds {held}"
            raise fault("truncated_file", path, message, _AGAIN)
        _check_end(path, needed, counted.read(_PADDING + 1))


def _check_end(path: Path, needed: int, rest: bytes) -> None:
    """Refuse content behind what the header declares; a little padding with zeros is none."""
    if len(rest) > _PADDING or any(rest):
        message = f"its header declares {needed} bytes; the file holds more"
        raise fault("too_large", path, message, "check its header: a side may be wrong")


def _check_header(path: Path, head: bytes, header_class: Any) -> int:
    """Check a header and return how many bytes the file must have."""
    try:
        header = header_class(head[: header_class.sizeof_hdr], check=False)
        shape = tuple(int(side) for side in header.get_data_shape())
        pixdim = np.asarray(header["pixdim"][1 : 1 + min(len(shape), 3)], dtype=np.float64)
        dtype = header.get_data_dtype()
        offset = int(header.get_data_offset())
    except Exception as error:  # nibabel raises many kinds for a broken header
        message = f"expected a NIfTI file; its header cannot be read ({error})"
        raise fault("not_nifti", path, message, "convert it to NIfTI again") from None
    if dtype.kind not in "iufb":
        raise fault(
            "unsupported_dtype",
            path,
            f"expected one real number a voxel; its data type is {header['datatype']!s} ({dtype})",
            "save it as int16 or float32",
        )
    if not 2 <= len(shape) <= 5 or min(shape) < 1:
        message = f"expected 2 to 4 axes of at least one voxel; its shape is {shape}"
        raise fault("bad_shape", path, message, "check how it was made")
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        message = f"voxel spacing must be positive; the header says {pixdim.tolist()}"
        raise fault("bad_spacing", path, message, "set the true spacing (mm) in the header")
    if not header_class.sizeof_hdr <= offset < _FARTHEST:
        message = f"its header says that the voxels begin at byte {offset}"
        raise fault("not_nifti", path, message, "convert it to NIfTI again")
    check_size(path, shape)
    needed = offset + math.prod(shape) * int(dtype.itemsize)
    check_bytes(path, needed)
    return needed


def _pick_channel(path: Path, values: Array, channel: Indices) -> Array:
    """Return (x, y, z), or (x, y, z, c) for several channels."""
    shape = (*values.shape, 1)[:3] if values.ndim == 2 else values.shape[:3]
    values = values.reshape(*shape, *(side for side in values.shape[3:] if side != 1))
    if values.ndim == 3:
        need_one(path, channel)
        return values
    if values.ndim > 4:
        message = f"expected 3 or 4 axes; its shape is {values.shape}"
        raise fault("bad_shape", path, message, "split the file into volumes")
    return pick(path, values, channel)
