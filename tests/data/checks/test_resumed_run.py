"""A resumed run finds the data that it was started with, or says what differs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from samadapt.data.checks.resumed_run import check_unchanged, merge_trained_on
from samadapt.data.dataset import open_dataset
from samadapt.errors import DataError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "pictures"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(7):
        draw(folder, f"p{index}", index)
    return folder


def draw(folder, name, seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros((16, 20), np.uint8)
    labels[3:9, 4 + seed % 5 : 12] = 1
    image = rng.integers(0, 255, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "images" / f"{name}.png")
    Image.fromarray(labels).save(folder / "masks" / f"{name}.png")


def opened(root, **options):
    return open_dataset("folder", root, **options)


@pytest.fixture
def recorded(root):
    return json.loads(json.dumps(opened(root).splits()))


def check(recorded, root, **options):
    return check_unchanged(recorded, opened(root), "run/splits.json", **options)


def add(root):
    draw(root, "p05", 50)


def remove(root):
    for part in ("images", "masks"):
        (root / part / "p3.png").unlink()


def rename(root):
    for part in ("images", "masks"):
        (root / part / "p3.png").rename(root / part / "x3.png")


def swap(root):
    for part in ("images", "masks"):
        one, other = root / part / "p1.png", root / part / "p2.png"
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)


def repaint(root):
    draw(root, "p4", 44)
    Image.open(root / "masks" / "p4.png").save(root / "masks" / "p4.png")


def relabel(root):
    labels = np.array(Image.open(root / "masks" / "p2.png"))
    labels[0, 0] = 1
    Image.fromarray(labels).save(root / "masks" / "p2.png")


CHANGES = [
    (add, r"1 added \(p05\)"),
    (remove, r"1 removed \(p3\)"),
    (rename, r"1 renamed \(p3 is now x3\)"),
    (swap, r"2 with another image \(p1, p2\)"),
    (repaint, r"1 with another image \(p4\)"),
    (relabel, r"1 with another mask \(p2\)"),
]


@pytest.mark.parametrize(("change", "named"), CHANGES, ids=lambda x: getattr(x, "__name__", ""))
def test_every_change_is_refused_by_name(root, recorded, change, named):
    change(root)
    for same_sides in (True, False):
        with pytest.raises(DataError, match=named) as caught:
            check(recorded, root, same_sides=same_sides)
    assert str(caught.value).startswith("run/splits.json: the data are not those")
    assert "start a new run" in str(caught.value)


def test_several_changes_are_all_named(root, recorded):
    add(root)
    rename(root)
    relabel(root)
    with pytest.raises(DataError) as caught:
        check(recorded, root)
    for named in ("1 added (p05)", "1 renamed (p3 is now x3)", "1 with another mask (p2)"):
        assert named in str(caught.value)


def test_the_same_files_elsewhere_or_written_again_are_the_same(root, recorded, tmp_path):
    assert check(recorded, root) == []
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    for path in moved.rglob("*.png"):
        Image.open(path).save(path, compress_level=1)
    assert check(recorded, moved) == []


def test_the_same_voxels_as_another_type_are_the_same(root, recorded):
    path = root / "masks" / "p2.png"
    labels = np.array(Image.open(path)).astype(np.uint16)
    Image.fromarray(labels).save(path)
    assert check(recorded, root) == []


@pytest.mark.parametrize(("change", "named"), CHANGES[:2], ids=lambda x: getattr(x, "__name__", ""))
def test_without_hashes_names_are_compared(root, recorded, change, named):
    old = {key: value for key, value in recorded.items() if key not in ("images", "labels")}
    (warning,) = check(old, root)
    assert "without hashes" in warning
    change(root)
    with pytest.raises(DataError, match=named):
        check(old, root)


def test_another_division_is_refused(root, recorded):
    moved = recorded | {
        "train": [*recorded["train"], "p0"],
        "val": [name for name in recorded["val"] if name != "p0"],
    }
    with pytest.raises(DataError, match=r"1 on the other side of the split \(p0\)"):
        check(moved, root)
    assert check(moved, root, same_sides=False) == []


@pytest.mark.parametrize(
    "change",
    [{"train": None}, {"val": "p0"}, {"train": [1]}, {"images": []}, {"labels": {"p0": 3}}],
)
def test_a_malformed_record_is_refused(root, recorded, change):
    with pytest.raises(DataError, match=rf"run/splits.json: {next(iter(change))} must"):
        check(recorded | change, root)


def test_trained_on_never_shrinks():
    before = {"a": None, "b": [1, 2], "c": [5], "d": [7]}
    now = {"a": [3], "b": [2, 4], "c": None, "e": [1]}
    merged = {"a": None, "b": [1, 2, 4], "c": None, "d": [7], "e": [1]}
    assert merge_trained_on(before, now) == merged
    assert merge_trained_on(None, now) == now


def test_another_list_of_what_is_annotated_is_refused(root):
    listed = root / "annotated.csv"
    listed.write_text("case,classes\n*,foreground\n", encoding="utf-8")
    recorded = opened(root, annotated=listed).splits()
    listed.write_text("classes,case\nforeground,*\n\n", encoding="utf-8")  # says the same
    check_unchanged(recorded, opened(root, annotated=listed), "run/splits.json")
    listed.write_text("case,classes\np2,\np3,foreground\n", encoding="utf-8")
    other = opened(root, annotated=listed)
    with pytest.raises(DataError, match=r"with other annotated parts \(p0, p1, p4, p5, p6\)"):
        check_unchanged(recorded, other, "run/splits.json")
