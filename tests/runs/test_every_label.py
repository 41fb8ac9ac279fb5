"""Every labelled case trains: without validation cases, and without held-out ones."""

from __future__ import annotations

import json

import pytest

import samadapt
from samadapt.adapters.record import read_record
from samadapt.cli import main
from samadapt.errors import ConfigError
from samadapt.training.checkpoint import load_checkpoint


def lines(result):
    return list(
        map(json.loads, (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    )


def test_without_validation_cases_every_case_that_is_not_held_out_trains(make_pictures, run):
    root = make_pictures(6)
    before, result = run(root), run(root, "train.validate_cases=0", "train.ema=0.9")
    assert (before.summary["training_slices"], before.summary["validation_slices"]) == (3, 1)
    assert (before.summary["labelled_cases"], before.summary["validation_cases"]) == (4, 1)
    summary = result.summary
    assert (summary["training_slices"], summary["validation_slices"]) == (4, 0)
    assert (summary["labelled_cases"], summary["validation_cases"]) == (4, 0)
    assert (summary["best_step"], summary["best_validation_dice"]) == (4, None)
    assert summary["cases"] == 2
    assert summary["adapted"]["dice"] is not None
    assert any("train.validate_cases=0" in note for note in summary["notes"])
    assert [line["kind"] for line in lines(result)] == ["train"] * 4
    page = (result.run_dir / "report.html").read_text(encoding="utf-8")
    assert "; labelled cases: 4 (none chose the step)" in page
    # The average of the weights is what is kept.
    saved = load_checkpoint(result.run_dir / "checkpoints")
    kept = samadapt.load_adapter(result.adapter_dir, device="cpu").sam.state_dict()
    shared = saved.averages.keys() & kept.keys()  # a packed LoRA has other names
    assert len(shared) > 50
    assert all((kept[name] == saved.averages[name]).all() for name in shared)
    assert any((saved.weights[name] != saved.averages[name]).any() for name in shared)


@pytest.mark.parametrize("prompts", ["box", "semantic"])
def test_one_picture_is_enough_if_nothing_is_held_out(
    make_pictures, run, recipe, capsys, tmp_path, prompts
):
    root = make_pictures(1)
    keys = [f"prompts={prompts}", "data.val_every=0", "train.validate_cases=0"]
    assert main(["finetune", f"recipe={recipe}", f"data.root={root}", *keys]) == 0
    said = capsys.readouterr()
    assert "folder: nothing was scored; labelled cases: 1" in said.out
    assert "nothing was scored: how good the adapter is on" in " ".join(said.out.split())
    (run_dir,) = (path.parent for path in (tmp_path / "runs").rglob("config.yaml"))
    summary = json.loads((run_dir / "eval" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["zero_shot"], summary["adapted"], summary["paired"]) == (None, None, None)
    assert (summary["scored"], summary["cases"], summary["labelled_cases"]) == ("nothing", 0, 1)
    assert json.loads((run_dir / "splits.json").read_text(encoding="utf-8"))["val"] == []
    assert "note: no case is held out" in (run_dir / "log.txt").read_text(encoding="utf-8")
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "nothing was scored; trained" in page
    assert "labelled cases: 1 (none" in page
    assert (run_dir / "progress.png").is_file()
    card = (run_dir / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "nothing was scored: how good the adapter is" in card
    assert len(read_record(run_dir / "adapter").trained_on) == 1
    if prompts == "semantic":
        output = tmp_path / "out"
        asked = [f"adapter={run_dir / 'adapter'}", f"input={root / 'images'}", f"output={output}"]
        assert main(["predict", *asked, "device=cpu"]) == 0
        assert list(output.iterdir())
    assert main(["finetune", f"resume={run_dir}"]) == 0
    assert main(["ls", "runs", str(tmp_path / "runs")]) == 0


def test_a_volume_is_not_cut_into_a_slab_if_nothing_is_held_out(make_scans, run):
    result = run(make_scans(1), "data.name=nifti", "data.val_every=0", "train.validate_cases=0")
    assert result.summary["training_slices"] == 3  # of four slices one is empty
    assert list(read_record(result.adapter_dir).trained_on.values()) == [None]


@pytest.mark.slow
def test_a_handful_of_cases_can_choose_the_step_though_nothing_is_held_out(make_pictures, run):
    for key in ("train.validate_cases=null", "train.validate_cases=1"):
        summary = run(make_pictures(3, name=key), "data.val_every=0", key).summary
        assert (summary["training_slices"], summary["validation_slices"]) == (2, 1)
        assert (summary["labelled_cases"], summary["validation_cases"]) == (3, 1)
        assert summary["best_validation_dice"] is not None


def test_what_cannot_be_divided_is_refused_with_advice(make_pictures, run):
    root = make_pictures(1)
    with pytest.raises(ConfigError, match=r"train\.validate_cases=0 \(no case chooses the step"):
        run(root, "data.val_every=0")
    with pytest.raises(ConfigError, match=r"data\.val_every=0 \(nothing is held out"):
        run(root)
    with pytest.raises(ConfigError, match="each needs at least one"):
        run(root, "data.val_every=0", "peft=none")


def test_an_adapter_of_every_case_has_no_held_out_case_to_score(make_pictures, run, capsys):
    result = run(make_pictures(3), "data.val_every=0", "train.validate_cases=0")
    asked = [f"adapter={result.adapter_dir}", "device=cpu"]
    assert main(["evaluate", *asked]) == 2
    assert "no case is held out; score every case with all_cases=true" in capsys.readouterr().err
    assert main(["evaluate", *asked, "data.val_every=2"]) == 2
    assert "was trained on 2 of the 2 cases" in capsys.readouterr().err


@pytest.mark.slow
def test_folds_hold_out_cases_even_with_val_every_0(make_pictures, run):
    result = run(make_pictures(4), "data.val_every=0", "train.validate_cases=0", "folds=2")
    assert result.summary["cases"] == 4
    assert [fold["labelled_cases"] for fold in result.summary["folds"]] == [2, 2]


def test_held_out_cases_may_be_left_alone(make_pictures, run, recipe, tmp_path, capsys):
    root = make_pictures(6)
    result = run(root, "eval.max_cases=0")
    summary = result.summary
    assert (summary["scored"], summary["adapted"], summary["cases"]) == ("nothing", None, 0)
    assert any("eval.max_cases=0" in note for note in summary["notes"])
    splits = json.loads((result.run_dir / "splits.json").read_text(encoding="utf-8"))
    assert len(splits["val"]) == 2
    record = read_record(result.adapter_dir)
    assert len(record.trained_on) == 4
    assert "eval.max_cases=0" in (result.adapter_dir / "README.md").read_text(encoding="utf-8")
    # The same run scores them later, with the weights that a run with scores ends with.
    assert main(["finetune", f"resume={result.run_dir}", "eval.max_cases=null"]) == 0
    whole = run(root)
    name = "eval/per_case.csv"
    assert (result.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes()
    capsys.readouterr()
    adapter = f"adapter={whole.adapter_dir}"
    assert main(["evaluate", adapter, f"data.root={root}", "eval.max_cases=0"]) == 2
    assert "eval.max_cases=0 scores nothing" in capsys.readouterr().err
    asked = ["finetune", f"recipe={recipe}", f"data.root={root}", "eval.max_cases=0", "folds=2"]
    assert main(asked) == 2
    assert "folds=2 scores every case" in capsys.readouterr().err
