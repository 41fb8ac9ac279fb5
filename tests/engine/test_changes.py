"""What a person changed, on masks whose changes are known."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.engine.changes import measure_changes


def mask(*boxes, shape=(20, 20, 1)):
    """Return a mask with a value in each box (value, y0, y1, x0, x1)."""
    drawn = np.zeros(shape, np.int32)
    for value, y0, y1, x0, x1 in boxes:
        drawn[y0:y1, x0:x1] = value
    return drawn


def test_nothing_was_changed():
    same = mask((1, 2, 8, 2, 8))
    changes = measure_changes(same, same.copy(), 1, objects=False)
    assert (changes.pixels, changes.dice, changes.added, changes.removed) == (0, 1, 0, 0)
    assert not changes.needed


def test_empty_masks_agree():
    changes = measure_changes(mask(), mask(), 2, objects=False)
    assert (changes.pixels, changes.dice, changes.objects_after) == (0, 1, 0)
    assert not changes.needed


def test_a_border_that_moved():
    before, after = mask((1, 0, 10, 0, 10)), mask((1, 0, 10, 0, 9))
    changes = measure_changes(before, after, 1, objects=False)
    assert changes.pixels == pytest.approx(10 / 400)
    assert changes.of_foreground == pytest.approx(0.1)
    assert changes.dice == pytest.approx(180 / 190)
    assert not changes.needed  # Dice 0.947, the same object


def test_objects_that_were_added_and_removed():
    before = mask((1, 0, 4, 0, 4), (1, 10, 14, 10, 14))
    after = mask((1, 0, 4, 0, 4), (1, 0, 4, 10, 14), (2, 10, 14, 0, 4))
    changes = measure_changes(before, after, 2, objects=False)
    assert (changes.objects_before, changes.objects_after) == (2, 3)
    assert (changes.added, changes.removed) == (2, 1)
    assert changes.needed
    # Class 1 keeps half of its pixels; class 2 is new.
    assert changes.dice == pytest.approx((0.5 + 0) / 2)


def test_numbers_of_objects_may_be_exchanged():
    before = mask((1, 0, 4, 0, 4), (2, 10, 14, 10, 14))
    after = mask((7, 0, 4, 0, 4), (3, 10, 14, 10, 14))
    changes = measure_changes(before, after, 1, objects=True)
    assert (changes.pixels, changes.dice, changes.added, changes.removed) == (0, 1, 0, 0)


def test_objects_that_were_merged_are_a_change_of_pixels():
    before, after = mask((1, 0, 4, 0, 4), (2, 0, 4, 4, 6)), mask((1, 0, 4, 0, 6))
    changes = measure_changes(before, after, 1, objects=True)
    assert (changes.objects_before, changes.objects_after) == (2, 1)
    assert changes.dice == 1  # of the foreground
    assert changes.needed
    split = measure_changes(after, before, 1, objects=True)
    assert split.pixels == pytest.approx(8 / 400)  # the smaller part is another object now
