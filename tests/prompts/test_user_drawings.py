"""Scribbles and masks that a user gives, for the objects of one slice."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.errors import PromptError
from samadapt.prompts.user_drawings import Drawings
from samadapt.prompts.user_prompts import slice_prompts

CURVE, OTHER = [[10, 10], [10, 20]], [[30, 5], [40, 5], [40, 15]]
SHAPE = (40, 50, 1)


def drawn(scribbles=None, labels=None, masks=None, *, shape=SHAPE, count=3, points=None):
    return slice_prompts(None, points, None, shape, Drawings(scribbles, labels, masks, count))


def test_a_curve_becomes_points_at_equal_distances():
    one = drawn(CURVE)[0]
    assert one.points.tolist() == [[[10, 10], [10, 15], [10, 20]]]
    assert one.point_labels.tolist() == [[1, 1, 1]]
    two = drawn([CURVE, OTHER])[0]
    assert two.points.shape == (2, 3, 2)
    assert two.points[1].tolist() == [[30, 5], [40, 5], [40, 15]]
    assert two.numbers.tolist() == [1, 2]
    assert np.array_equal(drawn(np.array(CURVE))[0].points, one.points)


def test_an_object_may_have_several_scribbles_inside_and_outside():
    found = drawn([[CURVE, OTHER], CURVE], [[1, 0], 1])[0]
    assert found.points.shape == (2, 6, 2)
    assert found.point_labels.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, -1, -1, -1]]
    one = drawn([[CURVE, OTHER]], [[1, 0]])[0]
    assert one.point_labels.tolist() == [[1, 1, 1, 0, 0, 0]]
    assert drawn(CURVE, 0)[0].point_labels.tolist() == [[0, 0, 0]]


def test_scribbles_go_with_points_and_by_slice():
    both = drawn(CURVE, points=[[20, 20]])[0]
    assert both.points.shape == (1, 4, 2)
    assert both.point_labels.tolist() == [[1, 1, 1, 1]]
    named = drawn({1: [None, CURVE], 2: [CURVE]}, shape=(40, 50, 3))
    assert sorted(named) == [1, 2]
    assert named[1].numbers.tolist() == [2]
    assert len(drawn({1: [None]}, shape=(40, 50, 3))[1]) == 0


def test_masks_are_numbers_or_planes():
    numbers = np.zeros((40, 50), np.uint8)
    numbers[3:9, 4:12], numbers[20:30, 20:30] = 1, 3
    found = drawn(masks=numbers)[0]
    assert found.numbers.tolist() == [1, 3]
    assert np.array_equal(found.masks[1], numbers == 3)
    planes = drawn(masks=np.stack([numbers == 1, numbers > 0]))[0]
    assert planes.numbers.tolist() == [1, 2]
    assert planes.masks.sum(axis=(1, 2)).tolist() == [48, 148]
    by_slice = drawn(masks={1: numbers}, shape=(40, 50, 3))
    assert list(by_slice) == [1]
    together = drawn([CURVE, None, OTHER], masks=numbers)[0]
    assert together.points.shape == (2, 3, 2)
    assert together.masks.shape == (2, 40, 50)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [1]}, "scribble_labels were given without scribbles"),
        ({"scribbles": [[10, 10]]}, r"two points or more; got .* points=\[\[x, y\]\]"),
        ({"scribbles": [[10, 10, 4], [1, 2, 3]]}, "scribbles must be a list of points"),
        ({"scribbles": 7}, "scribbles must be a list of points .*; got 7"),
        ({"scribbles": [[["a", 3], [4, 5]]]}, "scribbles must be a list of points"),
        ({"scribbles": [[10, 10], [60, 10]]}, r"scribbles: a point .* width 50 and height 40"),
        ({"scribbles": [[0.1, 0.1], [0.9, 0.2]]}, "were fractions of its sides meant"),
        ({"scribbles": [CURVE, OTHER], "labels": [1]}, "scribbles of 2 objects; got"),
        ({"scribbles": [CURVE], "labels": [2]}, r"1 \(inside\) or 0"),
        ({"scribbles": [[CURVE, OTHER]], "labels": [[1]]}, "2 scribbles of an object"),
        ({"masks": np.zeros((4, 5), np.uint8)}, r"masks must be \(h, w\) = \(40, 50\)"),
        ({"masks": np.zeros((40, 50), np.float32)}, "got float32"),
        ({"masks": np.full((1, 40, 50), 2)}, "got values from 2 to 2"),
        ({"scribbles": [CURVE, OTHER], "masks": np.ones((40, 50), int)}, "for the same objects"),
    ],
)
def test_wrong_drawings_are_refused(given, message):
    with pytest.raises(PromptError, match=message):
        drawn(**given)
