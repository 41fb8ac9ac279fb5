"""Read pictures as images and mask files as label values, and write label values as PNG.

``load_mask`` finds the meaning of a mask's pixels in this order: colours that the user named,
palette indices, grey values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from samadapt.data.colours import (
    Colours,
    count_colours,
    is_blend,
    list_colours,
    pack,
    recode,
    show,
)
from samadapt.data.findings import Finding, FindingError, fault, warning_finding
from samadapt.data.formats.shared.exif import UPRIGHT, Exif
from samadapt.data.formats.shared.stored_picture import (
    StoredPicture,
    is_lossy_webp,
    read_stored_picture,
)
from samadapt.data.mask_rules import AS_CLASSES, MaskRules
from samadapt.data.types import Volume
from samadapt.errors import DataError
from samadapt.system import atomic
from samadapt.system.arrays import Array

_LOSSY = (".jpg", ".jpeg")
_MOST_COLOURS = 20
"""Colours of a mask that are kept for messages."""


def _palette() -> bytes:
    """Return the colours of 256 class ids in PASCAL VOC's annotations: 0 is black, 1 dark red.

    Bit 0 of an id becomes the highest bit of red, bit 1 of green and bit 2 of blue; bits 3 to 5
    become the next lower bits, and so on. Source: VOClabelcolormap.m of the VOC development kit.
    """
    ids, shifts = np.arange(256)[:, None, None], 3 * np.arange(8)[:, None]
    bits = ids >> (shifts + np.arange(3)) & 1  # (id, step, channel)
    return bytes((bits << (7 - np.arange(8)[:, None])).sum(axis=1).astype(np.uint8).ravel())


PALETTE = _palette()


@dataclass(frozen=True)
class Picture:
    """An image as a viewer shows it, or as it is stored.

    Attributes:
        image: (h, w, 3) colours or (h, w, 1) grey values: uint8, or float32 above 8 bits.
        is_color: whether it has colours.
        stored: (h, w) of the stored pixels.
        orientation: EXIF orientation by which the image was turned; 1: it was not.
    """

    image: Array
    is_color: bool
    stored: tuple[int, int]
    orientation: int = UPRIGHT

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the image."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True)
class Mask:
    """A mask's label values.

    Attributes:
        values: (h, w) int32; in the stored type if a threshold will be applied to them.
        orientation: EXIF orientation by which the mask was turned; 1: it was not.
        colours: pairs of a label value that occurs and its colour 0xRRGGBB, if the file has colours
            whose meaning the user did not name; see ``checks/palettes.py``.
        findings: warnings.
    """

    values: Array
    orientation: int = UPRIGHT
    colours: tuple[tuple[int, int], ...] = ()
    findings: tuple[Finding, ...] = ()


def load_picture(path: Path, exif: Exif | None = None) -> Picture:
    """Read an image: the stored values without alpha; palette indices become colours.

    Args:
        path: a file with one of ``stored_picture.SUFFIXES``.
        exif: ``"ignore"``: the pixels stay as they are stored; otherwise they are turned upright.

    Raises:
        FindingError: the file is missing or broken, or has several pages, or a pixel is NaN or
            infinite.
    """
    stored = read_stored_picture(path)
    shown = stored if exif == "ignore" else stored.upright()
    orientation = UPRIGHT if exif == "ignore" else stored.orientation
    values = _brightness(shown) if shown.palette is None else _painted(shown.values, shown.palette)
    if values.dtype != np.uint8:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            message = "some pixels are NaN or infinite"
            raise fault("non_finite_voxels", path, message, "replace them and save it again")
        values = values.astype(np.float32)
    is_color = values.ndim == 3
    image = np.ascontiguousarray(values if is_color else values[:, :, None])
    return Picture(image, is_color, stored.size, orientation)


def load_mask(path: Path, exif: Exif | None = None, masks: MaskRules = AS_CLASSES) -> Mask:
    """Read the label values of a mask: palette indices, grey values, or the meaning of its colours.

    Args:
        path: a file with one of ``stored_picture.SUFFIXES``.
        exif: ``"ignore"``: the pixels stay as they are stored; otherwise a mask with an EXIF
            orientation of its own is turned upright.
        masks: how masks are read. With a threshold, values that lossy compression changed and
            fractions are accepted.

    Raises:
        FindingError: the file is missing, broken or lossy (JPEG); it has colours without a
            meaning; the mask is in the alpha channel; or the values are not whole numbers.
    """
    lossy = path.name.lower().endswith(_LOSSY) or is_lossy_webp(path)
    if lossy and masks.threshold is None:
        message = "a mask with lossy compression (JPEG, WebP) has changed values at its edges"
        fix = "export it again as PNG; or, if it has one class, set data.mask_threshold=128"
        raise fault("lossy_mask", path, message, fix)
    stored = read_stored_picture(path)
    shown = stored if exif == "ignore" else stored.upright()
    orientation = UPRIGHT if exif == "ignore" else stored.orientation
    if masks.colours is not None:
        mask = _by_colour(path, shown, masks.colours)
    elif shown.palette is not None:
        mask = _by_index(path, shown, shown.palette)
    else:
        values = _grey(path, shown)
        mask = Mask(values if masks.threshold is not None else _whole(path, values))
        _check_alpha(path, shown, mask.values)
    return replace(mask, orientation=orientation)


def _brightness(stored: StoredPicture) -> Array:
    """Scale values of fewer than 8 bits to 0..255; return others as they are."""
    if stored.values.dtype == bool or (stored.bits < 8 and stored.values.dtype == np.uint8):
        scaled: Array = stored.values.astype(np.uint16) * 255 // (2**stored.bits - 1)
        return scaled.astype(np.uint8)
    return stored.values


def _painted(indices: Array, palette: Array) -> Array:
    """Return the colours (h, w, 3) uint8 of palette indices; an index without a colour is black."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)] = palette[:, :3]
    return np.asarray(colours[indices])


def _by_index(path: Path, stored: StoredPicture, palette: Array) -> Mask:
    """Read palette indices as label values, and record the colours of those that occur."""
    from PIL import Image

    counts = Image.fromarray(stored.values).histogram()  # ten times faster than np.bincount
    used = np.flatnonzero(counts[: len(palette)])
    # One colour with different transparency: the mask was drawn in the alpha channel.
    entries = palette[used]
    if len(used) > 1 and (entries[:, :3] == entries[0, :3]).all() and np.ptp(entries[:, 3]):
        raise _alpha_fault(path, f"every colour of its palette is {show(int(pack(entries[0])))}")
    values = stored.values.astype(np.int32)
    _check_alpha(path, stored, values)
    pairs = zip(used.tolist(), pack(entries).tolist(), strict=True)
    return Mask(values, colours=tuple(pairs))


def _by_colour(path: Path, stored: StoredPicture, colours: Colours) -> Mask:
    packed = _packed(path, stored)
    if stored.alpha is not None and np.ptp(packed) == 0 and np.ptp(stored.alpha):
        raise _alpha_fault(path, f"its colour is {show(int(packed.flat[0]))} everywhere")
    values, unknown = recode(packed, colours)
    _check_alpha(path, stored, values)
    if not colours.values:  # checks/palettes.py compares the foreground colours of all masks
        found = list(count_colours(packed[values == 1]))
        return Mask(values, colours=tuple((1, colour) for colour in found[:_MOST_COLOURS]))
    if not unknown or colours.rest_is_background:
        return Mask(values)
    share = sum(unknown.values()) / packed.size
    listed = list_colours(unknown, packed.size)
    message = f"data.classes names no class for {share:.2%} of its pixels: {listed}"
    if is_blend(unknown, packed.size):
        fix = (
            "export it without smoothed edges (nearest neighbour), or read colours without a class "
        )
        fix += "as background with data.background=rest"
        raise fault("blended_colours", path, f"its edges are smoothed: {message}", fix)
    fix = "name the colours in data.classes, or in data.background; they count as background"
    return Mask(values, findings=(warning_finding("unnamed_colours", path, message, fix),))


def _packed(path: Path, stored: StoredPicture) -> Array:
    """Return (h, w) colours 0xRRGGBB; the grey value v is the colour (v, v, v)."""
    if stored.palette is not None:
        highest = int(stored.values.max())
        if highest >= len(stored.palette):
            size = len(stored.palette)
            message = f"index {highest} has no colour: its palette has {size} entries"
            raise fault("colour_range", path, message, "save it again with a full palette")
        return np.asarray(pack(stored.palette)[stored.values])
    values = _brightness(stored)
    if values.dtype == np.uint16 and stored.is_color and not (values % 257).any():
        values = (values // 257).astype(np.uint8)  # 8 bits that were written as 16
    if values.dtype.kind not in "iu" or int(values.min()) < 0 or int(values.max()) > 255:
        message = f"expected colours of 8 bits; its values are {values.dtype}, up to {values.max()}"
        raise fault("colour_range", path, message, "save it as an 8-bit PNG")
    return pack(values if stored.is_color else np.repeat(values[:, :, None], 3, axis=2))


def _grey(path: Path, stored: StoredPicture) -> Array:
    """Return one value for each pixel; a colour file must have equal red, green and blue."""
    if not stored.is_color:
        return stored.values
    if (stored.values == stored.values[:, :, :1]).all():
        return stored.values[:, :, 0]
    message = "expected one value for each pixel; it is a colour image"
    if stored.values.dtype == np.uint8:
        packed = pack(stored.values)
        message += f" with {list_colours(count_colours(packed), packed.size)}"
    if stored.alpha is not None and np.ptp(stored.alpha):
        message += "; its alpha channel varies: is the mask there?"
    fix = (
        'name the classes by colour, as data.classes={liver: "#ff0000"}, or save class numbers as '
    )
    raise fault("colour_mask", path, message, f"{fix}a grey or palette PNG")


def _check_alpha(path: Path, stored: StoredPicture, values: Array) -> None:
    """Refuse a mask that is stored in the alpha channel."""
    if stored.alpha is None or not np.ptp(stored.alpha):
        return
    # Constant colours with varying alpha: only the alpha channel can be the mask.
    if np.ptp(values) == 0:
        raise _alpha_fault(path, "the other channels have one value everywhere")
    if (values[stored.alpha == 0] != 0).any():
        raise _alpha_fault(path, "fully transparent pixels have a class as well")


def _alpha_fault(path: Path, reason: str) -> FindingError:
    message = f"the mask seems to be in its alpha channel (transparency): {reason}"
    fix = "save the alpha channel as a grey PNG, or remove it if the other channels hold the mask"
    return fault("alpha_mask", path, message, fix)


def _whole(path: Path, values: Array) -> Array:
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int32)
    if not np.can_cast(values.dtype, np.int32) and not (whole == values).all():
        message = "label pixels must be whole numbers below 2147483648"
        raise fault("non_integer_labels", path, message, "export the mask without interpolation")
    return whole


def save_plane(prediction: Array, volume: Volume, path: Path) -> None:
    """Write class ids (h, w) or (h, w, 1) of a picture as PNG.

    Raises:
        DataError: the shape is not that of the picture, or the file name does not end in .png.
    """
    plane = prediction[:, :, 0] if prediction.ndim == 3 else prediction
    if volume.shape[2] != 1 or plane.shape != volume.shape[:2]:
        raise DataError(
            f"{path}: a PNG holds one slice of the image's shape {volume.shape[:2]}; got "
            f"{prediction.shape}; write volumes as .nii.gz"
        )
    save_mask(plane, path)


def save_mask(prediction: Array, path: Path) -> None:
    """Write class ids (h, w) as PNG with a palette, so that viewers show colours.

    Programs that read the pixels as they are see the class ids. A palette has 256 entries, so ids
    above 255 are written as a grey PNG of 16 bits.

    Raises:
        DataError: the file name does not end in .png.
    """
    from PIL import Image

    if path.suffix.lower() != ".png":
        raise DataError(f"{path}: a mask is written as .png; choose such a name")
    # Ids above 255 need 16 bits, which cannot have a palette.
    deep = prediction.size > 0 and int(prediction.max()) > 255
    picture = Image.fromarray(prediction.astype(np.uint16 if deep else np.uint8))
    if not deep:
        picture.putpalette(PALETTE)
    with atomic.file(path) as part:
        picture.save(part)
