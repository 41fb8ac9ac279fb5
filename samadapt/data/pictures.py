"""One picture or mask file through PIL, with every check."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from samadapt.data.tiff_guard import check_tiff
from samadapt.data.types import Array, FindingError, Volume, fault, too_large
from samadapt.errors import DataError
from samadapt.limits import scaled

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MAX_PIXELS = 1 << 28
"""Pixels of a picture (16,384 x 16,384): a broken or hostile header must not fill the memory.

``data.max_gb`` raises it in proportion, from ``limits.MAX_GB``.
"""
_LIMIT = Lock()
_LOSSY = (".jpg", ".jpeg")
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")
_GREY_MODES = ("1", "L", "LA", "La")


def _palette() -> bytes:
    """Colours of 256 class ids as PASCAL VOC's annotations have them: 0 black, 1 dark red.

    The bits of an id, three at a time, go to red, green and blue, the highest bit first.
    """
    ids, shifts = np.arange(256)[:, None, None], 3 * np.arange(8)[:, None]
    bits = ids >> (shifts + np.arange(3)) & 1  # (id, step, channel)
    return bytes((bits << (7 - np.arange(8)[:, None])).sum(axis=1).astype(np.uint8).ravel())


PALETTE = _palette()


def load_picture(path: Path) -> tuple[Array, bool]:
    """Read an image as its viewer shows it: EXIF orientation applied, alpha dropped.

    Returns:
        (h, w, 3) uint8 and True for colour; (h, w, 1) uint8 or, above 8 bits, float32 and
        False for grey.

    Raises:
        FindingError: the file is missing or broken, or has several pages.
    """
    picture = _open(path)
    if picture.mode in _DEEP_MODES:
        values = np.asarray(picture)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            message = "some pixels are NaN or infinite"
            raise fault("non_finite_voxels", path, message, "replace them and save it again")
        return values.astype(np.float32)[:, :, None], False
    if picture.mode in _GREY_MODES:
        return np.array(picture.convert("L"))[:, :, None], False
    if picture.mode in ("RGBA", "RGBa"):  # convert("RGB") drops alpha without blending
        return np.ascontiguousarray(np.asarray(picture.convert("RGBA"))[:, :, :3]), True
    return np.array(picture.convert("RGB")), True


def load_mask(path: Path) -> Array:
    """Read a mask's values as (h, w) int32: the indices of a palette image, the grey values else.

    Raises:
        FindingError: the file is missing or broken, lossy (JPEG), coloured, or its values are no
            whole numbers.
    """
    if path.name.lower().endswith(_LOSSY):
        message = "a mask saved as JPEG has altered values at its edges"
        raise fault("lossy_mask", path, message, "export it again as PNG")
    picture = _open(path)
    if picture.mode in ("PA", "LA", "La"):
        picture = picture.getchannel(0)
    if picture.mode in ("1", "L", "P", *_DEEP_MODES):
        values = np.asarray(picture)
    else:
        channels = np.asarray(picture.convert("RGB"))
        if (channels != channels[:, :, :1]).any():
            message = f"expected one value a pixel; it is a colour image ({picture.mode})"
            raise fault("colour_mask", path, message, "save class numbers as a grey or palette PNG")
        values = channels[:, :, 0]
    whole = values.astype(np.int32)
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (whole == values).all()):
        message = "label pixels must be whole numbers"
        raise fault("non_integer_labels", path, message, "export the mask without interpolation")
    return whole


def save_plane(prediction: Array, volume: Volume, path: Path) -> None:
    """Write class ids (h, w) or (h, w, 1) of a picture as PNG.

    Raises:
        DataError: the shape is not the picture's, or the file name is not PNG's.
    """
    plane = prediction[:, :, 0] if prediction.ndim == 3 else prediction
    if volume.shape[2] != 1 or plane.shape != volume.shape[:2]:
        raise DataError(
            f"{path}: a PNG holds one slice of the image's shape {volume.shape[:2]}; got "
            f"{prediction.shape}; write volumes as .nii.gz"
        )
    save_mask(plane, path)


def save_mask(prediction: Array, path: Path) -> None:
    """Write class ids (h, w) as PNG: the indices of a palette, so that a viewer shows colours.

    A program that reads the pixels as they are sees the class ids. Ids above 255 fit no palette:
    with one the PNG is grey, of 16 bits.

    Raises:
        DataError: the file name is not PNG's.
    """
    from PIL import Image

    if path.suffix.lower() != ".png":
        raise DataError(f"{path}: a mask is written as .png; choose such a name")
    deep = prediction.size > 0 and int(prediction.max()) > 255
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part.png")
    picture = Image.fromarray(prediction.astype(np.uint16 if deep else np.uint8))
    if not deep:
        picture.putpalette(PALETTE)
    picture.save(partial)
    partial.replace(path)


def _open_header(path: Path) -> Any:
    """Open without PIL's limit of 89 million pixels, which is below 10,000 x 10,000."""
    from PIL import Image

    with _LIMIT:  # the limit is a global of PIL, looked at while the header is read
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = usual


def _open(path: Path) -> Any:
    from PIL import ImageOps

    if not path.is_file():
        raise fault("missing_file", path, "there is no such file", "check the path")
    if path.stat().st_size == 0:
        raise fault("empty_file", path, "the file is empty (0 bytes)", "copy it again")
    try:
        check_tiff(path)
        with _open_header(path) as opened:
            width, height = opened.size
            if width * height > scaled(MAX_PIXELS):
                message = f"it has {width} x {height} pixels"
                raise too_large(path, f"{message}; at most {scaled(MAX_PIXELS):,} are read")
            pages = getattr(opened, "n_frames", 1)
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    except FindingError:
        raise
    except Exception as error:  # PIL raises many kinds, most without the file's name
        message = f"cannot be read as an image ({type(error).__name__})"
        raise fault("unreadable_image", path, message, "copy it again or save it as PNG") from None
    if pages > 1:
        message = f"expected one page; the file has {pages}"
        raise fault(
            "several_pages",
            path,
            message,
            "save each page as a file, or read stacks with data=tiff",
        )
    return picture
