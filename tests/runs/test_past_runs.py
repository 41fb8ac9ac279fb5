"""What ``samadapt ls runs`` finds below a folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from samadapt.cli import main
from samadapt.runs.past_runs import differences, flat, list_runs
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
    scores |= {"best_validation_dice": 0.625, "seconds": 73.6}
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


def test_broken_files_are_said(runs: Path) -> None:
    (runs / "a" / "20260101-120000-lora-tiny" / "config.yaml").write_text("a: [", encoding="utf-8")
    (runs / "b" / "20260103-120000-lora-tiny" / "eval" / "summary.json").write_text(
        "{", encoding="utf-8"
    )
    found = {row["date"][8:10]: row["state"] for row in list_runs(runs)}
    assert found == {
        "03": "broken: eval/summary.json",
        "02": "stopped",
        "01": "broken: config.yaml",
    }


def test_folders_that_are_no_runs_are_said(runs: Path) -> None:
    (runs / "a" / "notes" / "old").mkdir(parents=True)
    (runs / "features").mkdir()  # the feature cache is ours
    (runs / "hydra").mkdir()
    (runs / "hydra" / "config.yaml").write_text("trainer: {gpus: 1}\n", encoding="utf-8")
    others = {row["name"]: row["state"] for row in list_runs(runs) if "no run" in row["state"]}
    assert others == {
        str(runs / "a" / "notes"): "no run: no config.yaml",
        str(runs / "hydra"): "no run: config.yaml of another program",
    }
    assert [row["state"] for row in list_runs(runs)][:3] == ["finished", "stopped", "stopped"]


def test_keys_that_differ_are_those_of_runs_of_the_same_recipe(runs: Path) -> None:
    for number, (old, new) in enumerate(
        [("  rank: 2", "  rank: 16"), ("recipe:", "recipe: other #")]
    ):
        path = next((runs / "a").glob(f"2026010{number + 1}*")) / "config.yaml"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
    rows = {row["date"][8:10]: row for row in list_runs(runs)}
    assert rows["01"]["differs"] == {"peft.rank": 16}
    assert rows["03"]["differs"] == {"peft.rank": 2}
    assert rows["02"]["differs"] == {}  # alone with its recipe


def test_methods_with_other_keys_differ_by_what_they_have() -> None:
    lora = flat({"peft": {"name": "lora", "rank": 4}, "output": {"dir": "a"}, "seed": 0})
    bias = flat({"peft": {"name": "bias"}, "output": {"dir": "b"}, "seed": 0})
    assert differences([lora, {}, bias]) == [
        {"peft": "lora", "peft.rank": 4},
        {},
        {"peft": "bias", "peft.rank": "-"},
    ]


def test_from_the_command_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "runs", str(runs)]) == 0
    head, first, *_ = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head == [
        *("runs", "recipe", "method", "date", "validation", "before", "after", "seconds"),
        *("state", "differs"),
    ]
    assert first[-5:] == ["0.625", "0.500", "0.750", "74", "finished"]
    assert main(["ls", "runs", str(runs), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["runs"][0]
    assert (row["validation"], row["seconds"], row["differs"]) == (0.625, 73.6, {})
    assert main(["ls", "runs", str(runs / "none")]) == 2
    assert "expected a folder with run directories" in capsys.readouterr().err


def test_torch_is_not_imported(runs: Path) -> None:
    code = (
        "import sys; from samadapt.cli import main; "
        f"main(['ls', 'runs', {str(runs)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
