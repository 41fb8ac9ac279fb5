"""Scores of masks that may overlap, against those of label maps and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from samadapt.evaluation.instances import match_objects
from samadapt.evaluation.mask_scores import (
    match_masks,
    score_mask,
    segmentation_accuracy,
    summarise_masks,
)


def scored(masks, truth, scores):
    areas = np.bincount(truth.ravel())
    return [
        score_mask(mask, truth, areas, score) for mask, score in zip(masks, scores, strict=True)
    ]


def test_masks_that_do_not_overlap_score_as_a_label_map():
    rng = np.random.default_rng(0)
    truth = np.kron(np.arange(1, 17).reshape(4, 4), np.ones((6, 6), int))
    predicted = np.where(rng.random(truth.shape) < 0.8, truth, rng.integers(0, 17, truth.shape))
    confidence = rng.permutation(17) / 17
    expected = match_objects("a", "object", predicted, truth, confidence[predicted])
    numbers = range(1, 17)
    masks = scored([predicted == n for n in numbers], truth, [confidence[n] for n in numbers])
    found = match_masks("a", masks, 16)
    assert found.hits == expected.hits
    assert sorted(found.overlaps) == pytest.approx(sorted(expected.overlaps))
    assert found.scores == pytest.approx(expected.scores)


def test_an_object_is_found_once_and_a_second_mask_of_it_is_wrong():
    truth = np.zeros((10, 10), int)
    truth[:4], truth[6:] = 1, 2
    whole = truth == 1
    part = whole.copy()
    part[0] = False  # IoU 0.75
    (good, second) = scored([whole, part], truth, [0.9, 0.8])
    assert (good.best, second.best) == (1.0, 0.75)
    match = match_masks("a", [second, good], 2)
    # One object is found, one is not, and one mask is too many: 1 / 3 at every threshold.
    assert segmentation_accuracy(match) == pytest.approx(1 / 3)
    summary = summarise_masks([match])
    assert summary["sq"] == 1.0
    assert summary["pq"] == pytest.approx(1 / 2)  # 1 / (1 + 1 / 2 + 1 / 2)


def test_nothing_to_find_is_no_score():
    assert math.isnan(segmentation_accuracy(match_masks("a", [], 0)))
    assert summarise_masks([match_masks("a", [], 0)])["msa"] is None
    assert segmentation_accuracy(match_masks("a", [], 3)) == 0.0
