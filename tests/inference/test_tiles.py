"""Pictures in tiles at prediction: as in training, and none the wiser at the borders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from samadapt.data.tiles import Tiling
from samadapt.errors import ConfigError, PromptError
from samadapt.inference.bundle import make_bundle
from samadapt.inference.segmenter import Segmenter
from samadapt.prompts.user_prompts import tile_prompts
from samadapt.sam.types import ImagePrompts

STEP = 85


@pytest.fixture
def tiled(make_oracle):
    """``tiled(kind, tile)``: a segmenter whose adapter records tiles of 45 px, the oracle's own."""

    def make(kind="semantic", tile=45, **policy):
        plain = make_oracle(kind, **policy)
        options = {"tile": tile, "tile_overlap": 0.25}
        return Segmenter(plain._active_bundle.sam, replace(plain.record, data_options=options))

    return make


@pytest.fixture
def picture():
    """Blobs of three classes in 100 x 130 pixels, some across the borders of tiles."""
    labels = np.zeros((100, 130), np.uint8)
    for number, (top, left, size) in enumerate(
        ((5, 5, 20), (30, 30, 25), (70, 20, 29), (10, 60, 40), (60, 80, 35))
    ):
        labels[top : top + size, left : left + size] = number % 3 + 1
    return labels


def test_the_labels_are_those_of_the_whole_picture(tiled, picture, tmp_path):
    segmenter = tiled()
    counted = []
    found = segmenter.segment(picture * STEP, progress=lambda done, total: counted.append(total))
    assert np.array_equal(found, picture)
    sizes = {tuple(image.shape) for image in segmenter._active_bundle.sam.seen}
    assert sizes == {(1, 45, 45)}
    assert counted == [len(counted)] * 12 == [12] * 12
    Image.fromarray(picture * STEP).save(tmp_path / "in.png")
    for output in ("out.png", "out.json"):
        row = segmenter.predict_file(tmp_path / "in.png", tmp_path / output, probabilities=True)
        assert sum(row["voxels"].values()) == (picture > 0).sum()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), picture)
    with np.load(row["probabilities"]) as stored:
        scores = stored[stored.files[0]]
    assert scores.shape == (3, 100, 130)
    for number in (1, 2, 3):
        own, rest = scores[number - 1][picture == number], scores[number - 1][picture != number]
        assert own.min() > rest.max()


def test_a_prompt_is_given_in_every_tile_that_sees_it(tiled, picture):
    segmenter = tiled("box")
    boxes = [[60, 10, 100, 50], [5, 5, 25, 25]]
    found = segmenter.segment(picture * STEP, boxes=boxes, labels=["a", "b"])
    expected = np.zeros_like(picture)
    expected[10:50, 60:100], expected[5:25, 5:25] = 1, 2
    assert np.array_equal(found, expected)
    assert len(segmenter._active_bundle.sam.seen) < 12  # tiles that see neither are not embedded
    again = segmenter.segment(picture * STEP, boxes=boxes[0], labels="a")
    assert np.array_equal(again, np.where(expected == 1, 1, 0))


def test_points_outside_a_tile_are_padding(tiled, picture):
    segmenter = tiled("point")
    points, signs = [[[70, 30], [10, 90]]], [[1, 0]]
    found = segmenter.segment(picture * STEP, points=points, point_labels=signs, labels="c")
    truth = picture[10:50, 60:100]
    assert found[12:40, 62:80].all()
    assert set(np.unique(found)) == {0, 3}
    assert not found[:, :55].any()
    assert truth.all()


def test_the_user_may_choose_other_tiles(tiled, make_oracle, picture):
    plain = make_oracle()
    assert np.array_equal(plain.segment(picture * STEP, tile=45), picture)
    whole = tiled()
    whole.segment(picture * STEP, tile=0)
    assert len(whole._active_bundle.sam.seen) == 1
    small = picture[:40, :30]
    assert np.array_equal(whole.segment(small * STEP), small)
    with pytest.raises(PromptError, match=r"tile must be 0 .* got 7"):
        whole.segment(picture, tile=7)


def test_a_volume_is_not_cut(tiled, tmp_path):
    import nibabel as nib

    path = tmp_path / "scan.nii.gz"
    image = np.random.default_rng(0).integers(0, 4, (60, 50, 3)).astype(np.uint8) * STEP
    nib.save(nib.Nifti1Image(image, np.eye(4)), path)
    segmenter = tiled()
    assert segmenter.segment(path).shape == image.shape
    assert len(segmenter._active_bundle.sam.seen) == 3
    with pytest.raises(PromptError, match="tile=45 cuts pictures"):
        segmenter.segment(path, tile=45)


def test_a_broken_record_is_refused(tiled):
    good = tiled()
    record = replace(good.record, data_options={"tile": 5})
    with pytest.raises(ConfigError, match=r"adapter's data_options: .* got 5"):
        make_bundle(good._active_bundle.sam, record, keeps_encoder=False)


def test_no_prompt_is_no_object(tiled, picture):
    assert not tiled("box").segment(picture * STEP, boxes={}, labels="a").any()


def test_prompts_of_a_tile_are_those_that_evaluation_gives():
    """Prediction and evaluation see the same clicks on the same picture, without padding."""
    tile = Tiling(32, 0).tiles(64, 64)[0]
    points = np.array([[[40, 5], [5, 6], [7, 8]], [[50, 50], [3, 3], [60, 60]]], np.float32)
    signs = np.array([[0, 1, 0], [1, 0, 1]])
    seen = tile_prompts(ImagePrompts(np.array([1, 2]), points=points, point_labels=signs), tile)
    assert seen.class_ids.tolist() == [1]
    assert seen.points.tolist() == [[[5, 6], [7, 8]]]
    assert seen.point_labels.tolist() == [[1, 0]]
    boxes = np.array([[1, 1, 9, 9], [30, 30, 40, 40]], np.float32)
    seen = tile_prompts(ImagePrompts(np.array([1, 2]), None, boxes, points, signs), tile)
    assert seen.boxes.tolist() == [[1, 1, 9, 9], [30, 30, 32, 32]]
    assert seen.point_labels.tolist() == [[1, 0], [0, -1]]
