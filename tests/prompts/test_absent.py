"""Prompts that are moved to where nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.errors import DataError
from samadapt.prompts.absent import free_place, move_to_nothing
from samadapt.prompts.simulate import boxes_of, points_in
from samadapt.sam.types import ImagePrompts


def objects_of(labels, rng):
    truth = np.stack([labels == value for value in np.unique(labels[labels > 0])])
    points = points_in(truth, rng)
    ones = np.ones(points.shape[:2], np.int64)
    return ImagePrompts(np.ones(len(truth), np.int64), truth, boxes_of(truth), points, ones)


def two_objects():
    labels = np.zeros((30, 40), int)
    labels[3:9, 4:12], labels[20:24, 25:31] = 1, 2
    return labels


@given(st.integers(0, 200))
@settings(max_examples=30, deadline=None)
def test_moved_prompts_lie_where_nothing_is_and_keep_their_shape(seed):
    labels, rng = two_objects(), np.random.default_rng(seed)
    before = objects_of(labels, rng)
    after = move_to_nothing(before, labels > 0, 1.0, rng)
    assert not after.truth.any()
    assert before.truth.any(axis=(1, 2)).all()  # the objects given are not changed
    for old, new, point, moved in zip(
        before.boxes, after.boxes, before.points, after.points, strict=True
    ):
        x0, y0, x1, y1 = new.astype(int)
        assert (new[2:] - new[:2]).tolist() == (old[2:] - old[:2]).tolist()
        assert 0 <= x0 < x1 <= 40
        assert 0 <= y0 < y1 <= 30
        assert not (labels[y0:y1, x0:x1] > 0).any()
        np.testing.assert_allclose(moved - point, [new[:2] - old[:2]])
    drawn = replace(before, boxes=None, points=None, point_labels=None, masks=before.truth)
    moved_masks = move_to_nothing(drawn, labels > 0, 1.0, rng).masks
    assert not (moved_masks & (labels > 0)).any()
    for old, new in zip(boxes_of(before.truth), boxes_of(moved_masks), strict=True):
        assert (new[2:] - new[:2]).tolist() == (old[2:] - old[:2]).tolist()
    assert np.array_equal(moved_masks.sum(axis=(1, 2)), before.truth.sum(axis=(1, 2)))


def test_places_are_all_that_are_free():
    occupied = np.ones((5, 6), bool)
    occupied[1:4, 2:5] = False
    rng = np.random.default_rng(0)
    found = {tuple(free_place(occupied, (2, 2), rng).tolist()) for _ in range(100)}
    assert found == {(2, 1), (3, 1), (2, 2), (3, 2)}
    assert free_place(occupied, (4, 2), rng) is None
    assert free_place(~occupied & occupied, (7, 2), rng) is None
    assert free_place(np.zeros((5, 6), bool), (6, 5), rng).tolist() == [0, 0]


def test_the_share_is_the_chance_and_full_images_keep_their_objects():
    labels, rng = two_objects(), np.random.default_rng(0)
    before = objects_of(labels, rng)
    moved = [
        int((~move_to_nothing(before, labels > 0, 0.25, rng).truth.any(axis=(1, 2))).sum())
        for _ in range(400)
    ]
    assert np.mean(moved) == pytest.approx(0.5, abs=0.1)
    full = move_to_nothing(before, np.ones_like(labels, bool), 1.0, rng)
    assert (full.truth == before.truth).all()
    assert (full.boxes == before.boxes).all()
    with pytest.raises(DataError, match="ground truth can be moved"):
        move_to_nothing(ImagePrompts(np.ones(1, np.int64)), labels > 0, 1.0, rng)
