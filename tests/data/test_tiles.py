"""A large picture is cut into tiles and put together again, and nothing is lost on the way."""

from __future__ import annotations

import errno
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samadapt.config.schema import Data
from samadapt.data.checks.survey import survey
from samadapt.data.dataset import open_dataset
from samadapt.data.tiles import OVERLAP, Tiling, assemble, recorded_tiling, tiling
from samadapt.data.types import SliceRef
from samadapt.errors import ConfigError, DataError

SIDES = st.integers(1, 130)


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.integers(16, 60), st.floats(0, 0.5))
def test_every_pixel_is_owned_once_and_windows_are_alike(height, width, side, overlap):
    tiles = Tiling(side, overlap).tiles(height, width)
    owned = np.zeros((height, width), int)
    for tile in tiles:
        counted = np.zeros_like(owned)
        tile.put(np.ones_like(tile.cut(owned)), counted)
        owned += counted
    sizes = {tile.cut(owned).shape for tile in tiles}
    assert (owned == 1).all()
    assert sizes == {(min(side, height), min(side, width))}
    least = round(overlap * side)
    for spans in ({t.rows for t in tiles}, {t.columns for t in tiles}):
        for one, other in zip(sorted(spans), sorted(spans)[1:], strict=False):
            assert one.stop - other.start >= least
            inner = other.own_start - other.start, one.stop - one.own_stop
            assert min(inner) >= least // 2  # context on both sides of a border


@settings(max_examples=50, deadline=None)
@given(SIDES, SIDES, st.integers(16, 60), st.floats(0, 0.5))
def test_what_was_cut_comes_back(height, width, side, overlap):
    picture = np.random.default_rng(0).integers(0, 9, (2, height, width), dtype=np.uint8)
    tiles = Tiling(side, overlap).tiles(height, width)
    parts = [np.stack([tile.cut(plane) for plane in picture]) for tile in tiles]
    assert np.array_equal(assemble(parts, tiles), picture)


def test_no_more_tiles_than_needed():
    assert len(Tiling(1024).tiles(10_000, 10_000)) == math.ceil((10_000 - 128) / 896) ** 2
    assert len(Tiling(512, 0).tiles(1024, 512)) == 2
    assert len(Tiling(512).tiles(512, 100)) == 1


@pytest.fixture
def pictures(tmp_path):
    """``pictures(count, shape)``: a folder of pictures with two classes and a blank half."""

    def make(count=4, shape=(70, 100)):
        root = tmp_path / "pictures"
        for part in ("images", "masks", "annotations"):
            (root / part).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            rng = np.random.default_rng(index)
            Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(
                root / "images" / f"p{index}.png"
            )
            mask = np.zeros(shape, np.uint8)
            mask[4:20, 30:60], mask[30:34, 2:9] = 1, 2
            Image.fromarray(mask).save(root / "masks" / f"p{index}.png")
        return root

    return make


def test_tiles_are_the_slices_of_a_picture(pictures):
    root = pictures()
    whole, tiled = open_dataset("folder", root), open_dataset("folder", root, tile=32)
    tiles = Tiling(32).tiles(70, 100)
    full = whole.sample(SliceRef("p1", 0))
    samples = tiled.samples("p1")
    assert len(samples) == len(tiles) == 12
    for sample, tile in zip(samples, tiles, strict=True):
        assert sample.tile == tile
        assert np.array_equal(sample.image, tile.cut(full.image))
        assert sample.image.flags.c_contiguous
        assert np.array_equal(sample.labels, tile.cut(full.labels))
        present = [bool((sample.labels == k).any()) for k in (1, 2)]
        assert tiled.presence("p1")[sample.index].tolist() == present
    refs = tiled.slices("train")
    assert len(refs) + refs.left_out["empty"] == 12 * len(tiled.train)
    assert all((tiled.sample(ref).labels > 0).any() for ref in refs)
    assert len(tiled.slices("val")) == 12 * len(tiled.val)


def test_what_memory_cannot_hold_lies_on_the_disk_while_it_is_used(pictures, tmp_path, monkeypatch):
    root, folder = pictures(), tmp_path / "scratch"
    expected = open_dataset("folder", root, tile=32).samples("p2")
    monkeypatch.setattr("samadapt.data.dataset.MEMORY_LIMIT", 1000)
    data = open_dataset("folder", root, tile=32, scratch_dir=folder)
    for one, other in zip(data.samples("p2"), expected, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.labels, other.labels)
    assert isinstance(data.volume("p2").image, np.memmap)
    assert list(folder.iterdir()) == []  # the file has no name: nothing is left, whatever happens
    monkeypatch.setattr("os.posix_fallocate", _full)
    with pytest.raises(DataError, match=r"scratch: one more uncompressed picture needs 0\.00 GB"):
        data.volume("p3")


def _full(*place):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_given_prompts_go_to_the_tiles_that_see_them(pictures):
    root = pictures()
    note = {"boxes": [[30, 4, 60, 20], [2, 30, 9, 34]], "points": [[45, 12], [5, 32]]}
    for index in range(4):
        (root / "annotations" / f"p{index}.json").write_text(json.dumps(note), encoding="utf-8")
    samples = open_dataset("folder", root, tile=32).samples("p0")
    seen = []
    for sample in samples:
        left, top = sample.tile.columns.start, sample.tile.rows.start
        corner = np.array([left, top] * 2)
        for box in sample.boxes + corner:
            x0, y0, x1, y1 = box.astype(int)
            assert box.tolist() == [x0, y0, x1, y1]
            seen.append((x0, y0, x1, y1))
        for x, y in sample.points:
            assert 0 <= x <= 32
            assert 0 <= y <= 32
    assert (2, 30, 9, 34) in seen  # one object lies in one tile, the other in several
    parts = {box for box in seen if box[1] < 20}
    assert len(parts) > 1
    assert min(box[0] for box in parts) == 30
    assert max(box[2] for box in parts) == 60


def test_a_tile_without_given_prompts_has_no_object(pictures):
    from samadapt.prompts.annotations import given_prompts, has_prompts

    root = pictures()
    clicks = {"points": [[5, 32], [99, 69]], "point_labels": [1, 0]}
    for note, top in (({"boxes": [[2, 30, 9, 34]]}, 30), (clicks, 32)):
        for index in range(4):
            (root / "annotations" / f"p{index}.json").write_text(json.dumps(note), encoding="utf-8")
        samples = open_dataset("folder", root, tile=32).samples("p0")
        counts = [len(given_prompts(sample)) for sample in samples if has_prompts(sample)]
        assert len(counts) == 12
        first = [s.tile.rows for s in samples if s.tile.columns.start == 0]
        assert sum(counts) == sum(rows.start <= top < rows.stop for rows in first) > 0


def test_wrong_tiles_are_refused(pictures, make_msd):
    with pytest.raises(ConfigError, match="at least 16 pixels; got 3"):
        open_dataset("folder", pictures(), tile=3)
    with pytest.raises(ConfigError, match=r"share of 0 to 0\.5; got 0\.9"):
        Tiling(64, 0.9)
    with pytest.raises(
        ConfigError, match=r"data\.tile=64 cuts pictures into tiles, but .* is a volume"
    ):
        open_dataset("msd", make_msd(), tile=64)
    with pytest.raises(ConfigError, match="data_options: tile must be a whole number"):
        recorded_tiling({"tile": "big"})
    with pytest.raises(ConfigError, match=r"adapter's data_options: .* got 3"):
        recorded_tiling({"tile": 3})
    with pytest.raises(ConfigError, match=r"data\.tile=64 cuts pictures"):
        survey("msd", make_msd(), tile=64)
    assert tiling(0) is tiling(None) is recorded_tiling({}) is None
    assert recorded_tiling({"tile": 64, "tile_overlap": 0.25}) == Tiling(64, 0.25)
    assert Data().tile_overlap == OVERLAP


def test_the_class_of_a_prompt_is_that_of_the_whole_picture(pictures):
    """A blank corner of a box of class 2 is predicted as class 2 but is not a training object."""
    from samadapt.prompts.annotations import given_prompts, trainable_prompts

    root = pictures()
    for index in range(4):
        mask = np.zeros((70, 100), np.uint8)
        mask[20:30, 20:30] = 2
        mask[60:70, 90:100] = 1
        Image.fromarray(mask).save(root / "masks" / f"p{index}.png")
        note = {"boxes": [[20, 20, 40, 40]]}
        (root / "annotations" / f"p{index}.json").write_text(json.dumps(note), encoding="utf-8")
    samples = open_dataset("folder", root, tile=24).samples("p0")
    seeing = [sample for sample in samples if len(given_prompts(sample))]
    blank = [sample for sample in seeing if not sample.labels.any()]
    assert blank
    assert all(given_prompts(sample).class_ids.tolist() == [2] for sample in seeing)
    assert all(len(trainable_prompts(sample)) == 0 for sample in blank)


def test_points_on_a_border_are_in_one_tile_and_on_the_far_edge_in_the_last():
    tiles = Tiling(16, 0).tiles(32, 32)
    for x, y in ((16.0, 16.0), (0.0, 0.0), (32.0, 32.0), (15.5, 31.5)):
        inside = [bool(tile.points(np.array([[x, y]]))[1][0]) for tile in tiles]
        assert sum(inside) == 1


def test_training_tiles_and_validation_tiles_of_one_picture_do_not_overlap(pictures):
    from samadapt.training.selection import selection_split

    data = open_dataset("folder", pictures(2, (120, 150)), tile=20, val_every=2)
    refs = [SliceRef(data.train[0], index) for index in range(len(data.samples(data.train[0])))]
    training, choosing = selection_split(refs, tile=data.tile)
    seen = np.zeros((120, 150), bool)
    for ref in choosing:
        data.tile(ref).cut(seen)[:] = True
    assert choosing
    assert training
    assert not any(data.tile(ref).cut(seen).any() for ref in training)
    touching = [ref for ref in refs if data.tile(ref).cut(seen).any()]
    assert len(training) + len(touching) == len(refs)
