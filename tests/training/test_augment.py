"""Augmentation moves image, labels and prompts together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from samadapt.data.types import Sample
from samadapt.prompts.given import given_prompts
from samadapt.training.augment import augment, flip, vary


def sample():
    labels = np.zeros((10, 20), np.int16)
    labels[2:5, 12:18] = 1
    image = np.repeat((labels * 200).astype(np.uint8)[..., None], 3, axis=2)
    boxes = np.array([[12, 2, 18, 5]], np.float32)
    points = np.array([[12.5, 3.5], [0.5, 9.5]], np.float32)
    return Sample("a", 0, image, labels, boxes, points, np.array([1, 0]))


def test_a_flip_moves_everything_and_twice_is_nothing():
    flipped = flip(sample())
    assert np.array_equal(flipped.image[..., 0] > 0, flipped.labels > 0)
    assert np.flatnonzero(flipped.labels.any(0)).tolist() == [2, 3, 4, 5, 6, 7]
    assert flipped.boxes.tolist() == [[2, 2, 8, 5]]
    assert flipped.points.tolist() == [[7.5, 3.5], [19.5, 9.5]]
    assert given_prompts(flipped).masks.sum() == 18
    assert flipped.image.flags.c_contiguous
    twice = flip(flipped)
    for name in ("image", "labels", "boxes", "points", "point_labels"):
        assert np.array_equal(getattr(twice, name), getattr(sample(), name))


def test_half_of_the_slices_are_changed_and_none_without_a_name():
    rng = np.random.default_rng(0)
    changed = [bool(augment(sample(), ["flip"], rng).labels[2, 2]) for _ in range(200)]
    assert 70 < sum(changed) < 130
    assert not any(augment(sample(), [], rng).labels[2, 2] for _ in range(20))


def is_flipped(changed):
    return bool(changed.labels[2, 2])


def test_a_variant_depends_on_seed_slice_and_number_alone():
    slices = [replace(sample(), case=case, index=index) for case in "abcd" for index in range(9)]

    def drawn(seed, variant):
        return [is_flipped(vary(item, ["flip"], seed, variant)) for item in slices]

    assert not any(drawn(0, 0))
    assert drawn(0, 1) == drawn(0, 1)
    assert len({tuple(drawn(seed, number)) for seed in range(3) for number in (1, 2)}) == 6
    assert 8 < sum(drawn(0, 1)) < 28
    turned = next(item for item in slices if is_flipped(vary(item, ["flip"], 0, 1)))
    changed, by_hand = vary(turned, ["flip"], 0, 1), flip(turned)
    for name in ("image", "labels", "boxes", "points", "point_labels"):
        assert np.array_equal(getattr(changed, name), getattr(by_hand, name))
