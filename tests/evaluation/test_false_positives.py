"""Counts of what is predicted where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.data.types import IGNORED
from samadapt.evaluation.false_positives import count_false_positives, summarise_false_positives


def volume():
    """Return truth in slices 0 and 1 of 5, and a prediction with a tail and two specks."""
    truth, predicted = np.zeros((8, 8, 5), np.int8), np.zeros((8, 8, 5), bool)
    truth[2:5, 2:5, :2] = 1
    predicted[2:4, 2:5, :3] = True  # overlaps, and goes on in the empty slice 2
    predicted[7, 7, 2] = True  # a speck in an empty slice
    predicted[7, 0, 1] = True  # and one beside the object
    return truth, predicted


def test_slices_voxels_and_components_are_counted():
    truth, predicted = volume()
    found = count_false_positives("a", "organ", predicted, truth, range(5))
    assert (found.empty_slices, found.false_slices, found.false_voxels) == (3, 1, 7)
    assert (found.false_components, found.absent_cases, found.false_cases) == (2, 0, 0)
    # A slice that was not scored, such as a gap, is not empty.
    assert count_false_positives("a", "organ", predicted, truth, [0, 1, 3]).empty_slices == 1


def test_a_case_without_the_class_and_unknown_pixels():
    truth, predicted = volume()
    absent = np.zeros_like(truth)
    found = count_false_positives("a", "organ", predicted, absent, range(5))
    assert (found.absent_cases, found.false_cases, found.false_components) == (1, 1, 3)
    assert found.false_slices == 3
    nothing = count_false_positives("a", "organ", predicted & False, absent, range(5))
    assert (nothing.false_cases, nothing.false_slices, nothing.false_components) == (0, 0, 0)
    absent[..., 2] = IGNORED
    found = count_false_positives("a", "organ", predicted, absent, range(5))
    assert (found.empty_slices, found.false_slices) == (4, 2)
    everything = np.full_like(truth, IGNORED)
    assert count_false_positives("a", "organ", predicted, everything, range(5)) is None


def test_corners_connect_and_pictures_are_one_slice():
    predicted = np.zeros((4, 4, 1), bool)
    predicted[[0, 1], [0, 1]] = True
    found = count_false_positives("a", "x", predicted, np.zeros((4, 4, 1), np.int8), [0])
    assert (found.false_components, found.empty_slices, found.false_slices) == (1, 1, 1)


def test_the_summary_adds_up_and_counts_components_a_case():
    truth, predicted = volume()
    rows = [
        count_false_positives(case, name, predicted, truth, range(5))
        for case in ("a", "b")
        for name in ("organ", "lesion")
    ]
    summary = summarise_false_positives(rows, ["organ", "lesion", "none"])
    assert (summary["cases"], summary["false_slices"], summary["empty_slices"]) == (2, 4, 12)
    assert summary["components_per_case"] == pytest.approx(4.0)
    assert summary["per_class"]["organ"]["components_per_case"] == pytest.approx(2.0)
    assert summary["per_class"]["none"]["components_per_case"] is None
