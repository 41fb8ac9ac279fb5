"""``samadapt curve``: nested subsets, the same held-out cases, resumed with what is missing."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from samadapt.cli import main
from samadapt.commands.curve import render
from samadapt.config.curve_arguments import curve_from_arguments
from samadapt.reports.tables import read_per_case
from samadapt.runs import curve as runs_curve
from samadapt.runs.curve import curve
from samadapt.runs.past_runs import list_runs
from samadapt.system.interrupt import InterruptedRunError


@pytest.fixture
def arguments(make_pictures, recipe):
    root = make_pictures(8)
    return [f"recipe={recipe}", f"data.root={root}", "train.steps=1", "cases=2,all"]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def run(arguments):
    return curve(curve_from_arguments(arguments))


@pytest.fixture
def trained(monkeypatch):
    """The run directories that were trained, in order."""
    right, names = runs_curve.train_and_score, []

    def note(config, run_dir):
        names.append(run_dir.name)
        return right(config, run_dir)

    monkeypatch.setattr(runs_curve, "train_and_score", note)
    return names


@pytest.mark.slow
def test_a_curve_trains_nested_subsets_and_scores_the_same_cases(arguments, tmp_path, capsys):
    assert main(["curve", *arguments]) == 0
    said = capsys.readouterr()
    (parent,) = (tmp_path / "runs" / "small").iterdir()
    few, every = (read(parent / f"lora_{n}_cases_draw_0" / "splits.json") for n in (2, 6))
    assert set(few["train"]) < set(every["train"])
    assert len(few["train"]) == 2
    assert few["val"] == every["val"]
    summary = read(parent / "curve.json")
    assert (summary["sizes"], summary["arms"], summary["held_out"]) == ([2, 6], ["lora"], 2)
    for point, n in zip(summary["points"], (2, 6), strict=True):
        rows = read_per_case(parent / f"lora_{n}_cases_draw_0" / "eval")["adapted"]
        assert {row.case for row in rows} == set(few["val"])
        dice = read(parent / f"lora_{n}_cases_draw_0" / "eval" / "summary.json")["adapted"]["dice"]
        assert point["dice"] == pytest.approx(dice)
        assert point["detail"]["dice"]["interval"] is not None
    assert summary["gains"][0]["dice"]["cases"] == 2
    with (parent / "curve.csv").open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert {(line["arm"], line["labelled_cases"]) for line in lines} == {
        ("lora", "2"),
        ("lora", "6"),
    }
    assert (parent / "curve.png").stat().st_size > 1000
    page = (parent / "report.html").read_text(encoding="utf-8")
    assert "how many labelled cases?" in page
    out = " ".join(said.out.split())
    assert "lora: with 2 cases" in out
    assert "curve.png" in out
    assert "run 2 of 2: lora, 6 cases, draw 0" in said.err
    assert [row["state"] for row in list_runs(tmp_path / "runs")] == ["finished"]


@pytest.mark.slow
def test_other_draws_have_other_cases_and_seeds(arguments):
    result = run([*arguments[:-1], "cases=3", "seeds=2", "data.draw=1"])
    splits = [
        read(result.run_dir / f"lora_3_cases_draw_{draw}" / "splits.json") for draw in range(2)
    ]
    assert splits[0]["train"] != splits[1]["train"]
    assert splits[0]["val"] == splits[1]["val"]
    (point,) = result.summary["points"]
    assert len(point["draws"]) == 2
    assert point["dice"] == pytest.approx(sum(point["draws"]) / 2)
    assert "2 draws" in (result.run_dir / "report.html").read_text(encoding="utf-8")
    assert render({"run_dir": str(result.run_dir), "summary": result.summary})


@pytest.mark.slow
def test_a_stopped_curve_goes_on_with_what_is_missing(arguments, trained, monkeypatch, capsys):
    noted = runs_curve.train_and_score

    def stop(config, run_dir):
        if "6_cases" in run_dir.name:
            raise InterruptedRunError(run_dir, 1)
        return noted(config, run_dir)

    monkeypatch.setattr(runs_curve, "train_and_score", stop)
    with pytest.raises(InterruptedRunError) as stopped:
        run(arguments)
    assert "samadapt curve resume=" in str(stopped.value)
    parent = str(stopped.value).rpartition("resume=")[2]
    assert not parent.endswith("draw_0")
    monkeypatch.setattr(runs_curve, "train_and_score", noted)
    assert main(["curve", f"resume={parent}", "--json"]) == 0
    assert trained == ["lora_2_cases_draw_0", "lora_6_cases_draw_0"]
    said = capsys.readouterr()
    assert "run 1 of 2: lora, 2 cases, draw 0: finished before" in said.err
    assert json.loads(said.out)["summary"]["sizes"] == [2, 6]
    # More numbers may be added, and nothing that is finished is trained again.
    assert main(["curve", f"resume={parent}", "cases=2,4,all"]) == 0
    assert trained[2:] == ["lora_4_cases_draw_0"]
    assert main(["curve", f"resume={parent}", "train.lr=0.5"]) == 2
    assert "train.lr=0.5 (was" in capsys.readouterr().err


@pytest.mark.slow
def test_a_resumed_curve_notices_other_data(arguments, capsys):
    result = run([*arguments[:-1], "cases=2"])
    root = arguments[1].partition("=")[2]
    for part in ("images", "masks"):
        shutil.copy(f"{root}/{part}/p1.png", f"{root}/{part}/p9.png")
    assert main(["curve", f"resume={result.run_dir}", "cases=2,4"]) == 2
    assert "1 added (p9)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["cases=2,9"], "there are 6 training cases beside 2 held-out ones; 9 are too many"),
        (["folds=2"], "folds=2 scores every case"),
        (["data.train_cases=3"], "a curve takes several: cases=3,..."),
        (["cases=none"], "cases: expected numbers of labelled cases"),
        (["data.root=nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(arguments, tmp_path, capsys, options, message):
    keys = {option.partition("=")[0] for option in options}
    kept = [a for a in arguments if a.partition("=")[0] not in keys]
    assert main(["curve", *kept, *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("runs/small/*"))


def test_a_single_volume_has_no_curve(make_scans, recipe, capsys):
    call = [f"recipe={recipe}", "data.name=nifti", f"data.root={make_scans(1)}", "cases=1"]
    assert main(["curve", *call]) == 2
    assert "a curve needs several cases" in capsys.readouterr().err


@pytest.mark.slow
def test_names_stay_hidden(arguments):
    result = run([*arguments, "privacy=true"])
    with (result.run_dir / "curve.csv").open(encoding="utf-8") as stream:
        shown = {line["case"] for line in csv.DictReader(stream)}
    names = read(result.run_dir / "privacy_key.json")
    for run_dir in result.run_dir.glob("lora_*"):
        splits = read(run_dir / "splits.json")
        assert set(splits["val"]) == shown
        assert all(name.startswith("case_") for name in splits["train"])
        assert read(run_dir / "privacy_key.json")["secret"] == names["secret"]
    assert run([f"resume={result.run_dir}"]).summary["sizes"] == [2, 6]


@pytest.mark.slow
def test_a_baseline_is_a_second_arm(arguments, tmp_path):
    summary = run([*arguments, "baseline=unet", "baseline.filters=4"]).summary
    assert summary["arms"] == ["lora", "unet"]
    (parent,) = (tmp_path / "runs" / "small").iterdir()
    for arm, folder in (("lora", "adapter"), ("unet", "baseline")):
        for n in (2, 6):
            assert (parent / f"{arm}_{n}_cases_draw_0" / folder).is_dir()
    splits = [read(parent / f"{arm}_2_cases_draw_0" / "splits.json") for arm in summary["arms"]]
    assert splits[0] == splits[1]
