"""How sure a model is, on probabilities whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.engine.quality import disagreement, of_probabilities


def shares(inside, outside):
    """Return probabilities of one class (1, 10, 10, 1), and its mask of 50 pixels."""
    p = np.full((1, 10, 10, 1), outside, np.float64)
    p[:, :5] = inside
    return np.round(p * 255).astype(np.uint8), [p[0] >= 0.5]


def test_a_sure_mask():
    quality = of_probabilities(*shares(1.0, 0.0), None)
    assert (quality.predicted_iou, quality.stability) == (1, 1)
    assert quality.disagreement is None


def test_expected_iou_is_that_of_drawn_truths():
    """Truths that are drawn pixel by pixel have this IoU with the mask on average."""
    p, mask = shares(0.8, 0.2)
    quality = of_probabilities(p, mask, None)
    assert quality.predicted_iou == pytest.approx(50 * 0.8 / (50 + 50 * 0.2), rel=0.01)
    rng = np.random.default_rng(0)
    drawn = rng.random((2000, 10, 10, 1)) < p[0] / 255
    common = (drawn & mask[0]).sum((1, 2, 3))
    union = (drawn | mask[0]).sum((1, 2, 3))
    assert quality.predicted_iou == pytest.approx((common / union).mean(), abs=0.01)


def test_a_faint_background_does_not_count():
    assert of_probabilities(*shares(1.0, 0.03), None).predicted_iou == 1


def test_stability_falls_at_soft_borders():
    p, mask = shares(1.0, 0.0)
    p[:, 5] = 255 * 0.4  # between the two thresholds
    assert of_probabilities(p, mask, None).stability == pytest.approx(50 / 60)


def test_nothing_was_found():
    p, mask = shares(0.2, 0.0)
    quality = of_probabilities(p, mask, np.zeros((10, 10, 1), np.float32))
    assert (quality.predicted_iou, quality.stability, quality.disagreement) == (None, None, 0)


def test_disagreement_is_measured_where_something_may_be():
    p, mask = shares(1.0, 0.0)
    apart = np.where(mask[0], 0.5, 0.9).astype(np.float32)
    assert of_probabilities(p, mask, apart).disagreement == pytest.approx(0.5)


def test_views_without_prompts():
    one, other = np.zeros((2, 100), bool)
    one[:10], other[5:15] = True, True
    assert disagreement([], []) == 0
    assert disagreement([one], []) == 1
    assert disagreement([one, other], [other, one]) == 0
    assert disagreement([one], [other]) == pytest.approx(1 - 5 / 15)
    # The second mask of the first view has no partner.
    assert disagreement([one, ~one], [one]) == pytest.approx(1 - (1 + 0 + 1) / 3)
