"""EXIF orientation: pictures are turned, and masks must be known to be drawn on the same frame."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from samadapt.data import SliceRef, check_dataset, open_dataset, read_image
from samadapt.data.formats.shared.exif import turn_upright
from samadapt.errors import ConfigError

RGB = np.random.default_rng(3).integers(0, 256, (12, 10, 3), dtype=np.uint8)
ALL = range(2, 9)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _save(path: Path, pixels: np.ndarray, orientation: int) -> None:
    Image.fromarray(pixels).save(path, exif=_exif(orientation))


@pytest.mark.parametrize("orientation", ALL)
@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_pictures_are_turned_as_viewers_do(tmp_path: Path, orientation: int, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(RGB).save(path, exif=_exif(orientation), **options)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read_image(path).image, expected)
    np.testing.assert_array_equal(read_image(path, exif="ignore").image, RGB)


def test_turn_is_undone_by_its_inverse() -> None:
    for orientation in ALL:
        inverse = {6: 8, 8: 6}.get(orientation, orientation)
        np.testing.assert_array_equal(turn_upright(turn_upright(RGB, orientation), inverse), RGB)


def _mask(size: tuple[int, int]) -> Image.Image:
    values = np.zeros(size, np.uint8)
    values[:4, :3] = 255
    return Image.fromarray(values)


@pytest.mark.parametrize("orientation", ALL)
def test_a_mask_of_the_stored_size_names_exif(
    make_folder: Callable[..., Path], orientation: int
) -> None:
    root = make_folder(3)
    _save(root / "images" / "p1.png", RGB, orientation)
    _mask((12, 10)).save(root / "masks" / "p1.png")
    (finding,) = check_dataset("folder", root)
    assert finding.code == "exif_orientation"
    assert finding.severity == "error"
    assert finding.file == str(root / "masks" / "p1.png")
    assert f"EXIF orientation {orientation}" in finding.message
    assert "data.exif=ignore" in finding.fix
    assert ("data.exif=apply" in finding.fix) is (orientation < 5)
    sample = open_dataset("folder", root, exif="ignore").sample(SliceRef("p1", 0))
    np.testing.assert_array_equal(sample.image, RGB)
    assert sample.labels[:4, :3].all()


@pytest.mark.parametrize("orientation", ALL)
def test_a_turned_square_picture_needs_the_users_choice(
    make_folder: Callable[..., Path], orientation: int
) -> None:
    root = make_folder(3)
    _save(root / "images" / "p1.png", RGB[:10], orientation)
    _mask((10, 10)).save(root / "masks" / "p1.png")
    (finding,) = check_dataset("folder", root)
    assert finding.code == "exif_orientation"
    applied = open_dataset("folder", root, exif="apply").sample(SliceRef("p1", 0))
    np.testing.assert_array_equal(applied.image, turn_upright(RGB[:10], orientation))
    assert applied.labels[:4, :3].all()


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_the_turned_size_needs_no_key(
    make_folder: Callable[..., Path], orientation: int
) -> None:
    root = make_folder(3)
    _save(root / "images" / "p1.png", RGB, orientation)
    _mask((10, 12)).save(root / "masks" / "p1.png")
    assert check_dataset("folder", root) == []
    (finding,) = check_dataset("folder", root, exif="ignore")
    assert finding.code == "shape_mismatch"


def test_a_mask_with_the_same_orientation_is_turned_along(
    make_folder: Callable[..., Path],
) -> None:
    root = make_folder(3)
    values = np.zeros((12, 10), np.uint8)
    values[:4, :3] = 255
    _save(root / "images" / "p1.png", RGB, 3)
    _save(root / "masks" / "p1.png", values, 3)
    dataset = open_dataset("folder", root)
    np.testing.assert_array_equal(
        dataset.sample(SliceRef("p1", 0)).labels * 255, turn_upright(values, 3)
    )


def test_a_mask_of_another_size_hints_at_exif(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    _save(root / "images" / "p1.png", RGB, 6)
    _mask((12, 10)).save(root / "masks" / "p1.png")
    (finding,) = check_dataset("folder", root, exif="apply")
    assert finding.code == "shape_mismatch"
    assert "EXIF orientation 6" in finding.message


def test_boxes_on_the_stored_pixels_name_exif(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    _save(root / "images" / "p1.png", RGB, 6)
    _mask((10, 12)).save(root / "masks" / "p1.png")
    (root / "annotations").mkdir()
    (root / "annotations" / "p1.json").write_text(
        json.dumps({"boxes": [[1, 2, 5, 12]]}), encoding="utf-8"
    )
    (finding,) = check_dataset("folder", root)
    assert finding.code == "exif_orientation"
    assert finding.file.endswith("p1.json")
    (root / "annotations" / "p1.json").write_text(
        json.dumps({"boxes": [[1, 2, 5, 10]]}), encoding="utf-8"
    )
    assert check_dataset("folder", root) == []


def _coco(root: Path, orientation: int, height: int, width: int, stored: np.ndarray) -> Path:
    (root / "images").mkdir()
    images, annotations = [], []
    for index in range(1, 4):
        _save(root / "images" / f"{index}.png", np.roll(stored, index, 0), orientation)
        images.append({"id": index, "file_name": f"{index}.png", "height": height, "width": width})
        corners = [[2, 1, 6, 1, 6, 5, 2, 5]]
        entry = {"id": index, "image_id": index, "category_id": 1, "segmentation": corners}
        annotations.append(entry)
    table = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "x"}],
    }
    (root / "annotations.json").write_text(json.dumps(table), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("orientation", "size", "codes"),
    [
        (6, (12, 10), {"exif_orientation"}),
        (6, (10, 12), set()),
        (3, (12, 10), {"exif_orientation"}),
    ],
    ids=["stored", "turned", "upside_down"],
)
def test_coco_on_stored_pixels_names_exif(
    tmp_path: Path, orientation: int, size: tuple[int, int], codes: set[str]
) -> None:
    pytest.importorskip("pycocotools")
    root = _coco(tmp_path, orientation, *size, RGB)
    findings = check_dataset("coco", root)
    assert {finding.code for finding in findings} == codes
    if size == (12, 10):
        assert check_dataset("coco", root, exif="ignore") == []
        sample = open_dataset("coco", root, exif="ignore").sample(SliceRef("1", 0))
        np.testing.assert_array_equal(sample.image, np.roll(RGB, 1, 0))
        assert sample.labels[1:5, 2:6].all()


def test_sa1b_on_stored_pixels_names_exif(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    _save(tmp_path / "sa_1.png", RGB, 8)
    runs = {"size": [12, 10], "counts": [10, 5, 105]}
    content = {"image": {"height": 12, "width": 10}, "annotations": [{"segmentation": runs}]}
    (tmp_path / "sa_1.json").write_text(json.dumps(content), encoding="utf-8")
    (finding,) = check_dataset("sa1b", tmp_path)
    assert finding.code == "exif_orientation"
    assert check_dataset("sa1b", tmp_path, exif="ignore") == []


def test_another_choice_is_refused(make_folder: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"data\.exif.*apply, ignore"):
        open_dataset("folder", make_folder(3), exif="no")


@pytest.mark.parametrize(
    ("prompts", "codes"),
    [
        ({"boxes": [[0, 0, 3, 4]]}, []),
        ({"points": [[1, 1]]}, []),
        ({"boxes": [[6, 0, 10, 3]]}, ["exif_orientation"]),
        ({"points": [[8, 1]]}, ["exif_orientation"]),
    ],
)
def test_boxes_that_fit_both_frames_are_compared_with_the_mask(
    make_folder: Callable[..., Path], prompts: dict, codes: list[str]
) -> None:
    """The mask is drawn on the turned picture; its corner is the top right of the stored one."""
    root = make_folder(3)
    _save(root / "images" / "p1.png", RGB, 8)
    _mask((10, 12)).save(root / "masks" / "p1.png")
    (root / "annotations").mkdir()
    (root / "annotations" / "p1.json").write_text(json.dumps(prompts), encoding="utf-8")
    assert [finding.code for finding in check_dataset("folder", root)] == codes
    assert check_dataset("folder", root, exif="apply") == []


def test_labelme_on_stored_pixels_names_exif(tmp_path: Path) -> None:
    for index in range(3):
        _save(tmp_path / f"{index}.png", np.roll(RGB, index, 0), 6)
        shape = {"label": "x", "shape_type": "polygon", "points": [[2, 1], [6, 1], [6, 5], [2, 5]]}
        note = {"imagePath": f"{index}.png", "imageHeight": 12, "imageWidth": 10, "shapes": [shape]}
        (tmp_path / f"{index}.json").write_text(json.dumps(note), encoding="utf-8")
    assert {f.code for f in check_dataset("labelme", tmp_path)} == {"exif_orientation"}
    assert check_dataset("labelme", tmp_path, exif="ignore") == []
