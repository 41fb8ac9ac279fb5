"""Intervals against scipy's own means, coverage by simulation, and what few cases do not allow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from samadapt.evaluation.case_scores import score_case
from samadapt.evaluation.comparison import compare_states
from samadapt.evaluation.statistics import (
    RESAMPLES,
    SEED,
    compare,
    interval_of,
    interval_of_ratio,
)


def rows(hits, truth=10, name="x"):
    """Return one case for each number: so many of the ten true pixels are predicted."""
    true = np.zeros((1, 20), np.uint8)
    true[0, :truth] = 1
    return [
        row
        for case, hit in enumerate(hits)
        for row in score_case(str(case), (np.arange(20)[None] < hit).astype(np.uint8), true, [name])
    ]


def test_the_interval_of_one_class_is_scipys():
    values = np.random.default_rng(0).random(23)
    wanted = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval  # fmt: skip
    assert interval_of(values[:, None])["interval"] == pytest.approx(list(wanted), abs=1e-12)


def test_the_interval_over_classes_draws_whole_cases():
    rng = np.random.default_rng(1)
    values = rng.random((12, 3))
    values[3, 1] = values[5] = np.nan
    values[7:, 2] = np.nan
    used = np.delete(values, 5, axis=0)

    def mean(*columns, axis):
        sums = [np.nansum(column, axis=axis) for column in columns]
        counts = [np.isfinite(column).sum(axis=axis) for column in columns]
        with np.errstate(invalid="ignore"):
            means = np.array(sums) / np.array(counts)
        return np.nansum(means, axis=0) / np.isfinite(means).sum(axis=0)

    wanted = stats.bootstrap(
        tuple(used.T), mean, paired=True, n_resamples=RESAMPLES, method="percentile",
        rng=np.random.default_rng(SEED), vectorized=True,
    ).confidence_interval  # fmt: skip
    assert interval_of(values)["interval"] == pytest.approx(list(wanted), abs=1e-12)
    assert interval_of(values) == interval_of(values)


def test_the_interval_of_a_mean_over_objects_draws_whole_cases():
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 9, 15).astype(float)
    sums = counts * rng.uniform(1, 20, 15)
    wanted = stats.bootstrap(
        (sums, counts), lambda s, c, axis: s.sum(axis) / c.sum(axis), paired=True, vectorized=True,
        n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(SEED),
    ).confidence_interval  # fmt: skip
    assert interval_of_ratio(sums, counts)["interval"] == pytest.approx(list(wanted), abs=1e-12)
    found = interval_of_ratio(sums[:1], counts[:1])
    assert found == {"interval": None, "reason": "1 case; an interval needs at least 2"}


def test_95_of_100_intervals_hold_the_mean():
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        low, high = interval_of(rng.normal(0.8, 0.1, (30, 1)))["interval"]
        held += low <= 0.8 <= high
    assert 88 <= held <= 99


def test_too_few_cases_give_the_reason_and_no_number():
    for count in (0, 1):
        found = interval_of(np.full((count, 1), 0.5))
        assert found["interval"] is None
        assert "at least 2" in found["reason"]
    assert interval_of(np.array([[0.5], [np.nan]]))["interval"] is None
    assert interval_of(np.array([[0.4], [0.4]]))["interval"] == pytest.approx([0.4, 0.4])
    five = compare(np.zeros((5, 1)), np.arange(1.0, 6)[:, None], np.arange(1.0, 6)[:, None])
    assert five["p"] is None
    assert five["reason"] == "5 cases changed; Wilcoxon's test needs at least 6"
    assert five["interval"] is not None
    one = compare(np.zeros((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
    assert (one["difference"], one["interval"], one["p"]) == (1, None, None)
    none = compare(np.full((3, 2), np.nan), np.ones((3, 2)), np.ones((3, 2)))
    assert (none["difference"], none["cases"], none["left_out"]) == (None, 0, 3)


def test_states_are_compared_case_by_case():
    before, after = rows([3, 4, 5, 6, 7, 8, 9, 10]), rows([5, 5, 9, 9, 9, 9, 10, 9])
    found = compare_states(before, after, ["x"])
    dice = [np.array([row.dice for row in state]) for state in (before, after)]
    one = found["dice"]
    assert one["difference"] == pytest.approx((dice[1] - dice[0]).mean())
    assert one["p"] == pytest.approx(stats.wilcoxon(*dice).pvalue)
    assert (one["better"], one["worse"], one["same"], one["cases"]) == (7, 1, 0, 8)
    assert found["per_class"]["x"]["dice"] == one
    low, high = one["interval"]
    assert low < one["difference"] < high
    for name in ("hd95", "volume_error", "volume_error_abs"):  # where less is better
        assert (found[name]["better"], found[name]["worse"]) == (7, 1)
        if name != "volume_error":
            assert found[name]["difference"] < 0


def test_the_order_of_cases_does_not_matter_and_unscored_ones_are_counted():
    before, after = rows([3, 4, 5, 6, 7, 8, 9]), rows([5, 5, 9, 9, 9, 9, 10])
    assert compare_states(before, after[::-1], ["x"]) == compare_states(before, after, ["x"])
    silent = rows([0], truth=0), rows([4], truth=0)  # rightly silent, and a false positive
    found = compare_states(silent[1] + before[1:], silent[0] + after[1:], ["x"])["dice"]
    assert (found["cases"], found["left_out"]) == (6, 1)


def test_a_case_counts_once_over_classes():
    before = rows([3, 4, 5, 6, 7, 8], name="x") + rows([9, 9, 9, 9, 9, 9], name="y")
    after = rows([5, 5, 9, 9, 9, 9], name="x") + rows([9, 9, 9, 9, 9, 0], name="y")
    found = compare_states(before, after, ["x", "y"])
    assert found["dice"]["cases"] == 6
    assert (found["dice"]["better"], found["dice"]["worse"]) == (5, 1)
    means = [found["per_class"][name]["dice"]["difference"] for name in "xy"]
    assert found["dice"]["difference"] == pytest.approx(np.mean(means))
    assert math.isclose(found["per_class"]["y"]["dice"]["same"], 5)
