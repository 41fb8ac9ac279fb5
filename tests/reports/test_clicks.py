"""The number of clicks in files and in the lines of a table."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from samadapt.evaluation.case_scores import score_case
from samadapt.evaluation.number_of_clicks import ClickedObject, ClickScores, summarise_clicks
from samadapt.reports.clicks import click_lines, write_clicks


@pytest.fixture
def results():
    """Two cases with an object each; the second model needs fewer clicks."""
    found = {}
    for state, reached in (("zero_shot", 20), ("adapted", 2)):
        scores = ClickScores(
            [
                ClickedObject(
                    case, 4, "=one", tuple(0.87 if n >= reached else 0.5 for n in range(1, 21))
                )
                for case in ("a", "b")
            ]
        )
        truth = np.ones((2, 3), np.uint8)
        for n, rows in enumerate(scores.rows):
            for case in ("a", "b"):
                mask = truth * np.uint8(n + 1 >= reached)
                rows += score_case(case, mask, truth, ["=one"])
        found[state] = scores
    return found


def read(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_files_hold_every_object_and_every_case(results, tmp_path):
    write_clicks(tmp_path, results)
    objects = read(tmp_path / "noc_per_object.csv")
    assert [row["noc@85"] for row in objects] == ["20", "20", "2", "2"]
    assert [row["noc@90"] for row in objects] == ["20"] * 4
    assert objects[2] | {
        "state": "adapted", "case": "a", "slice": "4", "class": "'=one",
        "iou_1": "0.500000", "iou_2": "0.870000", "iou_20": "0.870000",
    } == objects[2]  # fmt: skip
    cases = read(tmp_path / "noc_per_case.csv")
    assert [(row["state"], row["case"], row["objects"]) for row in cases] == [
        ("zero_shot", "a", "1"),
        ("zero_shot", "b", "1"),
        ("adapted", "a", "1"),
        ("adapted", "b", "1"),
    ]
    first, last = cases[0], cases[-1]
    assert (first["nof@85"], first["reached_at_last@85"], first["never_reached@85"]) == tuple("110")
    assert (last["nof@85"], last["nof@90"], last["never_reached@90"]) == ("0", "1", "1")
    assert [last["dice_1"], last["dice_2"]] == ["0.000000", "1.000000"]


def test_the_lines_show_both_models(results):
    summary = {state: summarise_clicks(scores, ["=one"]) for state, scores in results.items()}
    lines = dict(click_lines(summary))
    assert lines["NoC@85: clicks to IoU 0.85"] == ["20.00 [20.00, 20.00]", "2.00 [2.00, 2.00]"]
    assert lines["NoF@85: objects with 20 clicks, at the last"] == ["2 of 2, 2", "0 of 2, 0"]
    assert lines["NoF@90: objects with 20 clicks, at the last"] == ["2 of 2, 0"] * 2
