"""The learning curve: means over draws, paired gains, and the answer in words."""

from __future__ import annotations

import math

import numpy as np
import pytest

from samadapt.evaluation.case_scores import CaseClassScore, summarise
from samadapt.evaluation.learning_curve import (
    CurvePoint,
    answer,
    mean_over_draws,
    summarise_curve,
)


def rows(values, **counts):
    return [
        CaseClassScore(f"c{n}", "gold", {"dice": value, "iou": value / 2}, 9, 9, 5, **counts)
        for n, value in enumerate(values)
    ]


def around(mean, cases=12, noise=0.01, seed=0):
    return mean + noise * np.random.default_rng(seed).normal(size=cases)


def summary_of(curves, draws=1):
    points = [
        CurvePoint(arm, cases, [rows(around(mean, seed=draw)) for draw in range(draws)])
        for arm, curve in curves.items()
        for cases, mean in curve.items()
    ]
    return summarise_curve(points, ["gold"])


def test_scores_are_averaged_over_draws_before_cases() -> None:
    one, other = rows([0.2, math.nan, math.nan]), rows([0.6, 0.4, math.nan])
    mean = mean_over_draws([one, other])
    assert [row.dice for row in mean[:2]] == pytest.approx([0.4, 0.4])
    assert math.isnan(mean[2].dice)
    assert mean_over_draws([one]) == one


def test_a_mask_that_is_empty_in_one_draw_only_is_not_counted_as_empty() -> None:
    empty = [CaseClassScore("c0", "gold", {"dice": 0.0, "iou": 0.0}, 9, 0, 0)]
    assert mean_over_draws([empty, rows([0.5])])[0].flag == ""
    assert mean_over_draws([empty, empty])[0].flag == "prediction_empty"


def test_points_hold_means_intervals_and_draws() -> None:
    summary = summary_of({"lora": {5: 0.7, 20: 0.8}}, draws=3)
    first = summary["points"][0]
    assert (first["arm"], first["cases"], len(first["draws"])) == ("lora", 5, 3)
    assert first["dice"] == pytest.approx(np.mean(first["draws"]))
    low, high = first["detail"]["dice"]["interval"]
    assert low < first["dice"] < high
    alone = summarise(rows(around(0.7)), ["gold"], intervals=True)
    once = summary_of({"lora": {5: 0.7}})["points"][0]
    assert once["detail"] == alone["detail"]


def test_gains_are_paired_and_for_each_doubling() -> None:
    (gain,) = summary_of({"lora": {5: 0.7, 20: 0.8}})["gains"]
    assert (gain["from"], gain["to"]) == (5, 20)
    assert gain["dice"]["difference"] == pytest.approx(0.1)
    assert gain["per_doubling"]["difference"] == pytest.approx(0.05)


def test_arms_are_compared_where_both_were_trained() -> None:
    summary = summary_of({"lora": {5: 0.7, 20: 0.8}, "unet": {20: 0.6}})
    (pair,) = summary["paired"]
    assert (pair["arm"], pair["other"], pair["cases"]) == ("lora", "unet", 20)
    assert pair["dice"]["difference"] == pytest.approx(0.2)
    assert pair["dice"]["better"] == 12


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ({5: 0.71, 10: 0.79, 20: 0.80}, "the last doubling gained 0.01: more labels will bring"),
        ({5: 0.5, 20: 0.7}, "from 5 to 20 cases it gained 0.20, 0.10 for each doubling: more"),
        ({10: 0.7, 20: 0.6}, "the last doubling lost 0.10: more labels will bring little"),
        ({10: 0.7, 20: 0.699}, "the last doubling gained 0.00: more labels will bring little"),
    ],
)  # fmt: skip
def test_the_answer_in_words(curve, said) -> None:
    (text,) = answer(summary_of({"lora": curve}))
    assert said in text
    few = min(curve)
    assert text.startswith(f"lora: with {few} cases {curve[few]:.2f}")


def test_the_answer_admits_that_the_cases_are_too_few() -> None:
    points = [
        CurvePoint("lora", size, [rows(around(mean, 4, 0.2, seed=size))])
        for size, mean in ((5, 0.5), (10, 0.52))
    ]
    (text,) = answer(summarise_curve(points, ["gold"]))
    assert "the held-out cases are too few to tell" in text
    alone = [CurvePoint("lora", size, [rows([0.5])]) for size in (5, 10)]
    assert "too few to tell" in answer(summarise_curve(alone, ["gold"]))[0]


def test_one_number_has_no_gain_and_no_verdict() -> None:
    (text,) = answer(summary_of({"lora": {1: 0.5}}))
    assert text == "lora: with 1 case 0.50"


def test_the_other_arm_is_measured_in_cases() -> None:
    curves = {"lora": {5: 0.7, 20: 0.8}, "unet": {5: 0.5, 20: 0.75}}
    assert answer(summary_of(curves))[2] == (
        "unet needs 20 cases for what lora reaches with 5 cases (0.70)"
    )
    curves["unet"][20] = 0.6
    assert "unet with 20 cases (0.60) does not reach lora with 5" in answer(summary_of(curves))[2]
