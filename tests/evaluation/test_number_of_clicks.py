"""NoC, NoF and the curves, beside the published formula."""

from __future__ import annotations

import numpy as np
import pytest

from samadapt.evaluation.case_scores import score_case
from samadapt.evaluation.number_of_clicks import (
    MOST_CLICKS,
    ClickedObject,
    ClickScores,
    count_clicks,
    summarise_clicks,
)


def clicked(reached, case="a", class_name="one", low=0.4, high=0.9):
    """Return an object whose mask gets good at a click; 0: never."""
    iou = [high if reached and n >= reached else low for n in range(1, MOST_CLICKS + 1)]
    return ClickedObject(case, 0, class_name, tuple(iou))


def published(ious, bound, most=20):
    """The formula of RITM, ``isegm/inference/utils.py``: mean NoC, and objects with 20 clicks."""
    clicks = []
    for iou in ious:
        good = np.array(iou) >= bound
        clicks.append(np.argmax(good) + 1 if np.any(good) else most)
    return np.mean(clicks), (np.array(clicks) == most).sum()


def test_noc_and_nof_are_the_published_numbers():
    rng = np.random.default_rng(0)
    objects = [
        ClickedObject(str(n // 5), 0, "one", tuple(np.sort(rng.uniform(0.3, 0.95, MOST_CLICKS))))
        for n in range(60)
    ]
    for bound in (0.85, 0.9):
        noc, nof = published([one.iou for one in objects], bound)
        found = count_clicks(objects, bound)
        assert found["noc"] == pytest.approx(noc)
        assert found["nof"] == nof > 0
        low, high = found["interval"]
        assert low < noc < high


def test_an_object_that_gets_there_with_the_last_click_is_a_failure_apart():
    objects = [clicked(3), clicked(20), clicked(0), clicked(0)]
    found = count_clicks(objects, 0.85)
    assert found["noc"] == (3 + 20 + 20 + 20) / 4
    assert (found["nof"], found["reached_at_last"], found["never_reached"]) == (3, 1, 2)
    assert objects[1].reached_at(0.85) == 20
    assert objects[2].reached_at(0.85) is None


def test_the_bound_itself_is_good_and_later_masks_do_not_matter():
    iou = [0.2, 17 / 20, *[0.5] * 18]
    assert ClickedObject("a", 0, "one", tuple(iou)).noc(0.85) == 2


def test_the_summary_has_curves_and_classes():
    scores = ClickScores(objects=[clicked(2), clicked(4, "b"), clicked(0, "b", "two")])
    truth = np.zeros((4, 5), np.uint8)
    truth[:2], truth[2:] = 1, 2
    for n, rows in enumerate(scores.rows):
        found = truth * (np.arange(5) <= n)  # a further column with each click
        rows += score_case("a", found.astype(np.uint8), truth, ["one", "two"])
    summary = summarise_clicks(scores, ["one", "two"])
    assert summary["objects"] == 3
    assert summary["noc"]["85"]["noc"] == (2 + 4 + 20) / 3
    assert summary["noc"]["85"] == summary["noc"]["90"]
    assert summary["iou"][:2] == pytest.approx([0.4, (0.9 + 0.4 + 0.4) / 3])
    assert summary["dice"][:5] == pytest.approx([1 / 3, 4 / 7, 3 / 4, 8 / 9, 1])
    two = summary["per_class"]["two"]
    assert (two["objects"], two["noc"]["85"]["never_reached"]) == (1, 1)
    assert two["noc"]["85"]["interval"] is None
    assert "at least 2" in two["noc"]["85"]["reason"]


def test_without_objects_there_is_no_number():
    summary = summarise_clicks(ClickScores(), ["one"])
    assert (summary["objects"], summary["iou"], summary["noc"]["85"]["noc"]) == (0, None, None)
    assert summary["dice"] == [None] * MOST_CLICKS
