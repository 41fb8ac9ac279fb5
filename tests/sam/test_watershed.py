"""Objects are separated by a watershed over their distances."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.errors import ConfigError
from samadapt.sam.watershed import Watershed, without_seams
from samadapt.training.instance_distances import object_distances


def discs(*circles: tuple[float, float, float], side: int = 40) -> np.ndarray:
    """Number circles (row, column, radius); where they overlap, the earlier one stays."""
    rows, columns = np.mgrid[:side, :side]
    numbers = np.zeros((side, side), np.int32)
    for number, (row, column, radius) in enumerate(circles, start=1):
        inside = np.hypot(rows - row, columns - column) < radius
        numbers[inside & (numbers == 0)] = number
    return numbers


TOUCHING = discs((12, 10, 8), (12, 24, 7), (27, 17, 9), (30, 32, 4))


def test_touching_objects_come_apart_where_they_touch():
    found = Watershed().separate(TOUCHING > 0, *object_distances(TOUCHING))
    assert found.dtype == np.int32
    assert set(np.unique(found)) == {0, 1, 2, 3, 4}
    for number in range(1, 5):
        own = number == TOUCHING
        partner = np.bincount(found[own]).argmax()
        other = found == partner
        assert (own & other).sum() / (own | other).sum() > 0.93


def test_without_distances_objects_that_touch_are_one():
    flat = np.ones_like(TOUCHING, dtype=np.float32)
    found = Watershed().separate(TOUCHING > 0, flat, flat)
    assert found.max() < TOUCHING.max()  # so the distances are what separates them above


def test_a_rim_around_an_object_belongs_to_it_and_not_to_its_neighbour():
    # The mask is wider than the objects, and the distance to the border is higher in the background
    # than on the border, as a model that was trained for a short time predicts it.
    truth = discs((14, 12, 8), (14, 27, 8))
    centre, border = object_distances(truth)
    rows, columns = np.mgrid[:40, :40]
    away = np.stack([np.hypot(rows - 14, columns - c) for c in (12, 27)])
    wide, nearest = away.min(0) < 10, away.argmin(0) + 1
    centre = np.maximum(centre, 0.3 - 0.02 * away.min(0))
    border = np.where(truth > 0, border, 0.27)
    found = Watershed().separate(wide, centre, border)
    assert (found > 0).sum() == wide.sum()
    sure = wide & (np.abs(away[0] - away[1]) > 4)
    numbers = np.array([0, found[14, 12], found[14, 27]])
    assert (found == numbers[nearest])[sure].all()


def test_a_part_without_a_seed_is_one_object():
    numbers = discs((10, 10, 6), (30, 30, 3))
    centre, border = object_distances(numbers) * np.where(numbers == 2, 0.3, 1.0)
    found = Watershed().separate(numbers > 0, centre, border)
    assert found.max() == 2
    assert np.array_equal(found > 0, numbers > 0)


def test_a_picture_full_of_one_object_has_one():
    full = np.ones((5, 6), bool)
    values = np.full((5, 6), 0.9, np.float32)
    assert (Watershed().separate(full, values, values) == 1).all()
    empty = Watershed().separate(~full, values, values)
    assert not empty.any()


def test_classes_are_separated_by_themselves():
    labels = np.where(TOUCHING > 2, 2, TOUCHING > 0).astype(np.uint8)
    centre, border = object_distances(TOUCHING)
    planes = [d * (labels == k) for d in (centre, border) for k in (1, 2)]
    found = list(Watershed().separate_classes(labels[None], np.stack(planes), 2))
    assert [(class_id, place, own.max()) for class_id, place, own in found] == [
        (1, 0, 2),
        (2, 0, 2),
    ]
    assert all(np.array_equal(own > 0, labels == class_id) for class_id, _, own in found)


def test_seams_are_drawn_between_objects_alone():
    labels = (TOUCHING > 0).astype(np.uint8)
    shown = without_seams(labels, TOUCHING)
    assert 0 < (labels != shown).sum() < 40
    apart = discs((8, 8, 5), (28, 28, 5))
    assert np.array_equal(without_seams((apart > 0).astype(np.uint8), apart), apart > 0)


@pytest.mark.parametrize("values", [{"seed_height": 1.0}, {"smoothing": -1.0}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        Watershed(**values)
