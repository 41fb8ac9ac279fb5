"""Values of masks that are no classes, where nobody declares classes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from samadapt.data.checks.mask_values import measure_mask
from samadapt.data.checks.survey import check_dataset
from samadapt.data.dataset import open_dataset
from samadapt.data.types import SliceRef
from samadapt.errors import ConfigError, DataError

Masks = Sequence[Any]
SIDE = 96
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Masks], Path]:
    """Return a function that writes masks, with a picture each, as a data set."""

    def write(masks: Masks) -> Path:
        for part in ("images", "masks"):
            (tmp_path / part).mkdir()
        for index, mask in enumerate(masks):
            noise = np.random.default_rng(index).integers(0, 255, mask.shape, dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "images" / f"{index:02d}.png")
            Image.fromarray(mask).save(tmp_path / "masks" / f"{index:02d}.png")
        return tmp_path

    return write


def disc(x: int, radius: int = 14, value: int = 1) -> Any:
    return np.where((ROWS - 48) ** 2 + (COLUMNS - x) ** 2 < radius**2, value, 0).astype(np.uint8)


def numbered(count: int, *, step: int = 12, gap: int = 0) -> Any:
    """Return a mask of separate squares with the numbers 1 to ``count``, without ``gap``."""
    mask = np.zeros((SIDE, SIDE), np.uint16)
    places = [(y, x) for y in range(2, SIDE - 9, step) for x in range(2, SIDE - 9, step)]
    for number, (y, x) in enumerate(places[:count], start=1):
        mask[y : y + 8, x : x + 8] = 0 if number == gap else number
    return mask


def drawn(x: int) -> Image.Image:
    picture = Image.new("L", (768, 768))
    ImageDraw.Draw(picture).ellipse((x, 200, x + 350, 560), fill=255)
    return picture


def codes(root: Path, **options: Any) -> list[str]:
    return sorted({f.code for f in check_dataset("folder", root, **options)})


def from_jpeg(picture: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=75)
    return Image.open(stream)


@pytest.mark.parametrize(
    "smooth",
    [
        lambda picture: picture.resize((96, 96), Image.Resampling.BILINEAR),
        lambda picture: picture.resize((96, 96), Image.Resampling.LANCZOS),
        lambda picture: picture.resize((384, 384), Image.Resampling.BOX),
        lambda picture: from_jpeg(picture.resize((192, 192))),
    ],
    ids=["bilinear", "lanczos", "few levels", "jpeg"],
)
def test_grey_levels_are_an_error_of_their_file(
    folder: Callable[[Masks], Path], smooth: Callable[[Image.Image], Image.Image]
) -> None:
    root = folder([np.asarray(smooth(drawn(150 + 20 * i))) for i in range(3)])
    findings = [f for f in check_dataset("folder", root) if f.severity == "error"]
    assert [f.code for f in findings] == ["grey_levels"] * 3
    assert findings[0].file == str(root / "masks" / "00.png")
    assert "data.mask_threshold=128" in findings[0].fix
    with pytest.raises(DataError, match="grey levels of an anti-aliased"):
        open_dataset("folder", root)


def test_noise_beside_0_and_255_is_grey_levels(folder: Callable[[Masks], Path]) -> None:
    masks = [disc(30 + 5 * i, value=255) for i in range(3)]
    masks[1][48, 35], masks[1][5, 5] = 254, 1
    assert codes(folder(masks)) == ["grey_levels"]


def test_a_rim_of_half_tones_is_grey_levels(folder: Callable[[Masks], Path]) -> None:
    masks = [np.repeat(np.repeat(disc(30 + 5 * i, value=255), 2, 0), 2, 1) for i in range(3)]
    halves = [(m.astype(int)[:-1, 1:] + m[:-1, :-1]) // 2 for m in masks]  # between two columns
    assert codes(folder([half.astype(np.uint8) for half in halves])) == ["grey_levels"]


def test_a_ring_of_two_pixels_is_a_class(folder: Callable[[Masks], Path]) -> None:
    distance = np.hypot(ROWS - 48, COLUMNS - 48)
    rings = np.select([distance < 20, distance < 23], [255, 127], 0).astype(np.uint8)
    root = folder([np.roll(rings, i, 1) for i in range(3)])
    assert open_dataset("folder", root).classes == ["class_127", "class_255"]


def test_a_threshold_makes_one_class_of_grey_levels(folder: Callable[[Masks], Path]) -> None:
    masks = [np.asarray(drawn(150 + 20 * i).resize((96, 96))) for i in range(4)]
    root = folder(masks)
    dataset = open_dataset("folder", root, mask_threshold=128)
    assert dataset.classes == ["foreground"]
    labels = dataset.sample(SliceRef("01", 0)).labels
    np.testing.assert_array_equal(labels, masks[1] >= 128)
    assert open_dataset("folder", root, mask_threshold=9, classes=["cup"]).classes == ["cup"]
    with pytest.raises(ConfigError, match="choose one of the two"):
        open_dataset("folder", root, mask_threshold=128, instances=True)
    with pytest.raises(ConfigError, match="make one class"):
        open_dataset("folder", root, mask_threshold=128, classes=["cup", "disc"])


def test_one_smoothed_mask_among_sharp_ones_is_left_out_alone(
    folder: Callable[[Masks], Path],
) -> None:
    sharp = [disc(30 + 5 * i, value=255) for i in range(5)]
    root = folder([*sharp, np.asarray(drawn(200).resize((96, 96)))])
    with pytest.raises(DataError, match="grey_levels"):
        open_dataset("folder", root)
    dataset = open_dataset("folder", root, on_error="skip")
    assert dataset.left_out == ["05"]
    assert dataset.classes == ["foreground"]


def test_classes_coded_by_grey_values_stay_classes(folder: Callable[[Masks], Path]) -> None:
    distance = np.hypot(ROWS - 48, COLUMNS - 48)
    rings = np.select([distance < 10, distance < 20, distance < 30], [255, 170, 85], 0)
    root = folder([np.roll(rings, i, 1).astype(np.uint8) for i in range(3)])
    assert open_dataset("folder", root).classes == ["class_85", "class_170", "class_255"]


@pytest.mark.parametrize(
    "counts", [(30, 30, 30), (5, 9, 7), (25,)], ids=["above 20", "differ", "one picture"]
)
def test_object_numbers_are_an_error_without_classes(
    folder: Callable[[Masks], Path], counts: Sequence[int]
) -> None:
    root = folder([numbered(count) for count in counts])
    found = [f for f in check_dataset("folder", root) if f.severity == "error"]
    assert [f.code for f in found] == ["object_numbers"]
    assert "data.instances=true" in found[0].fix
    assert "data.classes" in found[0].fix
    for options in ({}, {"on_error": "skip"}, {"classes": ["cell"]}):
        with pytest.raises(DataError, match="object numbers"):
            open_dataset("folder", root, **options)


@pytest.mark.parametrize(
    "masks",
    [
        [numbered(5)] * 3,  # five classes that all pictures have
        [numbered(3), numbered(4), numbered(2)],  # few
        [numbered(30, gap=5), numbered(30, gap=9), numbered(30)],  # sparse in most
        [np.roll(numbered(9), i, 1) % 4 for i in range(3)],  # several components a class
    ],
    ids=["same number", "few", "gaps", "components"],
)
def test_class_numbers_are_classes(folder: Callable[[Masks], Path], masks: Masks) -> None:
    root = folder([np.roll(mask, index, 0) for index, mask in enumerate(masks)])
    found = {int(value) for mask in masks for value in np.unique(mask)} - {0}
    assert "object_numbers" not in codes(root)
    assert len(open_dataset("folder", root).classes) == len(found)


def test_classes_in_many_parts_are_no_objects(folder: Callable[[Masks], Path]) -> None:
    many = [(numbered(60) % (8 + i)).astype(np.uint8) for i in range(3)]
    assert "object_numbers" not in codes(folder(many))


def test_empty_masks_say_nothing_about_numbers(folder: Callable[[Masks], Path]) -> None:
    root = folder([numbered(25), numbered(22), *[np.zeros((SIDE, SIDE), np.uint8)] * 8])
    assert "object_numbers" in codes(root)


def test_instances_are_objects_of_one_class(folder: Callable[[Masks], Path]) -> None:
    masks = [numbered(count, step=8) for count in (30, 25, 33)]  # they touch
    root = folder(masks)
    dataset = open_dataset("folder", root, instances=True, classes=["cell"])
    assert dataset.classes == ["cell"]
    sample = dataset.sample(SliceRef("00", 0))
    np.testing.assert_array_equal(sample.labels, masks[0] > 0)
    np.testing.assert_array_equal(sample.instances, masks[0])
    tiles = open_dataset("folder", root, instances=True, tile=48).samples("00")
    assert len(tiles) > 1
    assert all(tile.instances.shape == (48, 48) for tile in tiles)
    with pytest.raises(ConfigError, match="make one class"):
        open_dataset("folder", root, instances=True, classes=["cell", "nucleus"])


def test_instances_of_volumes_are_cut_into_slices(tmp_path: Path, tools: Any) -> None:
    for index, count in enumerate((30, 25, 28)):
        labels = np.repeat(numbered(count)[:, :, None], 3, axis=2).astype(np.int32) * 100_000
        labels[labels > 2_000_000] += 2**30
        image = np.random.default_rng(index).uniform(1, 9, labels.shape).astype(np.float32)
        tools.write_nifti(tmp_path / "images" / f"{index}.nii.gz", image)
        tools.write_nifti(tmp_path / "labels" / f"{index}.nii.gz", labels)
    dataset = open_dataset(
        "nifti", tmp_path, intensity="mri", instances=True, cache_dir=tmp_path / "cache"
    )
    sample = dataset.sample(SliceRef("0", 1))
    assert sample.instances is not None
    assert sample.instances.shape == sample.labels.shape
    assert len(np.unique(sample.instances)) == 31
    np.testing.assert_array_equal(sample.labels, sample.instances > 0)


def test_object_numbers_of_volumes_are_found(tmp_path: Path, tools: Any) -> None:
    for index, count in enumerate((30, 25, 28)):
        labels = np.repeat(numbered(count)[:, :, None], 3, axis=2)
        image = np.random.default_rng(index).uniform(1, 9, labels.shape).astype(np.float32)
        tools.write_nifti(tmp_path / "images" / f"{index}.nii.gz", image)
        tools.write_nifti(tmp_path / "labels" / f"{index}.nii.gz", labels)
    with pytest.raises(DataError, match="object numbers"):
        open_dataset("nifti", tmp_path, intensity="mri")
    probable = [f.code for f in check_dataset("nifti", tmp_path, instances=True)]
    assert "object_numbers" not in probable


def test_probabilities_of_a_volume_take_a_threshold(tmp_path: Path, tools: Any) -> None:
    for index in range(2):
        image, labels = tools.volume_pair(index)
        tools.write_nifti(tmp_path / "images" / f"{index}.nii.gz", image)
        tools.write_nifti(tmp_path / "labels" / f"{index}.nii.gz", (labels / 4).astype(np.float32))
    with pytest.raises(DataError, match=r"data\.mask_threshold"):
        open_dataset("nifti", tmp_path, intensity="mri")
    dataset = open_dataset("nifti", tmp_path, intensity="mri", mask_threshold=0.5)
    assert dataset.classes == ["foreground"]
    assert dataset.presence("0").any()


def test_1_and_255_are_two_encodings(folder: Callable[[Masks], Path]) -> None:
    root = folder([disc(30 + 4 * i, value=255 if i % 2 else 1) for i in range(6)])
    found = [f for f in check_dataset("folder", root) if f.severity == "error"]
    assert [f.code for f in found] == ["mixed_encodings"]
    assert "3 masks hold the value 1 and 3 hold 255" in found[0].message
    assert "{foreground: [1, 255]}" in found[0].fix
    assert "data.ignore=255" in found[0].fix
    with pytest.raises(DataError, match="two encodings"):
        open_dataset("folder", root)
    assert open_dataset("folder", root, classes={"foreground": [1, 255]}).classes == ["foreground"]
    assert open_dataset("folder", root, merge_classes=True).classes == ["foreground"]


@pytest.mark.parametrize("small", [(15,), (1, 2, 20), tuple(range(1, 151)), (3,)])
def test_255_beside_small_numbers_is_void(
    folder: Callable[[Masks], Path], small: Sequence[int]
) -> None:
    masks = []
    for index in range(4):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for place, value in enumerate(small):
            mask[5 * (place // 18) : 5 * (place // 18) + 5, 5 * (place % 18) :][:, :5] = value
        mask[-4:, index:] = 255
        masks.append(np.roll(mask, index, 1))
    root = folder(masks)
    found = [f for f in check_dataset("folder", root) if f.severity == "error"]
    assert [f.code for f in found] == ["void_value"]
    assert "data.ignore=255" in found[0].fix
    listed = {f"c{value}": value for value in small}
    assert open_dataset("folder", root, classes=listed).classes == list(listed)


@pytest.mark.parametrize(("small", "code"), [(3, "void_value"), (1, "mixed_encodings")])
def test_65535_is_the_255_of_16_bits(
    folder: Callable[[Masks], Path], small: int, code: str
) -> None:
    discs = [disc(30 + 4 * i, value=small).astype(np.uint16) for i in range(4)]
    root = folder([np.where(ROWS < 3, np.uint16(65535), mask) for mask in discs])
    (found,) = (f for f in check_dataset("folder", root) if f.severity == "error")
    assert found.code == code
    assert "data.ignore=65535" in found.fix
    assert open_dataset("folder", root, ignore=65535).classes == ["foreground"]


def test_ignored_values_are_not_judged(folder: Callable[[Masks], Path]) -> None:
    masks = []
    for index in range(4):
        mask = numbered(25 + index)
        mask[-3:] = 255
        masks.append(mask.astype(np.uint8))
    root = folder(masks)
    assert "object_numbers" in codes(root, ignore=255)
    assert "void_value" not in codes(root, ignore=255)
    dataset = open_dataset("folder", root, ignore=255, instances=True)
    sample = dataset.sample(SliceRef("00", 0))
    assert sample.instances is not None
    assert sample.instances.max() == 25
    assert set(np.unique(sample.labels)) == {-1, 0, 1}


def test_void_is_ignored_on_request(folder: Callable[[Masks], Path]) -> None:
    masks = [np.maximum(disc(30 + 4 * i, value=15), np.uint8(255) * (ROWS < 3)) for i in range(4)]
    dataset = open_dataset("folder", folder([m.astype(np.uint8) for m in masks]), ignore=255)
    assert dataset.classes == ["foreground"]


def test_values_below_0_and_above_31_bits_are_named_by_file(tmp_path: Path, tools: Any) -> None:
    for index in range(3):
        image, labels = tools.volume_pair(index)
        labels = labels.astype(np.int16) - (np.indices(labels.shape)[0] < 2) * (index == 0)
        labels = labels.astype(np.uint32) * np.uint32(2**31) if index == 1 else labels
        tools.write_nifti(tmp_path / "images" / f"{index}.nii.gz", image)
        tools.write_nifti(tmp_path / "labels" / f"{index}.nii.gz", labels)
    found = [f for f in check_dataset("nifti", tmp_path) if f.severity == "error"]
    assert [(f.code, Path(f.file).name) for f in found] == [
        ("label_value", "0.nii.gz"),
        ("label_value", "1.nii.gz"),
    ]
    assert "data.ignore=-1" in found[0].fix
    assert "2147483648" in found[1].message


def test_ordinary_masks_are_not_measured() -> None:
    untouchable: Any = None
    for values in ((), (1,), (255,), (1, 2, 3), (10, 20, 30, 40), (1, 3, 5, 7, 9)):
        assert measure_mask(values, untouchable).numbers == 0


def test_a_large_mask_is_measured_in_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samadapt.data.checks.mask_values._WINDOW", 3000)
    mask = numbered(64)[:, :, None]
    found = measure_mask(range(1, 65), mask)
    assert 4 <= found.numbers < 64
    assert found.single == found.numbers


@pytest.mark.parametrize(
    ("values", "said"), [((1, 255), "data.ignore=255"), (tuple(range(1, 9)), "data.instances=true")]
)
def test_values_outside_a_declared_list_name_the_way_out(
    make_msd: Callable[..., Path], tools: Any, values: Sequence[int], said: str
) -> None:
    root = make_msd(labels={"0": "background", "1": "cell"})
    for path in (root / "labelsTr").iterdir():
        labels = np.random.default_rng(0).choice([0, *values], (8, 9, 6)).astype(np.int16)
        tools.write_nifti(path, labels)
    (first, *_) = [f for f in check_dataset("nifti", root) if f.severity == "error"]
    assert first.code == "label_value"
    assert said in first.fix
