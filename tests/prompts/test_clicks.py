"""The deepest pixel of a region: where a careful person clicks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from samadapt.prompts.clicks import deepest


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


def test_the_point_is_x_y_and_the_first_of_ties():
    mask = np.zeros((8, 20), bool)
    mask[2:5, 10:17] = True
    assert deepest(mask) == ((11.5, 3.5), 2.0)


def test_taken_pixels_are_left_out():
    mask = np.zeros((8, 20), bool)
    mask[2:5, 10:13] = True
    free = np.ones_like(mask)
    free[3, 11] = False
    assert deepest(mask, free) == ((10.5, 2.5), 1.0)
    assert deepest(mask, ~mask) == deepest(mask & ~mask) == ((0.5, 0.5), 0.0)
