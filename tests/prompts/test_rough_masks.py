"""Rough masks: how far from the object they are, and that they can be repeated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.prompts.rough_masks import rough_masks

ROWS, COLUMNS = np.ogrid[:60, :80]
DISC = (ROWS - 25) ** 2 + (COLUMNS - 30) ** 2 < 15**2
LINE = (abs(ROWS - 40) <= 1) & (abs(COLUMNS - 40) < 30)


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.mark.parametrize("mask", [DISC, LINE], ids=["disc", "line"])
def test_masks_are_the_rougher_the_larger_the_amount(mask):
    means = []
    for amount in (0.0, 0.1, 0.3, 0.6):
        rng = np.random.default_rng(0)
        drawn = rough_masks(np.stack([mask] * 40), amount, rng)
        means.append(np.mean([dice(mask, one) for one in drawn]))
        assert drawn.any(axis=(1, 2)).all()
        assert amount == 0 or len({one.tobytes() for one in drawn}) > 5
    assert means[0] == 1
    assert means == sorted(means, reverse=True)
    assert 0.7 < means[2] < 0.95


def test_every_kind_of_fault_occurs():
    from skimage.measure import euler_number

    drawn = rough_masks(np.stack([DISC] * 60), 0.5, np.random.default_rng(1))
    areas = drawn.sum(axis=(1, 2)) / DISC.sum()
    assert areas.min() < 0.8  # eroded
    assert areas.max() > 1.2  # dilated
    middles = [np.argwhere(one).mean(axis=0) for one in drawn]
    assert np.ptp(middles, axis=0).min() > 4  # shifted, both ways
    assert any(euler_number(one, connectivity=1) < 1 for one in drawn)  # with holes


def test_without_a_generator_the_mask_of_an_object_is_always_the_same():
    alone = rough_masks(DISC[None], 0.4)
    together = rough_masks(np.stack([LINE, DISC]), 0.4)
    assert np.array_equal(alone[0], together[1])
    assert not np.array_equal(alone[0], DISC)


@given(st.integers(0, 59), st.integers(0, 79), st.integers(1, 30), st.floats(0, 1), st.integers(0))
@settings(max_examples=40, deadline=None)
def test_a_mask_never_vanishes_even_at_the_edge_of_the_image(row, column, size, amount, seed):
    mask = np.zeros((60, 80), bool)
    mask[row : row + size, column : column + size] = True
    (drawn,) = rough_masks(mask[None], amount, np.random.default_rng(seed))
    assert drawn.shape == mask.shape
    assert drawn.dtype == bool
    assert drawn.any()


def test_no_object_has_no_mask():
    assert rough_masks(np.zeros((0, 4, 5), bool), 0.3).shape == (0, 4, 5)
    assert not rough_masks(np.zeros((1, 4, 5), bool), 0.3).any()
