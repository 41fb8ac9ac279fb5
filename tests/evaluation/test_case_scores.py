"""Scores against brute force over sets, against MONAI, and every rule for empty masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from samadapt.data.types import IGNORED
from samadapt.errors import DataError
from samadapt.evaluation.case_scores import CaseClassScore, dice, iou, score_case, summarise
from samadapt.evaluation.scores import OVERLAP, SCORES, Score, register

CLASSES = ["liver", "spleen", "kidney"]

pairs_of_labels = array_shapes(min_dims=2, max_dims=3, max_side=5).flatmap(
    lambda shape: st.tuples(
        *[arrays(np.int16, shape, elements=st.integers(0, len(CLASSES))) for _ in range(2)]
    )
)


def voxel_set(labels, label):
    return {tuple(index) for index in np.argwhere(labels == label).tolist()}


@given(pairs_of_labels)
@settings(max_examples=150, deadline=None)
def test_scores_equal_brute_force_over_sets(pair):
    prediction, truth = pair
    rows = score_case("a", prediction, truth, CLASSES)
    assert [row.class_name for row in rows] == CLASSES
    for label, row in enumerate(rows, start=1):
        p, t = voxel_set(prediction, label), voxel_set(truth, label)
        counts = (row.prediction_voxels, row.truth_voxels, row.intersection)
        assert counts == (len(p), len(t), len(p & t))
        if p or t:
            assert row.dice == 2 * len(p & t) / (len(p) + len(t))
            assert row.iou == len(p & t) / len(p | t)
            assert row.iou <= row.dice <= 1
        else:
            assert math.isnan(row.dice)
            assert math.isnan(row.iou)
        np.testing.assert_equal(dice(prediction == label, truth == label), row.dice)
        np.testing.assert_equal(iou(prediction == label, truth == label), row.iou)


@given(pairs_of_labels, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_ignored_voxels_have_no_part_in_any_score(pair, seed):
    """Every score is that of both masks without the ignored voxels."""
    prediction, truth = pair
    ignored = np.random.default_rng(seed).random(truth.shape) < 0.3
    rows = score_case("a", prediction, np.where(ignored, IGNORED, truth), CLASSES)
    if ignored.all():
        assert rows == []
        return
    for label, row in enumerate(rows, start=1):
        p = voxel_set(np.where(ignored, 0, prediction), label)
        t = voxel_set(np.where(ignored, 0, truth), label)
        if p or t:
            assert row.dice == 2 * len(p & t) / (len(p) + len(t))
            assert row.iou == len(p & t) / len(p | t)
        if t:
            assert row.values["sensitivity"] == len(p & t) / len(t)
            assert row.values["volume_error"] == (len(p) - len(t)) / len(t)
        if p:
            assert row.values["precision"] == len(p & t) / len(p)
        assert (row.ignored_voxels, row.voxels) == (ignored.sum(), truth.size)
    without = [np.where(ignored, 0, labels) for labels in pair]
    for row, other in zip(rows, score_case("a", *without, CLASSES), strict=True):
        np.testing.assert_equal(row.values, other.values)  # distances too
    shares = summarise(rows, CLASSES).get("ignored")
    assert shares == (
        {"voxels": 3 * ignored.sum(), "share": ignored.sum() / truth.size}
        if ignored.any()
        else None
    )


@given(pairs_of_labels)
@settings(max_examples=50, deadline=None)
def test_swapping_prediction_and_truth_changes_only_the_flags(pair):
    forward = score_case("a", *pair, CLASSES)
    backward = score_case("a", *reversed(pair), CLASSES)
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_equal((one.dice, one.iou), (other.dice, other.iou))
        assert one.truth_voxels == other.prediction_voxels


def test_scores_equal_monai_on_masks_that_are_not_empty():
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(0)
    prediction = rng.integers(0, 4, (6, 9, 8, 7))
    truth = np.where(rng.random(prediction.shape) < 0.6, prediction, rng.integers(0, 4))
    rows = [
        row
        for case in range(len(truth))
        for row in score_case(str(case), prediction[case], truth[case], CLASSES)
    ]
    assert all(row.flag == "" or row.flag == "truth_empty" for row in rows)
    scored = np.array([[r.dice, r.iou] for r in rows]).reshape(len(truth), len(CLASSES), 2)
    one_hot = [
        torch.from_numpy(np.stack([labels == k for k in range(4)], axis=1)).float()
        for labels in (prediction, truth)
    ]
    for column, name in enumerate(["DiceMetric", "MeanIoU"]):
        metric = getattr(metrics, name)(include_background=False)
        np.testing.assert_allclose(scored[..., column], metric(*one_hot).numpy(), atol=1e-6)


NAN = math.nan
DIAGONAL = math.hypot(0.5 * 1, 3.0 * 2)


@pytest.mark.parametrize(
    ("prediction", "truth", "flag", "expected"),
    [
        # dice, iou, hd95, nsd, sensitivity, precision, volume_error, volume_error_abs (ml)
        ([0, 0], [0, 0], "both_empty", [NAN] * 8),
        ([1, 0], [0, 0], "truth_empty", [0, 0, DIAGONAL, 0, NAN, 0, NAN, 0.0015]),
        ([0, 0], [0, 1], "prediction_empty", [0, 0, DIAGONAL, 0, 0, NAN, -1, 0.0015]),
        ([1, 0], [0, 1], "", [0, 0, 3, 0.5, 0, 0, 0, 0]),
        ([1, 1], [1, 1], "", [1, 1, 0, 1, 1, 1, 0, 0]),
        ([1, 1], [1, 0], "", [2 / 3, 1 / 2, 3, None, 1, 0.5, 1, 0.0015]),
    ],
)
def test_every_rule_for_empty_masks(prediction, truth, flag, expected):
    """The masks have two pixels of 0.5 x 3 mm in one row, in a slice of 1 mm."""
    (row,) = score_case(
        "a", np.array([prediction]), np.array([truth]), ["x"], spacing_mm=(0.5, 3.0, 1.0)
    )
    assert row.flag == flag
    assert list(row.values) == [
        "dice", "iou", "hd95", "nsd", "sensitivity", "precision", "volume_error", "volume_error_abs"
    ]  # fmt: skip
    for value, wanted in zip(row.values.values(), expected, strict=True):
        if wanted is not None:
            assert value == pytest.approx(wanted, nan_ok=True)


def nnunet_rule(prediction, truth):
    """Return Dice and IoU as nnU-Net v2 (evaluation/evaluate_predictions.py, compute_metrics)."""
    tp = np.sum(prediction & truth)
    fp, fn = np.sum(prediction & ~truth), np.sum(~prediction & truth)
    if tp + fp + fn == 0:
        return math.nan, math.nan
    return 2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn)


@given(pairs_of_labels, st.sampled_from([(1.0, 1.0, 1.0), (0.7, 0.4, 3.0)]))
@settings(max_examples=100, deadline=None)
def test_rates_and_volumes_equal_brute_force_and_nnunets_rule(pair, spacing):
    prediction, truth = pair
    for label, row in enumerate(
        score_case("a", prediction, truth, CLASSES, spacing_mm=spacing), start=1
    ):
        p, t = voxel_set(prediction, label), voxel_set(truth, label)
        rule = nnunet_rule(prediction == label, truth == label)
        np.testing.assert_allclose((row.dice, row.iou), rule)
        wanted = {
            "sensitivity": len(p & t) / len(t) if t else NAN,
            "precision": len(p & t) / len(p) if p else NAN,
            "volume_error": (len(p) - len(t)) / len(t) if t else NAN,
            "volume_error_abs": abs(len(p) - len(t)) * math.prod(spacing) / 1000 if p | t else NAN,
        }
        found = {name: row.values[name] for name in wanted}
        assert found == pytest.approx(wanted, nan_ok=True)
        assert math.isnan(row.values["hd95"]) == math.isnan(row.values["nsd"]) == (not p | t)


def test_rates_equal_monais_confusion_matrix():
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(4)
    prediction, truth = rng.integers(0, 2, (2, 5, 8, 7, 6))
    pair = [torch.from_numpy(m)[:, None].float() for m in (prediction, truth)]
    matrix = metrics.get_confusion_matrix(*pair)
    for name in ("sensitivity", "precision"):
        wanted = metrics.compute_confusion_matrix_metric(name, matrix)[:, 0]
        found = [
            score_case("a", p, t, ["x"], scores=[name])[0].values[name]
            for p, t in zip(prediction, truth, strict=True)
        ]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_cases_in_mm_and_in_px_have_no_common_mean_of_lengths():
    mask = np.ones((2, 2), np.uint8)
    rows = score_case("a", mask, mask, ["x"], spacing_mm=(1.0, 1.0, 1.0))
    rows += score_case("b", mask, mask, ["x"])
    summary = summarise(rows, ["x"], intervals=True)
    assert (summary["dice"], summary["hd95"], summary["volume_error_abs"]) == (1, None, None)
    assert "no mean of hd95, volume_error_abs" in summary["reason"]
    assert summary["per_class"]["x"]["detail"]["hd95"]["unit"] is None


def test_the_number_of_cases_in_each_mean_is_told():
    rows = [row("a", "x", 10, 10, 5), row("b", "x", 10, 0, 0), row("c", "x", 0, 10, 0)]
    detail = summarise(rows, ["x"])["per_class"]["x"]["detail"]
    counts = {name: entry["cases"] for name, entry in detail.items()}
    assert counts["dice"] == counts["hd95"] == 3
    assert counts["sensitivity"] == counts["precision"] == counts["volume_error"] == 2


def test_a_score_is_added_in_one_place(monkeypatch):
    missed = Score("missed", "missed", lambda m: m.truth_voxels - m.intersection, best="low")
    monkeypatch.setitem(SCORES, "missed", missed)
    (found,) = score_case("a", np.array([[1, 0]]), np.array([[1, 1]]), ["x"])
    assert found.values["missed"] == 1
    assert summarise([found], ["x"])["missed"] == 1
    with pytest.raises(ValueError, match="two scores are named 'missed'"):
        register(missed)


def row(case, name, prediction, truth, both):
    (scored,) = score_case(
        case,
        np.array([[1] * prediction + [0] * (30 - prediction)]),
        np.array(
            [[0] * (prediction - both) + [1] * truth + [0] * (30 - prediction + both - truth)]
        ),
        [name],
    )
    assert (scored.prediction_voxels, scored.truth_voxels) == (prediction, truth)
    assert scored.intersection == both
    return scored


def test_mean_is_over_cases_per_class_then_over_classes():
    rows = [
        row("a", "x", 10, 10, 10),  # 1
        row("b", "x", 10, 10, 5),  # 0.5
        row("c", "x", 0, 0, 0),  # left out
        row("d", "x", 10, 0, 0),  # 0, a false positive
        row("a", "y", 10, 10, 1),  # 0.1
        row("b", "y", 0, 10, 0),  # 0, a miss
    ]
    summary = summarise(rows, ["x", "y", "z"])
    x, y, z = (summary["per_class"][name] for name in "xyz")
    assert x["dice"] == pytest.approx(0.5)
    assert (x["cases"], x["both_empty"], x["truth_empty"], x["prediction_empty"]) == (3, 1, 1, 0)
    assert y["dice"] == pytest.approx(0.05)
    assert (y["cases"], y["both_empty"], y["truth_empty"], y["prediction_empty"]) == (2, 0, 0, 1)
    assert summary["dice"] == pytest.approx((0.5 + 0.05) / 2)  # not the mean of the five scores
    assert summary["iou"] == pytest.approx(((1 + 1 / 3 + 0) / 3 + (1 / 19 + 0) / 2) / 2)
    assert (z["dice"], z["iou"], z["cases"]) == (None, None, 0)
    assert "no case was scored" in z["reason"]
    assert "reason" not in summary
    assert "reason" not in x


def test_nothing_to_average_is_null_with_the_reason():
    empty = [row("a", "x", 0, 0, 0), row("b", "x", 0, 0, 0)]
    summary = summarise(empty, ["x"])
    assert summary["dice"] is None
    assert summary["iou"] is None
    assert "no case has any class" in summary["reason"]
    assert "in all 2 cases" in summary["per_class"]["x"]["reason"]
    nothing = summarise([], ["x"])
    assert nothing["dice"] is None
    assert nothing["reason"] == "no case was scored"


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), r"'a'.*one shape.*\(2, 2\).*\(2, 3\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), r"prediction must hold integer.*float64"),
        (np.full((2, 2), 2), np.zeros((2, 2), int), r"prediction labels must be 0.*to 1; got 2"),
        (np.zeros((2, 2), int), np.full((2, 2), -2), r"ground truth labels.*got -2"),
    ],
)
def test_wrong_labels_are_refused_naming_the_case(prediction, truth, message):
    with pytest.raises(DataError, match=message):
        score_case("a", prediction, truth, ["x"])


def test_rows_that_do_not_fit_are_refused():
    score = CaseClassScore("a", "x", {"dice": 1.0, "iou": 1.0}, 1, 1, 1)
    with pytest.raises(DataError, match="two scores"):
        summarise([score, score], ["x"])
    with pytest.raises(DataError, match="class 'x'"):
        summarise([score], ["y"])
    with pytest.raises(DataError, match="one shape"):
        dice(np.zeros(2), np.zeros(3))


def test_large_counts_are_exact():
    truth = np.zeros((400, 400, 60), np.uint8)
    truth[:, :, :30] = 1
    prediction = truth.copy()
    prediction[0, 0, 0] = 0
    (scored,) = score_case("a", prediction, truth, ["x"], scores=OVERLAP)
    assert (scored.truth_voxels, scored.intersection) == (4_800_000, 4_799_999)
    assert scored.dice == 2 * 4_799_999 / 9_599_999
