"""Ignored values: read as pixels of unknown class, from a key or from the data's declaration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samadapt.data import open_dataset
from samadapt.data.checks.survey import survey
from samadapt.data.classes import make_table
from samadapt.data.types import IGNORED
from samadapt.errors import ConfigError, DataError
from samadapt.prompts.annotations import given_prompts


@pytest.fixture
def void_folder(tmp_path: Path) -> Path:
    """Six pictures with class 15 and a rim of 255, as PASCAL VOC has it; p5 holds 255 alone."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        mask = np.zeros((20, 24), np.uint8)
        mask[4:12, 4 + index : 12 + index] = 255
        mask[5:11, 5 + index : 11 + index] = 15
        if index == 5:
            mask[:] = 255
        image = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"p{index}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"p{index}.png")
    return tmp_path


@pytest.mark.parametrize("ignore", [255, [255], [255, 254]])
def test_an_ignored_value_is_neither_a_class_nor_background(
    void_folder: Path, ignore: int | list[int]
) -> None:
    dataset = open_dataset("folder", void_folder, ignore=ignore)
    assert dataset.classes == ["foreground"]
    assert dataset.table.values == ((15,),)
    mask = np.asarray(Image.open(void_folder / "masks" / "p1.png"))
    sample = dataset.samples("p1")[0]
    expected = np.select([mask == 15, mask == 255], [1, IGNORED], 0)
    np.testing.assert_array_equal(sample.labels, expected)
    assert dataset.volume("p1").labels.dtype == np.int8
    codes = {finding.code for finding in dataset.findings}
    assert codes == ({"ignore_absent"} if ignore == [255, 254] else set())


def test_a_slice_of_ignored_pixels_alone_is_on_no_side(void_folder: Path) -> None:
    dataset = open_dataset("folder", void_folder, ignore=255, empty_slices="keep", val_every=5)
    assert dataset.val == ["p0", "p5"]
    slices = dataset.slices("val")
    assert [ref.case for ref in slices] == ["p0"]
    assert slices.left_out["not annotated"] == 1
    assert "not annotated" not in dataset.slices("train").left_out


def test_the_check_says_how_much_is_ignored(void_folder: Path) -> None:
    found = survey("folder", void_folder, ignore=255)
    masks = [np.asarray(Image.open(path)) for path in (void_folder / "masks").iterdir()]
    count = sum(int((mask == 255).sum()) for mask in masks)
    assert found.ignored == {"voxels": count, "share": count / (6 * 20 * 24)}
    assert "constant_mask" not in {finding.code for finding in found.findings}
    assert [row["class"] for row in found.classes] == ["foreground"]
    assert survey("folder", void_folder, classes={"a": 15, "rim": 255}).ignored is None


def test_ignoring_0_leaves_only_drawn_pixels_known(make_folder: Callable[..., Path]) -> None:
    """``data.ignore=0``: unlabelled pixels are unknown, background has a number of its own."""
    root = make_folder(3)
    mask = np.zeros((12, 10), np.uint8)
    mask[2:4], mask[6:8] = 1, 2
    for index in range(3):
        Image.fromarray(mask).save(root / "masks" / f"p{index}.png")
    dataset = open_dataset("folder", root, ignore=0, classes={"cell": 2})
    labels = dataset.samples("p0")[0].labels
    assert set(np.unique(labels)) == {IGNORED, 0, 1}
    assert (labels == IGNORED).sum() == 80


def test_a_value_is_ignored_or_of_a_class() -> None:
    with pytest.raises(ConfigError, match=r"data\.ignore: the value 3 belongs to the class 'x'"):
        make_table(None, {"x": 3}, [1, 3], ignored=[3])
    with pytest.raises(ConfigError, match=r"data\.ignore=-1"):
        make_table(None, None, [-1, 1])
    assert make_table(None, None, [-1, 1], ignored=[-1]).names == ("foreground",)
    assert make_table({"x": (1,)}, None, [1, 7], ignored=[7]).unknown([1, 7, 9]) == [9]


def test_prompts_that_name_no_class_are_refused_where_classes_overlap(
    make_folder: Callable[..., Path],
) -> None:
    root = make_folder(3)
    mask = np.zeros((12, 10), np.uint8)
    mask[2:8, 2:8], mask[4:6, 4:6] = 2, 1
    (root / "annotations").mkdir(exist_ok=True)
    for index in range(3):
        Image.fromarray(mask).save(root / "masks" / f"p{index}.png")
        given = {"boxes": [[2, 2, 8, 8], [4, 4, 6, 6]]}
        given |= {"labels": ["whole", "core"]} if index else {}
        (root / "annotations" / f"p{index}.json").write_text(json.dumps(given), encoding="utf-8")
    dataset = open_dataset("folder", root, regions={"whole": [1, 2], "core": 1})
    objects = given_prompts(dataset.samples("p1")[0])
    np.testing.assert_array_equal(objects.truth, np.stack([mask > 0, mask == 1]))
    with pytest.raises(
        DataError, match="p0: its prompts name no classes, but a pixel may belong to"
    ):
        dataset.samples("p0")


def test_regions_exclude_other_ways_to_name_classes(make_folder: Callable[..., Path]) -> None:
    root, regions = make_folder(3), {"whole": [1, 255]}
    with pytest.raises(ConfigError, match=r"leave out data\.classes"):
        open_dataset("folder", root, regions=regions, classes={"a": 1})
    with pytest.raises(ConfigError, match=r"leave out data\.merge_classes"):
        open_dataset("folder", root, regions=regions, merge_classes=True)
    with pytest.raises(ConfigError, match=r"data\.instances makes one class and data\.regions"):
        open_dataset("folder", root, regions=regions, instances=True)
    with pytest.raises(ConfigError, match=r"data\.regions\.a: the value 0 is background"):
        open_dataset("folder", root, regions={"a": [0, 1]})
    with pytest.raises(ConfigError, match=r"For classes that overlap use data\.regions"):
        open_dataset("folder", root, classes={"a": [1, 2], "b": 2})


def test_values_below_zero_are_no_class_unless_it_is_said() -> None:
    with pytest.raises(ConfigError, match=r"the masks hold values below 0 \(-1\)"):
        make_table(None, None, [-1, 1])
    table = make_table(None, {"organ": 1}, [-1, 1])
    assert table.remap(np.array([[-1, 0, 1]])).tolist() == [[0, 0, 1]]
