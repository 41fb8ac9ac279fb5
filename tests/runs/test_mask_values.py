"""What a run says of classes it cannot learn, and how it reads object numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from samadapt.cli import main
from samadapt.commands.finetune import render
from samadapt.config.compose import compose
from samadapt.data.dataset import open_dataset
from samadapt.data.types import SliceRef
from samadapt.runs.finetune import finetune


@pytest.fixture
def run(recipe):
    """``run(root, "key=value", ...)``: what ``finetune`` returned."""

    def start(root, *overrides):
        return finetune(compose(str(recipe), [f"data.root={root}", "train.steps=1", *overrides]))

    return start


@pytest.mark.slow
def test_a_class_of_the_held_out_cases_alone_is_named_and_marked(make_pictures, run, tmp_path):
    root = make_pictures(6)
    path = root / "masks" / "p0.png"  # held out
    mask = np.array(Image.open(path))
    mask[:3, :3] = 2
    Image.fromarray(mask).save(path)
    result = run(root, "prompts=semantic")
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
    assert "warning: class class_2 occurs in the held-out cases and in no training slice" in log
    assert log.index("warning: class class_2") < log.index("step 1")
    per_class = result.summary["adapted"]["per_class"]
    assert per_class["class_2"]["untrained"] is True
    assert "untrained" not in per_class["class_1"]
    assert any("class_2 occurs in the held-out" in note for note in result.summary["notes"])
    shown = {"run_dir": "r", "adapter_dir": None, "summary": result.summary}
    assert "class_2 (not" in render(shown)
    assert "not trained" in (result.run_dir / "report.html").read_text(encoding="utf-8")

    arguments = [f"adapter={result.adapter_dir}", f"output.dir={tmp_path / 'again'}"]
    assert main(["evaluate", *arguments]) == 0
    (path,) = (tmp_path / "again").rglob("summary.json")
    again = json.loads(path.read_text(encoding="utf-8"))
    assert again["adapted"]["per_class"]["class_2"]["untrained"] is True


@pytest.mark.slow
def test_the_table_of_a_cross_validation_marks_such_a_class(make_pictures, run):
    root = make_pictures(4)
    path = root / "masks" / "p0.png"
    mask = np.array(Image.open(path))
    mask[:3, :3] = 2
    Image.fromarray(mask).save(path)
    summary = run(root, "prompts=semantic", "folds=2").summary
    assert summary["adapted"]["per_class"]["class_2"]["untrained"] is True
    assert any("class_2 occurs in the held-out" in note for note in summary["notes"])


def test_runs_whose_classes_are_all_learned_have_no_mark(make_pictures, run):
    summary = run(make_pictures(6, classes=2), "prompts=semantic").summary
    assert not any("untrained" in entry for entry in summary["adapted"]["per_class"].values())


def test_training_cases_without_an_object_are_named(make_pictures, recipe, capsys):
    root = make_pictures(6)
    for name in ("p1", "p2", "p3", "p4"):
        Image.new("L", (40, 24)).save(root / "masks" / f"{name}.png")
    assert main(["finetune", f"recipe={recipe}", f"data.root={root}"]) == 2
    said = capsys.readouterr().err
    assert "no training slice holds an object to learn; 4 are without one" in said
    assert "slice_step" not in said


def test_object_numbers_train_and_are_read_the_same_again(make_pictures, run, tmp_path):
    root = make_pictures(6)
    for path in (root / "masks").iterdir():
        mask = np.array(Image.open(path))
        rows, columns = np.nonzero(mask)
        mask[rows, columns] = 1 + (columns - columns.min()) // 2  # columns that touch
        Image.fromarray(mask).save(path)
    result = run(root, "data.instances=true", "data.classes=[cell]", "eval.instances=true")
    objects = result.summary["adapted"]["instances"]["per_class"]["cell"]
    dataset = open_dataset("folder", root, instances=True)
    numbers = [dataset.sample(SliceRef(name, 0)).instances.max() for name in ("p0", "p5")]
    assert objects["true_objects"] == sum(numbers)
    record = json.loads((result.adapter_dir / "samadapt.json").read_text(encoding="utf-8"))
    assert record["data_options"]["instances"] is True
    assert record["classes"] == ["cell"]
    arguments = [f"adapter={result.adapter_dir}", f"output.dir={tmp_path / 'again'}"]
    assert main(["evaluate", *arguments, "precision=fp32", "eval.instances=true"]) == 0
    (path,) = (tmp_path / "again").rglob("summary.json")
    again = json.loads(path.read_text(encoding="utf-8"))
    assert again["adapted"]["dice"] == result.summary["adapted"]["dice"]
    assert (
        again["adapted"]["instances"]["per_class"]["cell"]["true_objects"]
        == objects["true_objects"]
    )
