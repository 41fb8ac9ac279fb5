"""What a caller may give as prompts, and what each mistake says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from samadapt.errors import PromptError
from samadapt.prompts.user_prompts import object_classes, slice_prompts

IMAGE, VOLUME = (20, 30, 1), (20, 30, 3)
BOX, POINT = [2, 3, 12, 13], [5, 6]


def test_boxes_and_points_of_an_image():
    boxes = slice_prompts([BOX, BOX], None, None, IMAGE)[0]
    assert boxes.boxes.shape == (2, 4)
    assert boxes.numbers.tolist() == [1, 2]  # object 1 and object 2
    assert slice_prompts(BOX, None, None, IMAGE)[0].boxes.shape == (1, 4)
    clicks = slice_prompts(None, [POINT, POINT], [1, 0], IMAGE)[0]
    assert clicks.points.shape == (1, 2, 2)
    assert clicks.point_labels.tolist() == [[1, 0]]
    assert len(clicks) == 1
    several = slice_prompts(None, [[POINT], [POINT]], None, IMAGE)[0]
    assert several.point_labels.tolist() == [[1], [1]]
    both = slice_prompts(BOX, [POINT], None, IMAGE)[0]
    assert (both.boxes.shape, both.points.shape) == ((1, 4), (1, 1, 2))


def test_slices_of_a_volume():
    assert list(slice_prompts([BOX], None, None, VOLUME)) == [0, 1, 2]
    named = slice_prompts({2: [BOX]}, {0: [POINT]}, {0: [0]}, VOLUME)
    assert list(named) == [0, 2]
    assert named[0].boxes is None
    assert named[0].point_labels.tolist() == [[0]]
    assert named[2].points is None


def test_an_empty_list_of_boxes_is_no_object():
    assert len(slice_prompts(np.zeros((0, 4)), None, None, IMAGE)[0]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([[1, 2, 3]], None, None), r"boxes must be \(p, 4\).*got shape \(1, 3\)"),
        (([[1, 2, 3, 4], [1]], None, None), r"boxes must be \(p, 4\)"),
        ((["a"], None, None), r"boxes must be \(p, 4\)"),
        (([[1, 2, 3, math.nan]], None, None), "NaN"),
        (([[12, 3, 2, 13]], None, None), r"x0 < x1.*got \[12.0, 3.0, 2.0, 13.0\]"),
        (([[31, 3, 40, 13]], None, None), "width 30 and height 20"),
        ((None, [[25, 6], [6, 25]], None), r"must lie in the image.*got \[6.0, 25.0\]"),
        ((None, [[1, 2, 3]], None), r"points must be"),
        ((None, [POINT], [1, 0]), r"one for each point, \(1, 1\)"),
        ((None, [POINT], [2]), "1 .foreground., 0 .background."),
        ((BOX, None, [1]), "without points"),
        (([BOX, BOX], [POINT], None), r"same objects; got those for \[1\] and \[1, 2\]"),
        (({3: [BOX]}, None, None), r"slice indices must be 0 to 2; got \[3\]"),
        (({1: [[0, 0, 0, 0]]}, None, None), "^slice 1: a box"),
    ],
)
def test_each_mistake_says_what_was_expected(given, message):
    with pytest.raises(PromptError, match=message):
        slice_prompts(*given, VOLUME)


def test_an_object_keeps_its_number_where_it_has_no_prompt():
    named = slice_prompts({0: [BOX, BOX], 2: [None, BOX]}, None, None, VOLUME)
    assert named[0].numbers.tolist() == [1, 2]
    assert named[2].numbers.tolist() == [2]
    clicks = slice_prompts(None, {1: [None, [POINT]]}, {1: [None, [0]]}, VOLUME)[1]
    assert (clicks.numbers.tolist(), clicks.point_labels.tolist()) == ([2], [[0]])
    assert len(slice_prompts({1: [None]}, None, None, VOLUME)[1]) == 0
    with pytest.raises(PromptError, match=r"same objects; got those for \[1, 2\] and \[2\]"):
        slice_prompts({1: [BOX, BOX]}, {1: [None, [POINT]]}, None, VOLUME)
    with pytest.raises(PromptError, match="slice 1: beside a null"):
        slice_prompts(None, {1: [None, POINT, POINT]}, None, VOLUME)


def test_objects_are_of_the_classes_that_the_caller_names():
    assert object_classes(None, 3, ["lesion"]).tolist() == [1, 1, 1]
    assert object_classes(["spleen", "liver"], 2, ["liver", "spleen"]).tolist() == [2, 1]
    assert object_classes("spleen", 2, ["liver", "spleen"]).tolist() == [2, 2]
    for labels, message in [
        (None, r"2 classes \(liver, spleen\).*labels=\[liver\]"),
        (["liver"], "each of the 2 objects.*got 1"),
        (["liver", "splen"], "no class 'splen'.*did you mean 'spleen'"),
    ]:
        with pytest.raises(PromptError, match=message):
            object_classes(labels, 2, ["liver", "spleen"])


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (([[0.1, 0.2, 0.5, 0.75]], None, None), "boxes"),
        (([[0, 0, 1, 1]], None, None), "boxes"),
        (([[0.1, 0.2, 0.5, 0.75], [0.3, 0.1, 0.9, 1.0]], None, None), "boxes"),
        (([[3, 4, 20, 30], [0.1, 0.2, 0.5, 0.75]], None, None), r"boxes\[1\]"),
        ((None, [[0.5, 0.25]], None), "points"),
        ((None, [[0.5, 0.25], [0.9, 0.9]], [1, 0]), "points"),
    ],
)
def test_fractions_of_the_image_are_asked_about(given, what):
    asked = rf"^{what}: .*width 50 and height 40; were fractions .* multiply x by 50 and y by 40"
    with pytest.raises(PromptError, match=asked):
        slice_prompts(*given, (40, 50, 1))


def test_small_pixel_coordinates_beside_others_are_pixels():
    boxes = [[0, 0, 1, 1], [3, 4, 20, 30]]
    assert slice_prompts(boxes, None, None, (40, 50, 1))[0].boxes.tolist() == boxes
    assert len(slice_prompts([[0, 0, 1, 1]], None, None, (4, 6, 1))[0]) == 1
