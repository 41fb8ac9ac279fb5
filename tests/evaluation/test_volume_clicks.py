"""Dice, NSD and the areas under their curves, as the CVPR 2025 challenge computes them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate

from samadapt.evaluation.case_scores import score_case
from samadapt.evaluation.volume_clicks import (
    ANSWERS,
    CorrectedClass,
    area_under_clicks,
    corrected_classes,
    summarise_corrections,
)


def corrected(case, name, dice, nsd=None):
    return CorrectedClass(case, name, "mm", tuple(dice), tuple(nsd or dice))


def test_the_area_is_that_of_the_published_script():
    scores = np.random.default_rng(0).random(6)
    wanted = integrate.cumulative_trapezoid(scores[-5:], np.arange(5))[-1]
    assert area_under_clicks(scores) == pytest.approx(wanted)
    assert area_under_clicks([0.1, 1, 1, 1, 1, 1]) == 4


def test_classes_that_a_case_lacks_do_not_count_and_a_bad_case_has_no_nsd():
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[1:5, 1:5, 1:5] = 1
    found = [np.zeros_like(truth) for _ in ANSWERS]
    found[0][1, 1, 1:3] = 1  # Dice 0.06
    for mask in found[2:]:
        mask[...] = truth
    options = {"spacing_mm": (1, 1, 1), "tolerance": 2.0, "scores": ("dice", "nsd")}
    rows = [score_case("a", mask, truth, ["one", "two"], **options) for mask in found]
    assert rows[0][0].values["nsd"] > 0
    (one,) = corrected_classes(rows)
    assert (one.class_name, one.length_unit) == ("one", "mm")
    assert one.nsd == (0, 0, 1, 1, 1, 1)
    assert one.dice[0] == pytest.approx(4 / 66)
    assert one.dice[1:] == (0, 1, 1, 1, 1)
    truth[...] = 0
    assert corrected_classes([score_case("a", truth, truth, ["one"], **options)] * 6) == []


def test_means_are_over_the_classes_of_a_case_first():
    classes = [
        corrected("a", "one", [1.0] * 6),
        corrected("a", "two", [0.5] * 6),
        corrected("b", "one", [0.25] * 6),
    ]
    summary = summarise_corrections(classes, ["one", "two", "three"])
    assert (summary["cases"], summary["unit"]) == (2, "mm")
    assert summary["dice"]["box"] == (0.75 + 0.25) / 2
    assert summary["dice_auc"] == 4 * 0.5
    assert summary["intervals"]["dice_auc"]["interval"] == [1, 3]
    assert summary["per_class"]["two"]["nsd_auc"] == 2
    assert "at least 2" in summary["per_class"]["two"]["intervals"]["nsd_auc"]["reason"]
    assert summary["per_class"]["three"]["dice"] == dict.fromkeys(ANSWERS)
