"""COCO beside pycocotools, and each fault as one finding."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samadapt.data import SliceRef, check_dataset, open_dataset
from samadapt.errors import DataError

coco = pytest.importorskip("pycocotools.mask")
HEIGHT, WIDTH = 40, 50


def _runs(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def _rle(mask: np.ndarray, packed: bool = True) -> dict[str, Any]:
    if not packed:
        return {"size": list(mask.shape), "counts": _runs(mask)}
    return {
        "size": list(mask.shape),
        "counts": coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode(),
    }


def _square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + side, left : left + side] = True
    return mask


BLOB = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.7
TRIANGLE = [5.5, 5.0, 30.25, 8.0, 12.0, 33.5]


def _content() -> dict[str, Any]:
    """Four pictures: a blob (RLE), a triangle, a small square in a large one, a crowd."""
    annotations = [
        {"id": 1, "image_id": 10, "category_id": 3, "segmentation": _rle(BLOB)},
        {"id": 2, "image_id": 11, "category_id": 7, "segmentation": [TRIANGLE]},
        {"id": 3, "image_id": 12, "category_id": 7, "segmentation": _rle(_square(12, 12, 4))},
        {"id": 4, "image_id": 12, "category_id": 3, "segmentation": _rle(_square(5, 5, 30))},
        {
            "id": 5,
            "image_id": 13,
            "category_id": 3,
            "iscrowd": 1,
            "segmentation": _rle(_square(2, 2, 9), packed=False),
        },
    ]
    images = [
        {"id": i, "file_name": f"p{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(10, 14)
    ]
    categories = [{"id": 3, "name": "cell"}, {"id": 7, "name": "nucleus"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _coco(root: Path, content: Any = None, place: str = "annotations.json") -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for index in range(10, 14):
        picture = np.random.default_rng(index).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "images" / f"p{index}.png")
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).write_text(
        json.dumps(_content() if content is None else content), encoding="utf-8"
    )
    return root


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools' decode
def test_label_maps(tmp_path: Path) -> None:
    root = _coco(tmp_path)
    assert check_dataset("coco", root) == []
    dataset = open_dataset("coco", root)
    assert dataset.classes == ["cell", "nucleus"]
    labels = {name: dataset.sample(SliceRef(name, 0)).labels for name in ("p10", "p11", "p12")}
    np.testing.assert_array_equal(labels["p10"], BLOB)
    triangle = coco.decode(coco.merge(coco.frPyObjects([TRIANGLE], HEIGHT, WIDTH)))
    np.testing.assert_array_equal(labels["p11"], triangle * 2)
    np.testing.assert_array_equal(labels["p12"], _square(5, 5, 30) + _square(12, 12, 4) * 1)
    instances = dataset.volume("p12").instances
    assert instances is not None
    np.testing.assert_array_equal(instances, _square(5, 5, 30) * 2 - _square(12, 12, 4) * 1)
    np.testing.assert_array_equal(dataset.sample(SliceRef("p12", 0)).instances, instances)
    crowd = dataset.volume("p13")
    np.testing.assert_array_equal(crowd.labels[:, :, 0], _square(2, 2, 9))
    assert crowd.instances is not None
    assert not crowd.instances.any()
    chosen = open_dataset("coco", root, classes=["nucleus"])
    np.testing.assert_array_equal(chosen.sample(SliceRef("p11", 0)).labels, triangle)


def test_places_of_files(tmp_path: Path) -> None:
    root = _coco(tmp_path / "a", place="annotations/instances_val2017.json")
    (root / "images").rename(root / "val2017")
    assert check_dataset("coco", root) == []
    (root / "annotations").rename(root / "notes")
    (finding,) = check_dataset("coco", root)
    assert (finding.code, finding.file) == ("missing_label", str(root))
    named = check_dataset("coco", root, label="notes/instances_val2017.json")
    assert named == []


def test_category_zero_and_one_name_twice(tmp_path: Path) -> None:
    content = _content()
    content["categories"] = [{"id": 0, "name": "cell"}, {"id": 7, "name": "cell"}]
    for entry in content["annotations"]:
        entry["category_id"] = 0 if entry["category_id"] == 3 else 7
    dataset = open_dataset("coco", _coco(tmp_path, content))
    assert dataset.classes == ["cell"]
    assert dataset.sample(SliceRef("p12", 0)).labels.sum() == 900


def test_hidden_objects_are_told(tmp_path: Path) -> None:
    content = _content()
    content["annotations"].append({**content["annotations"][2], "id": 9})
    (finding,) = check_dataset("coco", _coco(tmp_path, content))
    assert (finding.code, finding.severity) == ("hidden_object", "warning")
    assert "annotation 3" in finding.message


Change = Callable[[dict[str, Any]], Any]


def _annotation(index: int, **values: Any) -> Change:
    return lambda content: content["annotations"][index].update(values)


JSON_FAULTS: dict[str, tuple[str, Change]] = {
    "images_missing": ("bad_annotations", lambda c: c.pop("images")),
    "annotations_no_list": ("bad_annotations", lambda c: c.update(annotations={"a": 1})),
    "category_without_name": ("bad_annotations", lambda c: c["categories"][0].pop("name")),
    "image_without_id": ("bad_annotations", lambda c: c["images"].append({"file_name": "q.png"})),
    "image_without_name": (
        "bad_annotations",
        lambda c: c["images"].append({"id": 99, "height": 4, "width": 4}),
    ),
    "image_outside": (
        "path_outside",
        lambda c: c["images"].append(
            {"id": 99, "height": 4, "width": 4, "file_name": "../../secret.png"}
        ),
    ),
    "image_outside_with_objects": (
        "path_outside",
        lambda c: c["images"][0].update(file_name="C:\\data\\a.png"),
    ),
    "image_huge": (
        "too_large",
        lambda c: c["images"].append(
            {"id": 99, "height": 10**6, "width": 10**6, "file_name": "q.png"}
        ),
    ),
    "image_twice": ("duplicate_case", lambda c: c["images"].append({**c["images"][0], "id": 99})),
    "unknown_image": ("dangling_annotation", _annotation(0, image_id=999)),
    "unknown_category": ("dangling_annotation", _annotation(0, category_id=999)),
    "image_as_text": ("bad_annotations", _annotation(0, image_id="10")),
    "image_as_list": ("bad_annotations", _annotation(0, image_id=[10])),
    "no_category": ("bad_annotations", _annotation(0, category_id=None)),
    "no_segmentation": ("bad_annotations", lambda c: c["annotations"][0].pop("segmentation")),
    "empty": ("bad_segmentation", _annotation(0, segmentation=[])),
    "two_points": ("bad_segmentation", _annotation(0, segmentation=[[1, 2, 3, 4]])),
    "nan": ("bad_segmentation", _annotation(0, segmentation=[[1, 2, 3, 4, math.nan, 6]])),
    "outside": ("bad_segmentation", _annotation(0, segmentation=[[1, 2, 3, 400, 5, 6]])),
    "fractions": ("bad_segmentation", _annotation(0, segmentation=[[0.1, 0.2, 0.5, 0.2, 1, 0.9]])),
    "text": ("bad_segmentation", _annotation(0, segmentation="polygon")),
    "rle_size": (
        "bad_segmentation",
        _annotation(0, segmentation={"size": [50, 40], "counts": _rle(BLOB)["counts"]}),
    ),
    "rle_short": (
        "bad_segmentation",
        _annotation(0, segmentation={"size": [HEIGHT, WIDTH], "counts": [10, 20]}),
    ),
    "rle_negative": (
        "bad_segmentation",
        _annotation(0, segmentation={"size": [HEIGHT, WIDTH], "counts": [2001, -1]}),
    ),
    "rle_long": (
        "bad_segmentation",
        _annotation(0, segmentation={"size": [HEIGHT, WIDTH], "counts": "oooooooooooooooo1"}),
    ),
    "rle_characters": (
        "bad_segmentation",
        _annotation(0, segmentation={"size": [HEIGHT, WIDTH], "counts": "a b c \u00e9"}),
    ),
    "size": ("shape_mismatch", lambda c: c["images"][0].update(height=WIDTH, width=HEIGHT)),
}


@pytest.mark.parametrize("fault", JSON_FAULTS)
def test_each_fault_of_coco_is_one_finding(tmp_path: Path, fault: str) -> None:
    content = _content()
    code, change = JSON_FAULTS[fault]
    change(content)
    root = _coco(tmp_path, content)
    errors = [f for f in check_dataset("coco", root) if f.severity == "error"]
    (finding,) = errors
    assert (finding.code, finding.file) == (code, str(root / "annotations.json"))
    with pytest.raises(DataError, match=code):
        open_dataset("coco", root)


def test_skipping_leaves_no_picture_without_its_objects(tmp_path: Path) -> None:
    content = _content()
    content["annotations"][0]["image_id"] = "10"  # most likely of p10
    dataset = open_dataset("coco", _coco(tmp_path / "text", content), on_error="skip")
    assert sorted([*dataset.train, *dataset.val]) == ["p11", "p12", "p13"]
    del content["annotations"][0]["image_id"]  # of any
    with pytest.raises(DataError, match="bad_annotations"):
        open_dataset("coco", _coco(tmp_path / "none", content), on_error="skip")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "empty_file"),
        (b"{", "broken_json"),
        (b"\xff\xfe\x00binary", "broken_json"),
        (b"[" * 100_000, "broken_json"),
        (b"[1, 2]", "bad_annotations"),
        (b"null", "bad_annotations"),
    ],
)
def test_files_that_are_no_coco(tmp_path: Path, text: bytes, code: str) -> None:
    root = _coco(tmp_path)
    (root / "annotations.json").write_bytes(text)
    (finding,) = check_dataset("coco", root)
    assert (finding.code, finding.file) == (code, str(root / "annotations.json"))


def test_pictures_that_are_missing_or_broken(tmp_path: Path) -> None:
    root = _coco(tmp_path)
    (root / "images" / "p10.png").unlink()
    (root / "images" / "p11.png").write_bytes(b"text")
    found = {Path(f.file).name: f.code for f in check_dataset("coco", root)}
    assert found == {"p10.png": "missing_image", "p11.png": "unreadable_image"}


def test_categories_that_disagree(tmp_path: Path) -> None:
    root = _coco(tmp_path, place="annotations/a.json")
    other = {**_content(), "categories": [{"id": 3, "name": "nerve"}], "images": []}
    (root / "annotations" / "b.json").write_text(
        json.dumps({**other, "annotations": []}), encoding="utf-8"
    )
    (finding,) = check_dataset("coco", root)
    assert (finding.code, Path(finding.file).name) == ("category_conflict", "b.json")
