"""YOLO segmentation: layouts, names and what is wrong with a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samadapt.data.checks.survey import check_dataset
from samadapt.data.dataset import open_dataset
from samadapt.data.types import SliceRef
from samadapt.errors import DataError

HEIGHT, WIDTH = 40, 60
SQUARE = "0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75"
NAMES = "path: ../elsewhere\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n"


def write(
    root: Path, images: str = "images", labels: str = "labels", count: int = 3, text: str = ""
) -> Path:
    for folder in (images, labels):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        generator = np.random.default_rng([index, *images.encode()])
        noise = generator.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / images / f"p{index}.jpg")
        (root / labels / f"p{index}.txt").write_text(text or f"1 {SQUARE}\n", encoding="utf-8")
    return root


def named(root: Path, text: str = NAMES, name: str = "data.yaml") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    return root


def findings(root: Path, severity: str = "error") -> list[Any]:
    return [f for f in check_dataset("yolo", root) if f.severity == severity]


def test_polygons_are_fractions_of_the_picture(tmp_path: Path) -> None:
    dataset = open_dataset("yolo", named(write(tmp_path)))
    assert dataset.classes == ["cat", "dog"]
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[10:30, 15:30] = 2
    sample = dataset.sample(SliceRef("p1", 0))
    np.testing.assert_array_equal(sample.labels, expected)
    np.testing.assert_array_equal(sample.instances, expected > 0)


@pytest.mark.parametrize("layout", [("images/{}", "labels/{}"), ("{}/images", "{}/labels")])
def test_both_layouts_of_parts_are_read(tmp_path: Path, layout: tuple[str, str]) -> None:
    for part in ("train", "val"):
        write(named(tmp_path), *(folder.format(part) for folder in layout))
    names = [case.name for case in open_dataset("yolo", tmp_path).cases]
    assert names == [f"{part}_p{index}" for part in ("train", "val") for index in range(3)]


def test_labels_beside_the_pictures_are_read(tmp_path: Path) -> None:
    root = named(write(tmp_path, ".", "."))
    assert len(open_dataset("yolo", root).cases) == 3


def test_a_part_without_labels_is_named(tmp_path: Path) -> None:
    root = named(write(write(tmp_path, "images/train", "labels/train"), "images/test", "x"))
    assert len(open_dataset("yolo", root).cases) == 3
    (found,) = findings(root, "warning")
    assert found.code == "other_file"
    assert found.message.startswith("its 3 pictures have no folder of labels")


def test_empty_and_missing_files_are_pictures_without_objects(tmp_path: Path) -> None:
    root = named(write(tmp_path, count=5))
    (root / "labels" / "p1.txt").write_text("\n", encoding="utf-8")
    (root / "labels" / "p2.txt").unlink()
    dataset = open_dataset("yolo", root)
    assert len(dataset.cases) == 5
    for name in ("p1", "p2"):
        assert not dataset.sample(SliceRef(name, 0)).labels.any()
    codes = {(f.code, Path(f.file).name) for f in findings(root, "warning")}
    assert ("no_foreground", "p1.txt") in codes
    assert ("no_label_file", "p2.jpg") in codes


@pytest.mark.parametrize(
    ("file", "text", "classes"),
    [
        ("data.yaml", "names: [cat, dog]\nnc: 2\n", ["cat", "dog"]),
        ("coco8-seg.yaml", "\ufeffnames: {0: cat, 1: dog, 5: bird}\n", ["cat", "dog", "bird"]),
        ("classes.txt", "cat\ndog\n", ["cat", "dog"]),
        ("readme.md", "nothing", ["class_1"]),
    ],
)
def test_names_of_the_classes(tmp_path: Path, file: str, text: str, classes: list[str]) -> None:
    root = write(tmp_path)
    (root / file).write_text(text, encoding="utf-8")
    assert open_dataset("yolo", root).classes == classes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.2 0.2", "it is a box"),
        ("0 0.1 0.1 0.2 0.2 0.3", "at least three points"),
        ("0 0.1 0.1", "at least three points"),
        ("7 " + SQUARE, "class 7 is not among the names"),
        ("cat " + SQUARE, "expected a class number"),
        ("-1 " + SQUARE, "expected a class number"),
        ("0 10 10 50 10 50 30", "fractions of 0..1"),
        ("0 nan 0.1 0.2 0.2 0.3 0.3", "fractions of 0..1"),
        ("0 a b c d e f", "expected numbers"),
    ],
)
def test_each_fault_names_its_line(tmp_path: Path, line: str, said: str) -> None:
    root = named(write(tmp_path))
    (root / "labels" / "p1.txt").write_text(f"1 {SQUARE}\n{line}\n", encoding="utf-8")
    (found,) = findings(root)
    assert found.code == "bad_segmentation"
    assert found.file == str(root / "labels" / "p1.txt")
    assert found.message.startswith("line 2: ")
    assert said in found.message
    assert open_dataset("yolo", root, on_error="skip").left_out == ["p1"]


def test_rounding_at_the_edge_is_cut_off(tmp_path: Path) -> None:
    root = named(write(tmp_path, text="0 -0.001 0 1.004 0 1.004 1.0 -0.001 1.0"))
    assert open_dataset("yolo", root).sample(SliceRef("p0", 0)).labels.all()


def test_an_object_in_the_corner_pixel_is_not_taken_for_fractions(tmp_path: Path) -> None:
    root = named(write(tmp_path, text=f"1 0 0 0.01 0 0.01 0.01\n1 {SQUARE}\n"))
    assert not findings(root)


@pytest.mark.parametrize(
    "text", ["names: 5", "names: []", "names: {a: b}", "names: [1, 2]", "names: [", "a: &a [*a]"]
)
def test_a_yaml_without_usable_names_is_named(tmp_path: Path, text: str) -> None:
    root = named(write(tmp_path), text)
    assert [f.code for f in findings(root)] == ["bad_annotations"]


def test_yaml_files_of_other_programs_are_passed_over(tmp_path: Path) -> None:
    root = named(named(write(tmp_path), "a: ${b}", "args.yaml"), NAMES, "set.yaml")
    assert open_dataset("yolo", root).classes == ["cat", "dog"]


def test_a_label_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    root = named(write(tmp_path))
    (root / "labels" / "p1.txt").write_bytes(b"\xff\xfe\x00\x81")
    assert [f.code for f in findings(root)] == ["bad_annotations"]
    (root / "data.yaml").unlink()
    assert [f.code for f in findings(root)] == ["bad_annotations"]


def test_folders_without_pictures_are_named(tmp_path: Path) -> None:
    named(tmp_path)
    with pytest.raises(DataError, match=r"1 \.yaml; data=yolo reads"):
        open_dataset("yolo", tmp_path)
    with pytest.raises(DataError, match=r"data\.root"):
        open_dataset("yolo")
