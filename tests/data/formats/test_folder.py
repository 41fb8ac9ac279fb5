"""Pictures, masks and annotations: kinds of image, and each fault as one finding."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samadapt.data import SliceRef, check_dataset, open_dataset, read_image, write_prediction
from samadapt.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def test_a_mask_of_0_and_255_is_one_class(make_folder: Callable[..., Path]) -> None:
    dataset = open_dataset("folder", make_folder())
    assert dataset.classes == ["foreground"]
    assert dataset.axis is None
    assert (len(dataset.train), len(dataset.val)) == (4, 2)
    sample = dataset.sample(dataset.slices("train")[0])
    expected = np.asarray(Image.open(dataset.case(sample.case).image))
    np.testing.assert_array_equal(sample.image, expected)
    assert sample.labels.sum() == 16
    assert sample.labels[3, 2] == 1
    assert dataset.intensity.kind == "rgb"


def test_named_classes(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    assert open_dataset("folder", root, classes=["cell"]).classes == ["cell"]
    indices = np.zeros((12, 10), dtype=np.uint8)
    indices[:, 5:] = 1
    palette = Image.fromarray(indices)
    palette.putpalette([0, 0, 0, 200, 100, 50, 9, 9, 9])
    for index in range(3):
        palette.save(root / "masks" / f"p{index}.png")
    dataset = open_dataset("folder", root, classes={"left": 2, "right": 1})
    sample = dataset.sample(SliceRef("p0", 0))
    np.testing.assert_array_equal(sample.labels, indices * 2)
    assert open_dataset("folder", root, classes=["right", "other"]).classes == ["right", "other"]
    indices[0, 0] = 9
    Image.fromarray(indices).save(root / "masks" / "p1.png")
    (finding,) = check_dataset("folder", root, classes=["right", "other"])
    assert (finding.code, finding.file) == ("label_value", str(root / "masks" / "p1.png"))


@pytest.mark.parametrize(
    ("picture", "name", "expected"),
    [
        (Image.fromarray(RGB), "a.tiff", RGB),
        (Image.fromarray(np.dstack([RGB, GREY])), "a.png", RGB),
        (Image.fromarray(GREY), "a.tif", GREY),
        (Image.fromarray(np.dstack([GREY, GREY])), "a.png", GREY),
        (Image.fromarray(GREY > 100), "a.png", (GREY > 100) * 255),
        (Image.fromarray(GREY).convert("P"), "a.png", np.dstack([GREY] * 3)),
    ],
    ids=["rgb", "rgba", "grey", "grey_alpha", "bits", "palette"],
)
def test_kinds_of_picture(
    tmp_path: Path, picture: Image.Image, name: str, expected: np.ndarray
) -> None:
    picture.save(tmp_path / name)
    volume = read_image(tmp_path / name)
    shown = volume.image if volume.is_color else volume.image[:, :, 0]
    np.testing.assert_array_equal(shown, expected)
    assert volume.shape == (12, 10, 1)


def test_16_bit_pictures_are_scaled(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    deep = np.linspace(1000, 5000, 120).reshape(12, 10).astype(np.uint16)
    Image.fromarray(deep).save(root / "images" / "p1.png")
    dataset = open_dataset("folder", root)
    sample = dataset.sample(SliceRef("p1", 0))
    assert sample.image.shape == (12, 10, 3)
    assert (sample.image.min(), sample.image.max()) == (0, 255)
    assert (np.diff(sample.image[:, :, 0].ravel().astype(int)) >= 0).all()


def test_exif_orientation_is_respected(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees clockwise
    Image.fromarray(RGB).save(root / "images" / "p1.png", exif=exif)
    mask = np.zeros((10, 12), dtype=np.uint8)
    mask[:5] = 255
    Image.fromarray(mask).save(root / "masks" / "p1.png")
    dataset = open_dataset("folder", root)
    np.testing.assert_array_equal(dataset.sample(SliceRef("p1", 0)).image, np.rot90(RGB, -1))


def test_mask_suffix_and_names_that_end_so(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    (root / "masks" / "p0.png").rename(root / "masks" / "p0_mask.png")
    (root / "images" / "p1.png").rename(root / "images" / "p1_mask.png")
    (root / "masks" / "p1.png").rename(root / "masks" / "p1_mask.png")
    dataset = open_dataset("folder", root)
    assert [case.name for case in dataset.cases] == ["p0", "p1_mask", "p2"]


def test_prediction_is_a_png_of_class_numbers(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.png")
    volume = read_image(tmp_path / "a.png")
    ids = np.random.default_rng(1).integers(0, 4, (12, 10)).astype(np.int16)
    for prediction in (ids, ids[:, :, None]):
        write_prediction(prediction, volume, tmp_path / "sub" / "out.png")
        written = Image.open(tmp_path / "sub" / "out.png")
        assert written.mode == "P"
        np.testing.assert_array_equal(np.asarray(written), ids)
    write_prediction(ids + 300, volume, tmp_path / "deep.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep.png")), ids + 300)
    with pytest.raises(DataError, match=r"out\.jpg.*\.png"):
        write_prediction(ids, volume, tmp_path / "out.jpg")
    with pytest.raises(DataError, match=r"out\.png.*\(12, 10\)"):
        write_prediction(ids.T, volume, tmp_path / "out.png")
    with pytest.raises(DataError, match=r"out\.nii"):
        write_prediction(ids[:, :, None], volume, tmp_path / "out.nii")


def _annotate(root: Path, content: Any, name: str = "p1") -> Path:
    (root / "annotations").mkdir(exist_ok=True)
    path = root / "annotations" / f"{name}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_annotations_become_prompts(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    content = {
        "boxes": [[1, 2, 5.5, 7], [0, 0, 10, 12]],
        "points": [[3, 4]],
        "point_labels": [0],
        "labels": ["foreground", "unknown"],
    }
    _annotate(root, content)
    _annotate(root, {"points": [[1, 1], [2, 2]]}, "p2")
    saved = root / "annotations" / "p2.json"  # as Notepad does, with a byte-order mark
    saved.write_text(saved.read_text(encoding="utf-8"), encoding="utf-8-sig")
    (finding,) = check_dataset("folder", root)
    assert finding.code == "annotation_class"
    assert finding.file == str(root / "annotations" / "p1.json")
    both = {"foreground": 255, "unknown": 7}
    dataset = open_dataset("folder", root, classes=both)
    sample = dataset.sample(SliceRef("p1", 0))
    assert sample.boxes is not None
    np.testing.assert_array_equal(sample.boxes, content["boxes"])
    assert sample.points is not None
    np.testing.assert_array_equal(sample.points, [[3, 4]])
    assert sample.point_labels is not None
    assert sample.point_labels.tolist() == [0]
    assert sample.prompt_classes is not None
    assert sample.prompt_classes.tolist() == [1, 2]
    plain = dataset.sample(SliceRef("p2", 0))
    assert plain.point_labels is not None
    assert plain.point_labels.tolist() == [1, 1]
    assert plain.boxes is None
    assert plain.prompt_classes is None
    assert dataset.sample(SliceRef("p0", 0)).boxes is None
    merged = open_dataset("folder", root, classes=both, merge_classes=True)
    ids = merged.sample(SliceRef("p1", 0)).prompt_classes
    assert ids is not None
    assert ids.tolist() == [1, 1]
    chosen = open_dataset("folder", root, classes={"foreground": 255}).sample(SliceRef("p1", 0))
    assert chosen.boxes is not None
    assert chosen.boxes.tolist() == [[1, 2, 5.5, 7]]


@pytest.mark.parametrize(
    ("content", "code", "word"),
    [
        ("{", "annotation_schema", "JSON"),
        ("[]", "annotation_schema", "object"),
        ({"box": []}, "annotation_schema", "did you mean 'boxes'"),
        ({"boxes": 3}, "annotation_schema", "list"),
        ({"boxes": [[1, 2, 3]]}, "annotation_schema", "4 numbers"),
        ({"boxes": [[1, 2, 3, "4"]]}, "annotation_schema", "4 numbers"),
        ({"boxes": [[1, 2, 3, True]]}, "annotation_schema", "4 numbers"),
        ('{"boxes": [[1, 2, 3, NaN]]}', "annotation_schema", "4 numbers"),
        ({"boxes": [[5, 2, 3, 4]]}, "annotation_schema", "x0 < x1"),
        ({"boxes": [[1, 2, 11, 4]]}, "box_outside", "10 x 12"),
        ({"boxes": [[-1, 2, 3, 4]]}, "box_outside", "10 x 12"),
        ({"points": [[1, 13]]}, "point_outside", "10 x 12"),
        ({"boxes": [[0.1, 0.2, 0.5, 0.9]]}, "relative_coordinates", "fractions"),
        ({"points": [[0.5, 0.25]]}, "relative_coordinates", "fractions"),
        ({"points": [[1]]}, "annotation_schema", "2 numbers"),
        ({"points": [[1, 1]], "point_labels": [2]}, "annotation_schema", "0 or 1"),
        ({"points": [[1, 1]], "point_labels": [1, 1]}, "annotation_schema", "1 values"),
        ({"boxes": [[1, 2, 3, 4]], "labels": []}, "annotation_schema", "1 class names"),
    ],
)
def test_faults_of_annotations(
    make_folder: Callable[..., Path], content: Any, code: str, word: str
) -> None:
    root = make_folder(3)
    path = _annotate(root, content)
    (finding,) = check_dataset("folder", root)
    assert (finding.code, finding.file) == (code, str(path))
    assert word in finding.message


def _spoil_empty(root: Path) -> None:
    (root / "images" / "p1.png").write_bytes(b"")


def _spoil_truncated(root: Path) -> None:
    path = root / "images" / "p1.png"
    path.write_bytes(path.read_bytes()[:-80])


def _spoil_text(root: Path) -> None:
    (root / "masks" / "p1.png").write_text("no image", encoding="utf-8")


def _spoil_no_mask(root: Path) -> None:
    (root / "masks" / "p1.png").unlink()


def _spoil_no_image(root: Path) -> None:
    (root / "images" / "p1.png").unlink()


def _spoil_shape(root: Path) -> None:
    Image.fromarray(np.ones((5, 5), np.uint8)).save(root / "masks" / "p1.png")


def _spoil_constant(root: Path) -> None:
    Image.fromarray(np.full((12, 10, 3), 9, np.uint8)).save(root / "images" / "p1.png")


def _spoil_jpeg_mask(root: Path) -> None:
    Image.open(root / "masks" / "p1.png").save(root / "masks" / "p1.jpg")
    (root / "masks" / "p1.png").unlink()


def _spoil_colour_mask(root: Path) -> None:
    Image.fromarray(RGB).save(root / "masks" / "p1.png")


def _spoil_fractions(root: Path) -> None:
    Image.fromarray(np.full((12, 10), 0.5, np.float32)).save(root / "masks" / "p1.tif")
    (root / "masks" / "p1.png").unlink()


def _spoil_pages(root: Path) -> None:
    pages = [Image.fromarray(RGB), Image.fromarray(RGB)]
    pages[0].save(root / "images" / "p1.tif", save_all=True, append_images=pages[1:])
    (root / "images" / "p1.png").unlink()


def _spoil_nan(root: Path) -> None:
    values = np.ones((12, 10), np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(root / "images" / "p1.tif")
    (root / "images" / "p1.png").unlink()


def _spoil_twice(root: Path) -> None:
    Image.fromarray(RGB).save(root / "images" / "p1.tif")


def _spoil_annotation_alone(root: Path) -> None:
    _annotate(root, {}, "p1")
    for part in ("images", "masks"):
        (root / part / "p1.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "code", "file"),
    [
        (_spoil_empty, "empty_file", "images/p1.png"),
        (_spoil_truncated, "unreadable_image", "images/p1.png"),
        (_spoil_text, "unreadable_image", "masks/p1.png"),
        (_spoil_no_mask, "missing_label", "images/p1.png"),
        (_spoil_no_image, "missing_image", "masks/p1.png"),
        (_spoil_shape, "shape_mismatch", "masks/p1.png"),
        (_spoil_constant, "constant_image", "images/p1.png"),
        (_spoil_jpeg_mask, "lossy_mask", "masks/p1.jpg"),
        (_spoil_colour_mask, "colour_mask", "masks/p1.png"),
        (_spoil_fractions, "non_integer_labels", "masks/p1.tif"),
        (_spoil_pages, "several_pages", "images/p1.tif"),
        (_spoil_nan, "non_finite_voxels", "images/p1.tif"),
        (_spoil_twice, "duplicate_case", "images/p1.tif"),
        (_spoil_annotation_alone, "missing_image", "annotations/p1.json"),
    ],
)
def test_each_fault_is_one_finding(
    make_folder: Callable[..., Path], spoil: Callable[[Path], None], code: str, file: str
) -> None:
    root = make_folder(4)
    assert check_dataset("folder", root) == []
    spoil(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        findings = check_dataset("folder", root)
    assert [(f.code, f.severity, f.file) for f in findings] == [(code, "error", str(root / file))]
    dataset = open_dataset("folder", root, on_error="skip")
    assert dataset.left_out == ["p1"]
    assert len(dataset.cases) == 3


def test_folders_that_are_missing_or_odd(tmp_path: Path) -> None:
    assert [f.code for f in check_dataset("folder", tmp_path)] == ["missing_folder"]
    (tmp_path / "images").mkdir()
    assert [f.code for f in check_dataset("folder", tmp_path)] == ["no_cases"]
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    found = [(f.code, f.severity) for f in check_dataset("folder", tmp_path)]
    assert found == [("no_cases", "error"), ("other_file", "warning")]


def test_an_empty_mask_is_a_warning(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    Image.fromarray(np.zeros((12, 10), np.uint8)).save(root / "masks" / "p1.png")
    dataset = open_dataset("folder", root)
    assert [(f.code, f.severity) for f in dataset.findings] == [("no_foreground", "warning")]
    assert [ref.case for ref in dataset.slices("train")] == ["p2"]
    assert dataset.slices("train").left_out["empty"] == 1


@pytest.mark.slow
def test_pictures_of_10_000_pixels_a_side(tmp_path: Path) -> None:
    """PIL's own limit is 89 million pixels, a warning, which is an error here."""
    Image.new("1", (10_000, 10_000), 1).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (10_000, 10_000, 1)


def test_the_limit_is_ours_and_not_pils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").image, RGB)
    assert Image.MAX_IMAGE_PIXELS == 50
    monkeypatch.setattr("samadapt.data.formats.shared.stored_picture.MAX_PIXELS", 119)
    with pytest.raises(DataError, match=r"a\.png.*10 x 12.*too_large"):
        read_image(tmp_path / "a.png")


def _into_subfolders(root: Path, names: tuple[str, str]) -> None:
    for part in ("images", "masks"):
        for path in sorted((root / part).iterdir()):
            folder = root / part / names[int(path.stem[1:]) % 2]
            folder.mkdir(exist_ok=True)
            path.rename(folder / path.name)


def test_subfolders_are_read(make_folder: Callable[..., Path]) -> None:
    root = make_folder(4)
    _into_subfolders(root, ("site_a", "site_b"))
    (root / "images" / ".cache").mkdir()
    (root / "images" / ".cache" / "x.png").write_bytes(b"hidden")
    assert check_dataset("folder", root) == []
    dataset = open_dataset("folder", root)
    assert [case.name for case in dataset.cases] == [
        *("site_a_p0", "site_a_p2", "site_b_p1", "site_b_p3"),
    ]
    assert dataset.case("site_b_p1").labels == root / "masks" / "site_b" / "p1.png"


def test_a_missing_mask_is_expected_in_the_same_subfolder(make_folder: Callable[..., Path]) -> None:
    root = make_folder()
    (root / "images" / "site_a").mkdir()
    picture = next((root / "images").glob("*.png"))
    picture.rename(root / "images" / "site_a" / picture.name)
    found = {f.code: f.message for f in check_dataset("folder", root) if f.severity == "error"}
    assert f"expected masks/site_a/{picture.stem}.png" in found["missing_label"]
    assert f"expected images/{picture.stem} with" in found["missing_image"]


def test_subfolders_of_a_division_are_a_warning(make_folder: Callable[..., Path]) -> None:
    root = make_folder(4)
    _into_subfolders(root, ("train", "val"))
    (finding,) = check_dataset("folder", root)
    assert (finding.code, finding.severity) == ("split_folders", "warning")
    assert "train, val" in finding.message
    (root / "masks" / "val" / "p1.png").rename(root / "masks" / "train" / "p1.png")
    codes = {finding.code for finding in check_dataset("folder", root)}
    assert codes == {"split_folders", "missing_label", "missing_image"}


def test_equal_names_across_subfolders_are_an_error(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    for part in ("images", "masks"):
        (root / part / "p1").mkdir()
        (root / part / "p2.png").rename(root / part / "p1" / "x.png")
        (root / part / "p0.png").rename(root / part / "p1_x.png")
    assert {finding.code for finding in check_dataset("folder", root)} == {"duplicate_case"}


def test_images_one_folder_below_are_named(make_folder: Callable[..., Path]) -> None:
    root = make_folder(3)
    (finding,) = check_dataset("folder", root.parent)
    assert finding.code == "missing_folder"
    assert root.name in finding.message
