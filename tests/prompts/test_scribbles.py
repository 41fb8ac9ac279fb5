"""Scribbles: curves inside an object, and in the background beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.prompts.scribbles import resampled, scribbles_around, scribbles_in

ROWS, COLUMNS = np.ogrid[:90, :120]
DISC = (ROWS - 40) ** 2 + (COLUMNS - 60) ** 2 < 25**2
RING = DISC & ((ROWS - 40) ** 2 + (COLUMNS - 60) ** 2 > 15**2)
BAR = (abs(ROWS - 60) < 4) & (abs(COLUMNS - 50) < 40)


def values_at(mask, points):
    return mask[tuple(points.astype(int)[..., ::-1].reshape(-1, 2).T)]


@pytest.mark.parametrize("mask", [DISC, RING, BAR], ids=["disc", "ring", "bar"])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_all_points_lie_inside(mask, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    points = scribbles_in(mask[None], 9, rng)
    assert points.shape == (1, 9, 2)
    assert points.dtype == np.float32
    assert values_at(mask, points).all()


def test_in_an_evaluation_a_scribble_follows_the_middle_of_the_object():
    (points,) = scribbles_in(BAR[None], 5)
    assert np.allclose(points[:, 1], 60.5, atol=1.5)  # y
    assert abs(points[-1, 0] - points[0, 0]) > 55  # x, of a length of 79
    assert np.ptp(points[:, 0]) < 75  # it stops short of both ends
    steps = np.hypot(*np.diff(points, axis=0).T)
    assert np.allclose(steps, steps.mean(), rtol=0.05)
    assert np.array_equal(scribbles_in(np.stack([DISC, BAR]), 5)[1], points)


def test_in_training_scribbles_differ_and_are_no_clicks():
    rng = np.random.default_rng(0)
    drawn = scribbles_in(np.stack([DISC] * 30), 6, rng)
    assert len({one.tobytes() for one in drawn}) == 30
    lengths = np.hypot(*np.diff(drawn, axis=1).transpose(2, 0, 1)).sum(axis=1)
    assert lengths.mean() > 15
    again = scribbles_in(np.stack([DISC] * 30), 6, np.random.default_rng(0))
    assert np.array_equal(drawn, again)


def test_scribbles_outside_lie_near_the_object_where_the_truth_is_known():
    known = np.ones_like(DISC)
    known[:, :60] = False
    points, found = scribbles_around(np.stack([DISC, BAR]), known, 7, np.random.default_rng(0))
    assert found.tolist() == [True, True]
    for mask, curve in zip((DISC, BAR), points, strict=True):
        assert not values_at(mask, curve).any()
        assert values_at(known, curve).all()
        rows, columns = np.nonzero(mask)
        away = np.hypot(columns + 0.5 - curve[:, :1], rows + 0.5 - curve[:, 1:]).min(axis=1)
        assert away.max() < 40
    everywhere = np.ones((1, 5, 6), bool)
    points, found = scribbles_around(everywhere, everywhere[0], 4, np.random.default_rng(0))
    assert found.tolist() == [False]
    assert points.shape == (1, 4, 2)


@given(
    st.integers(0, 29), st.integers(0, 29), st.integers(1, 9), st.integers(2, 12), st.integers(0)
)
@settings(max_examples=40, deadline=None)
def test_objects_of_any_size_get_a_scribble(row, column, size, count, seed):
    mask = np.zeros((30, 30), bool)
    mask[row : row + size, column : column + size] = True
    for rng in (None, np.random.default_rng(seed)):
        points = scribbles_in(mask[None], count, rng)
        assert points.shape == (1, count, 2)
        assert values_at(mask, points).all()


def test_a_large_thin_object_is_followed_on_a_coarse_grid():
    rows, columns = np.ogrid[:400, :600]
    curve = abs(rows - 200 - 100 * np.sin(columns / 60)) < 2
    points = scribbles_in(curve[None], 20)
    assert values_at(curve, points).all()
    assert np.ptp(points[0, :, 0]) > 400


def test_resampled_points_are_equally_far_apart():
    curve = np.array([[0, 0], [4, 0], [4, 4]], float)
    assert resampled(curve, 3).tolist() == [[0, 0], [4, 0], [4, 4]]
    assert resampled(curve, 5)[1].tolist() == [2, 0]
    assert resampled(curve[:1], 3).tolist() == [[0, 0]] * 3
    assert resampled(np.array([[2, 3], [2, 3]], float), 2).tolist() == [[2, 3], [2, 3]]
