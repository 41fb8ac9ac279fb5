"""SA-1B: run-length masks beside pictures, and each fault as one finding."""

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

coco = pytest.importorskip("pycocotools.mask")
HEIGHT, WIDTH = 40, 50


def _square(top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def _rle(mask: np.ndarray) -> dict[str, Any]:
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": packed["counts"].decode()}


def _sa1b(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    for index in range(3):
        picture = np.random.default_rng(index).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / f"sa_{index}.jpg")
        masks = [_square(5, 5, 30), _square(12, 12, 4)]
        content = {
            "image": {"image_id": index, "height": HEIGHT, "width": WIDTH},
            "annotations": [{"id": i, "segmentation": _rle(m)} for i, m in enumerate(masks)],
        }
        (root / f"sa_{index}.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def test_objects_of_one_class_with_numbers(tmp_path: Path) -> None:
    root = _sa1b(tmp_path)
    assert check_dataset("sa1b", root) == []
    dataset = open_dataset("sa1b", root)
    assert dataset.classes == ["object"]
    np.testing.assert_array_equal(dataset.sample(SliceRef("sa_1", 0)).labels, _square(5, 5, 30))
    instances = dataset.volume("sa_1").instances
    assert instances is not None
    np.testing.assert_array_equal(instances, _square(5, 5, 30) * 1 + _square(12, 12, 4))


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def spoil(root: Path) -> None:
        content = json.loads((root / "sa_1.json").read_text(encoding="utf-8"))
        change(content)
        (root / "sa_1.json").write_text(json.dumps(content), encoding="utf-8")

    return spoil


FAULTS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "empty": ("empty_file", "sa_1.json", lambda r: (r / "sa_1.json").write_bytes(b"")),
    "cut": (
        "broken_json",
        "sa_1.json",
        lambda r: (r / "sa_1.json").write_bytes((r / "sa_1.json").read_bytes()[:-30]),
    ),
    "no_image_key": ("bad_annotations", "sa_1.json", _edit(lambda c: c.pop("image"))),
    "no_list": ("bad_annotations", "sa_1.json", _edit(lambda c: c.update(annotations=None))),
    "no_size": ("shape_mismatch", "sa_1.json", _edit(lambda c: c["image"].pop("width"))),
    "wrong_size": ("shape_mismatch", "sa_1.json", _edit(lambda c: c["image"].update(width=9))),
    "number": ("bad_segmentation", "sa_1.json", _edit(lambda c: c["annotations"].append(5))),
    "no_mask": ("bad_segmentation", "sa_1.json", _edit(lambda c: c["annotations"].append({}))),
    "nan": (
        "bad_segmentation",
        "sa_1.json",
        _edit(lambda c: c["annotations"][0]["segmentation"].update(counts=[math.nan])),
    ),
    "no_json": ("missing_label", "sa_1.jpg", lambda r: (r / "sa_1.json").unlink()),
    "no_jpg": ("missing_image", "sa_1.jpg", lambda r: (r / "sa_1.jpg").unlink()),
    "jpg_cut": (
        "unreadable_image",
        "sa_1.jpg",
        lambda r: (r / "sa_1.jpg").write_bytes((r / "sa_1.jpg").read_bytes()[:300]),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_finding(tmp_path: Path, fault: str) -> None:
    root = _sa1b(tmp_path)
    code, file, spoil = FAULTS[fault]
    spoil(root)
    (finding,) = check_dataset("sa1b", root)
    assert (finding.code, finding.file) == (code, str(root / file))
    assert open_dataset("sa1b", root, on_error="skip").left_out == ["sa_1"]
