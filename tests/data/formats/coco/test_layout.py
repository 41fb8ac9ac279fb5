"""Where a COCO folder keeps its JSON files and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samadapt.data.checks.survey import check_dataset
from samadapt.data.dataset import open_dataset
from samadapt.data.types import SliceRef
from samadapt.errors import DataError

OUTLINE = [[10, 5, 20, 5, 20, 15, 10, 15]]
CATEGORIES = [{"id": 18, "name": "dog"}]


def pictures(folder: Path, count: int = 4, name: str = "") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    stem = name or folder.name
    names = [f"{stem}{index}.jpg" for index in range(count)]
    for index, name in enumerate(names):
        noise = np.random.default_rng([index, *stem.encode()]).integers(
            0, 255, (20, 30, 3), dtype=np.uint8
        )
        Image.fromarray(noise).save(folder / name)
    return names


def content(names: list[str], **more: Any) -> dict[str, Any]:
    images = [
        {"id": index, "file_name": name, "height": 20, "width": 30}
        for index, name in enumerate(names)
    ]
    entries = [
        {"id": i, "image_id": i, "category_id": 18, "iscrowd": 0, "segmentation": OUTLINE, **more}
        for i in range(len(names))
    ]
    return {"images": images, "annotations": entries, "categories": CATEGORIES}


def write(path: Path, what: Any, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what, ensure_ascii=False), encoding=encoding)


def captions(names: list[str]) -> dict[str, Any]:
    found = content(names)
    return {"images": found["images"], "annotations": [{"id": 1, "image_id": 1, "caption": "dog"}]}


def check_reads(root: Path, count: int, **options: Any) -> list[Any]:
    dataset = open_dataset("coco", root, **options)
    assert dataset.classes == ["dog"]
    assert len(dataset.cases) == count
    labels = dataset.sample(SliceRef(dataset.cases[0].name, 0)).labels
    assert labels[10, 15] == 1
    assert labels.sum() == 100
    return dataset.findings


@pytest.mark.parametrize("folder", ["{}", "images/{}", "images"])
def test_the_published_layout_is_read(tmp_path: Path, folder: str) -> None:
    for split in ("train2017", "val2017"):
        names = pictures(tmp_path / folder.format(split), 3, split)
        notes = tmp_path / "annotations"
        write(notes / f"instances_{split}.json", content(names))
        write(notes / f"person_keypoints_{split}.json", content(names, keypoints=[0] * 51))
        write(notes / f"captions_{split}.json", captions(names))
    findings = check_reads(tmp_path, 6)
    (other,) = (finding for finding in findings if finding.code == "other_file")
    assert "captions_train2017.json" in other.message
    assert "person_keypoints_val2017.json" in other.message


def test_files_of_other_kinds_are_known_by_their_content(tmp_path: Path) -> None:
    names = pictures(tmp_path / "images")
    write(tmp_path / "annotations" / "a.json", captions(names))
    write(tmp_path / "annotations" / "b.json", content(names, keypoints=[1, 2, 2]))
    write(tmp_path / "annotations" / "c.json", {"images": content(names)["images"]})
    write(tmp_path / "annotations" / "d.json", content(names))
    check_reads(tmp_path, 4)


def test_outlines_beside_keypoints_are_read_where_there_are_no_others(tmp_path: Path) -> None:
    names = pictures(tmp_path / "images")
    path = tmp_path / "annotations" / "person_keypoints_train2017.json"
    write(path, content(names, keypoints=[1, 2, 2]))
    check_reads(tmp_path, 4)


def test_captions_alone_are_named(tmp_path: Path) -> None:
    names = pictures(tmp_path / "images")
    write(tmp_path / "annotations" / "captions_train2017.json", captions(names))
    with pytest.raises(DataError, match=r"it contains captions, not the .*data\.label=FILE"):
        open_dataset("coco", tmp_path)


def test_roboflow_and_label_studio_exports_are_read(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        names = pictures(tmp_path / "roboflow" / split, 3)
        write(tmp_path / "roboflow" / split / "_annotations.coco.json", content(names))
    check_reads(tmp_path / "roboflow", 6)
    names = pictures(tmp_path / "studio" / "images")
    write(tmp_path / "studio" / "result.json", content([f"images\\{name}" for name in names]))
    check_reads(tmp_path / "studio", 4)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_windows_paths_and_byte_order_marks_are_read(tmp_path: Path, encoding: str) -> None:
    names = pictures(tmp_path / "images" / "set")
    write(tmp_path / "annotations.json", content([f"set\\{name}" for name in names]), encoding)
    check_reads(tmp_path, 4)
    names = [case.name for case in open_dataset("coco", tmp_path).cases]
    assert names == [f"set_set{index}" for index in range(4)]


@pytest.mark.parametrize("name", ["..\\a.jpg", "C:\\data\\a.jpg", "\\\\server\\a.jpg", "/a.jpg"])
def test_pictures_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    pictures(tmp_path / "images")
    write(tmp_path / "annotations.json", content([name]))
    codes = [f.code for f in check_dataset("coco", tmp_path) if f.severity == "error"]
    assert "path_outside" in codes


@pytest.mark.parametrize(("name", "code"), [(".", "bad_annotations"), ("x" * 400, "missing_image")])
def test_odd_names_of_pictures_are_named(tmp_path: Path, name: str, code: str) -> None:
    pictures(tmp_path / "images")
    write(tmp_path / "annotations.json", content([name]))
    assert code in [f.code for f in check_dataset("coco", tmp_path)]


def test_data_label_chooses_one_file(tmp_path: Path) -> None:
    names = pictures(tmp_path / "images")
    write(tmp_path / "annotations" / "instances_a.json", content(names[:2]))
    write(tmp_path / "annotations" / "instances_b.json", content(names[2:]))
    assert not check_reads(tmp_path, 2, label="annotations/instances_a.json")
    check_reads(tmp_path, 4, label="annotations/instances_*.json")
