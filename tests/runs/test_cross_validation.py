"""``folds=N``: every case scored once, by the model that did not see it; stopped ones go on."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from samadapt.cli import main
from samadapt.commands.finetune import render
from samadapt.config.compose import compose, from_yaml
from samadapt.data.dataset import open_dataset
from samadapt.evaluation.case_scores import summarise
from samadapt.reports.tables import read_per_case
from samadapt.runs import finetune as runs_finetune
from samadapt.runs.cross_validation import open_cross_validation
from samadapt.runs.finetune import finetune
from samadapt.system.interrupt import InterruptedRunError


@pytest.fixture
def arguments(make_scans, recipe):
    root = make_scans(5)
    return [
        f"recipe={recipe}", f"data.root={root}", "data.name=nifti", "train.steps=2",
        "train.checkpoint_every=1", "folds=2",
    ]  # fmt: skip


def run(arguments):
    recipe, *others = arguments
    return finetune(compose(recipe.partition("=")[2], others))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_case_is_scored_once_by_the_fold_that_did_not_see_it(arguments, tmp_path, capsys):
    assert main(["finetune", *arguments]) == 0
    (parent,) = (tmp_path / "runs" / "small").iterdir()
    held = []
    for fold in range(2):
        splits = read(parent / f"fold_{fold}" / "splits.json")
        assert f"fold {fold} of 2" in splits["rule"]
        assert not set(splits["train"]) & set(splits["val"])
        held += splits["val"]
        with (parent / f"fold_{fold}" / "eval" / "per_case.csv").open(encoding="utf-8") as file:
            assert {line["case"] for line in csv.DictReader(file)} == set(splits["val"])
        assert (parent / f"fold_{fold}" / "adapter" / "samadapt.json").is_file()
    names = [f"scan_{index}" for index in range(5)]
    assert sorted(held) == names
    rows = read_per_case(parent / "eval")
    summary = read(parent / "eval" / "summary.json")
    for state in ("zero_shot", "adapted"):
        assert sorted({row.case for row in rows[state]}) == names
        mean = summarise(rows[state], ["front", "back"], intervals=True)
        assert summary[state]["dice"] == mean["dice"]
        assert summary[state]["per_class"] == mean["per_class"]
        assert summary[state]["detail"]["dice"]["interval"] is not None
        assert summary[state]["oracle_prompt"]
    folds = [
        np.mean([row.dice for row in rows["adapted"] if row.case in set(names[fold::2])])
        for fold in range(2)
    ]
    assert [one["dice"]["adapted"] for one in summary["folds"]] == pytest.approx(folds)
    assert (summary["cases"], summary["slices"]) == (5, 20)
    assert summary["paired"]["dice"]["cases"] == 5
    assert "Wilcoxon's test needs at least 6" in summary["paired"]["dice"]["reason"]
    assert summary["adapted"]["detail"]["hd95"]["unit"] == "mm"
    assert [one["rule"][:6] for one in read(parent / "splits.json")["folds"]] == [
        "fold 0",
        "fold 1",
    ]
    said = capsys.readouterr().out
    assert "each scored by the one of 2 adapters that did not see it" in " ".join(said.split())
    assert "fold_*" in "".join(said.split())  # a long path is wrapped


@pytest.mark.slow
def test_folds_one_by_one_are_those_of_the_whole(arguments):
    whole = run(arguments)
    config = from_yaml(whole.run_dir / "config.yaml")
    parent, folds = open_cross_validation(config)
    going_on = replace(config, resume=str(parent))
    first = finetune(going_on, only_fold=1)
    assert (first.run_dir, first.adapter_dir) == (folds[1], folds[1] / "adapter")
    assert not folds[0].exists()
    assert not (parent / "eval").exists()
    pooled = finetune(going_on, only_fold=0)  # the last one pools
    assert pooled.run_dir == parent
    assert pooled.summary["adapted"] == whole.summary["adapted"]
    for name in ("eval/per_case.csv", "fold_1/adapter/adapter_model.safetensors"):
        assert (parent / name).read_bytes() == (whole.run_dir / name).read_bytes()
    assert (parent / "report.html").is_file()


@pytest.mark.slow
def test_a_stopped_cross_validation_goes_on_with_the_unfinished_folds(
    arguments, monkeypatch, capsys
):
    right, trained = runs_finetune.train_and_score, []

    def stop_in_the_second(config, run_dir):
        trained.append(run_dir.name)
        if run_dir.name == "fold_1" and len(trained) == 2:
            raise InterruptedRunError(run_dir, 1)
        return right(config, run_dir)

    monkeypatch.setattr(runs_finetune, "train_and_score", stop_in_the_second)
    with pytest.raises(InterruptedRunError) as stopped:
        run(arguments)
    assert "fold_1" not in str(stopped.value)
    parent = str(stopped.value).rpartition("resume=")[2]
    assert main(["finetune", f"resume={parent}", "--json"]) == 0
    assert trained == ["fold_0", "fold_1", "fold_1"]
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["cases"] == 5
    assert main(["finetune", f"resume={parent}", "folds=3"]) == 2
    assert "folds=3 (was 2)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fold_goes_on_from_its_checkpoint_and_starts_anew_without_one(arguments, monkeypatch):
    result = run([*arguments, "train.steps=1"])
    fold = result.run_dir / "fold_1"
    shutil.rmtree(fold / "adapter")
    (result.run_dir / "fold_0" / "eval" / "summary.json").unlink()
    shutil.rmtree(result.run_dir / "fold_0" / "checkpoints")
    seen = {}

    def note(config, run_dir):
        seen[run_dir.name] = config.resume
        return right(config, run_dir)

    right = runs_finetune.train_and_score
    monkeypatch.setattr(runs_finetune, "train_and_score", note)
    config = from_yaml(result.run_dir / "config.yaml", [f"resume={result.run_dir}"])
    again = finetune(config)
    assert seen == {"fold_0": None, "fold_1": str(fold)}
    assert again.summary["adapted"]["dice"] == pytest.approx(result.summary["adapted"]["dice"])
    assert render({"run_dir": str(again.run_dir), "adapter_dir": None, "summary": again.summary})


def test_a_fold_can_be_run_and_scored_alone(arguments, capsys):
    result = run([*arguments[:-1], "data.fold=1", "data.folds=2"])
    assert {row.case for row in read_per_case(result.run_dir / "eval")["adapted"]} == {
        "scan_1", "scan_3"
    }  # fmt: skip
    assert "fold 1 of 2" in result.summary["split"]
    again = [f"adapter={result.adapter_dir}", f"output.dir={result.run_dir.parent}", "device=cpu"]
    assert main(["evaluate", *again, "precision=fp32", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["adapted"] == result.summary["adapted"]


def test_a_resumed_cross_validation_refuses_other_keys(arguments, capsys):
    result = run(arguments)
    assert (result.run_dir / "report.html").is_file()
    for option in ("eval.nsd_tolerance_mm=2", "train.lr=0.5", "loss.dice=3"):
        assert main(["finetune", f"resume={result.run_dir}", option]) == 2
        assert option.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["folds=6"], "data.folds=6 needs at least as many patients"),
        (["data.fold=1"], "folds=2 runs every fold; leave data.fold=1 out"),
        (["folds=1"], "folds: expected a whole number of at least 2, or null; got 1"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(arguments, tmp_path, capsys, options, message):
    keys = {option.partition("=")[0] for option in options}
    kept = [a for a in arguments if a.partition("=")[0] not in keys]
    assert main(["finetune", *kept, *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("runs/small/*"))


def test_a_fold_that_is_not_there_is_refused(make_scans, arguments, capsys):
    assert main(["finetune", *arguments[:-1], "data.fold=5"]) == 2
    assert "data.fold must be 0 to 4 (data.folds=5); got 5" in capsys.readouterr().err
    root = arguments[1].partition("=")[2]
    assert open_dataset("nifti", root, fold=0).val == open_dataset("nifti", root).val
