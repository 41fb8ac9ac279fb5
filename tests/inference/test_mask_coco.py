"""The COCO file of many pictures: a line each while they are looked for, one file at the end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from samadapt.errors import DataError
from samadapt.inference.mask_coco import MaskCoco, coco_row, rows_file
from samadapt.sam.automatic_masks import FoundMask
from samadapt.sam.mask_tools import encode_mask

HEIGHT, WIDTH = 8, 9


def masks(count):
    """Return ``count`` masks of a picture."""
    found = []
    for rows in range(1, count + 1):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[:rows, 1:4] = True
        box = torch.tensor([1, 0, 3, rows - 1])
        one = FoundMask(encode_mask(mask), box, 0.1 * rows, [2.5, 0.5], 0.9, (0, 0, WIDTH, HEIGHT))
        found.append(one)
    return found


PICTURES = {"a.png": masks(2), "b.png": [], "c.png": masks(3)}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def add(coco, names):
    for name in names:
        coco.add(name, HEIGHT, WIDTH, PICTURES[name])


@pytest.fixture
def whole(tmp_path):
    """What an uninterrupted call writes."""
    target = tmp_path / "whole.json"
    coco = MaskCoco(target, "cell")
    add(coco, PICTURES)
    coco.finish()
    return read(target)


def test_the_file_holds_every_picture_and_mask(whole):
    assert [image["file_name"] for image in whole["images"]] == list(PICTURES)
    assert [one["id"] for one in whole["annotations"]] == [1, 2, 3, 4, 5]
    assert [one["image_id"] for one in whole["annotations"]] == [1, 1, 3, 3, 3]
    assert whole["categories"] == [{"id": 1, "name": "cell"}]
    assert whole["annotations"][0]["bbox"] == [1, 0, 3, 1]
    assert whole["annotations"][0]["score"] == 0.1


def test_a_picture_adds_a_line_and_leaves_the_others_alone(tmp_path):
    target = tmp_path / "m.json"
    coco = MaskCoco(target, "cell")
    before = b""
    for name, found in PICTURES.items():
        coco.add(name, HEIGHT, WIDTH, found)
        content = rows_file(target).read_bytes()
        assert content.startswith(before)
        assert content.count(b"\n") == before.count(b"\n") + 1
        assert not target.exists(), "the whole file is written at the end alone"
        before = content
    coco.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


def test_a_killed_call_is_continued(tmp_path, whole):
    target = tmp_path / "m.json"
    add(MaskCoco(target, "cell"), ["a.png", "b.png"])
    with rows_file(target).open("ab") as stream:  # killed while the third line was written
        stream.write(json.dumps(coco_row("c.png", HEIGHT, WIDTH, masks(3))).encode()[:70])
    again = MaskCoco(target, "cell")
    assert again.done == {"a.png", "b.png"}
    add(again, ["c.png"])
    again.finish()
    assert read(target) == whole


def test_lines_that_a_crash_has_filled_with_zeros_are_done_anew(tmp_path, whole):
    target = tmp_path / "m.json"
    add(MaskCoco(target, "cell"), PICTURES)
    first, second, third = rows_file(target).read_bytes().splitlines(keepends=True)
    rows_file(target).write_bytes(first + bytes(len(second) - 1) + b"\n" + third)
    again = MaskCoco(target, "cell")
    assert again.done == {"a.png"}
    add(again, ["b.png", "c.png"])
    again.finish()
    assert read(target) == whole


def test_a_finished_file_takes_more_pictures(tmp_path, whole):
    target = tmp_path / "m.json"
    first = MaskCoco(target, "cell")
    add(first, ["a.png"])
    first.finish()
    finished = read(target)
    again = MaskCoco(target, "cell")
    assert again.done == {"a.png"}
    again.finish()
    assert read(target) == finished, "nothing was added"
    add(again, ["b.png"])
    assert read(target) == finished, "the file stays whole while pictures are added"
    # Killed here: the lines hold what the file holds, and more.
    last = MaskCoco(target, "cell")
    assert last.done == {"a.png", "b.png"}
    add(last, ["c.png"])
    last.finish()
    assert read(target) == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', "it is broken"),
        ('{"images": [], "annotations": [{"image_id": 3}], "categories": []}', "it is broken"),
        ('{"images": [], "annotations": [], "categories": [{"name": "x"}]}', r"it has \['x'\]"),
    ],
)
def test_another_file_is_refused(tmp_path, content, message):
    target = tmp_path / "m.json"
    target.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        MaskCoco(target, "cell")
    assert target.read_text(encoding="utf-8") == content
