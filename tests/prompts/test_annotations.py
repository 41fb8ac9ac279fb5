"""Annotations as prompts, and the ground truth of what they mean."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.data.types import Sample
from samadapt.prompts.annotations import given_prompts, has_prompts


@pytest.fixture
def labels():
    values = np.zeros((20, 50), np.int16)
    values[2:6, 30:40] = 1
    values[10:18, 5:9] = 2
    values[10:18, 20:24] = 2
    return values


def sample(labels, **given):
    arrays = {
        key: None if value is None else np.array(value, np.float32 if "_" not in key else np.int64)
        for key, value in given.items()
    }
    return Sample("a", 0, np.zeros((*labels.shape, 3), np.uint8), labels, **arrays)


def test_without_annotation_there_are_none(labels):
    assert not has_prompts(sample(labels))


def test_boxes_mean_the_components_within(labels):
    given = sample(labels, boxes=[[29, 1, 41, 7], [4, 9, 10, 19]])
    assert has_prompts(given)
    found = given_prompts(given)
    assert found.class_ids.tolist() == [1, 2]
    assert found.boxes.tolist() == [[29, 1, 41, 7], [4, 9, 10, 19]]
    assert np.array_equal(found.truth[0], labels == 1)
    assert found.truth[1].sum() == 32
    assert found.truth[1][:, :10].sum() == 32
    assert found.points is None


def test_a_named_class_wins_over_the_most_frequent(labels):
    labels[3, 31:33] = 2
    found = given_prompts(sample(labels, boxes=[[29, 1, 41, 7]], prompt_classes=[2]))
    assert found.class_ids.tolist() == [2]
    assert found.truth[0].sum() == 2
    assert given_prompts(sample(labels, boxes=[[29, 1, 41, 7]])).class_ids.tolist() == [1]


def test_points_go_with_the_box_they_lie_in(labels):
    found = given_prompts(
        sample(
            labels,
            boxes=[[29, 1, 41, 7], [4, 9, 10, 19]],
            points=[[35, 3], [6, 12], [7, 15], [49, 19]],
            point_labels=[1, 1, 0, 1],
        )
    )
    assert found.points.shape == (2, 2, 2)
    assert found.point_labels.tolist() == [[1, -1], [1, 0]]
    assert found.points[1].tolist() == [[6, 12], [7, 15]]


def test_points_alone_are_one_object_or_one_for_each_class(labels):
    points, marks = [[35.5, 3.5], [6.5, 12.5], [21.5, 12.5]], [0, 1, 1]
    found = given_prompts(sample(labels, points=points, point_labels=marks))
    assert found.class_ids.tolist() == [2]
    assert np.array_equal(found.truth[0], labels == 2)  # (x, y): row 12, columns 6 and 21
    assert found.points.shape == (1, 3, 2)
    named = given_prompts(
        sample(labels, points=points, point_labels=[1, 1, 0], prompt_classes=[1, 2, 2])
    )
    assert named.class_ids.tolist() == [1, 2]
    assert named.point_labels.tolist() == [[1, -1], [1, 0]]
    assert np.array_equal(named.truth[0], labels == 1)
    assert named.truth[1].sum() == 32  # the component of the foreground point alone
    assert named.boxes is None


def test_prompts_on_background_have_an_empty_target(labels):
    box = given_prompts(sample(labels, boxes=[[44, 14, 49, 19]]))
    point = given_prompts(sample(labels, points=[[50, 20]], point_labels=[1]))
    for found in (box, point):
        assert found.class_ids.tolist() == [1]
        assert not found.truth.any()
