"""NIfTI volumes: MSD and nnU-Net folders, ``images/`` + ``labels/``, or two named files.

``shared/volume_layout.py`` describes the folder layouts. The header is checked before memory is
taken for the voxels, because the size that it declares may be wrong or malicious. Field
names are those of the NIfTI-1 header (https://nifti.nimh.nih.gov/nifti-1).
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from samadapt.data.channels import Indices, need_one, pick
from samadapt.data.findings import check_bytes, check_size, fault
from samadapt.data.formats.base import register_reader
from samadapt.data.formats.nifti.affine import settled_header
from samadapt.data.formats.nifti.write import SUFFIXES
from samadapt.data.formats.shared.inflate import Inflated, gunzipped
from samadapt.data.formats.shared.stored_volume import StoredVolume
from samadapt.data.formats.shared.unsupported_files import by_content, by_name
from samadapt.data.formats.shared.volume_reader import VolumeReader
from samadapt.system.arrays import Array

_AGAIN = "copy or download the file again"
_CONVERT = "convert it to NIfTI again"
_GZIP_LAYERS = 3
"""Layers of gzip that are removed: browsers and scripts compress files that are already gzip."""
_LONGEST_HEADER = 544
"""Bytes of a NIfTI-2 header (540) with its extension flag (4)."""
_LARGEST_OFFSET = 1 << 28
"""Largest ``vox_offset``: no header extension has 256 MB."""
_PADDING = 4096
"""Zeros that some programs write after the voxels."""
_COUNT_FIRST_BYTES, _COUNT_FIRST_RATIO = 1 << 28, 64
"""A file that declares more bytes than this, and is this many times smaller on the disk, is
unpacked once without keeping it, so that a lie about its size takes no memory."""


@register_reader("nifti", "msd", "nnunet")
class NiftiReader(VolumeReader):
    """Reads NIfTI volumes."""

    summary = "NIfTI volumes: MSD, nnU-Net, images/ + labels/, or data.image and data.label"
    takes_channels: ClassVar[bool] = True
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def load(self, path: Path, channel: Indices = None) -> StoredVolume:
        """Read a ``.nii`` or ``.nii.gz`` file."""
        return load_nifti(path, channel, self.options.spacing)


def load_nifti(path: Path, channel: Indices = None, spacing: str | None = None) -> StoredVolume:
    """Read a NIfTI file.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file.
        channel: index into the fourth axis of a 4D file, or several.
        spacing: which voxel size is true where affine and ``pixdim`` differ; see
            ``affine.settled_header``.

    Returns:
        The values as stored, scaled by ``scl_slope`` and ``scl_inter``: (i, j, k), or (i, j, k, c)
        with several channels. Affine and ``pixdim`` of the header agree.

    Raises:
        FindingError: the file is missing, broken or of a kind that cannot be used.
    """
    image_class, content = _read_declared(path)
    try:
        image = image_class.from_bytes(content)
        proxy: Any = image.dataobj
        # nibabel returns scaled values as float64; float32 takes half of the memory.
        scaled = (proxy.slope, proxy.inter) != (1, 0)
        values = np.asarray(proxy, np.float32) if scaled else np.asanyarray(proxy)
    except Exception as error:  # nibabel raises many kinds, most without the file's name
        raise fault(
            "truncated_file", path, f"the voxels cannot be read ({error})", _AGAIN
        ) from None
    header = settled_header(path, image.header, spacing)
    values = _pick_channel(path, values, channel)
    return StoredVolume(values, np.asarray(header.get_best_affine(), dtype=np.float64), header)


def _read_declared(path: Path) -> tuple[Any, bytes]:
    """Return nibabel's class for a file, and its content as far as the header declares it."""
    import nibabel as nib

    if not path.is_file():
        raise fault("missing_file", path, "there is no such file", "check the path")
    if known := by_name(path):
        raise fault("not_read", path, f"it is {known[0]}, which is not read", known[1])
    if path.stat().st_size == 0:
        raise fault("empty_file", path, "the file is empty (0 bytes)", _AGAIN)
    with path.open("rb") as file:
        try:
            stream = gunzipped(file, _GZIP_LAYERS)  # by content, whatever the name says
            head = stream.read(_LONGEST_HEADER)
            _check_kind(path, head)
            # `magic` is at byte 344 of a NIfTI-1 header and at byte 4 of a NIfTI-2 header.
            is_nifti2 = head[4:7] == b"n+2"
            image_class = nib.Nifti2Image if is_nifti2 else nib.Nifti1Image
            needed = _check_header(path, head, image_class.header_class)
            if needed > _COUNT_FIRST_BYTES and needed > _COUNT_FIRST_RATIO * path.stat().st_size:
                _count(path, needed)
            rest = stream.read(max(needed - len(head), 0))
            if len(head) + len(rest) < needed:
                message = f"its header declares {needed} bytes; it holds {len(head + rest)}"
                raise fault("truncated_file", path, message, _AGAIN)
            _check_end(path, needed, head[needed:] + stream.read(_PADDING + 1))
        except (EOFError, OSError, zlib.error) as error:
            message = f"the gzip file is truncated or damaged ({error})"
            raise fault("truncated_file", path, message, _AGAIN) from None
    return image_class, head[:needed] + rest


def _check_kind(path: Path, head: bytes) -> None:
    """Refuse a file that does not begin as single-file NIfTI does, and say what it is."""
    if head[344:347] == b"n+1" or head[4:7] == b"n+2":
        return
    what, fix = by_content(head) or ("", _CONVERT)
    message = f"expected a NIfTI file; {f'it is {what}' if what else 'its content is not NIfTI'}"
    raise fault("not_nifti", path, message, fix)


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
        raise fault("not_nifti", path, message, _CONVERT) from None
    if dtype.kind not in "iufb":
        raise fault(
            "unsupported_dtype",
            path,
            "expected one real number for each voxel; its data type is "
            f"{header['datatype']!s} ({dtype})",
            "save it as int16 or float32",
        )
    if not 2 <= len(shape) <= 5 or min(shape) < 1:
        message = f"expected 2 to 4 axes of at least one voxel; its shape is {shape}"
        raise fault("bad_shape", path, message, "check how it was made")
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        message = f"voxel spacing must be positive; the header says {pixdim.tolist()}"
        raise fault("bad_spacing", path, message, "set the true spacing (mm) in the header")
    if not header_class.sizeof_hdr <= offset < _LARGEST_OFFSET:
        message = f"its header says that the voxels begin at byte {offset}"
        raise fault("not_nifti", path, message, _CONVERT)
    check_size(path, shape)
    needed = offset + math.prod(shape) * int(dtype.itemsize)
    check_bytes(path, needed)
    return needed


def _count(path: Path, needed: int) -> None:
    """Unpack a suspicious file once without keeping it, so that a refusal takes no memory."""
    with path.open("rb") as file:
        counted = gunzipped(file, _GZIP_LAYERS)
        if not isinstance(counted, Inflated):
            return
        held = counted.skip(needed)
        if held < needed:
            message = f"its header declares {needed} bytes; it holds {held}"
            raise fault("truncated_file", path, message, _AGAIN)
        _check_end(path, needed, counted.read(_PADDING + 1))


def _check_end(path: Path, needed: int, rest: bytes) -> None:
    """Refuse content after the bytes that the header declares, except for a few zeros."""
    if len(rest) > _PADDING or any(rest):
        message = f"its header declares {needed} bytes; the file holds more"
        raise fault("too_large", path, message, "check its header: a side may be wrong")


def _pick_channel(path: Path, values: Array, channel: Indices) -> Array:
    """Return (i, j, k), or (i, j, k, c) for several channels."""
    # A picture gets a third axis; further axes of length 1 are dropped.
    shape = (*values.shape, 1)[:3] if values.ndim == 2 else values.shape[:3]
    values = values.reshape(*shape, *(side for side in values.shape[3:] if side != 1))
    if values.ndim == 3:
        need_one(path, channel)
        return values
    if values.ndim > 4:
        message = f"expected 3 or 4 axes; its shape is {values.shape}"
        raise fault("bad_shape", path, message, "split the file into volumes")
    return pick(path, values, channel)
