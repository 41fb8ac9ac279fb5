"""labelme's annotations: shapes, pictures, and what is wrong with them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samadapt.data.checks.survey import check_dataset
from samadapt.data.dataset import open_dataset
from samadapt.data.types import IGNORED, SliceRef
from samadapt.errors import DataError

HEIGHT, WIDTH = 40, 60
SQUARE = [[10, 5], [20, 5], [20, 15], [10, 15]]


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def shape(label: str = "cat", points: Any = SQUARE, kind: Any = "polygon", **more: Any) -> Any:
    return {"label": label, "points": points, "shape_type": kind, "flags": {}, **more}


def note(path: Path, shapes: Any, image: str = "", **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": image or f"{path.stem}.jpg",
        "imageData": base64.b64encode(b"no picture").decode(),
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
        **more,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def annotated(root: Path, count: int = 4, shapes: Any = None) -> Path:
    for index in range(count):
        picture(root / f"p{index}.jpg", index)
        note(root / f"p{index}.json", shapes or [shape()])
    return root


def labels_of(root: Path, case: str = "p1") -> Any:
    return open_dataset("labelme", root).sample(SliceRef(case, 0)).labels


def errors(root: Path) -> list[Any]:
    return [f for f in check_dataset("labelme", root) if f.severity == "error"]


def mask_of(inside: Any) -> str:
    stream = io.BytesIO()
    Image.fromarray(inside.astype(np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_polygons_become_classes_in_alphabetical_order(tmp_path: Path) -> None:
    far = [[30, 20], [50, 20], [50, 30], [30, 30]]
    dataset = open_dataset("labelme", annotated(tmp_path, shapes=[shape("dog"), shape("cat", far)]))
    assert dataset.classes == ["cat", "dog"]
    sample = dataset.sample(SliceRef("p1", 0))
    assert (sample.labels == 2).sum() == 100
    assert (sample.labels == 1).sum() == 200
    assert sample.instances is not None
    assert sample.instances.max() == 2


def test_each_shape_is_drawn_where_it_lies(tmp_path: Path) -> None:
    root = annotated(tmp_path, shapes=[shape(points=[[20, 15], [10, 5]], kind="rectangle")])
    np.testing.assert_array_equal(labels_of(root) == 1, labels_of_square())
    rotated = annotated(tmp_path / "b", shapes=[shape(kind="rectangle")])
    np.testing.assert_array_equal(labels_of(rotated) == 1, labels_of_square())
    old = annotated(tmp_path / "c", shapes=[shape(kind=None)])
    np.testing.assert_array_equal(labels_of(old) == 1, labels_of_square())


def labels_of_square() -> Any:
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:15, 10:20] = True
    return expected


def test_circles_are_round_and_end_at_the_picture(tmp_path: Path) -> None:
    root = annotated(tmp_path, shapes=[shape(points=[[30, 20], [30, 28]], kind="circle")])
    assert labels_of(root).sum() == pytest.approx(np.pi * 64, rel=0.05)
    cut = annotated(tmp_path / "b", shapes=[shape(points=[[0, 20], [0, 30]], kind="circle")])
    assert labels_of(cut).sum() == pytest.approx(np.pi * 50, rel=0.05)


def test_masks_are_pasted_into_their_box(tmp_path: Path) -> None:
    inside = np.arange(6 * 4).reshape(6, 4) % 3 == 0
    pasted = shape(points=[[7, 9], [10, 14]], kind="mask", mask=mask_of(inside))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[9:15, 7:11] = inside
    np.testing.assert_array_equal(labels_of(annotated(tmp_path, shapes=[pasted])) == 1, expected)


def test_shapes_of_a_group_are_one_object(tmp_path: Path) -> None:
    far = [[30, 20], [50, 20], [50, 30], [30, 30]]
    parts = [shape(group_id=7), shape(points=far, group_id=7), shape("dog", group_id=7)]
    dataset = open_dataset("labelme", annotated(tmp_path, shapes=parts))
    instances = dataset.sample(SliceRef("p0", 0)).instances
    assert instances is not None
    assert instances[25, 40] == 1
    assert instances[10, 15] == 2  # the dog lies over the cat
    assert (instances == 1).sum() == 200


def test_background_and_ignore_are_labelmes_own(tmp_path: Path) -> None:
    inner = [[12, 7], [16, 7], [16, 11], [12, 11]]
    far = [[30, 20], [50, 20], [50, 30], [30, 30]]
    shapes = [shape(), shape("_background_", inner), shape("__ignore__", far)]
    dataset = open_dataset("labelme", annotated(tmp_path, shapes=shapes))
    labels = dataset.sample(SliceRef("p1", 0)).labels
    assert dataset.classes == ["cat"]
    assert (labels == 1).sum() == 100 - 16
    assert (labels == IGNORED).sum() == 200


def test_lines_and_points_are_named(tmp_path: Path) -> None:
    shapes = [shape(), shape(points=[[1, 1], [5, 5]], kind="line"), shape("dot", [[3, 3]], "point")]
    root = annotated(tmp_path, shapes=shapes)
    found = [f for f in check_dataset("labelme", root) if f.code == "not_an_area"]
    assert len(found) == 4
    assert found[0].message.startswith("2 lines or points")


@pytest.mark.parametrize(
    ("image", "place"),
    [
        ("..\\images\\p{}.jpg", "images/p{}.jpg"),
        ("../images/p{}.jpg", "images/p{}.jpg"),
        ("C:\\Users\\me\\p{}.jpg", "notes/p{}.jpg"),
        ("/home/me/p{}.jpg", "images/p{}.jpg"),
        ("../../../p{}.jpg", "notes/p{}.jpg"),
        ("renamed{}.jpg", "images/p{}.png"),
    ],
)
def test_pictures_are_found(tmp_path: Path, image: str, place: str) -> None:
    for index in range(3):
        picture(tmp_path / place.format(index), index)
        note(tmp_path / "notes" / f"p{index}.json", [shape()], image.format(index))
    dataset = open_dataset("labelme", tmp_path)
    assert [case.name for case in dataset.cases] == ["notes_p0", "notes_p1", "notes_p2"]


def test_a_picture_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    picture(tmp_path / "outside.jpg")
    note(tmp_path / "set" / "p.json", [shape()], "../outside.jpg")
    assert [f.code for f in errors(tmp_path / "set")] == ["missing_image"]


def test_pictures_without_annotations_and_other_files_are_named(tmp_path: Path) -> None:
    root = annotated(tmp_path, 2)
    picture(root / "q.jpg", 9)
    (root / "labels.json").write_text("[]", encoding="utf-8")
    found = {f.code: f.file for f in check_dataset("labelme", root)}
    assert found["missing_label"] == str(root / "q.jpg")
    assert found["other_file"] == str(root / "labels.json")


@pytest.mark.parametrize(
    ("shapes", "more", "code"),
    [
        ([shape(points=[[1, 1], [2, 2]])], {}, "bad_segmentation"),
        ([shape(points=[[1, 1], [2, 2], [900, 5]])], {}, "bad_segmentation"),
        ([shape(points="x")], {}, "bad_segmentation"),
        ([shape(points=[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]])], {}, "bad_segmentation"),
        ([shape(points=[[1, 1], [None, 2], [3, 3]])], {}, "bad_segmentation"),
        ([shape(kind="blob")], {}, "bad_segmentation"),
        ([shape(points=[[1, 1], [9, 9]], kind="mask", mask="&")], {}, "bad_segmentation"),
        ([shape(points=[[1, 1], [9, 9]], kind="mask", mask="AAAA")], {}, "bad_segmentation"),
        (
            [shape(points=[[1, 1], [9, 9]], kind="mask", mask=mask_of(np.ones((3, 3))))],
            {},
            "bad_segmentation",
        ),
        ([{"points": SQUARE}], {}, "bad_annotations"),
        ({"label": "cat"}, {}, "bad_annotations"),
        ([shape()], {"imageHeight": 41}, "shape_mismatch"),
    ],
)
def test_each_fault_is_one_finding(tmp_path: Path, shapes: Any, more: Any, code: str) -> None:
    root = annotated(tmp_path, 3)
    note(root / "p1.json", shapes, **more)
    (found,) = errors(root)
    assert found.code == code
    assert found.file == str(root / "p1.json")
    assert open_dataset("labelme", root, on_error="skip").left_out == ["p1"]


def test_a_broken_json_leaves_its_picture_out(tmp_path: Path) -> None:
    root = annotated(tmp_path, 3)
    (root / "p1.json").write_text('{"shapes": [', encoding="utf-8")
    assert [f.code for f in errors(root)] == ["broken_json"]
    (root / "p1.json").write_text(
        json.dumps({"shapes": [], "imagePath": "p0.jpg"}), encoding="utf-8"
    )
    assert [f.code for f in errors(root)] == ["duplicate_case"]


def test_folders_without_labelme_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data=labelme reads"):
        open_dataset("labelme", tmp_path)
    with pytest.raises(DataError, match=r"data\.root"):
        open_dataset("labelme")
