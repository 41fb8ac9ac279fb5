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
from samadapt.evaluation.case_scores import score_case, summarise
from samadapt.evaluation.comparison import compare_states
from samadapt.evaluation.scores import SCORES, Score
from samadapt.reports import tables as report

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
    assert json.loads(path.read_text(encoding="utf-8")) == {"dice": 1}


def test_per_case_holds_every_row_with_its_flag(tmp_path, rows):
    path = report.write_per_case(tmp_path, rows)
    with path.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == report.per_case_columns()
    assert [line["state"] for line in lines] == ["zero_shot"] * 2 + ["adapted"] * 2
    assert lines[0]["case"] == "brain, 1"
    assert float(lines[0]["dice"]) == pytest.approx(2 / 3, abs=1e-6)
    assert (lines[1]["flag"], float(lines[1]["dice"])) == ("truth_empty", 0)
    assert (lines[3]["flag"], lines[3]["dice"], lines[3]["iou"]) == ("both_empty", "", "")


def test_a_score_registered_after_the_import_has_a_column(tmp_path, monkeypatch):
    missed = Score("missed", "missed", lambda masks: masks.truth_voxels - masks.intersection)
    monkeypatch.setitem(SCORES, "missed", missed)
    truth, found = np.array([[1, 1, 1, 0]]), np.array([[1, 0, 0, 0]])
    report.write_per_case(tmp_path, {"adapted": score_case("a", found, truth, ["x"])})
    (row,) = report.read_per_case(tmp_path)["adapted"]
    assert row.values["missed"] == 2


def cells(text, name):
    """The cells of the two rows of a class: zero-shot and adapted."""
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if f"│ {name}" in line)
    found = [[cell.strip() for cell in line.split("│")[2:-1]] for line in lines[first : first + 2]]
    assert [row.pop(0) for row in found] == ["zero-shot", "adapted"]
    return found


def test_table_shows_both_states_the_mean_and_the_empty_masks(rows):
    summaries = [summarise(rows[state], CLASSES) for state in ("zero_shot", "adapted")]
    text = rendered(report.results_table(*summaries, title="one brain [averaged]"))
    assert "HD95 (px)" in text
    first, second = cells(text, "grey [matter]")
    assert first[:2] + first[-1:] == ["0.667", "0.500", "1"]
    assert second[:2] + second[-1:] == ["0.857", "0.750", "1"]
    first, second = cells(text, "white matter")
    diagonal = f"{math.hypot(1, 8):.2f}"
    assert first == ["0.000", "0.000", diagonal, "0.000", "1"]
    assert second == [report.NOTHING] * 4 + ["0"]
    first, second = cells(text, "mean")
    assert (first[0], second[0]) == ("0.333", "0.857")
    assert "one brain [averaged]" in text
    assert "zero-shot: white matter 1" in text
    assert "adapted: white matter 1" in text
    assert "HD95 is the image's diagonal" in text


def test_intervals_and_the_comparison_are_in_the_tables():
    truth = np.ones((1, 10), np.uint8)
    states = {"zero_shot": [], "adapted": []}
    for case in range(7):
        for state, hits in (("zero_shot", 3), ("adapted", 6 + case % 3)):
            predicted = (np.arange(10)[None] < hits).astype(np.uint8)
            states[state] += score_case(f"case {case}", predicted, truth, ["x"])
    summaries = [summarise(rows, ["x"], intervals=True) for rows in states.values()]
    text = rendered(report.results_table(*summaries))
    (before, after) = cells(text, "x")
    assert before[0] == "0.462 [0.462, 0.462]"
    low, high = summaries[1]["detail"]["dice"]["interval"]
    mean = summaries[1]["dice"]
    assert low < mean < high
    assert after[0] == f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    paired = compare_states(states["zero_shot"], states["adapted"], ["x"])
    text = rendered(report.paired_table(paired))
    row = next(line for line in text.splitlines() if "│ x" in line)
    assert [cell.strip() for cell in row.split("│")[3:-1]] == ["0.016", "7", "0", "0"]
    few = compare_states(states["zero_shot"][:3], states["adapted"][:3], ["x"])
    text = rendered(report.paired_table(few))
    assert "3 cases changed; Wilcoxon's test needs at least 6" in text


def test_scores_are_read_back_as_they_were_written(tmp_path, rows):
    report.write_per_case(tmp_path, rows)
    found = report.read_per_case(tmp_path)
    for state, expected in rows.items():
        for one, other in zip(found[state], expected, strict=True):
            assert (one.case, one.class_name, one.flag) == (
                other.case,
                other.class_name,
                other.flag,
            )
            assert (one.truth_voxels, one.intersection) == (other.truth_voxels, other.intersection)
            for name, value in other.values.items():
                assert one.values[name] == pytest.approx(value, rel=1e-8, nan_ok=True)
    (tmp_path / report.PER_CASE_NAME).write_text(
        "case,class,state,dice\na,b,c,1\n", encoding="utf-8"
    )
    with pytest.raises(RunError, match=r"per_case\.csv: cannot read"):
        report.read_per_case(tmp_path)
    with pytest.raises(RunError, match="cannot read"):
        report.read_per_case(tmp_path / "nowhere")


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


@pytest.mark.parametrize(
    "name", ["=cmd|' /C calc'!A0", "+1", "-a", "@x", "\ttab", "'quoted", "a=b"]
)
def test_no_name_is_a_formula_to_a_spreadsheet(tmp_path, name):
    truth = np.array([[1, 0]])
    rows = {"adapted": score_case(name, truth, truth, [name])}
    path = report.write_per_case(tmp_path, rows)
    with path.open(newline="", encoding="utf-8") as stream:
        (line,) = csv.DictReader(stream)
    for key in ("case", "class"):
        assert line[key] == name if name == "a=b" else line[key] == f"'{name}"
    (read,) = report.read_per_case(tmp_path)["adapted"]
    assert (read.case, read.class_name) == (name, name)
