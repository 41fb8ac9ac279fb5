"""Colour ultrasound and endoscopy: RGB, YBR, palettes, and grey that is stored as RGB."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samadapt.data import open_dataset, read_image, write_prediction
from samadapt.errors import DataError

pydicom = pytest.importorskip("pydicom")

Make = Callable[..., list[Path]]
RGB = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
SMOOTH = np.stack([*np.meshgrid(np.arange(10) * 20, np.arange(12) * 15)], -1).astype(np.uint8)
SMOOTH = np.concatenate([SMOOTH, SMOOTH[..., :1] // 2], axis=-1)


@pytest.fixture
def save(make_series: Make) -> Callable[..., Path]:
    """Return a function that writes a colour picture, or a film of frames."""

    def write(folder: Path, pixels: np.ndarray, kind: str = "RGB", **tags: Any) -> Path:
        (path,) = make_series(folder, np.zeros((1, 12, 10), np.uint16), Modality="US")
        data = pydicom.dcmread(path)
        gone = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
        for key in (*gone, "RescaleSlope", "RescaleIntercept"):
            delattr(data, key)
        data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
        data.SamplesPerPixel, data.PhotometricInterpretation = 3, kind
        data.PlanarConfiguration = 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
        data.PixelData = pixels.tobytes()
        for key, value in tags.items():
            if key.endswith("Descriptor"):
                data.add_new(key, "US", value)
            else:
                setattr(data, key, value)
        data.save_as(path)
        return path

    return write


def test_rgb_in_both_plane_orders(tmp_path: Path, save: Callable[..., Path]) -> None:
    planes = np.ascontiguousarray(RGB.transpose(2, 0, 1))
    for path in (save(tmp_path / "a", RGB), save(tmp_path / "b", planes, PlanarConfiguration=1)):
        volume = read_image(path)
        assert (volume.is_color, volume.shape, volume.spacing_mm) == (True, (12, 10, 1), None)
        np.testing.assert_array_equal(volume.image, RGB)


def test_ybr_becomes_rgb(tmp_path: Path, save: Callable[..., Path]) -> None:
    ybr = pydicom.pixels.convert_color_space(SMOOTH, "RGB", "YBR_FULL")
    found = read_image(save(tmp_path, ybr, "YBR_FULL")).image
    assert np.abs(found.astype(int) - SMOOTH).max() <= 1


def test_jpeg_as_ultrasound_stores_it(tmp_path: Path, save: Callable[..., Path]) -> None:
    held = BytesIO()
    Image.fromarray(SMOOTH).save(held, "JPEG", quality=98)
    path = save(tmp_path, RGB)
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    data.PhotometricInterpretation = "YBR_FULL_422"
    data.PixelData = pydicom.encaps.encapsulate([held.getvalue()])
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.save_as(path)
    expected = np.asarray(Image.open(BytesIO(held.getvalue())))
    found = read_image(path).image
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_a_palette(tmp_path: Path, save: Callable[..., Path]) -> None:
    table = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16)
    lut: dict[str, Any] = {"SamplesPerPixel": 1}
    for name, values in zip(("Red", "Green", "Blue"), table, strict=True):
        lut[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        lut[f"{name}PaletteColorLookupTableData"] = (values * 257).astype("<u2").tobytes()
    found = read_image(save(tmp_path, RGB[..., 0], "PALETTE COLOR", **lut)).image
    np.testing.assert_array_equal(found, table.T[RGB[..., 0]])


def test_grey_that_is_stored_as_rgb(tmp_path: Path, save: Callable[..., Path]) -> None:
    grey = np.repeat(RGB[..., :1], 3, axis=-1)
    volume = read_image(save(tmp_path / "a", grey))
    assert not volume.is_color
    np.testing.assert_array_equal(volume.image, RGB[..., :1])
    film = np.stack([grey, grey // 2, grey // 3])
    volume = read_image(save(tmp_path / "b", film, NumberOfFrames=3))
    np.testing.assert_array_equal(volume.image, film[..., 0].transpose(1, 2, 0))


def test_colours_that_are_no_picture(tmp_path: Path, save: Callable[..., Path]) -> None:
    film = save(tmp_path / "a", np.stack([RGB, RGB]), NumberOfFrames=2)
    deep = save(tmp_path / "b", RGB.astype(np.uint16) * 9, BitsAllocated=16, BitsStored=16)
    for path in (film, deep):
        with pytest.raises(DataError, match="colour_dicom"):
            read_image(path)


def test_a_data_set_of_colour_pictures(tmp_path: Path, save: Callable[..., Path]) -> None:
    mask = np.zeros((12, 10), np.uint8)
    mask[3:7, 2:9] = 1
    (tmp_path / "masks").mkdir()
    for index in range(3):
        path = save(tmp_path / "images" / "made", np.roll(RGB, index, axis=0))
        path.rename(tmp_path / "images" / f"us_{index}.dcm")
        Image.fromarray(mask).save(tmp_path / "masks" / f"us_{index}.png")
    dataset = open_dataset("dicom", tmp_path, intensity="rgb", val_every=3)
    assert [case.name for case in dataset.cases] == ["us_0", "us_1", "us_2"]
    (sample,) = dataset.samples("us_1")
    np.testing.assert_array_equal(sample.image, np.roll(RGB, 1, axis=0))
    np.testing.assert_array_equal(sample.labels, mask)
    volume = read_image(tmp_path / "images" / "us_0.dcm")
    write_prediction(mask[:, :, None], volume, tmp_path / "out.nii.gz")
