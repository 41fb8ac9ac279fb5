"""One prompt for each object of a volume, on its middle slice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from samadapt.data.types import Sample
from samadapt.prompts.middle_slice import prompts_on_middle_slices
from samadapt.prompts.policy import PromptPolicy

DEPTH, SIDE = 5, 12


@pytest.fixture
def slices():
    """Class 1 in two parts, of which one reaches slices 0 to 4; class 2 on slice 3."""
    labels = np.zeros((DEPTH, SIDE, SIDE), np.int16)
    labels[:, 1:4, 1:4] = 1
    labels[3:, 1:6, 1:4] = 1  # larger on the last slices, so the middle voxel is on slice 3
    labels[0:2, 8:11, 8:11] = 1
    labels[3, 8:11, 1:3] = 2
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    return [Sample("a", index, image, plane) for index, plane in enumerate(labels)]


def found(slices, policy):
    prompts = prompts_on_middle_slices(slices, policy)
    return {
        middle: list(
            zip(one.numbers.tolist(), one.class_ids.tolist(), one.boxes.tolist(), strict=True)
        )
        for middle, one in prompts.items()
    }


def test_each_connected_part_is_boxed_on_its_middle_slice(slices):
    assert found(slices, PromptPolicy("box", clip=2)) == {
        3: [(1, 1, [1, 1, 4, 6]), (3, 2, [1, 8, 3, 11])],
        1: [(2, 1, [8, 8, 11, 11])],
    }


def test_an_object_may_be_all_of_a_class(slices):
    assert found(slices, PromptPolicy("box", objects="class")) == {
        2: [(1, 1, [1, 1, 4, 4])],
        3: [(2, 2, [1, 8, 3, 11])],
    }


def test_numbers_tell_objects_apart_where_the_data_have_them(slices):
    numbered = [replace(one, instances=(one.labels > 0) * np.int32(7)) for one in slices]
    boxes = found(numbered, PromptPolicy("box"))
    assert [len(one) for one in boxes.values()] == [1, 1]


def test_slices_that_nobody_annotated_do_not_divide_an_object(slices):
    boxes = found(slices[::2], PromptPolicy("box"))
    assert boxes == {1: [(1, 1, [1, 1, 4, 4])], 0: [(2, 1, [8, 8, 11, 11])]}


def test_small_objects_and_empty_volumes_have_no_prompt(slices):
    boxes = found(slices, PromptPolicy("box", min_area=7))
    assert boxes == {3: [(1, 1, [1, 1, 4, 6])], 1: [(2, 1, [8, 8, 11, 11])]}
    empty = [replace(one, labels=np.zeros_like(one.labels)) for one in slices]
    assert prompts_on_middle_slices(empty, PromptPolicy("box")) == {}


@pytest.mark.parametrize("kind", ["point", "mask"])
def test_other_prompts_lie_on_the_same_slices(slices, kind):
    prompts = prompts_on_middle_slices(slices, PromptPolicy(kind, mask_noise=0.0))
    assert {middle: len(one) for middle, one in prompts.items()} == {3: 2, 1: 1}
    if kind == "mask":
        assert prompts[3].masks.sum(axis=(1, 2)).tolist() == [15, 6]
    else:
        (column, row), (_, low) = prompts[3].points[:, 0]
        assert 1 < column < 4
        assert 1 < row < 6 < 8 < low < 11
