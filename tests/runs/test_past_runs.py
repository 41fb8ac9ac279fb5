"""What ``samadapt ls runs`` finds below a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from samadapt.cli import main
from samadapt.runs.past_runs import list_runs
from samadapt.runs.run_directory import locked

GOLDEN = Path(__file__).parents[1] / "golden" / "stopped_run"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A stopped run, a finished one and one of a cross-validation."""
    for number, place in enumerate(("a", "a", "b"), 1):
        run_dir = tmp_path / place / f"2026010{number}-120000-lora-tiny"
        run_dir.mkdir(parents=True)
        shutil.copy(GOLDEN / "config.yaml", run_dir)
    finished = tmp_path / "b" / "20260103-120000-lora-tiny"
    (finished / "eval").mkdir()
    scores = {"zero_shot": {"dice": 0.5}, "adapted": {"dice": 0.75}}
    (finished / "eval" / "summary.json").write_text(json.dumps(scores), encoding="utf-8")
    return tmp_path


def test_every_run_is_listed_the_newest_first(runs: Path) -> None:
    rows = list_runs(runs)
    assert [row["date"] for row in rows] == [f"2026-01-0{n} 12:00" for n in (3, 2, 1)]
    assert [row["state"] for row in rows] == ["finished", "stopped", "stopped"]
    assert (rows[0]["before"], rows[0]["after"]) == (0.5, 0.75)
    assert (rows[1]["before"], rows[1]["after"]) == (None, None)
    assert {row["method"] for row in rows} == {"lora"}


def test_a_locked_run_is_running(runs: Path) -> None:
    run_dir = runs / "a" / "20260101-120000-lora-tiny"
    with locked(run_dir):
        assert {row["state"] for row in list_runs(run_dir)} == {"running"}
    assert {row["state"] for row in list_runs(run_dir)} == {"stopped"}


def test_broken_files_are_no_obstacle(runs: Path) -> None:
    (runs / "a" / "20260101-120000-lora-tiny" / "config.yaml").write_text("a: [", encoding="utf-8")
    (runs / "b" / "20260103-120000-lora-tiny" / "eval" / "summary.json").write_text(
        "{", encoding="utf-8"
    )
    assert [row["state"] for row in list_runs(runs)] == ["stopped"] * 3


def test_from_the_command_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "runs", str(runs)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["runs", "recipe", "method", "date", "before", "after", "state"]
    assert table[1].split()[-3:] == ["0.500", "0.750", "finished"]
    assert main(["ls", "runs", str(runs / "none")]) == 2
    assert "expected a folder with run directories" in capsys.readouterr().err
