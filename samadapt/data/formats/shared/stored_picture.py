"""Read one picture or mask file as its stored pixels: nothing is scaled, turned or blended.

PIL reads the formats of cameras and paint programs, and tifffile reads TIFF. PNG files with 16-bit
colours are read by imagecodecs, because PIL reduces them to 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from samadapt.data.findings import FindingError, fault, too_large
from samadapt.data.formats.shared.exif import TAG, UPRIGHT, known_orientation, turn_upright
from samadapt.data.formats.shared.png_safety import check_png
from samadapt.data.formats.tiff.pages import main_page, page_values, tifffile
from samadapt.data.formats.tiff.safety import check_tiff
from samadapt.system.arrays import Array
from samadapt.system.limits import scaled

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
MAX_PIXELS = 1 << 28
"""Most pixels of a picture (16,384 x 16,384), so a broken or hostile header cannot fill the memory.

``data.max_gb`` scales it: the number is for ``limits.MAX_GB``.
"""
_LIMIT = Lock()
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_SEVERAL = (2, 4, 6)  # colour types RGB, grey + alpha, RGBA
_PLAIN_MODES = ("1", "L", "RGB", "I;16", "I;16B", "I;16L", "I", "F")
_OTHER_COLOURS = ("SEPARATED", "CIELAB", "ICCLAB", "ITULAB", "LOGLUV", "CFA")
_ASSOCIATED, _UNASSOCIATED = 1, 2  # alpha in TIFF's tag ExtraSamples


@dataclass(frozen=True)
class StoredPicture:
    """The stored pixels of a file.

    Attributes:
        values: (h, w) grey values or palette indices, or (h, w, 3) colours; any real type, bool
            for one bit.
        bits: bits of a sample, as the file declares them.
        palette: (n, 4) uint8 red, green, blue and alpha of the indices 0 to n - 1; higher indices
            have no colour. None: it has no palette.
        alpha: (h, w), or None.
        orientation: EXIF, 1 to 8. The values are not turned yet.
    """

    values: Array
    bits: int = 8
    palette: Array | None = None
    alpha: Array | None = None
    orientation: int = UPRIGHT

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the values."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def is_color(self) -> bool:
        """Whether each pixel has three values."""
        return self.values.ndim == 3

    def upright(self) -> StoredPicture:
        """Return the pixels as a viewer shows them."""
        if self.orientation == UPRIGHT:
            return self
        alpha = None if self.alpha is None else turn_upright(self.alpha, self.orientation)
        turned = turn_upright(self.values, self.orientation)
        return replace(self, values=turned, alpha=alpha, orientation=UPRIGHT)


def read_stored_picture(path: Path) -> StoredPicture:
    """Read the stored pixels of a file.

    Raises:
        FindingError: the file is missing, empty, broken or too large, is an animation, or has
            several pages.
    """
    if not path.is_file():
        raise fault("missing_file", path, "there is no such file", "check the path")
    if path.stat().st_size == 0:
        raise fault("empty_file", path, "the file is empty (0 bytes)", "copy it again")
    try:
        with path.open("rb") as stream:
            head = stream.read(32)
        return _read_tiff(path) if head[:4] in _TIFF_MAGIC else _read_with_pil(path, head)
    except FindingError:
        raise
    except Exception as error:  # the libraries raise many kinds, most without the file's name
        message = f"cannot be read as an image ({type(error).__name__})"
        raise fault("unreadable_image", path, message, "copy it again or save it as PNG") from None


def is_lossy_webp(path: Path) -> bool:
    """Return whether a file is a WebP picture with lossy compression, which changes values."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return False
    # The chunk after the header is VP8 (lossy), VP8L (lossless) or VP8X. The last is an extended
    # file, in which a later chunk is one of the other two.
    return head[12:16] == b"VP8 " or (head[12:16] == b"VP8X" and b"VP8L" not in head)


def _read_with_pil(path: Path, head: bytes) -> StoredPicture:
    with _open_header(path) as opened:
        # A tiny GIF can declare a canvas of any size, and PIL allocates it several times.
        width, height = opened.size
        most = MAX_PIXELS // 4 if opened.format == "GIF" else MAX_PIXELS
        _check_pixels(path, width, height, most)
        check_png(path)
        # The JPEG of a phone may have a preview or a gain map after the picture (MPO).
        frames = 1 if opened.format in ("MPO", "JPEG") else getattr(opened, "n_frames", 1)
        if frames > 1:
            message = f"expected one picture; the file is an animation of {frames} frames"
            raise fault("several_pages", path, message, "save the frame that is meant as PNG")
        if head[:8] == _PNG_MAGIC and head[24] == 16 and head[25] in _PNG_SEVERAL:
            import imagecodecs

            samples = np.asarray(imagecodecs.png_decode(path.read_bytes()))
            stored = _from_samples(samples, 16)
        else:
            opened.load()
            stored = _from_pil(opened)
        return replace(stored, orientation=known_orientation(opened.getexif().get(TAG)))


def _from_pil(picture: Any) -> StoredPicture:
    if picture.mode == "P":
        picture.apply_transparency()
        return StoredPicture(np.array(picture), palette=_palette_of(picture))
    if picture.mode == "PA":
        indices, alpha = (np.array(picture.getchannel(band)) for band in (0, 1))
        return StoredPicture(indices, palette=_palette_of(picture), alpha=alpha)
    if picture.mode in ("LA", "La"):
        picture = picture.convert("LA")
        return StoredPicture(np.array(picture.getchannel(0)), alpha=np.array(picture.getchannel(1)))
    if picture.mode in ("RGBA", "RGBa"):  # not convert("RGB"), which may blend colours with alpha
        return _from_samples(np.array(picture.convert("RGBA")), 8)
    if picture.mode not in _PLAIN_MODES:  # CMYK, YCbCr, LAB, ...
        picture = picture.convert("RGB")
    values = np.array(picture)
    return StoredPicture(values, 1 if values.dtype == bool else 8 * values.dtype.itemsize)


def _palette_of(picture: Any) -> Array:
    return np.array(picture.getpalette("RGBA") or [], np.uint8).reshape(-1, 4)[:256]


def _from_samples(values: Array, bits: int) -> StoredPicture:
    """Interpret 1 to 4 samples of each pixel: grey or RGB, then alpha.

    Args:
        values: (h, w) or (h, w, n).
        bits: bits of a sample.
    """
    if values.ndim == 2:
        return StoredPicture(values, bits)
    count = values.shape[2]
    alpha = np.ascontiguousarray(values[:, :, -1]) if count in (2, 4) else None
    # 1: grey; 2: grey and alpha; 3: RGB; 4: RGB and alpha.
    colours = values[:, :, 0] if count < 3 else values[:, :, :3]
    return StoredPicture(np.ascontiguousarray(colours), bits, alpha=alpha)


def _read_tiff(path: Path) -> StoredPicture:
    check_tiff(path)
    with tifffile().TiffFile(path) as tif:
        page = main_page(path, tif)
        _check_pixels(path, int(page.imagewidth), int(page.imagelength))
        orientation = known_orientation(page.tags.valueof(TAG))
        values, bits = page_values(path, page), int(page.bitspersample)
        photometric = "" if page.photometric is None else page.photometric.name
        if photometric == "PALETTE" and page.colormap is not None:
            stored = _with_colormap(path, values, page.colormap)
        elif photometric in _OTHER_COLOURS or (photometric == "YCBCR" and not _as_jpeg(page)):
            stored = _converted(path, values, photometric)
        else:
            stored = _tiff_samples(path, page, values, bits)
    return replace(stored, orientation=orientation)


def _with_colormap(path: Path, values: Array, colormap: Array) -> StoredPicture:
    """Return palette indices with their colours.

    Args:
        path: the file, named in errors.
        values: (h, w) indices, or (h, w, 2) with alpha.
        colormap: (3, 2 ** bits) with 16-bit colours, as TIFF stores it.
    """
    if values.shape[2:] not in ((), (2,)) or colormap.shape[1] > 256:
        message = "expected palette indices of at most 8 bits, and alpha"
        raise fault("unsupported_dtype", path, message, "save it as a grey or RGB file")
    stored = _from_samples(values.astype(np.uint8), 8)
    shift = 0 if colormap.max(initial=0) < 256 else 8  # some programs write 8-bit colours
    opaque = np.full((colormap.shape[1], 1), 255)
    return replace(stored, palette=np.hstack([(colormap >> shift).T, opaque]).astype(np.uint8))


def _converted(path: Path, values: Array, photometric: str) -> StoredPicture:
    from PIL import Image

    mode, count = {"SEPARATED": ("CMYK", 4), "YCBCR": ("YCbCr", 3)}.get(photometric, ("", 0))
    if values.shape[2:] != (count,) or values.dtype != np.uint8:
        message = f"its colours are of the kind {photometric}, {values.dtype}"
        raise fault("unsupported_dtype", path, message, "save it as an RGB file")
    height, width, _ = values.shape
    picture = Image.frombytes(mode, (width, height), values.tobytes())
    return StoredPicture(np.array(picture.convert("RGB")))


def _as_jpeg(page: Any) -> bool:
    """Return whether strips are JPEG or JPEG 2000, whose decoders return RGB.

    The numbers are those of TIFF's tag Compression.
    """
    return int(page.compression) in (6, 7, 33003, 33005, 34712)


def _tiff_samples(path: Path, page: Any, values: Array, bits: int) -> StoredPicture:
    """Interpret samples as grey or RGB; one more is alpha only if the file says so."""
    count = 1 if values.ndim == 2 else values.shape[2]
    extra = tuple(int(kind) for kind in page.extrasamples)
    has_alpha = count in (2, 4) and extra[-1:] in ((_ASSOCIATED,), (_UNASSOCIATED,), (0,))
    if count not in (1, 3) and not has_alpha:
        message = f"expected 1 or 3 samples for each pixel, and alpha; it has {count}"
        raise fault("bad_shape", path, message, "save the channel or the colours that are meant")
    return _from_samples(values, bits)


def _check_pixels(path: Path, width: int, height: int, most: int | None = None) -> None:
    limit = scaled(MAX_PIXELS if most is None else most)
    if width * height > limit:
        message = f"it has {width} x {height} pixels"
        raise too_large(path, f"{message}; at most {limit:,} are read")


def _open_header(path: Path) -> Any:
    """Open a file without PIL's limit of 89 million pixels, which is below 10,000 x 10,000."""
    from PIL import Image

    with _LIMIT:  # the limit is a global variable of PIL that is used while the header is read
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
