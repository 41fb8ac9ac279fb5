"""Objects of the first slice of a clip on the slices after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from samadapt.data.types import Sample
from samadapt.errors import DataError
from samadapt.prompts.policy import PromptPolicy
from samadapt.prompts.simulate import simulate
from samadapt.prompts.through_clip import through_clip

# Two parts of class 1 that meet on the third slice, and one of class 2 that ends after the first.
SLICES = np.array(
    [
        [[1, 0, 0, 1], [0, 0, 0, 0], [2, 0, 0, 0]],
        [[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 2, 0]],
        [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 2, 0]],
    ],
    np.int16,
)


def clip(count: int = 3) -> list[Sample]:
    image = np.zeros((3, 4, 3), np.uint8)
    return [Sample("a", index, image, labels) for index, labels in enumerate(SLICES[:count])]


def carried(kind, count=3, instances=None):
    samples = clip(count)
    if instances is not None:
        samples = [replace(one, instances=own) for one, own in zip(samples, instances, strict=True)]
    policy = PromptPolicy("box", objects=kind)
    objects = simulate(samples[0].maps, policy, instances=samples[0].instances)
    found = through_clip(objects, samples, kind)
    assert all(np.array_equal(one.boxes, objects.boxes) for one in found)
    return objects.class_ids.tolist(), np.stack([one.truth for one in found], axis=1)


def test_a_class_is_itself_on_every_slice():
    ids, truth = carried("class")
    assert ids == [1, 2]
    assert np.array_equal(truth[0], SLICES == 1)
    assert np.array_equal(truth[1], SLICES == 2)


def test_a_component_is_what_is_connected_with_it():
    ids, truth = carried("component", count=2)
    assert ids == [1, 1, 2]
    assert truth.sum(axis=(2, 3)).tolist() == [[1, 1], [1, 1], [1, 0]]  # the last one has ended
    assert truth[0, 1, 0, 0]
    assert truth[1, 1, 0, 3]
    # On the first slice an object stays what was prompted, though both parts meet later.
    _, truth = carried("component")
    assert truth.sum(axis=(2, 3)).tolist() == [[1, 2, 4], [1, 2, 4], [1, 0, 0]]


def test_a_numbered_object_has_its_number_on_every_slice():
    numbers = np.where(SLICES == 1, 1 + (np.arange(4) > 1), 3 * (SLICES == 2))
    _, truth = carried("component", instances=numbers)
    assert truth.sum(axis=(2, 3)).tolist() == [[1, 1, 2], [1, 1, 2], [1, 1, 1]]


def test_objects_need_their_ground_truth():
    objects = replace(simulate(SLICES[0], PromptPolicy("box")), truth=None)
    with pytest.raises(DataError, match="without ground truth"):
        through_clip(objects, clip(), "class")
