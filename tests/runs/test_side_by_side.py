"""``evaluate adapter=[a,b]``: several adapters on the same cases, none of which any has seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from samadapt.cli import main
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.errors import ConfigError
from samadapt.reports.tables import read_per_case
from samadapt.runs.evaluate import evaluate
from samadapt.runs.side_by_side import names_of


@pytest.fixture
def score(tmp_path, capsys):
    """``score(adapters, ...)``: (run directory, summary) that the command line gives."""

    def start(adapters, *options):
        capsys.readouterr()
        listed = ",".join(map(str, adapters))
        arguments = [f"adapter=[{listed}]", f"output.dir={tmp_path / 'scores'}", "device=cpu"]
        assert main(["evaluate", *arguments, "precision=fp32", "--json", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        return Path(found["run_dir"]), found["summary"]

    return start


def test_adapters_are_scored_on_the_same_cases(make_pictures, run, score, tmp_path, capsys):
    root = make_pictures(12)
    one = run(root, "train.lr=0.003")
    other = run(root, "train.lr=0.01", "data.intensity=microscopy", "peft.rank=2")
    parent, summary = score([one.adapter_dir, other.adapter_dir])
    names = [one.run_dir.name, other.run_dir.name]
    assert list(summary["adapters"]) == names
    for name, result in zip(names, (one, other), strict=True):
        assert summary["states"][name]["dice"] == pytest.approx(result.summary["adapted"]["dice"])
        assert summary["adapters"][name]["adapter"] == str(result.adapter_dir)
        assert (parent / name / "report.html").is_file()
    # another intensity is another zero-shot model
    assert set(summary["states"]) == {*names, *(f"zero_shot {name}" for name in names)}
    rows = read_per_case(parent / "eval")
    assert set(rows) == set(summary["states"])
    assert {row.case for row in rows[names[1]]} == {"p0", "p3", "p8"}
    paired = summary["paired"][names[1]]["dice"]
    difference = summary["states"][names[1]]["dice"] - summary["states"][names[0]]["dice"]
    assert paired["difference"] == pytest.approx(difference)
    assert summary["compared_with"] == names[0]
    page = (parent / "report.html").read_text(encoding="utf-8")
    assert "adapter 2 - adapter 1, case by case" in page
    assert f"adapter 2: {other.adapter_dir}" in page

    arguments = [f"output.dir={tmp_path}", "device=cpu", "prompts.objects=class"]
    assert (
        main(["evaluate", f"adapter=[{one.run_dir}/adapter,{other.run_dir}/adapter]", *arguments])
        == 0
    )
    said = capsys.readouterr().out
    assert "zero-shot 2" in said
    assert f"adapter 1: {one.adapter_dir}" in said.replace("\n", "")


@pytest.mark.slow
def test_the_base_has_one_row_where_it_is_scored_alike(make_pictures, run, score):
    root = make_pictures()
    results = [run(root, f"seed={seed}", "train.steps=1") for seed in range(2)]
    _, summary = score([result.adapter_dir for result in results])
    assert set(summary["states"]) == {"zero_shot", *summary["adapters"]}
    assert summary["states"]["zero_shot"] == results[0].summary["zero_shot"]


@pytest.mark.slow
def test_what_one_of_them_was_trained_on_is_refused_for_all(make_pictures, run, tmp_path, capsys):
    root = make_pictures()
    one = run(root, "train.steps=1")  # p0 and p5 are held out
    other = run(root, "train.steps=1", "data.fold=1")  # p1 and p6
    arguments = [f"adapter=[{one.adapter_dir},{other.adapter_dir}]", f"output.dir={tmp_path / 's'}"]
    assert main(["evaluate", *arguments, "device=cpu"]) == 2
    said = capsys.readouterr().err
    assert f"data: {other.adapter_dir} was trained on 2 of the 2 cases" in said
    assert not [path for path in (tmp_path / "s").rglob("*") if path.is_file()]
    assert main(["evaluate", *arguments, "device=cpu", "unseen=true"]) == 2
    assert "together were trained on every case" in capsys.readouterr().err
    more = make_pictures(10, name="more")  # p8 and p9 are new to both
    shutil.rmtree(tmp_path / "s", ignore_errors=True)
    options = [f"data.root={more}", "unseen=true", "device=cpu", "--json"]
    assert main(["evaluate", *arguments, *options]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["cases"] == 2


@pytest.mark.slow
def test_adapters_without_prompts_keep_their_own_classes(make_pictures, run, score):
    root = make_pictures(classes=3)
    options = ["prompts=semantic", "train.steps=1"]
    one = run(root, *options, "data.classes={a: 1, b: 2}")
    other = run(root, *options, "data.classes={c: 3, b: 2}", f"init={one.run_dir}")
    _, summary = score([one.adapter_dir, other.adapter_dir])
    first, second = summary["adapters"]
    states = summary["states"]
    assert list(states[first]["per_class"]) == ["a", "b"]
    assert list(states[second]["per_class"]) == ["c", "b"]
    assert states[second]["per_class"] == other.summary["adapted"]["per_class"]
    paired = summary["paired"][second]
    assert list(paired["per_class"]) == ["b"]
    assert paired["dice"]["difference"] == pytest.approx(
        states[second]["per_class"]["b"]["dice"] - states[first]["per_class"]["b"]["dice"]
    )
    assert any("each mean is over the adapter's own" in note for note in summary["notes"])


@pytest.mark.slow
def test_adapters_that_cannot_be_compared_are_refused(make_pictures, run, tmp_path, capsys):
    root = make_pictures(classes=3)
    options = ["prompts=semantic", "train.steps=1"]
    classes = ["{a: 1}", "{b: 2}", "{a: 3}"]
    results = [run(root, *options, f"data.classes={one}") for one in classes]
    adapters = [str(result.adapter_dir) for result in results]

    def refused(*chosen):
        arguments = [f"adapter=[{','.join(chosen)}]", f"output.dir={tmp_path / 's'}", "device=cpu"]
        assert main(["evaluate", *arguments]) == 2
        assert not any((tmp_path / "s").rglob("config.yaml"))
        return capsys.readouterr().err

    assert "have no class in common: a; b" in refused(adapters[0], adapters[1])
    assert "stands for the mask values (1,) for one adapter and (3,)" in refused(
        adapters[0], adapters[2]
    )
    assert "is named twice" in refused(adapters[0], adapters[0])
    with pytest.raises(ConfigError, match="got an empty list"):
        evaluate(EvaluateArguments(adapter=[]))


def test_names(tmp_path):
    paths = [
        tmp_path / "run" / "adapter",
        tmp_path / "mine",
        tmp_path / "cross" / "fold_0" / "adapter",
        tmp_path / "other" / "mine",
    ]
    assert names_of(paths) == ["run", "mine", "cross-fold_0", "mine-2"]
