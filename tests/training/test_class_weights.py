"""Class weights that are given, and those from pixel counts."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.errors import ConfigError
from samadapt.training.class_weights import balanced_weights, given_weights


def test_a_list_follows_the_order_of_the_classes():
    assert given_weights([2, 0.5], ["liver", "spleen"]) == [1, 2, 0.5]
    with pytest.raises(ConfigError, match="2 numbers, one for each of liver, spleen; got 1"):
        given_weights([2], ["liver", "spleen"])


def test_names_may_leave_classes_out_and_name_the_background():
    assert given_weights({"spleen": 3}, ["liver", "spleen"]) == [1, 1, 3]
    assert given_weights({"background": 0.1, "liver": 2}, ["liver", "spleen"]) == [0.1, 2, 1]
    with pytest.raises(ConfigError, match="got 'splen'; did you mean 'spleen'"):
        given_weights({"splen": 3}, ["liver", "spleen"])


def test_balanced_weights_make_all_classes_count_the_same():
    truth = np.zeros((10, 10), np.int16)
    truth[:2], truth[2, :5], truth[9] = 1, 2, -1  # 20, 5 and 65 of 90 known pixels
    weights = balanced_weights([truth, truth], 3)
    assert weights == pytest.approx([90 / 4 / 65, 90 / 4 / 20, 90 / 4 / 5, 1])  # class 3 is absent
    counts = [65, 20, 5]
    assert [w * n for w, n in zip(weights, counts, strict=False)] == pytest.approx([22.5] * 3)


def test_balanced_weights_of_planes_count_overlaps_twice():
    planes = np.zeros((2, 4, 4), np.int16)
    planes[0, :2], planes[1, 0] = 1, 1
    planes[:, 3] = -1
    background, whole, core = balanced_weights([planes], 2)
    assert (background, whole, core) == pytest.approx((16 / 3 / 4, 16 / 3 / 8, 16 / 3 / 4))
