"""TIFF stacks as ImageJ, OME and others write them, and each fault as one finding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from samadapt.data import SliceRef, check_dataset, open_dataset, read_image, write_prediction
from samadapt.errors import DataError

STACK = np.random.default_rng(0).integers(1, 60000, (4, 12, 10)).astype(np.uint16)
IMAGEJ = {"axes": "ZYX", "spacing": 2.0, "unit": "um"}
OME = {"axes": "ZYX"} | {
    key: value
    for axis, side in zip("XYZ", (0.25, 0.5, 2.0), strict=True)
    for key, value in ((f"PhysicalSize{axis}", side), (f"PhysicalSize{axis}Unit", "\u00b5m"))
}
MICRONS = (0.0005, 0.00025, 0.002)


@pytest.mark.parametrize(
    ("name", "options", "spacing"),
    [
        ("ij.tif", {"imagej": True, "resolution": (4, 2), "metadata": IMAGEJ}, MICRONS),
        ("ome.ome.tif", {"metadata": OME}, MICRONS),
        ("plain.tiff", {"photometric": "minisblack", "metadata": None}, None),
        ("zip.tif", {"photometric": "minisblack", "compression": "zlib"}, None),
    ],
)
def test_stacks(tmp_path: Path, name: str, options: dict, spacing: tuple | None) -> None:
    tifffile.imwrite(tmp_path / name, STACK, **options)
    volume = read_image(tmp_path / name)
    assert volume.spacing_mm == pytest.approx(spacing)
    np.testing.assert_array_equal(np.moveaxis(volume.image, 2, 0), STACK)
    ids = (volume.image > 30000).astype(np.uint8)
    write_prediction(ids, volume, tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj).T, STACK > 30000)
    y, x, z = spacing or (1, 1, 1)
    assert written.header.get_zooms() == pytest.approx((x, y, z))


def test_lzw_goes_through_pil(tmp_path: Path) -> None:
    pages = [Image.fromarray((page >> 8).astype(np.uint8)) for page in STACK]
    path = tmp_path / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    np.testing.assert_array_equal(np.moveaxis(read_image(path).image, 2, 0), STACK >> 8)


def test_pictures_stay_pictures(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[0])
    assert read_image(tmp_path / "a.tif").source is None
    colours = np.random.default_rng(1).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", colours, photometric="rgb")
    volume = read_image(tmp_path / "b.tif")
    assert volume.is_color
    np.testing.assert_array_equal(volume.image, colours)


def test_channels(tmp_path: Path) -> None:
    both = np.stack([STACK, STACK + 1], axis=1)
    tifffile.imwrite(tmp_path / "c.tif", both, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(DataError, match=r"c\.tif.*2 channels"):
        read_image(tmp_path / "c.tif")
    volume = read_image(tmp_path / "c.tif", channel=1)
    np.testing.assert_array_equal(np.moveaxis(volume.image, 2, 0), STACK + 1)


def _folder(root: Path) -> Path:
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(3):
        options = {"imagej": True, "metadata": IMAGEJ, "resolution": (4, 2)}
        tifffile.imwrite(root / "images" / f"s{index}.tif", STACK + index, **options)
        mask = (STACK > 30000).astype(np.uint8) * 255
        tifffile.imwrite(root / "masks" / f"s{index}.tif", mask, photometric="minisblack")
    return root


def test_data_set(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    assert check_dataset("tiff", root) == []
    dataset = open_dataset("tiff", root)
    assert (dataset.classes, dataset.axis) == (["foreground"], "axial")
    sample = dataset.sample(SliceRef("s1", 2))
    np.testing.assert_array_equal(sample.labels, STACK[2] > 30000)
    assert (sample.image.min(), sample.image.max()) == (0, 255)
    codes = {finding.code for finding in check_dataset("folder", root)}
    assert codes == {"several_pages"}


def _write(values: np.ndarray, part: str = "images", **options: object) -> Callable[[Path], object]:
    return lambda root: tifffile.imwrite(
        root / part / "s1.tif", values, **{"photometric": "minisblack", **options}
    )


def _bytes(change: Callable[[bytes], bytes], part: str = "images") -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        path = root / part / "s1.tif"
        path.write_bytes(change(path.read_bytes()))

    return spoil


FAULTS: dict[str, tuple[str | None, str, Callable[[Path], object]]] = {
    "empty": ("empty_file", "images", _bytes(lambda content: b"")),
    "text": ("unreadable_image", "images", _bytes(lambda content: b"<html>" * 50)),
    "png": ("unreadable_image", "images", _bytes(lambda content: b"\x89PNG\r\n" + content)),
    "cut": (None, "images", _bytes(lambda content: content[: len(content) // 2])),
    "last_bytes": (None, "masks", _bytes(lambda content: content[:-30], "masks")),
    "nan": ("non_finite_voxels", "images", _write(np.full(STACK.shape, np.nan, np.float32))),
    "complex": ("unsupported_dtype", "images", _write(STACK.astype(np.complex64))),
    "two_stacks": (
        "bad_shape",
        "images",
        _write(np.stack([STACK] * 2), photometric=None, imagej=True, metadata={"axes": "TZYX"}),
    ),
    "fractions": ("non_integer_labels", "masks", _write(STACK / np.float32(7), "masks")),
    "shape": ("shape_mismatch", "masks", _write(STACK[:3], "masks")),
    "constant": ("constant_image", "images", _write(STACK * 0 + 5)),
    "no_mask": ("missing_label", "images", lambda root: (root / "masks/s1.tif").unlink()),
    "no_image": ("missing_image", "masks", lambda root: (root / "images/s1.tif").unlink()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_finding(tmp_path: Path, fault: str) -> None:
    root = _folder(tmp_path)
    code, part, spoil = FAULTS[fault]
    spoil(root)
    (finding,) = check_dataset("tiff", root, classes={"x": 255})
    assert finding.file == str(root / part / "s1.tif")
    assert finding.code in ((code,) if code else ("truncated_file", "unreadable_image"))
    assert open_dataset("tiff", root, on_error="skip", classes={"x": 255}).left_out == ["s1"]


def test_a_stack_with_a_side_of_more_than_16_bits(tmp_path: Path) -> None:
    values = np.zeros((2, 40_000, 3), np.uint8)
    values[1, 39_999] = 7
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None, photometric="minisblack")
    volume = read_image(tmp_path / "a.tif")
    assert volume.shape == (40_000, 3, 2)
    write_prediction(volume.image, volume, tmp_path / "b.nii")
    assert nib.load(tmp_path / "b.nii").get_fdata().sum() == 21
