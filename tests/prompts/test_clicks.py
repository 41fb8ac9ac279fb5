"""Simulated clicks: where a careful person would click."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from samadapt.prompts.clicks import deepest, first_clicks, next_clicks


@settings(deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_the_deepest_pixel_is_the_farthest_from_the_border(mask):
    (x, y), depth = deepest(mask)
    inside = np.argwhere(mask)
    if not len(inside):
        assert depth == 0
        return
    outside = np.argwhere(np.pad(~mask, 1, constant_values=True)) - 1
    distances = [np.sqrt(((outside - pixel) ** 2).sum(1)).min() for pixel in inside]
    assert depth == pytest.approx(max(distances))
    row, column = int(y), int(x)
    assert mask[row, column]
    assert (x, y) == (column + 0.5, row + 0.5)
    assert distances[np.flatnonzero((inside == (row, column)).all(1))[0]] == pytest.approx(depth)


def test_the_first_click_is_x_y_and_in_the_object():
    mask = np.zeros((8, 20), bool)
    mask[2:5, 10:17] = True
    points, labels = first_clicks(mask[None])
    assert points.shape == (1, 1, 2)
    assert labels.tolist() == [[1]]
    assert points[0, 0, 1] == 3.5  # the middle row
    assert 11 <= points[0, 0, 0] <= 16


def test_the_next_click_mends_the_larger_error():
    truth = np.zeros((3, 12, 30), bool)
    truth[:, 2:9, 2:9] = True
    found = truth.copy()
    found[0, 3:8, 3:8] = False  # misses a part
    found[1, 2:11, 20:29] = True  # exceeds, and misses less
    found[1, 3, 3] = False
    points, labels = next_clicks(truth, found)
    assert labels.tolist() == [[1], [0], [-1]]
    assert points[0, 0].tolist() == [5.5, 5.5]
    assert points[1, 0].tolist() == [24.5, 6.5]


def test_a_tie_gives_a_negative_click():
    """RITM's rule: positive only if the missed region is strictly deeper."""
    truth, found = np.zeros((1, 12, 30), bool), np.zeros((1, 12, 30), bool)
    truth[0, 2:7, 2:7] = True
    found[0, 2:7, 20:25] = True
    points, labels = next_clicks(truth, found)
    assert labels.tolist() == [[0]]
    assert points[0, 0].tolist() == [22.5, 4.5]
