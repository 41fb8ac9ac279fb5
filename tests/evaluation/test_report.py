"""The files and the table that a run leaves: no NaN in JSON, nothing lost, nothing half-written."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from samadapt.errors import RunError
from samadapt.evaluation import report
from samadapt.evaluation.metrics import score_case, summarise

CLASSES = ["grey [matter]", "white matter"]


@pytest.fixture
def rows():
    truth = np.array([[1, 1, 1, 1, 0, 0, 0, 0]])
    return {
        "zero_shot": score_case("brain, 1", np.array([[1, 1, 0, 0, 2, 0, 0, 0]]), truth, CLASSES),
        "adapted": score_case("brain, 1", np.array([[1, 1, 1, 0, 0, 0, 0, 0]]), truth, CLASSES),
    }


def rendered(renderable, width=120):
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_summary_is_strict_json_without_nan(tmp_path):
    summary = {
        "dice": math.nan,
        "iou": np.float32(0.5),
        "steps": np.int64(3),
        "shape": (np.array([1, 2]), math.inf),
        "run": Path("runs") / "x",
        "ok": True,
        "none": None,
        "class": "Großhirn",
    }
    path = report.write_summary(tmp_path / "eval", summary)
    assert path == tmp_path / "eval" / "summary.json"

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read["dice"] is None
    assert read["shape"] == [[1, 2], None]
    assert (read["iou"], read["steps"], read["ok"], read["none"]) == (0.5, 3, True, None)
    assert read["class"] == "Großhirn"
    assert [item.name for item in path.parent.iterdir()] == ["summary.json"]


def test_a_summary_that_fails_leaves_the_old_one(tmp_path):
    path = report.write_summary(tmp_path, {"dice": 1})
    with pytest.raises(RunError, match=r"summary\.a\[0\].*got object"):
        report.write_summary(tmp_path, {"a": [object()]})
    assert json.loads(path.read_text()) == {"dice": 1}


def test_per_case_holds_every_row_with_its_flag(tmp_path, rows):
    path = report.write_per_case(tmp_path, rows)
    with path.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == report.PER_CASE_COLUMNS
    assert [line["state"] for line in lines] == ["zero_shot"] * 2 + ["adapted"] * 2
    assert lines[0]["case"] == "brain, 1"
    assert float(lines[0]["dice"]) == pytest.approx(2 / 3, abs=1e-6)
    assert (lines[1]["flag"], float(lines[1]["dice"])) == ("truth_empty", 0)
    assert (lines[3]["flag"], lines[3]["dice"], lines[3]["iou"]) == ("both_empty", "", "")


def test_table_shows_both_states_the_mean_and_the_empty_masks(rows):
    summaries = [summarise(rows[state], CLASSES) for state in ("zero_shot", "adapted")]
    text = rendered(report.results_table(*summaries, title="one brain [averaged]"))
    lines = text.splitlines()
    grey = next(line for line in lines if "grey [matter]" in line)
    assert [cell.strip() for cell in grey.split("│")[2:-1]] == (
        ["0.667", "0.500", "0.857", "0.750", "1"]
    )
    white = next(line for line in lines if "white matter" in line)
    assert [cell.strip() for cell in white.split("│")[2:-1]] == [
        "0.000",
        "0.000",
        report.NOTHING,
        report.NOTHING,
        "1 / 0",
    ]
    mean = next(line for line in lines if "mean" in line)
    assert [cell.strip() for cell in mean.split("│")[2:-1]] == [
        "0.333",
        "0.250",
        "0.857",
        "0.750",
        "",
    ]
    assert "one brain [averaged]" in text
    assert "zero-shot: white matter 1" in text
    assert "adapted: white matter 1" in text


def test_table_of_one_state_and_of_nothing(rows):
    adapted = summarise(rows["adapted"], CLASSES)
    assert "0.857" in rendered(report.results_table(None, adapted))
    nothing = summarise([], CLASSES)
    text = rendered(report.results_table(nothing, nothing))
    assert "nan" not in text
    assert "None" not in text


def test_closing_text_says_share_time_paths_and_notes(rows):
    table = report.results_table(None, summarise(rows["adapted"], CLASSES))
    text = rendered(
        report.closing_text(
            table,
            trained=1_500_000,
            total=10_000_000,
            seconds=425,
            paths={"adapter": Path("runs/[a]/adapter"), "report": "runs/a/eval"},
            notes=["one averaged brain"],
        )
    )
    assert "1,500,000 of 10,000,000 parameters (15.00 %)" in text
    assert "7 min 05 s" in text
    assert "runs/[a]/adapter" in text
    assert "Note: one averaged brain" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.42, "8.4 s"), (59.99, "60.0 s"), (60, "1 min 00 s"), (7380, "2 h 03 min")],
)
def test_time_for_people(seconds, text):
    assert report.format_seconds(seconds) == text
