"""Scores of carried objects, counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from samadapt.evaluation.one_slice import CarriedScore, summarise_carried, zone_scores


def test_slices_count_by_their_distance_from_the_prompt():
    # truth, prediction and both, on slices that lie 3, 2, 1, 0, 1, 2, 3, 4 away
    counts = np.array(
        [
            [0, 7, 0],  # leaks
            [4, 4, 2],
            [4, 6, 4],
            [8, 8, 8],
            [4, 0, 0],
            [0, 3, 0],  # leaks near the prompt
            [5, 5, 1],
            [0, 0, 0],
        ]
    )
    found = zone_scores(counts, np.array([3, 2, 1, 0, 1, 2, 3, 4]))
    assert found["dice"] == pytest.approx((1.0, 2 * 6 / (12 + 10), 2 * 1 / 10))
    assert (found["outside"], found["leaked"], found["leaked_pixels"]) == (3, 2, 10)


def test_an_object_of_one_slice_has_no_other_dice():
    found = zone_scores(np.array([[0, 0, 0], [3, 0, 0], [0, 0, 0]]), np.array([1, 0, 1]))
    assert found["dice"][0] == 0
    assert all(math.isnan(value) for value in found["dice"][1:])
    assert (found["outside"], found["leaked"], found["leaked_pixels"]) == (2, 0, 0)


def test_objects_count_the_same_and_slices_outside_are_pooled():
    def carried(way, case, name, dice, *outside):
        return CarriedScore(way, case, name, 1, 4, dice, *outside)

    objects = [
        carried("prompt", "a", "one", (1.0, 0.5, math.nan), 3, 3, 60),
        carried("prompt", "b", "one", (0.5, 0.0, 0.25), 1, 0, 0),
        carried("prompt", "b", "two", (0.0, math.nan, math.nan), 0, 0, 0),
        carried("memory", "a", "one", (1.0, 1.0, math.nan), 3, 0, 0),
    ]
    found = summarise_carried(objects, ["one", "two"])
    assert list(found) == ["prompt", "memory"]
    entry = found["prompt"]
    assert (entry["objects"], entry["cases"]) == (3, 2)
    assert entry["dice"] == {"prompted": 0.5, "near": 0.25, "far": 0.25}
    assert (entry["outside"], entry["leaked"], entry["leaked_pixels"]) == (4, 0.75, 15)
    two = entry["per_class"]["two"]
    assert two["dice"] == {"prompted": 0.0, "near": None, "far": None}
    assert (two["outside"], two["leaked"], two["leaked_pixels"]) == (0, None, None)
    assert found["memory"]["per_class"]["two"]["objects"] == 0
