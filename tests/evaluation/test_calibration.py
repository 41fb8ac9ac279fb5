"""Predicted against true IoU."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.evaluation.calibration import calibration


def test_by_hand():
    found = calibration([(0.95, 0.5), (0.91, 0.7), (0.15, 0.2), (1.2, 0.9)])
    assert found["objects"] == 4
    assert found["predicted"] == pytest.approx(np.mean([0.95, 0.91, 0.15, 1.2]))
    assert found["bias"] == pytest.approx(found["predicted"] - np.mean([0.5, 0.7, 0.2, 0.9]))
    high = abs(np.mean([0.95, 0.91, 1.2]) - np.mean([0.5, 0.7, 0.9]))
    assert found["expected_error"] == pytest.approx((3 * high + 1 * 0.05) / 4)
    assert found["rank_correlation"] == pytest.approx(0.8)
    assert [(one["low"], one["objects"]) for one in found["bins"]] == [(0.1, 1), (0.9, 3)]


def test_what_cannot_be_said_is_not_said():
    nothing = calibration([])
    assert nothing["expected_error"] is None
    assert "no object" in nothing["reason"]
    assert calibration([(0.5, 0.5), (0.6, 0.7)])["rank_correlation"] is None
    assert calibration([(0.5, 0.1)] * 9)["rank_correlation"] is None
