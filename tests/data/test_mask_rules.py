"""Values of masks become classes, objects or a binary mask, and bad values name their file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samadapt.data.findings import FindingError
from samadapt.data.mask_rules import MaskRules, as_objects, at_threshold, without_ignored
from samadapt.data.types import SourceGrid, Volume

FILE = Path("masks/p1.png")


def picture(values: Any, dtype: type = np.int64) -> Volume:
    """Return a picture whose mask is one row of values."""
    labels = np.array(values, dtype)[None, :, None]
    return Volume(np.zeros(labels.shape, np.float32), labels)


def test_object_numbers_become_one_class() -> None:
    found = as_objects(picture([0, 3, 3, 7]), FILE)
    assert found.labels is not None
    assert found.labels[0, :, 0].tolist() == [0, 1, 1, 1]
    assert found.instances is not None
    assert found.instances.dtype == np.int32
    assert found.instances.tolist() == [[0, 3, 3, 7]]


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
@pytest.mark.parametrize(
    ("values", "labels", "numbers"),
    [
        ([0, 2**31, 2**40, 0, 5], [0, 1, 1, 0, 1], [0, 2, 3, 0, 1]),
        ([2**31, 2**40, 2**31], [1, 1, 1], [1, 2, 1]),  # no background: no object gets number 0
        ([2**40], [1], [1]),
    ],
)
def test_numbers_above_31_bits_are_replaced_by_consecutive_ones(
    values: list[int], labels: list[int], numbers: list[int], dtype: type
) -> None:
    found = as_objects(picture(values, dtype), FILE)
    assert found.labels is not None
    assert found.labels[0, :, 0].tolist() == labels
    assert found.instances is not None
    assert found.instances.tolist() == [numbers]


def test_large_numbers_beside_ignored_pixels_stay_objects() -> None:
    found = as_objects(picture([255, 2**31, 2**32]), FILE, ignored=[255])
    assert found.labels is not None
    assert found.labels[0, :, 0].tolist() == [255, 1, 1]
    assert found.instances is not None
    assert found.instances.tolist() == [[0, 1, 2]]


def test_numbers_of_a_volume_keep_its_slices() -> None:
    grid = SourceGrid({}, (1, 3, 1), np.eye(4), np.array([[0, 1], [1, 1], [2, 1]]), 2)
    volume = picture([0, 1, 2])
    found = as_objects(Volume(volume.image, volume.labels, source=grid), FILE)
    assert found.instances is not None
    assert found.instances.shape == (1, 3, 1)


def test_a_number_below_0_names_the_file_and_the_way_out() -> None:
    with pytest.raises(FindingError, match=r"p1\.png: object numbers start at 1; it holds -4") as e:
        as_objects(picture([0, -4, 2]), FILE)
    assert e.value.finding.code == "label_value"
    assert "data.ignore=-4" in e.value.finding.fix
    assert as_objects(picture([0, -4, 2]), FILE, ignored=[-4]).instances is not None


def test_a_threshold_keeps_ignored_values() -> None:
    found = at_threshold(picture([0, 0.4, 0.5, 1, 9], np.float32), 0.5, FILE, ignored=[9])
    assert found.labels is not None
    assert found.labels[0, :, 0].tolist() == [0, 0, 1, 1, 9]


def test_nan_has_no_side_of_a_threshold() -> None:
    with pytest.raises(FindingError, match="NaN") as e:
        at_threshold(picture([0, np.nan], np.float32), 0.5, FILE)
    assert e.value.finding.code == "non_integer_labels"


def test_without_a_rule_values_are_classes() -> None:
    volume = picture([0, 3, 7])
    rules = MaskRules()
    assert not rules.one_class
    assert rules.apply(volume, FILE) is volume
    assert MaskRules(instances=True).one_class
    assert MaskRules(threshold=0.0).one_class


def test_a_volume_without_a_mask_stays_as_it_is() -> None:
    volume = Volume(np.zeros((2, 2, 1), np.float32))
    for rules in (MaskRules(instances=True), MaskRules(threshold=0.5)):
        assert rules.apply(volume, FILE) is volume


def test_ignored_values_are_background() -> None:
    labels = np.array([0, 1, 255, -1])
    assert without_ignored(labels, (255, -1)).tolist() == [0, 1, 0, 0]
    assert without_ignored(labels, ()) is labels
