"""``samadapt evaluate``: the run's own scores again, from the adapter directory alone."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from samadapt.adapters.store import read_record
from samadapt.cli import main
from samadapt.config.compose import parse_settings
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.errors import ConfigError
from samadapt.evaluation.case_scores import dice, score_case
from samadapt.evaluation.number_of_clicks import MOST_CLICKS
from samadapt.inference.segmenter import load_adapter
from samadapt.prompts.volume_clicker import volume_box
from samadapt.runs.recorded_configuration import evaluation_config, recorded_keys
from samadapt.sam.weights.loading import load_sam


@pytest.fixture
def score(tmp_path, capsys):
    """``score(adapter, ...)``: the summary that the command line gives."""

    def start(adapter, *options):
        capsys.readouterr()
        arguments = [f"adapter={adapter}", f"output.dir={tmp_path / 'scores'}", "device=cpu"]
        assert main(["evaluate", *arguments, "precision=fp32", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    return start


CASES = [
    ("folder", ["prompts=box", "peft=lora", "prompts.objects=class"]),
    ("folder", ["prompts=semantic", "peft=adapter"]),
    ("folder", ["prompts=point", "peft=full"]),
    ("nifti", ["prompts=box", "peft=none", "peft.decoder=full", "data.merge_classes=true"]),
    ("nifti", ["prompts=semantic", "peft=lora", "peft.decoder=lora", "data.axis=coronal"]),
]


@pytest.mark.parametrize(("reader", "options"), CASES, ids=lambda value: str(value)[:60])
def test_scores_are_the_runs_own(make_pictures, make_scans, run, score, reader, options):
    root = make_scans() if reader == "nifti" else make_pictures(classes=2)
    result = run(root, f"data.name={reader}", *options, "train.lr=0.003")
    found = score(result.adapter_dir)
    for state in ("zero_shot", "adapted"):
        assert found["summary"][state] == result.summary[state]
    assert found["summary"]["cases"] == result.summary["cases"]
    assert found["summary"]["trained_parameters"] == result.summary["trained_parameters"]
    assert "evaluate" in found["run_dir"]


def test_the_base_is_loaded_once_and_the_record_is_read_once(one_step_run, score, monkeypatch):
    calls = []

    def counting(name, right):
        def call(*args, **kwargs):
            calls.append(name)
            return right(*args, **kwargs)

        return call

    for name, original in (("load_sam", load_sam), ("read_record", read_record)):
        for module in [m for m in sys.modules.values() if m.__name__.startswith("samadapt.")]:
            if vars(module).get(name) is original:
                monkeypatch.setattr(module, name, counting(name, original))
    score(one_step_run.adapter_dir)
    assert sorted(calls) == ["load_sam", "read_record"]


@pytest.mark.parametrize("prompts", ["box", "semantic"])
def test_the_oracle_gap(make_pictures, run, score, prompts, tmp_path):
    result = run(make_pictures(classes=2), "data.name=folder", f"prompts={prompts}")
    found = score(result.adapter_dir, "prompts=matrix")
    summary = found["summary"]
    assert summary["adapted"] == result.summary["adapted"]  # the usual scores stay
    gap = summary["oracle_gap"]
    assert [name for name, entry in gap.items() if not entry["oracle_prompt"]] == ["none"]
    if prompts == "box":
        assert gap["box"]["zero_shot"]["dice"] == pytest.approx(summary["zero_shot"]["dice"])
    else:
        assert gap["none"]["adapted"]["dice"] == pytest.approx(summary["adapted"]["dice"])
    assert (gap["none"]["adapted"] is None) is (prompts == "box")  # two classes
    assert gap["none"]["zero_shot"] is None
    assert gap["box"]["adapted"]["calibration"]["objects"] > 0
    assert 0 <= summary["forgetting"]["iou"] <= 1
    folder = Path(found["run_dir"]) / "eval"
    with (folder / "oracle_gap.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["state"] for row in rows} == {"zero_shot", "adapted"}
    given = {row["given"] for row in rows if row["state"] == "zero_shot"}
    assert given == set(gap) - {"none"}
    with Image.open(folder / "oracle_gap.png") as picture:
        assert picture.size[0] > 1000
    with (folder / "noc_per_object.csv").open(encoding="utf-8") as file:
        objects = [row for row in csv.DictReader(file) if row["state"] == "adapted"]
    clicks = summary["clicks"]["adapted"]
    assert clicks["objects"] == len(objects) == gap["box"]["adapted"]["calibration"]["objects"]
    noc = np.mean([int(row["noc@85"]) for row in objects])
    assert clicks["noc"]["85"]["noc"] == pytest.approx(noc)
    assert clicks["dice"][7] == gap["8 clicks"]["adapted"]["dice"]
    page = (Path(found["run_dir"]) / "report.html").read_text(encoding="utf-8")
    assert "NoC@90: clicks to IoU 0.90" in page


@pytest.mark.slow
def test_the_clicks_of_an_interactive_adapter(make_pictures, run, score):
    asked = ("data.name=folder", "prompts=interactive", "prompts.clicks=2", "train.lr=0.003")
    result = run(make_pictures(classes=1), *asked)
    found = score(result.adapter_dir, "prompts=matrix")
    summary = found["summary"]
    assert summary["adapted"] == result.summary["adapted"]  # those with three clicks stay
    before, after = (summary["clicks"][state] for state in ("zero_shot", "adapted"))
    assert before["objects"] == after["objects"] > 0
    assert before["dice"] != after["dice"], "the adapter answers as its base"
    for clicks in (before, after):
        assert len(clicks["dice"]) == MOST_CLICKS
        assert all(1 <= clicks["noc"][bound]["noc"] <= MOST_CLICKS for bound in ("85", "90"))
    # A box is a single prompt, to which this adapter gives several masks and its base one.
    gap = summary["oracle_gap"]
    assert gap["box"]["adapted"]["calibration"]["objects"] == after["objects"]
    assert gap["8 clicks"]["adapted"]["dice"] == after["dice"][7]
    page = (Path(found["run_dir"]) / "report.html").read_text(encoding="utf-8")
    assert "NoC@85: clicks to IoU 0.85" in page


@pytest.mark.slow
def test_a_box_and_clicks_in_volumes(make_scans, run, score, capsys):
    root = make_scans()
    result = run(root, "data.name=nifti", "data.merge_classes=true", "train.steps=1")
    found = score(result.adapter_dir, "prompts=volume_clicks")
    assert found["summary"]["adapted"] == result.summary["adapted"]  # the usual scores stay
    summary = found["summary"]["volume_clicks"]
    with (Path(found["run_dir"]) / "eval" / "volume_clicks.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "adapted"]
    assert summary["adapted"]["cases"] == len(rows) == found["summary"]["cases"]
    areas = [float(row["nsd_auc"]) for row in rows]
    assert summary["adapted"]["nsd_auc"] == pytest.approx(np.mean(areas), abs=1e-6)
    # The first answer is what `predict propagate=true` gives for the same box.
    labels = np.asarray(nib.load(root / "labelsTr" / f"{rows[0]['case']}.nii.gz").dataobj) > 0
    box = volume_box(labels.transpose(2, 1, 0)[:, ::-1, ::-1])  # the slices as a viewer shows them
    segmented = load_adapter(result.adapter_dir).segment(
        root / "imagesTr" / f"{rows[0]['case']}.nii.gz",
        boxes={box.middle: [box.box.tolist()]},
        propagate=True,
        slices=[box.low, box.high],
    )
    assert float(rows[0]["dice_box"]) == pytest.approx(dice(segmented > 0, labels), abs=1e-3)
    page = (Path(found["run_dir"]) / "report.html").read_text(encoding="utf-8")
    assert "A box and five clicks in volumes" in page


@pytest.mark.slow
def test_volumes_by_the_memory_of_sam2(make_scans, run, score, capsys):
    root = make_scans()
    keys = ("data.name=nifti", "data.merge_classes=true", "train.steps=1")
    result = run(root, *keys, "model.name=tiny_h")
    given = (result.adapter_dir, "prompts=volume_clicks")
    by_memory, by_prompts = score(*given, "propagate=memory"), score(*given)
    found, other = (one["summary"]["volume_clicks"] for one in (by_memory, by_prompts))
    assert found["adapted"]["cases"] == other["adapted"]["cases"] > 0
    assert found["adapted"]["dice"] != other["adapted"]["dice"]
    # The first answer is what `predict propagate=memory` gives for the same box.
    with (Path(by_memory["run_dir"]) / "eval" / "volume_clicks.csv").open(encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if row["state"] == "adapted")
    labels = np.asarray(nib.load(root / "labelsTr" / f"{row['case']}.nii.gz").dataobj) > 0
    box = volume_box(labels.transpose(2, 1, 0)[:, ::-1, ::-1])
    segmented = load_adapter(result.adapter_dir).segment(
        root / "imagesTr" / f"{row['case']}.nii.gz",
        boxes={box.middle: [box.box.tolist()]},
        propagate="memory",
        slices=[box.low, box.high],
    )
    assert float(row["dice_box"]) == pytest.approx(dice(segmented > 0, labels), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "ways"), [("tiny_h", ["prompt", "mask", "memory"]), ("tiny_t", ["prompt", "mask"])]
)
def test_ways_of_carrying_an_object_from_one_slice(make_scans, run, score, model, ways):
    root = make_scans()
    keys = ("data.name=nifti", "prompts.objects=class", "train.steps=1", f"model.name={model}")
    result = run(root, *keys)
    found = score(result.adapter_dir, "prompts=one_slice")
    assert found["summary"]["adapted"] == result.summary["adapted"]  # the usual scores stay
    summary = found["summary"]["one_slice"]
    with (Path(found["run_dir"]) / "eval" / "one_slice.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for state in ("zero_shot", "adapted"):
        assert list(summary[state]) == ways
        for way, entry in summary[state].items():
            own = [row for row in rows if (row["state"], row["way"]) == (state, way)]
            assert entry["objects"] == len(own) == 2 * found["summary"]["cases"]
            dice = np.mean([float(row["dice_prompted"]) for row in own])
            assert entry["dice"]["prompted"] == pytest.approx(dice, abs=1e-6)
            assert entry["outside"] == len(own)  # the first slice of each scan is empty
    # A prompt finds the same however it is carried on; SAM 2's memory also asks for its score.
    adapted = summary["adapted"]
    assert adapted["prompt"]["dice"]["prompted"] == adapted["mask"]["dice"]["prompted"] > 0
    assert len({entry["dice"]["near"] for entry in adapted.values()}) > 1
    page = (Path(found["run_dir"]) / "report.html").read_text(encoding="utf-8")
    assert "Objects carried from one prompted slice" in page


def test_volume_clicks_need_volumes_and_prompts(one_step_run, tmp_path, capsys):
    arguments = [f"output.dir={tmp_path}", "device=cpu", "prompts=volume_clicks"]
    assert main(["evaluate", f"adapter={one_step_run.adapter_dir}", *arguments]) == 2
    assert "prompts=matrix counts the clicks on each slice" in capsys.readouterr().err
    record = read_record(one_step_run.adapter_dir)
    semantic = replace(record, prompt={**record.prompt, "kind": "semantic"})
    given = ["adapter=a", "prompts=volume_clicks"]
    with pytest.raises(ConfigError, match="this adapter was trained without prompts"):
        evaluation_config(parse_settings(EvaluateArguments, given), semantic)
    given = ["adapter=a", "prompts=one_slice"]
    with pytest.raises(ConfigError, match="one_slice prompts each object once; this adapter was"):
        evaluation_config(parse_settings(EvaluateArguments, given), semantic)
    given = ["adapter=a", "prompts=box", "propagate=memory"]
    with pytest.raises(ConfigError, match="for prompts=volume_clicks; got prompts=box"):
        evaluation_config(parse_settings(EvaluateArguments, given), record)


def test_a_moved_adapter_needs_only_the_data(make_pictures, run, score, tmp_path, capsys):
    root = make_pictures(classes=5)
    result = run(root, "prompts=semantic", "train.lr=0.005", "train.steps=6")
    moved = tmp_path / "elsewhere" / "mine"
    shutil.copytree(result.adapter_dir, moved)
    shutil.rmtree(result.run_dir)
    other = root.rename(tmp_path / "moved-data")
    found = score(moved, f"data.root={other}")
    assert found["summary"]["adapted"] == result.summary["adapted"]
    assert found["summary"]["zero_shot"] == result.summary["zero_shot"]
    assert main(["evaluate", f"adapter={moved}", f"output.dir={tmp_path}", "device=cpu"]) == 2
    said = capsys.readouterr().err
    assert "data.root" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_weights_from_a_file_are_found_again(make_pictures, run, score, tmp_path, capsys):
    sam = load_sam("tiny")
    base = tmp_path / "base.safetensors"
    state = sam.state_dict()
    state["mask_decoder.iou_token.weight"] = state["mask_decoder.iou_token.weight"] + 1
    save_file(state, base)
    result = run(make_pictures(), f"model.checkpoint={base}")
    assert score(result.adapter_dir)["summary"]["adapted"] == result.summary["adapted"]
    moved = base.rename(tmp_path / "moved.safetensors")
    again = score(result.adapter_dir, f"checkpoint={moved}")
    assert again["summary"]["adapted"] == result.summary["adapted"]
    arguments = [f"adapter={result.adapter_dir}", f"output.dir={tmp_path}", "device=cpu"]
    assert main(["evaluate", *arguments]) == 2
    assert "base.safetensors" in capsys.readouterr().err
    save_file(
        {
            **load_file(moved),
            "mask_decoder.iou_token.weight": state["mask_decoder.iou_token.weight"] * 2,
        },
        base,
    )
    assert main(["evaluate", *arguments]) == 2
    said = capsys.readouterr().err
    assert "trained on base tiny with sha256" in said
    assert "checkpoint=FILE" in said


@pytest.mark.slow
def test_every_case_can_be_scored_on_other_data(make_pictures, run, score):
    result = run(make_pictures(), "train.steps=1")
    other = make_pictures(3, name="other")
    found = score(result.adapter_dir, f"data.root={other}", "all_cases=true")["summary"]
    assert found["cases"] == 3
    assert found["scored"] == "all"
    assert any("may have been trained on" in note for note in found["notes"])
    assert result.summary["scored"] == "held-out"
    assert score(result.adapter_dir, f"data.root={other}", "eval.max_cases=1", "all_cases=true")[
        "summary"
    ]["cases"] == 1  # fmt: skip
    assert score(result.adapter_dir, f"data.root={other}")["summary"]["cases"] == 1


def test_what_was_trained_on_is_not_scored_as_held_out(one_step_run, score, tmp_path, capsys):
    adapter = one_step_run.adapter_dir
    root = one_step_run.run_dir.parents[2] / "pictures"  # p0 and p5 are held out of 8
    other = tmp_path / "renamed"
    shutil.copytree(root, other)
    for part in ("images", "masks"):
        for index in range(8):
            (other / part / f"p{index}.png").rename(other / part / f"q{7 - index}.png")

    def refused(*options):
        arguments = [f"adapter={adapter}", f"output.dir={tmp_path / 'none'}", "device=cpu"]
        assert main(["evaluate", *arguments, *options]) == 2
        return capsys.readouterr().err

    said = refused("data.val_every=2")
    assert "was trained on 3 of the 4 cases that are held out here: p2, p4, p6" in said
    assert "unseen=true" in said
    assert "2 of the 2 cases that are held out here: q0, q5" in refused(f"data.root={other}")
    assert "choose one" in refused("unseen=true", "all_cases=true")
    assert not any((tmp_path / "none").rglob("config.yaml"))
    for where in (root, other):
        found = score(adapter, f"data.root={where}", "data.val_every=2", "unseen=true")["summary"]
        assert (found["cases"], found["scored"]) == (2, "unseen")
    notes = score(adapter, f"data.root={other}", "all_cases=true")["summary"]["notes"]
    assert any("6 of 8 were" in note for note in notes)


def test_slices_of_one_volume_are_told_apart(run, score, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.zeros((24, 24, 30), np.uint8)
    labels[4:20, 4:20] = 1
    for name, values in (
        ("image", rng.uniform(1, 9, labels.shape) + 9 * labels),
        ("label", labels),
    ):
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), tmp_path / f"{name}.nii")
    files = [
        "data.image=image.nii",
        "data.label=label.nii",
        "data.intensity=mri",
        "data.axis=axial",
    ]
    result = run(tmp_path, "data.name=nifti", *files, "train.steps=1")
    found = score(result.adapter_dir)["summary"]
    assert found["adapted"] == result.summary["adapted"]
    notes = score(result.adapter_dir, "data.axis=coronal")["summary"]["notes"]
    assert any("slices along axial, which are not known again along coronal" in n for n in notes)
    notes = score(result.adapter_dir, "all_cases=true")["summary"]["notes"]
    assert any("1 of 1 were" in note for note in notes)


def test_an_adapter_that_does_not_say_what_it_saw(one_step_run, score, tmp_path, capsys):
    run_dir = shutil.copytree(one_step_run.run_dir, tmp_path / "run")
    adapter = run_dir / "adapter"
    record = json.loads((adapter / "samadapt.json").read_text(encoding="utf-8"))
    assert len(record["trained_on"]) == 6
    for name in ("trained_on", "weights_sha256", "record_sha256"):  # of an earlier version
        del record[name]
    (adapter / "samadapt.json").write_text(json.dumps(record), encoding="utf-8")
    notes = score(adapter, "data.val_every=2")["summary"]["notes"]
    assert any("does not say what it was trained on" in note for note in notes)
    arguments = [f"adapter={adapter}", f"output.dir={tmp_path}", "device=cpu", "unseen=true"]
    assert main(["evaluate", *arguments]) == 2
    assert "does not say what it was trained on" in capsys.readouterr().err


def test_what_bounds_the_training_data_does_not_bound_other_data(
    make_scans, make_pictures, run, tmp_path
):
    result = run(
        make_scans(), "data.name=nifti", "data.axis=coronal", "data.max_cases=4", "train.steps=1"
    )
    record = read_record(result.adapter_dir)
    keys = recorded_keys(result.adapter_dir, record)
    asked = parse_settings(EvaluateArguments, ["adapter=x", "data=folder"], keys)
    assert (asked.data.max_cases, asked.data.axis) == (None, None)
    assert evaluation_config(asked, record).data.axis == "coronal"
    same = parse_settings(EvaluateArguments, ["adapter=x"], keys)
    assert (same.data.max_cases, same.data.axis) == (4, "coronal")


def test_other_prompts_can_be_asked_for(one_step_run, score):
    found = score(one_step_run.adapter_dir, "prompts=point")["summary"]
    assert found["prompt"] == "point"
    assert found["adapted"]["prompt"]["kind"] == "point"


def test_an_adapter_may_be_named_in_quotes(one_step_run, score):
    found = score(f'"{one_step_run.adapter_dir}"')
    assert found["adapter_dir"] == str(one_step_run.adapter_dir)


def test_objects_are_counted_where_asked_for(make_scans, make_pictures, run, score, capsys):
    result = run(make_scans(), "data.name=nifti", "train.steps=1", "eval.instances=components")
    found = result.summary["adapted"]["instances"]
    assert found["per_class"]["front"]["true_objects"] > 0
    assert score(result.adapter_dir)["summary"]["adapted"].get("instances") is None
    again = score(result.adapter_dir, "eval.instances=components")
    assert again["summary"]["adapted"]["instances"] == found
    objects = json.loads((result.run_dir / "eval" / "objects.json").read_text(encoding="utf-8"))
    assert [len(objects[state]) for state in ("zero_shot", "adapted")] == [2, 2]
    arguments = [f"adapter={result.adapter_dir}", "device=cpu", "eval.instances=true"]
    assert main(["evaluate", *arguments, f"output.dir={result.run_dir}"]) == 2
    said = capsys.readouterr().err
    assert "scan_0 is a volume. Use eval.instances=components" in said
    assert main(["evaluate", *arguments[:2], f"output.dir={result.run_dir}"]) == 0
    assert "Wilcoxon" in capsys.readouterr().out


def test_touching_objects_of_coco_are_told_apart(tmp_path, run):
    root = tmp_path / "cells"
    (root / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    for index in range(5):
        image = np.random.default_rng(index).integers(0, 255, (24, 40), dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"{index}.png")
        size = {"height": 24, "width": 40}
        content["images"].append({"id": index, "file_name": f"{index}.png", **size})
        for left in (4, 14):  # two cells side by side
            corners = [[left, 4, left + 10, 4, left + 10, 18, left, 18]]
            mark = {"image_id": index, "category_id": 1, "segmentation": corners}
            content["annotations"].append({"id": 2 * index + (left > 4), **mark})
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    augment = "train.augment=[flip,crop,rotate]"
    result = run(root, "data.name=coco", "eval.instances=true", "train.steps=2", augment)
    found = result.summary["zero_shot"]["instances"]["per_class"]["cell"]
    assert found["true_objects"] == 2 * result.summary["cases"]
    assert "<h2>objects</h2>" in (result.run_dir / "report.html").read_text(encoding="utf-8")


def test_mask_tokens_stand_for_the_recorded_classes_only(
    make_pictures, run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    result = run(make_pictures(classes=2), "prompts=semantic", "train.steps=1")
    other = make_pictures(classes=3, name="other")
    arguments = [f"adapter={result.adapter_dir}", "device=cpu", f"data.root={other}"]
    assert main(["evaluate", *arguments]) == 2
    said = capsys.readouterr().err
    assert "in this order; the data set has" in said
    assert "data.classes={name: value}" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": "nowhere"}, "nowhere"),
        ({"adaptr": "x"}, "did you mean 'adapter'"),
        ({"data.root": "gone"}, "gone"),
        ({"prompts": "lasso"}, "prompts"),
        ({"device": "cuda"}, "device=cuda: not available here"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    one_step_run, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = {"adapter": one_step_run.adapter_dir, "device": "cpu"} | options
    assert main(["evaluate", *(f"{key}={value}" for key, value in given.items())]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("samadapt: error:") == 1
    assert "Traceback" not in said.err
    assert main(["evaluate"]) == 2
    assert "adapter: a value is required" in capsys.readouterr().err


@pytest.mark.slow
def test_pictures_in_tiles_from_training_to_prediction(make_pictures, run, score, tmp_path):
    """Training, evaluation and prediction use the same tiles without further keys."""
    root = make_pictures()
    options = ["data.name=folder", "data.tile=16", "prompts=semantic", "peft=lora"]
    result = run(root, *options, "data.tile_overlap=0.25", "train.lr=0.003")
    assert result.summary["case_is"] == "picture: one 2D image, its tiles together"
    assert result.summary["slices"] == 6 * result.summary["cases"]
    found = score(result.adapter_dir)["summary"]
    assert found["adapted"] == result.summary["adapted"]
    segmenter = load_adapter(result.adapter_dir, device="cpu")
    rows = []
    for name in json.loads((result.run_dir / "splits.json").read_text(encoding="utf-8"))["val"]:
        target = tmp_path / f"{name}.png"
        segmenter.predict_file(root / "images" / f"{name}.png", target)
        truth = np.asarray(Image.open(root / "masks" / f"{name}.png"))[:, :, None]
        predicted = np.asarray(Image.open(target))[:, :, None]
        rows += score_case(name, predicted, truth, segmenter.record.classes)
    again = np.mean([row.dice for row in rows])
    assert again == pytest.approx(result.summary["adapted"]["dice"], abs=1e-9)
    assert again > 0.05
    gap = score(result.adapter_dir, "prompts=matrix")["summary"]["oracle_gap"]
    assert gap["none"]["adapted"]["dice"] == pytest.approx(again, abs=1e-9)


def test_patterns_come_from_the_run_and_never_enter_the_adapter(make_scans, run, score, tmp_path):
    """``data.image`` may hold names of patients, so only the run's own config.yaml has it."""
    root = make_scans()
    given = [
        "data.name=nifti",
        "data.image='imagesTr/*.nii.gz'",
        "data.label='labelsTr/*.nii.gz'",
        "data.intensity=mri",
    ]
    result = run(root, *given, "train.steps=1")
    record = json.loads((result.adapter_dir / "samadapt.json").read_text(encoding="utf-8"))
    assert not {"image", "label", "root"} & set(record["data_options"])
    assert str(tmp_path) not in json.dumps({**record, "recipe": ""})
    assert score(result.adapter_dir)["summary"]["adapted"] == result.summary["adapted"]
    alone = tmp_path / "alone"
    shutil.copytree(result.adapter_dir, alone)
    again = score(alone, f"data.root={root}", *given[1:])
    assert again["summary"]["adapted"] == result.summary["adapted"]
