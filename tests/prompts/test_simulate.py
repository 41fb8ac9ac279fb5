"""Prompts simulated from ground truth: places, order of coordinates, noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.prompts.policy import PromptPolicy
from samadapt.prompts.simulate import boxes_of, jitter_boxes, objects_in, simulate
from samadapt.sam.types import ImagePrompts

OBJECTS = st.tuples(
    st.integers(1, 40), st.integers(1, 60), st.integers(1, 40), st.integers(1, 60), st.integers(0)
)
"""Height and width of an image and of a rectangle in it, and a seed."""


def labels_with(rows, columns, shape=(20, 50), value=1):
    labels = np.zeros(shape, np.int16)
    labels[rows, columns] = value
    return labels


def test_coordinates_are_x_then_y_off_the_diagonal():
    labels = labels_with(slice(2, 5), slice(30, 47))
    box = simulate(labels, PromptPolicy("box")).boxes
    assert box.dtype == np.float32
    assert box.tolist() == [[30, 2, 47, 5]]
    found = simulate(labels, PromptPolicy("point"))
    x, y = found.points[0, 0]
    assert 30 < x < 47
    assert 2 < y < 5
    assert found.point_labels.tolist() == [[1]]
    drawn = simulate(labels, PromptPolicy("point"), np.random.default_rng(0)).points[0, 0]
    assert 30 < drawn[0] < 47
    assert 2 < drawn[1] < 5


def test_the_box_of_one_pixel_is_the_pixel():
    labels = labels_with(7, 31)
    assert simulate(labels, PromptPolicy("box")).boxes.tolist() == [[31, 7, 32, 8]]
    assert simulate(labels, PromptPolicy("point")).points.tolist() == [[[31.5, 7.5]]]


def test_the_box_of_an_empty_mask_is_the_image():
    assert boxes_of(np.zeros((1, 20, 50), bool)).tolist() == [[0, 0, 50, 20]]


def test_an_object_is_a_component_or_a_class():
    labels = labels_with(slice(1, 4), slice(1, 4))
    labels[10:13, 20:29] = 1
    labels[4, 4] = 1  # touches the first one's corner: 8 neighbours
    labels[15:17, 40:42] = 3
    ids, masks = objects_in(labels, "component")
    assert ids.tolist() == [1, 1, 3]
    assert [int(mask.sum()) for mask in masks] == [10, 27, 4]
    ids, masks = objects_in(labels, "class")
    assert ids.tolist() == [1, 3]
    assert np.array_equal(masks[0], labels == 1)
    assert simulate(labels, PromptPolicy("box", objects="class")).boxes[0].tolist() == [
        1,
        1,
        29,
        13,
    ]


def test_small_objects_get_no_prompt():
    labels = labels_with(slice(0, 2), slice(0, 2))
    labels[10:13, 20:23] = 1
    assert len(objects_in(labels, "component", min_area=4)[0]) == 2
    assert len(objects_in(labels, "component", min_area=5)[0]) == 1
    nothing = simulate(labels, PromptPolicy("box", min_area=100))
    assert len(nothing) == 0
    assert nothing.boxes.shape == (0, 4)
    empty = simulate(np.zeros((4, 5), np.int16), PromptPolicy("point"))
    assert empty.points.shape == (0, 1, 2)
    assert empty.truth.shape == (0, 4, 5)


@pytest.mark.parametrize("kind", ["box", "point"])
def test_without_noise_prompts_repeat_and_with_the_same_seed_too(kind):
    labels = labels_with(slice(2, 14), slice(8, 33))
    labels[5:7, 10:12] = 0
    policy = PromptPolicy(kind)

    def values(rng=None):
        found = simulate(labels, policy, rng)
        return (found.boxes if kind == "box" else found.points).tolist()

    assert values() == values()
    assert values(np.random.default_rng(3)) == values(np.random.default_rng(3))
    assert values(np.random.default_rng(3)) != values(np.random.default_rng(4))


@given(OBJECTS, st.floats(0, 0.99), st.floats(0, 200))
@settings(max_examples=60, deadline=None)
def test_jitter_is_bounded_and_stays_in_the_image(numbers, jitter, bound):
    height, width, h, w, seed = numbers
    rng = np.random.default_rng(seed)
    y0, x0 = rng.integers(0, height), rng.integers(0, width)
    box = np.array([[x0, y0, min(x0 + w, width), min(y0 + h, height)]], np.float32)
    moved = jitter_boxes(box, (height, width), jitter, bound, rng)
    assert moved.shape == (1, 4)
    assert (moved[:, :2] >= 0).all()
    assert (moved[:, 2:] <= [width, height]).all()
    assert (moved[:, 2:] - moved[:, :2] >= 1 - 1e-4).all()
    limit = bound * max(height, width) / 1024
    low = np.abs(moved - box)[:, :2] <= limit + 1e-4
    assert low.all()
    grown = moved[0, :2] > box[0, 2:] - 1  # then a pixel of width or height is kept
    assert (np.abs(moved - box)[0, 2:] <= limit + 1e-4)[~grown].all()


def test_jitter_has_the_deviation_that_was_asked_for():
    boxes = np.tile(np.array([[400, 300, 600, 350]], np.float32), (4000, 1))
    moved = jitter_boxes(boxes, (1024, 1024), 0.05, 1e9, np.random.default_rng(0))
    deviation = (moved - boxes).std(axis=0)
    assert np.allclose(deviation, [10, 2.5, 10, 2.5], rtol=0.05)
    exact = jitter_boxes(boxes, (1024, 1024), 0.0, 20, np.random.default_rng(0))
    assert np.array_equal(exact, boxes)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_points_lie_in_their_object(seed, noisy):
    rng = np.random.default_rng(seed)
    labels = (rng.random((9, 17)) < 0.3).astype(np.int16)
    found = simulate(labels, PromptPolicy("point"), rng if noisy else None)
    assert len(found) == len(found.truth)
    for mask, (x, y) in zip(found.truth, found.points[:, 0], strict=True):
        assert mask[int(y), int(x)]


def test_objects_are_taken_with_all_that_belongs_to_them():
    labels = labels_with(slice(0, 3), slice(0, 3))
    labels[10:12, 40:44] = 2
    found = simulate(labels, PromptPolicy("point"))
    second = found.of_classes([2])
    assert second.class_ids.tolist() == [2]
    assert np.array_equal(second.truth[0], labels == 2)
    assert second.points.shape == (1, 1, 2)
    assert second.boxes is None
    assert isinstance(found.take(np.array([1, 1, 0])), ImagePrompts)
    assert found.take(np.array([1, 1, 0])).class_ids.tolist() == [2, 2, 1]
