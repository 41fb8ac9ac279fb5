"""Stored pixels of every kind of picture and mask file, at full depth."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from samadapt.data import SliceRef, check_dataset, open_dataset, read_image
from samadapt.data.findings import FindingError
from samadapt.data.formats.shared.pictures import load_mask
from samadapt.data.formats.shared.stored_picture import read_stored_picture
from samadapt.errors import DataError

RNG = np.random.default_rng(5)
RGB = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 4096, (12, 10, 3)).astype(np.uint16)
"""12 bits, as cameras of microscopes have them."""
LABELS = RNG.integers(0, 3, (12, 10)).astype(np.uint8)
OBJECT = LABELS == 1


def write_deep_png(path: Path, values: np.ndarray) -> None:
    """Write (h, w, 2 to 4) uint16 as PNG, which PIL cannot."""
    height, width, count = values.shape
    kind = {2: 4, 3: 2, 4: 6}[count]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def _deep_png(path: Path) -> None:
    write_deep_png(path.with_suffix(".png"), DEEP)


def _deep_png_with_alpha(path: Path) -> None:
    write_deep_png(path.with_suffix(".png"), np.dstack([DEEP, np.full((12, 10), 65535)]))


def _deep_tiff(path: Path, **options: Any) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), DEEP, photometric="rgb", **options)


@pytest.mark.parametrize(
    "write",
    [
        _deep_png,
        _deep_png_with_alpha,
        _deep_tiff,
        lambda path: _deep_tiff(path, compression="lzw"),
        lambda path: _deep_tiff(path, compression="zlib", predictor=2),
        lambda path: tifffile.imwrite(
            path.with_suffix(".tif"),
            np.moveaxis(DEEP, 2, 0),
            photometric="rgb",
            planarconfig="separate",
        ),
    ],
    ids=["png", "png_alpha", "tiff", "tiff_lzw", "tiff_predictor", "tiff_planes"],
)
def test_deep_colours_keep_their_depth(
    make_folder: Callable[..., Path], write: Callable[[Path], None]
) -> None:
    root = make_folder(3)
    (root / "images" / "p1.png").unlink()
    write(root / "images" / "p1")
    (image,) = (root / "images").glob("p1.*")
    volume = read_image(image)
    assert volume.is_color
    np.testing.assert_array_equal(volume.image, DEEP)
    sample = open_dataset("folder", root).sample(SliceRef("p1", 0))
    assert (sample.image.min(), sample.image.max()) == (0, 255)
    order = np.argsort(DEEP.ravel(), kind="stable")
    assert (np.diff(sample.image.ravel()[order].astype(int)) >= 0).all()


def test_deep_grey_with_alpha(tmp_path: Path) -> None:
    write_deep_png(tmp_path / "a.png", np.dstack([DEEP[:, :, 0], np.full((12, 10), 65535)]))
    volume = read_image(tmp_path / "a.png")
    assert not volume.is_color
    np.testing.assert_array_equal(volume.image[:, :, 0], DEEP[:, :, 0])


def test_deep_colours_that_are_cut_off_or_not_finite(tmp_path: Path) -> None:
    _deep_png(tmp_path / "a")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[:-200])
    with pytest.raises(DataError, match=r"a\.png.*unreadable_image"):
        read_image(tmp_path / "a.png")
    values = DEEP.astype(np.float32)
    values[0, 0, 0] = np.inf
    tifffile.imwrite(tmp_path / "b.tif", values, photometric="rgb")
    with pytest.raises(DataError, match=r"b\.tif.*non_finite_voxels"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("values", [RGB[:, :, 0], DEEP[:, :, 0], OBJECT], ids=["8", "16", "1"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_white_is_zero_keeps_stored_values(
    tmp_path: Path, values: np.ndarray, compression: str | None
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="miniswhite", compression=compression)
    np.testing.assert_array_equal(load_mask(path).values, values)
    shown = values * 255 if values.dtype == bool else values
    np.testing.assert_array_equal(read_image(path).image[:, :, 0], shown)


def test_white_is_zero_of_fax_compression(tmp_path: Path) -> None:
    """Group 4 is how scanners store bilevel masks; PIL writes it with black as 0."""
    Image.fromarray(OBJECT).save(tmp_path / "a.tif", compression="group4")
    np.testing.assert_array_equal(load_mask(tmp_path / "a.tif").values, OBJECT)


def test_white_is_zero_in_a_coco_picture(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB[:, :, 0], photometric="miniswhite")
    from samadapt.data.formats.base import ReaderOptions
    from samadapt.data.formats.coco.reader import CocoReader

    volume = CocoReader(ReaderOptions(tmp_path)).read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(volume.image[:, :, 0], RGB[:, :, 0])


def test_white_is_zero_in_a_stack(tmp_path: Path) -> None:
    stack = np.moveaxis(RGB, 2, 0)
    for compression in (None, "lzw"):
        path = tmp_path / f"{compression}.tif"
        tifffile.imwrite(path, stack, photometric="miniswhite", compression=compression)
        np.testing.assert_array_equal(np.moveaxis(read_image(path).image, 2, 0), stack)


def test_few_bits(tmp_path: Path) -> None:
    """A mask keeps the numbers of four bits; a picture is as bright as viewers show it."""
    values = RNG.integers(0, 16, (12, 10)).astype(np.uint8)
    import imagecodecs

    packed = imagecodecs.packints_encode(values, 4)
    _write_bits(tmp_path / "a.tif", packed, values.shape, 4)
    np.testing.assert_array_equal(load_mask(tmp_path / "a.tif").values, values)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").image[:, :, 0], values * 17)


def _write_bits(
    path: Path, packed: bytes, shape: tuple[int, int], bits: int, compression: int = 1
) -> None:
    """Write a grey TIFF of one strip."""
    tags = [(256, shape[1]), (257, shape[0]), (258, bits), (259, compression), (262, 1), (273, 8)]
    tags += [(277, 1), (278, shape[0]), (279, len(packed))]
    body = struct.pack("<H", len(tags))
    body += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + len(packed) + len(packed) % 2
    head = b"II*\0" + struct.pack("<I", start) + packed + b"\0" * (len(packed) % 2)
    path.write_bytes(head + body + b"\0\0\0\0")


def test_a_phones_jpeg_is_its_first_picture(tmp_path: Path) -> None:
    picture = Image.fromarray(RGB)
    small = picture.resize((5, 6))
    picture.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[small], quality=95)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.n_frames == 2
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg").image, expected)


@pytest.mark.parametrize("ending", ["bmp", "webp", "gif", "BMP"])
def test_other_endings_as_pictures_and_masks(make_folder: Callable[..., Path], ending: str) -> None:
    root = make_folder(3)
    options = {"lossless": True} if ending == "webp" else {}
    for part in ("images", "masks"):
        for index in range(3):
            path = root / part / f"p{index}.png"
            with Image.open(path) as opened:
                opened.save(path.with_suffix(f".{ending}"), **options)
            path.unlink()
    assert check_dataset("folder", root) == []
    dataset = open_dataset("folder", root)
    assert dataset.classes == ["foreground"]
    expected = np.zeros((12, 10), bool)
    expected[3:7, 2:6] = True
    np.testing.assert_array_equal(dataset.sample(SliceRef("p1", 0)).labels, expected)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_animation_is_named(tmp_path: Path, ending: str) -> None:
    frames = [Image.fromarray(np.roll(RGB, step, 0)) for step in range(3)]
    path = tmp_path / f"a.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    with pytest.raises(DataError, match=rf"a\.{ending}.*animation of 3 frames.*several_pages"):
        read_image(path)


@pytest.mark.parametrize("extended", [False, True])
def test_a_lossy_webp_mask_is_refused(tmp_path: Path, extended: bool) -> None:
    mask = Image.fromarray(np.repeat(OBJECT[:, :, None] * np.uint8(255), 3, 2))
    options: dict[str, Any] = {"exif": Image.Exif().tobytes()} if extended else {}
    mask.save(tmp_path / "a.webp", quality=80, **options)
    with pytest.raises(FindingError, match="lossy_mask"):
        load_mask(tmp_path / "a.webp")
    mask.save(tmp_path / "b.webp", lossless=True, **options)
    np.testing.assert_array_equal(load_mask(tmp_path / "b.webp").values, OBJECT * 255)


def test_a_format_is_told_by_content(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", OBJECT, photometric="miniswhite")
    (tmp_path / "a.tif").rename(tmp_path / "a.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "a.png").values, OBJECT)


def test_modes_of_masks(tmp_path: Path) -> None:
    Image.fromarray(OBJECT).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "bits.png").values, OBJECT)
    palette = Image.fromarray(LABELS)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    for name, options in {"p.png": {}, "t.png": {"transparency": 0}, "p.tif": {}}.items():
        palette.save(tmp_path / name, **options)
        mask = load_mask(tmp_path / name)
        np.testing.assert_array_equal(mask.values, LABELS)
        assert mask.colours == ((0, 0), (1, 0xFF0000), (2, 0x00FF00))
    tifffile.imwrite(tmp_path / "big.tif", np.full((2, 2), 3_000_000_000, np.uint32))
    with pytest.raises(FindingError, match="2147483648"):
        load_mask(tmp_path / "big.tif")


def test_masks_in_the_alpha_channel_are_named(tmp_path: Path) -> None:
    alpha = OBJECT * np.uint8(255)
    for colour in (0, 128, 255):
        for bands in (1, 3):
            values = np.dstack([np.full((12, 10, bands), colour, np.uint8), alpha])
            Image.fromarray(values).save(tmp_path / "a.png")
            with pytest.raises(FindingError, match="alpha_mask"):
                load_mask(tmp_path / "a.png")
    write_deep_png(tmp_path / "deep.png", np.dstack([DEEP * 0 + 9, alpha.astype(np.uint16) * 257]))
    with pytest.raises(FindingError, match="alpha_mask"):
        load_mask(tmp_path / "deep.png")
    palette = Image.fromarray(OBJECT.astype(np.uint8))
    palette.putpalette([255, 255, 255, 255, 255, 255])
    palette.save(tmp_path / "p.png", transparency=0)
    with pytest.raises(FindingError, match="alpha_mask"):
        load_mask(tmp_path / "p.png")
    photo = Image.fromarray(np.dstack([RGB, alpha]))
    photo.save(tmp_path / "cutout.png")
    with pytest.raises(FindingError, match=r"colour_mask") as caught:
        load_mask(tmp_path / "cutout.png")
    assert "alpha" in str(caught.value)


def test_a_constant_alpha_is_passed_over(tmp_path: Path) -> None:
    values = np.dstack([np.repeat(LABELS[:, :, None], 3, 2), np.full((12, 10), 255, np.uint8)])
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "a.png").values, LABELS)
    alpha = np.where(LABELS > 0, 255, 0).astype(np.uint8)  # transparent background
    Image.fromarray(np.dstack([LABELS, alpha])).save(tmp_path / "b.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "b.png").values, LABELS)


def test_cmyk_and_jpeg_tiff(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    flat[:, 8:] = (10, 220, 60)
    Image.fromarray(flat).convert("CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_allclose(read_image(tmp_path / "cmyk.tif").image, flat, atol=2)
    Image.fromarray(flat).convert("YCbCr").save(tmp_path / "ycbcr.tif")
    np.testing.assert_allclose(read_image(tmp_path / "ycbcr.tif").image, flat, atol=2)
    Image.fromarray(flat).save(tmp_path / "jpeg.tif", compression="jpeg")
    np.testing.assert_allclose(read_image(tmp_path / "jpeg.tif").image, flat, atol=12)


def test_samples_that_are_no_picture(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "five.tif", np.zeros((12, 10, 5), np.uint8), photometric="minisblack",
        planarconfig="contig",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"five\.tif.*it has 5"):
        read_image(tmp_path / "five.tif")
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, "PNG")
    (tmp_path / "cut.png").write_bytes(stream.getvalue()[:60])
    with pytest.raises(DataError, match=r"cut\.png.*unreadable_image"):
        read_stored_picture(tmp_path / "cut.png")


@pytest.mark.parametrize("compression", ["jpeg", "png", "lerc", "webp"])
def test_a_strip_that_is_a_larger_picture_is_refused(tmp_path: Path, compression: str) -> None:
    import imagecodecs

    zeros = np.zeros((2000, 2000), np.uint8)
    codes = {"jpeg": 7, "png": 34933, "lerc": 34887, "webp": 50001}
    packed = {
        "jpeg": lambda: imagecodecs.jpeg_encode(zeros),
        "png": lambda: imagecodecs.png_encode(zeros, level=1),
        "lerc": lambda: imagecodecs.lerc_encode(zeros),
        "webp": lambda: imagecodecs.webp_encode(np.zeros((2000, 2000, 3), np.uint8)),
    }[compression]()
    _write_bits(tmp_path / "a.tif", packed, (10, 10), 8, codes[compression])
    code = "unreadable_image" if compression == "lerc" else "too_large"
    with pytest.raises(FindingError, match=rf"a\.tif.*{code}"):
        read_stored_picture(tmp_path / "a.tif")


def test_a_threshold_reads_altered_values(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    grey = Image.fromarray(OBJECT * np.uint8(255))
    for index, ending in enumerate(("jpg", "webp")):
        (root / "masks" / f"p{index}.png").unlink()
        grey.resize((80, 96)).resize((10, 12)).save(root / "masks" / f"p{index}.{ending}")
    assert {f.code for f in check_dataset("folder", root)} == {"lossy_mask"}
    assert check_dataset("folder", root, mask_threshold=128) == []
    tifffile.imwrite(root / "masks" / "p2.tif", OBJECT * np.float32(0.7))
    (root / "masks" / "p2.png").unlink()
    dataset = open_dataset("folder", root, mask_threshold=0.5)
    np.testing.assert_array_equal(dataset.sample(SliceRef("p2", 0)).labels, OBJECT)


def test_palette_with_alpha_in_tiff(tmp_path: Path) -> None:
    palette = Image.fromarray(LABELS)
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    palette.convert("PA").save(tmp_path / "a.tif")
    mask = load_mask(tmp_path / "a.tif")
    np.testing.assert_array_equal(mask.values, LABELS)
    assert mask.colours == ((0, 0), (1, 0xFF0000), (2, 0x00FF00))
