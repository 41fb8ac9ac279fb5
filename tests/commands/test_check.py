"""``samadapt check`` and what a leak does to the other commands."""

from __future__ import annotations

import json
import shutil

import pytest

from samadapt.cli import main


@pytest.fixture
def leaky(make_pictures):
    """Pictures in which one training picture is a copy of a validation picture."""
    root = make_pictures(8)
    shutil.copy(root / "images" / "p5.png", root / "images" / "p6.png")
    return root


def test_the_report_and_the_table(leaky, tmp_path, capsys):
    report = tmp_path / "report.json"
    arguments = ["check", "data=folder", f"data.root={leaky}", f"output={report}"]
    assert main(arguments) == 2
    out = capsys.readouterr().out
    assert "duplicate_leak" in out
    assert "p6.png" in out
    assert "foreground  8      8" in out
    assert "1 errors" in out
    stored = json.loads(report.read_text(encoding="utf-8"))
    (leak,) = [finding for finding in stored["findings"] if finding["severity"] == "error"]
    assert (leak["code"], leak["file"]) == ("duplicate_leak", str(leaky / "images" / "p6.png"))
    assert set(leak) == {"code", "severity", "file", "message", "fix"}
    (row,) = stored["classes"]
    assert (row["cases"], row["slices"]) == (8, 8)
    assert main([*arguments[:3], "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == stored


def test_training_refuses_the_leak_and_names_the_way_out(leaky, recipe, capsys):
    arguments = ["finetune", f"recipe={recipe}", f"data.root={leaky}"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "p6.png: holds the same voxels as" in error
    assert "data.on_error=skip" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_copies_are_left_out_of_a_run(leaky, recipe, capsys):
    arguments = ["finetune", f"recipe={recipe}", f"data.root={leaky}", "data.on_error=skip"]
    assert main(arguments) == 0
    assert "left out for errors: p6" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluation_refuses_an_image_in_both_splits(make_pictures, leaky, recipe, tmp_path, capsys):
    sound = make_pictures(8, name="sound")
    assert main(["finetune", f"recipe={recipe}", f"data.root={sound}", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["run_dir"]
    arguments = ["evaluate", f"adapter={run}/adapter", f"output.dir={tmp_path}"]
    assert main([*arguments, f"data.root={leaky}"]) == 2
    assert "p6.png: holds the same voxels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("{root}/report.json", "lies in the data set"),
        ("{root}/../report.txt", "ending in .json"),
        ("{root}/../none/report.json", "does not exist"),
    ],
)
def test_where_a_report_cannot_go(make_pictures, capsys, output, message):
    root = make_pictures(5)
    path = output.format(root=root)
    assert main(["check", "data=folder", f"data.root={root}", f"output={path}"]) == 2
    assert message in capsys.readouterr().err


def test_a_code_is_explained(capsys):
    assert main(["check", "explain=hu_offset"]) == 0
    assert capsys.readouterr().out.startswith("## hu_offset\n\n*warning.* A CT image has no")
    assert main(["check", "explain=hu_ofset"]) == 2
    assert "did you mean 'hu_offset'" in capsys.readouterr().err


def test_a_pattern_of_patients_from_the_command_line(make_pictures, capsys):
    root = make_pictures(8)
    arguments = ["check", "data=folder", f"data.root={root}", "--json"]
    assert main([*arguments, "data.patient=(p[0-3]|p).*"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["patients"] == 5
    assert main([*arguments, r"data.patient=(.+"]) == 2
    assert "data.patient" in capsys.readouterr().err
