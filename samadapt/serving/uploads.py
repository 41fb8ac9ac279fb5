"""Turn what a client sends into an image: the bytes of a file, or an array with its spacing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt.data.findings import FindingError
from samadapt.data.formats.shared.stored_picture import SUFFIXES as PICTURES
from samadapt.data.formats.shared.volume_slices import (
    made_header,
    source_grid,
    spacing_of,
    to_slices,
)
from samadapt.data.types import Volume
from samadapt.errors import DataError, UserError
from samadapt.inference.files import read_planned
from samadapt.serving.refused import RefusedError
from samadapt.serving.served_image import ServedImage

if TYPE_CHECKING:
    from samadapt.data.formats.base import ReaderOptions
    from samadapt.serving.limits import ServingLimits
    from samadapt.serving.served_models import ServedModel, ServedModels
    from samadapt.system.arrays import Array

VOLUMES = (".nii.gz", ".nii")
TOO_LARGE = 413
UNREADABLE = 422

# The axes of an array as ITK, 3D Slicer and napari give it, (z, y, x) of a scan whose voxels run to
# the patient's left, posterior and superior: z is superior, y posterior and x left, in RAS+.
_DIRECTIONS = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])


def file_name(name: str) -> str:
    """Return the name of a client's file, without folders and special characters.

    It is never used as a path: it says what the client means, and how the file ends.

    Raises:
        RefusedError: files with such an ending are not read (415).
    """
    plain = re.sub(r"[^\w .+()-]", "_", name.replace("\\", "/").rpartition("/")[2])[:150].strip(
        ". "
    )
    if not plain.lower().endswith((*VOLUMES, *PICTURES)) or ending(plain) == plain.lower():
        raise RefusedError(
            415,
            "name: expected a file that ends in "
            f"{', '.join((*VOLUMES, *PICTURES))}; got {name[:100]!r}",
        )
    return plain


def ending(name: str) -> str:
    """Return the ending of a file name that ``file_name`` accepted, in lower case."""
    return next((one for one in (*VOLUMES, *PICTURES) if name.lower().endswith(one)), name.lower())


def stem(name: str) -> str:
    """Return a file name without its ending."""
    return name[: len(name) - len(ending(name))]


def image_of_file(
    content: bytes, name: str, models: ServedModels, limits: ServingLimits
) -> ServedImage:
    """Return the image in the bytes of a file; each model reads it as in its training.

    The bytes lie in a temporary folder under a name of our own while they are read.

    Args:
        content: the file.
        name: its name, from ``file_name``.
        models: who will see it.
        limits: most voxels.

    Raises:
        RefusedError: it cannot be read (422), or is too large (413).
    """
    with TemporaryDirectory(prefix="samadapt-") as folder:
        path = Path(folder) / f"image{ending(name)}"
        path.write_bytes(content)
        _check_declared(path, limits)
        read: dict[Any, Volume | UserError] = {}
        volumes: dict[str, Volume | UserError] = {}
        for model in models:
            how = model.reader_options
            if how not in read:
                read[how] = _read(path, how, name)
            volumes[model.name] = read[how]
    return _image(name, volumes)


def _check_declared(path: Path, limits: ServingLimits) -> None:
    """Refuse what the header of a file declares to be too large, before it is read."""
    shape: Sequence[int] = ()
    try:
        if path.name.endswith(VOLUMES):
            import nibabel as nib

            shape = nib.load(path).shape  # type: ignore[attr-defined]
        else:
            from PIL import Image

            with Image.open(path) as opened:
                shape = (*opened.size, getattr(opened, "n_frames", 1))
    except Exception as error:  # the reader finds the fault, and names it
        if type(error).__name__ == "DecompressionBombError":  # of PIL
            raise RefusedError(
                TOO_LARGE, f"the picture is too large; at most {limits.voxels:,} voxels"
            ) from None
        return
    count = 1
    for side in shape:
        count *= max(1, int(side))
    if count > limits.voxels:
        raise RefusedError(
            TOO_LARGE,
            f"the image has {count:,} voxels {tuple(shape)}; at most {limits.voxels:,} are "
            "accepted (voxels=)",
        )


def _read(path: Path, how: ReaderOptions, name: str) -> Volume | UserError:
    """Read an image, or return why it cannot be read, without the path of the temporary file."""
    try:
        return read_planned(path, how)
    except FindingError as error:
        return FindingError(replace(error.finding, file=name))
    except UserError as error:
        return DataError(str(error).replace(str(path), name).replace(path.name, name))


def _image(name: str, volumes: dict[str, Volume | UserError]) -> ServedImage:
    """Return the image if any model can read it."""
    faults = [one for one in volumes.values() if isinstance(one, UserError)]
    if len(faults) == len(volumes):
        error = faults[0]
        large = isinstance(error, FindingError) and error.finding.code == "too_large"
        raise RefusedError(TOO_LARGE if large else UNREADABLE, str(error))
    return ServedImage(name, volumes)


def image_of_array(
    values: Array, spacing: object, models: ServedModels, limits: ServingLimits
) -> ServedImage:
    """Return the image of an array (c, z, y, x), as viewers hold it.

    Viewers send no orientation. z is taken as superior, y as posterior and x as left, which is how
    ITK gives an axial scan; for a picture z is 1.

    Args:
        values: (c, z, y, x).
        spacing: mm along z, y and x, as far as it is known.
        models: who will see it.
        limits: most voxels.

    Raises:
        RefusedError: no model can see it.
    """
    if values.size > limits.voxels:
        raise RefusedError(
            TOO_LARGE, f"the image has {values.size:,} voxels; at most {limits.voxels:,}"
        )
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype not in (np.uint8, np.int16, np.uint16):
        values = values.astype(np.float32)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RefusedError(UNREADABLE, "the image holds NaN or infinite values; replace them")
    sizes = _sizes(spacing)
    made: dict[Any, Volume | UserError] = {}
    volumes: dict[str, Volume | UserError] = {}
    for model in models:
        key = (model.reader_options.axis, model.channels)
        if key not in made:
            made[key] = _volume(values, sizes, model)
        volumes[model.name] = made[key]
    return _image("image", volumes)


def _volume(values: Array, sizes: Array, model: ServedModel) -> Volume | UserError:
    """Return an array (c, z, y, x) as a model reads it."""
    count, depth = values.shape[:2]
    wanted = model.channels
    is_color = count == 3 and wanted == 1 and depth == 1
    if count != wanted and not is_color:
        return DataError(
            f"adapter {model.name!r} sees {wanted} channel{'s' * (wanted > 1)}; the image has "
            f"{count}"
        )
    affine = np.eye(4)
    affine[:3, :3] = _DIRECTIONS * sizes
    grid = source_grid(made_header(values.shape[1:], affine), model.reader_options.axis, affine)
    if is_color:
        slices = to_slices(np.moveaxis(values, 0, -1), grid)[:, :, 0]
    elif count > 1:
        slices = to_slices(np.moveaxis(values, 0, -1), grid)
    else:
        slices = to_slices(values[0], grid)
    return Volume(slices, spacing_mm=spacing_of(grid), source=grid, is_color=is_color)


def _sizes(spacing: object) -> Array:
    """Return the sizes (3,) of a voxel in mm; 1 where the client does not say them."""
    try:
        sizes = np.asarray(spacing, dtype=np.float64)
    except (TypeError, ValueError):
        return np.ones(3)
    if sizes.shape != (3,) or not (np.isfinite(sizes).all() and (sizes > 1e-6).all()):
        return np.ones(3)
    return np.minimum(sizes, 1e6)
