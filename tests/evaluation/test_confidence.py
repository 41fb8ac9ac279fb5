"""The confidence of objects: monotone, calibrated, and absent where there is too little."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.errors import AdapterError
from samadapt.evaluation.confidence import (
    ConfidenceCurve,
    confidence_error,
    fit_confidence,
    match_components,
    match_object,
    read_curve,
)


def drawn(count, slope, intercept, seed=0):
    """Objects whose chance to be true is a known function of their score."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.5, 0.999, count)
    chance = 1 / (1 + np.exp(-(slope * np.log(scores / (1 - scores)) + intercept)))
    return list(zip(scores.tolist(), (rng.random(count) < chance).tolist(), strict=True))


def test_the_curve_is_found_again():
    curve = fit_confidence(drawn(4000, 0.8, -1.5))
    assert curve.slope == pytest.approx(0.8, abs=0.08)
    assert curve.intercept == pytest.approx(-1.5, abs=0.15)
    assert curve.objects == 4000
    confidences = [curve(score) for score in np.linspace(0, 1, 50)]
    assert np.all(np.diff(confidences) >= 0)
    assert 0 < confidences[0] < confidences[-1] < 1
    fresh = drawn(2000, 0.8, -1.5, seed=1)
    found = confidence_error(curve, fresh)
    assert found["expected_error"] < 0.04
    assert found["matched"] == pytest.approx(np.mean([hit for _, hit in fresh]))
    raw = np.mean([score for score, _ in fresh]) - found["matched"]
    assert raw > 0.3, "the scores themselves must be far off, or nothing is shown"


def test_scores_that_divide_perfectly_stay_below_certainty():
    pairs = [(0.6, False)] * 15 + [(0.9, True)] * 15
    curve = fit_confidence(pairs)
    assert 0.8 < curve(0.9) < 0.99
    assert 0.01 < curve(0.6) < 0.2


def test_a_score_that_misleads_gives_the_mean():
    pairs = [(0.6, True)] * 15 + [(0.9, False)] * 15
    curve = fit_confidence(pairs)
    assert curve.slope == 0
    assert curve(0.6) == curve(0.9) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "pairs",
    [[], [(0.9, True)] * 200, [(0.9, True)] * 12 + [(0.6, False)] * 7],
)
def test_too_few_objects_are_a_reason(pairs):
    reason = fit_confidence(pairs)
    assert reason.startswith(f"the validation cases gave {len(pairs)} predicted objects")
    assert confidence_error(reason, [(0.9, True)]) == {"reason": reason}


def test_what_the_record_holds_is_read_back():
    curve = ConfidenceCurve(0.5, -1.0, 40, 30)
    assert read_curve(curve.to_dict()) == curve
    assert read_curve({"reason": "none"}) == "none"
    assert "without it" in read_curve({})
    for wrong in ({"slope": 1}, {**curve.to_dict(), "slope": -1.0}, {"slope": "a"}):
        with pytest.raises(AdapterError, match="confidence: expected the numbers slope"):
            read_curve(wrong)


def test_components_are_matched_in_3d():
    truth, predicted = np.zeros((12, 12, 3), bool), np.zeros((12, 12, 3), bool)
    truth[1:5, 1:5, :2] = True
    predicted[1:5, 1:4, :2] = True  # IoU 0.75
    truth[8:10, 8:10, 2] = True
    predicted[8:12, 8:12, 2] = True  # IoU 0.25
    predicted[11, 0, 0] = True  # a speck
    shares = np.full(truth.shape, 0.5)
    shares[1:5, 1:4, 0], shares[1:5, 1:4, 1], shares[11, 0, 0] = 0.8, 0.9, 0.6
    found = match_components(predicted, truth, shares)
    assert sorted((round(score, 6), hit) for score, hit in found) == [
        (0.5, False),
        (0.6, False),
        (0.85, True),
    ]
    assert match_components(np.zeros_like(truth), truth, shares) == []


def test_a_prompted_object_is_matched_with_its_own_truth():
    truth, predicted = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    truth[:2], predicted[:4] = True, True
    shares = np.linspace(0, 1, 36).reshape(6, 6)
    ((score, hit),) = match_object(predicted, truth, shares)
    assert hit  # an IoU of exactly 0.5
    assert score == pytest.approx(shares[:4].mean())
    assert match_object(np.zeros_like(truth), truth, shares) == []
