"""``samadapt finetune`` from the command line to the run directory."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import samadapt
from samadapt.adapters.record import digest_of, read_record
from samadapt.cli import main
from samadapt.commands.finetune import render
from samadapt.data.dataset import open_dataset
from samadapt.errors import AdapterError, ConfigError
from samadapt.evaluation.case_scores import score_case, summarise
from samadapt.prompts.policy import PromptPolicy
from samadapt.prompts.simulate import simulate
from samadapt.reports.tables import per_case_columns
from samadapt.sam.decode import segment_objects, segment_semantic
from samadapt.sam.embed import embed
from samadapt.sam.weights.loading import base_hash, load_sam
from samadapt.training.precision import choose_precision


def strict(path):
    def refuse(token):
        raise ValueError(f"{path}: {token}")

    return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse)


def width(path):
    with Image.open(path) as picture:
        return picture.size[0]


def test_the_run_directory_is_complete(make_pictures, run, tmp_path):
    result = run(make_pictures(), "eval.overlays=3")
    folder = result.run_dir
    assert folder.parent == tmp_path / "runs" / "small"
    assert folder.name.endswith("-lora-tiny")
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["train"]["steps"] == 4
    recorded = strict(folder / "env.json")["packages"]["torch"]
    assert torch.__version__.split("+")[0] == recorded.split("+")[0]
    splits = strict(folder / "splits.json")
    assert splits["val"] == ["p0", "p5"]
    assert len(splits["train"]) == 6
    metrics = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["step"] for line in metrics if line["kind"] == "train"] == [1, 2, 3, 4]
    assert [line["step"] for line in metrics if line["kind"] == "validate"] == [2, 4]
    assert width(folder / "progress.png") > 300
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert "validation Dice" in log
    assert "gradients: present in" in log
    latest = (folder / "checkpoints" / "LATEST").read_text(encoding="utf-8").strip()
    assert (folder / "checkpoints" / latest / "manifest.json").is_file()
    overlays = sorted(path.name for path in (folder / "overlays").iterdir())
    assert overlays
    assert all(width(folder / "overlays" / name) > 300 for name in overlays)
    names = {path.name for path in (folder / "adapter").iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "samadapt.json", "README.md"
    }  # fmt: skip

    summary = strict(folder / "eval" / "summary.json")
    assert summary["zero_shot"].keys() >= {"dice", "iou", "per_class"}
    assert summary["adapted"].keys() >= {"dice", "iou", "per_class"}
    assert (summary["prompt"], summary["oracle_prompt"]) == ("box", True)
    assert (summary["cases"], summary["slices"]) == (2, 2)
    assert summary["trained_parameters"] == result.summary["trained_parameters"] > 0
    assert summary["best_step"] in (2, 4)
    with (folder / "eval" / "per_case.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == per_case_columns()
    assert [(row["case"], row["state"]) for row in rows] == [
        ("p0", "zero_shot"), ("p5", "zero_shot"), ("p0", "adapted"), ("p5", "adapted")
    ]  # fmt: skip
    mean = np.mean([float(row["dice"]) for row in rows if row["state"] == "adapted"])
    assert mean == pytest.approx(summary["adapted"]["dice"], abs=1e-5)

    record = read_record(folder / "adapter")
    assert record.base_sha256 == base_hash(load_sam("tiny"))
    assert record.scores["adapted"]["dice"] == summary["adapted"]["dice"]
    assert str(tmp_path) not in (folder / "adapter" / "samadapt.json").read_text(
        encoding="utf-8"
    ).replace(record.recipe, "")
    text = render(
        {"run_dir": str(folder), "adapter_dir": str(result.adapter_dir), "summary": summary}
    )
    assert str(folder / "adapter") in text.replace("\n", "")
    assert "foreground" in text


def test_a_run_directory_is_never_overwritten(make_pictures, run, monkeypatch):
    import samadapt.runs.run_directory as module

    class Fixed:
        @staticmethod
        def now():
            return module_datetime(2026, 1, 2)

    from datetime import datetime as module_datetime

    monkeypatch.setattr(module, "datetime", Fixed)
    root = make_pictures()
    first = run(root, "peft=none").run_dir
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    second = run(root, "peft=none").run_dir
    assert second.name == f"{first.name}-2"
    assert {path: path.read_bytes() for path in before} == before


METHODS = [
    ("lora", "full"), ("adapter", "lora"), ("none", "frozen"), ("none", "full"), ("full", "frozen"),
]  # fmt: skip


@pytest.mark.parametrize("prompt", ["box", "point", "semantic"])
@pytest.mark.parametrize(("method", "decoder"), METHODS)
def test_every_method_with_every_prompt(make_pictures, make_scans, run, prompt, method, decoder):
    scans = (prompt == "point") != (method == "lora")
    data = ["data.name=nifti"] if scans else []
    root = make_scans() if scans else make_pictures(classes=2)
    options = [f"peft={method}", f"peft.decoder={decoder}", f"prompts={prompt}", *data]
    result = run(root, *options, "train.steps=2")
    summary = strict(result.run_dir / "eval" / "summary.json")
    assert len(summary["zero_shot"]["per_class"]) == 2
    assert summary["zero_shot"]["oracle_prompt"]
    trains = method != "none" or decoder != "frozen"
    assert (summary["adapted"] is not None) == trains == (result.adapter_dir is not None)
    render({"run_dir": "r", "adapter_dir": result.adapter_dir, "summary": summary})
    if trains:
        assert summary["adapted"]["oracle_prompt"] == (prompt != "semantic")
        log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
        whole = method == "full"
        assert ("computed anew in every step" in log) == whole
        assert whole or " computed, " in log


def whole_model_scores(sam, root, policy, classes):
    """Score the held-out pictures with nothing but the model and the decoder."""
    dataset = open_dataset("folder", root)
    rows = []
    for ref in dataset.slices("val"):
        sample = dataset.sample(ref)
        embeddings, frames = embed(sam, [sample.image])
        if policy.is_semantic:
            token = policy.background_token
            (labels,) = segment_semantic(
                sam, embeddings, frames, len(classes), background_token=token
            )
        else:
            objects = simulate(sample.labels, policy)
            ((numbers, _),) = segment_objects(
                sam, embeddings, frames, [objects], multimask=policy.multimask
            )
            labels = objects.class_ids_at(numbers)
        rows += score_case(ref.case, labels, sample.labels, classes)
    return summarise(rows, classes)


@pytest.mark.parametrize("prompt", ["box", "point"])
def test_zero_shot_is_the_unadapted_model_and_the_adapter_is_the_adapted_one(
    make_pictures, run, prompt
):
    root = make_pictures(classes=2)
    result = run(root, f"prompts={prompt}", "peft.rank=2", "train.lr=0.003")
    classes, policy = read_record(result.adapter_dir).classes, PromptPolicy(prompt)
    zero_shot = whole_model_scores(load_sam("tiny"), root, policy, classes)
    assert result.summary["zero_shot"]["dice"] == pytest.approx(zero_shot["dice"], abs=2e-3)
    segmenter = samadapt.load_adapter(result.adapter_dir, device="cpu")
    adapted = whole_model_scores(segmenter.sam, root, policy, classes)
    assert result.summary["adapted"]["dice"] == pytest.approx(adapted["dice"], abs=2e-3)
    assert abs(adapted["dice"] - zero_shot["dice"]) > 0.005


def test_more_than_three_classes_get_a_token_each(make_pictures, run):
    root = make_pictures(classes=5)
    result = run(root, "prompts=semantic", "train.steps=1", "train.lr=0.0001")
    record = read_record(result.adapter_dir)
    assert (record.num_masks, record.class_tokens) == (3, 5)
    assert len(result.summary["adapted"]["per_class"]) == 5
    segmenter = samadapt.load_adapter(result.adapter_dir, device="cpu")
    assert segmenter.sam.build.num_multimask == 3
    # SAM's own tokens still answer to prompts.
    picture = min((root / "images").iterdir())
    prompted = segmenter.segment(picture, boxes=[[2, 2, 30, 20]], labels=record.classes[1])
    assert set(np.unique(prompted)) == {0, 2}
    # the new tokens begin alike, so that rounding decides pixels: score in the run's arithmetic
    with choose_precision("fp32", torch.device("cpu")).products():
        found = whole_model_scores(segmenter.sam, root, PromptPolicy("semantic"), record.classes)
    assert result.summary["adapted"]["dice"] == pytest.approx(found["dice"], abs=5e-4)
    assert found["dice"] > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("keeps", ["true", "false"])
def test_a_background_token_is_trained_scored_and_used(make_pictures, run, keeps):
    root = make_pictures(classes=2)
    asked = ("prompts=semantic", "prompts.background_token=true", "train.lr=0.003")
    result = run(root, *asked, f"prompts.keep_promptable={keeps}")
    record = read_record(result.adapter_dir)
    assert record.class_tokens == (2 if keeps == "true" else 0)
    policy = PromptPolicy.from_dict(record.prompt)
    assert policy.background_token
    before = load_sam("tiny")
    if keeps == "true":
        before.add_class_tokens(2, background=True)
    segmenter = samadapt.load_adapter(result.adapter_dir, device="cpu")
    for token in ("tokens", "background") if keeps == "true" else ():
        old, new = (getattr(m.class_tokens, token).weight for m in (before, segmenter.sam))
        assert not torch.equal(old, new), f"{token} was not trained"
    if keeps == "false":
        weights = [m.mask_decoder.mask_tokens.weight[0] for m in (before, segmenter.sam)]
        assert not torch.equal(*weights), "the token of the background was not trained"
    with choose_precision("fp32", torch.device("cpu")).products():
        found = whole_model_scores(segmenter.sam, root, policy, record.classes)
    assert result.summary["adapted"]["dice"] == pytest.approx(found["dice"], abs=2e-3)
    again = main(["evaluate", f"adapter={result.adapter_dir}", f"data.root={root}", "device=cpu"])
    assert again == 0


@pytest.mark.slow
def test_a_second_run_computes_no_prefix(make_pictures, run, monkeypatch, tmp_path):
    """The features are kept by default, so the same run finds them again."""
    root = make_pictures()
    first = run(root)
    assert "features: 8 computed, 0 reused" in log_of(first)
    assert "features: 8 computed" in log_of(run(root, "peft.blocks=last:1"))
    assert "features: 8 computed" in log_of(run(root, "precision=bf16"))

    def refuse(*args):
        raise AssertionError("the frozen blocks ran")

    from samadapt.sam.model import Sam

    monkeypatch.setattr(Sam, "encode_prefix", refuse)
    again = run(root)
    assert "features: 0 computed, 8 reused" in log_of(again)
    assert again.summary["adapted"] == first.summary["adapted"]
    assert again.summary["zero_shot"] == first.summary["zero_shot"]
    assert "0 computed, 8 reused" in log_of(run(root, "prompts=point", "seed=3"))
    arguments = [f"adapter={first.adapter_dir}", "device=cpu", "precision=fp32"]
    arguments += [f"output.dir={tmp_path / 'scores'}"]
    assert main(["evaluate", *arguments, f"cache.dir={first.run_dir.parents[1] / 'features'}"]) == 0


@pytest.mark.slow
def test_features_that_are_not_kept(make_pictures, run, tmp_path):
    root = make_pictures()
    for _ in range(2):
        assert "8 computed, 0 reused" in log_of(run(root, "cache.where=memory"))
    assert not (tmp_path / "runs" / "features").exists()
    assert "computed anew in every step (augmentation)" in log_of(run(root, "train.augment=[flip]"))
    assert "cache.enabled=off" in log_of(run(root, "cache.enabled=off"))


@pytest.mark.slow
def test_variants_are_computed_once(make_pictures, run):
    root = make_pictures()
    options = ["train.augment=[flip]", "cache.variants=3", "train.steps=8"]
    first, second = (run(root, *options) for _ in range(2))
    counts = [re.search(r"(\d+) computed, (\d+) reused", log_of(r)) for r in (first, second)]
    assert 8 < int(counts[0][1]) <= 8 + 5  # a second flip of a slice is the first one again
    assert counts[1].groups() == ("0", counts[0][1])
    assert first.summary["adapted"] == second.summary["adapted"]
    off = run(root, *options, "cache.enabled=off")
    assert off.summary["adapted"]["dice"] == pytest.approx(
        first.summary["adapted"]["dice"], abs=2e-3
    )


def log_of(result):
    return (result.run_dir / "log.txt").read_text(encoding="utf-8")


def test_the_cache_changes_no_result(make_pictures, run):
    root = make_pictures()
    on, off = run(root), run(root, "cache.enabled=off")
    for state in ("zero_shot", "adapted"):
        assert on.summary[state]["dice"] == pytest.approx(off.summary[state]["dice"], abs=2e-3)


def test_precision_and_device_may_differ_between_runs_of_one_program(make_pictures, run):
    root = make_pictures()
    for precision in ("fp32", "bf16", "fp32"):
        result = run(root, f"precision={precision}", "train.steps=1")
        assert result.summary["precision"] == precision


def test_broken_files_are_left_out_by_name(make_pictures, run, capsys):
    root = make_pictures()
    (root / "masks" / "p3.png").write_bytes(b"no picture")
    result = run(root, "data.on_error=skip", "peft=none")
    log = log_of(result)
    assert "left out for errors: p3" in log
    assert "masks/p3.png" in log
    assert strict(result.run_dir / "splits.json")["left_out"] == ["p3"]
    assert any("p3" in note for note in result.summary["notes"])


def test_annotations_are_the_prompts(make_pictures, run):
    root = make_pictures()
    (root / "annotations").mkdir()
    for index in range(0, 8, 2):  # the others get a box from their mask
        given = {"boxes": [[1, 2, 39, 23]], "points": [[20, 12]]}
        if index % 4:
            given = {"points": [[20, 12], [1, 1]], "point_labels": [1, 0]}
        (root / "annotations" / f"p{index}.json").write_text(json.dumps(given), encoding="utf-8")
    for prompt in ("box", "point"):
        result = run(root, f"prompts={prompt}", "train.steps=3", "train.batch_size=3")
        assert result.summary["adapted"]["dice"] is not None


SAME = ("zero_shot", "adapted", "best_step", "best_validation_dice", "training_slices")


def test_a_finished_run_can_be_scored_again_and_a_missing_one_is_refused(
    make_pictures, run, tmp_path, capsys
):
    result = run(make_pictures(), "peft.dropout=0.2")
    assert main(["finetune", f"resume={result.run_dir}", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert {key: summary[key] for key in SAME} == {key: result.summary[key] for key in SAME}
    shutil.rmtree(result.run_dir / "checkpoints")
    assert main(["finetune", f"resume={result.run_dir}"]) == 2
    assert "LATEST: not found; nothing was saved here" in capsys.readouterr().err
    assert main(["finetune", f"resume={tmp_path / 'nowhere'}"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_resumed_run_refuses_what_its_checkpoints_do_not_fit(make_pictures, run, capsys):
    root = make_pictures()
    folder = run(root, "train.steps=2").run_dir
    before = (folder / "metrics.jsonl").read_bytes()
    changes = ["data.slice_step=2", "peft.rank=2", "model.image_size=128", "seed=4"]
    assert main(["finetune", f"resume={folder}", *changes, "prompts=point"]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    for change in ("data.slice_step=2 (was 1)", "peft.rank=2 (was 4)", "seed=4 (was 0)"):
        assert change in said
    assert "model.image_size=128 (was None)" in said
    assert "prompts.name=point (was box)" in said
    assert (folder / "metrics.jsonl").read_bytes() == before
    moved = root.rename(root.with_name("moved"))
    assert main(["finetune", f"resume={folder}", f"data.root={moved}", "train.steps=3"]) == 0
    assert len((folder / "metrics.jsonl").read_bytes()) > len(before)


def test_a_resumed_run_keeps_the_precision_that_was_measured(make_pictures, run, monkeypatch):
    import samadapt.training.precision as module

    def measured(*figures):
        monkeypatch.setattr(module, "measure_products", lambda: module.Products(*figures))

    measured(1.8, 4e-7, 3.0)
    result = run(make_pictures(), "precision=auto", "train.steps=2")
    assert result.summary["precision"] == "bf16"
    measured(1.0, 4e-7, 1.0)
    assert main(["finetune", f"resume={result.run_dir}"]) == 0
    found = strict(result.run_dir / "env.json")["precision"]
    assert (found["name"], found["onednn"]) == ("bf16", True)
    assert "as the run began; bf16 products measure 1.0x" in found["reason"]


SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]


@pytest.mark.parametrize("number", SIGNALS[:1])
@pytest.mark.usefixtures("heard_signals")
def test_a_signal_saves_and_the_resumed_run_equals_an_uninterrupted_one(
    make_pictures, recipe, number, tmp_path, capsys, monkeypatch
):
    import samadapt.training.loop as loop

    root, runs, right = make_pictures(), tmp_path / "runs" / "small", loop.report_step
    options = [f"recipe={recipe}", f"data.root={root}", "train.steps=8", "peft.dropout=0.2"]
    options += ["train.validate_every=3", "train.checkpoint_every=0"]

    def report_step(training, state, *rest):
        right(training, state, *rest)
        if state.step == 4:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(loop, "report_step", report_step)
    assert main(["finetune", *options]) == 128 + number
    monkeypatch.undo()
    (run_dir,) = runs.iterdir()
    said = capsys.readouterr().err
    assert f"continue with: samadapt finetune resume={run_dir}" in said
    assert (run_dir / "checkpoints" / "LATEST").read_text(encoding="utf-8").strip() == "step_000004"
    assert not (run_dir / "adapter").exists()

    assert main(["finetune", f"resume={run_dir}"]) == 0
    assert main(["finetune", *options]) == 0
    (other,) = set(runs.iterdir()) - {run_dir}
    one, two = (strict(path / "eval" / "summary.json") for path in (run_dir, other))
    assert {key: one[key] for key in SAME} == {key: two[key] for key in SAME}
    weights = [p / "adapter" / "adapter_model.safetensors" for p in (run_dir, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.usefixtures("heard_signals")
def test_a_signal_stops_the_program_while_it_trains(make_pictures, recipe, number, tmp_path):
    """The whole program in a process of its own, stopped while it trains."""
    root = make_pictures()
    steps = 25
    options = [f"recipe={recipe}", f"data.root={root}", f"train.steps={steps}", "peft.dropout=0.2"]
    options += ["train.validate_every=5", "train.checkpoint_every=0"]
    slow = (
        "import sys, time, torch; torch.set_num_threads(1)\n"
        "import samadapt.training.loop as loop\n"
        "right = loop.report_step\n"
        "def report_step(*args):\n"
        "    right(*args); time.sleep(0.1)\n"
        "loop.report_step = report_step\n"
        "from samadapt.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, "finetune", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        encoding="utf-8",
    )
    runs = tmp_path / "runs" / "small"
    for _ in range(6000):  # five minutes: on a busy machine the imports alone take one
        found = list(runs.glob("*/metrics.jsonl"))
        if found and len(found[0].read_text(encoding="utf-8").splitlines()) > 7:
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    (run_dir,) = runs.iterdir()
    assert process.returncode == 128 + number, said
    assert "all saved; continue with: samadapt finetune resume=" in said
    assert f"resume={run_dir}" in said.replace("\n", "")
    assert "Traceback" not in said
    assert not (run_dir / "adapter").exists()
    taken = int(
        (run_dir / "checkpoints" / "LATEST")
        .read_text(encoding="utf-8")
        .strip()
        .removeprefix("step_")
    )
    assert 6 <= taken < steps

    assert main(["finetune", f"resume={run_dir}"]) == 0
    assert (run_dir / "adapter" / "adapter_model.safetensors").is_file()


def broken_mask(root):
    (root / "masks" / "p3.png").write_bytes(b"no picture")


MISTAKES = [
    (["recipe=medcal"], "got 'medcal'", None),
    (["data.root=nowhere"], "nowhere", None),
    pytest.param([], "masks/p3.png", broken_mask, id="a broken mask"),
    (["data.max_cases=1"], "each needs at least one", None),
    (["data.empty_slices=keep"], "data.empty_slices=keep: box and point prompts", None),
    (["cache.enabled=on", "train.augment=[flip]"], "cache.enabled=on: augmentation", None),
    (["cache.variants=2"], "name the augmentation with train.augment", None),
    (["cache.enabled=on", "peft=full"], "cache.enabled=on: training of the patch", None),
    (["loss=dice_ce"], "loss=dice_ce does not fit prompts=box", None),
    (["loss=sam", "prompts=semantic"], "loss=sam does not fit prompts=semantic", None),
    (["loss.tversky_beta=0.6"], "loss.tversky_beta=0.6 has no effect: loss=auto", None),
    (["prompts.min_area=10000"], "each needs at least one", None),
    (["peft.blocks=last:9"], "the encoder has 4 attention blocks", None),
    (["model.checkpoint=gone.pth"], "gone.pth", None),
]


@pytest.mark.parametrize(
    ("options", "message", "harm"), MISTAKES, ids=lambda value: str(value)[:40]
)
def test_a_mistake_is_one_message_and_exit_code_2(
    make_pictures, recipe, tmp_path, monkeypatch, capsys, options, message, harm
):
    monkeypatch.chdir(tmp_path)
    root = make_pictures()
    if harm is not None:
        harm(root)
    given = {"recipe": str(recipe), "data.root": str(root)}
    given |= dict(option.split("=", 1) for option in options)
    assert main(["finetune", *(f"{key}={value}" for key, value in given.items())]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("samadapt: error:") == 1
    assert "Traceback" not in said.err
    assert said.out == ""
    assert not list(tmp_path.glob("runs/*/*/eval"))
    assert "zero-shot" not in said.err


def test_an_adapter_of_another_base_is_refused(one_step_run, tmp_path):
    adapter = shutil.copytree(one_step_run.adapter_dir, tmp_path / "adapter")
    path = adapter / "samadapt.json"
    values = json.loads(path.read_text(encoding="utf-8")) | {"base_sha256": "0" * 64}
    path.write_text(json.dumps(values | {"record_sha256": digest_of(values)}), encoding="utf-8")
    with pytest.raises(AdapterError, match=r"samadapt\.json: trained on base tiny"):
        samadapt.load_adapter(adapter, device="cpu")


@pytest.mark.parametrize("prompts", ["box", "semantic"])
def test_ignored_values_go_through_a_whole_run(make_pictures, run, prompts, tmp_path):
    """Training, scores, tables, the adapter's record and a second evaluation ignore them."""
    root = make_pictures(8)
    for path in (root / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[-4:, :] = 255
        Image.fromarray(mask).save(path)
    result = run(root, "data.ignore=255", f"prompts={prompts}", "train.steps=2")
    summary = result.summary
    assert list(summary["adapted"]["per_class"]) == ["foreground"]
    assert summary["adapted"]["ignored"]["share"] == pytest.approx(4 / 24)
    assert any("16.7% of the scored voxels are ignored" in note for note in summary["notes"])
    with (result.run_dir / "eval" / "per_case.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["ignored_voxels"] for row in rows} == {"160"}
    assert read_record(result.adapter_dir).data_options["ignore"] == 255
    from samadapt.config.compose import parse_settings
    from samadapt.config.evaluate_arguments import EvaluateArguments
    from samadapt.runs.evaluate import evaluate
    from samadapt.runs.recorded_configuration import recorded_keys

    base = recorded_keys(result.adapter_dir, read_record(result.adapter_dir))
    asked = [f"adapter={result.adapter_dir}", "precision=fp32", f"output.dir={tmp_path / 'again'}"]
    arguments = parse_settings(EvaluateArguments, asked, base, origin="test")
    again = evaluate(arguments).summary["adapted"]
    assert again["dice"] == summary["adapted"]["dice"]
    assert again["ignored"] == summary["adapted"]["ignored"]


def nested_pictures(root, count=6):
    """Pictures with a bright core in a grey rim: values 1 in 2."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(count):
        rng = np.random.default_rng(index)
        mask = np.zeros((24, 40), np.uint8)
        row, column = rng.integers(1, 6), rng.integers(1, 14)
        mask[row : row + 14, column : column + 20] = 2
        mask[row + 4 : row + 10, column + 5 : column + 13] = 1
        image = rng.integers(0, 30, (24, 40)) + np.array([0, 180, 90])[mask]
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"p{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"p{index}.png")
    return root


REGIONS = "data.regions={whole: [1, 2], core: 1}"


@pytest.mark.slow
def test_regions_train_and_are_written_each_as_a_mask(run, tmp_path):
    """Without prompts both are learned: the core is hidden by no other class."""
    root = nested_pictures(tmp_path / "nested")
    rate = ["train.steps=80", "train.lr=3e-3", "train.validate_every=20"]
    result = run(root, REGIONS, "prompts=semantic", "peft.blocks=all", *rate, "eval.overlays=2")
    per_class = result.summary["adapted"]["per_class"]
    assert list(per_class) == ["whole", "core"]
    assert min(entry["dice"] for entry in per_class.values()) > 0.05
    text = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    record = read_record(result.adapter_dir)
    assert (record.overlapping, record.classes) == (True, ["whole", "core"])
    segmenter = samadapt.load_adapter(result.adapter_dir, device="cpu")
    found = segmenter.segment(root / "images" / "p0.png")
    assert found.shape == (2, 24, 40)
    truth = np.asarray(Image.open(root / "masks" / "p0.png"))
    for mask, true, name in zip(found, (truth > 0, truth == 1), ("whole", "core"), strict=True):
        dice = 2 * (mask & true).sum() / (mask.sum() + true.sum())
        with (result.run_dir / "eval" / "per_case.csv").open(encoding="utf-8") as stream:
            (row,) = [
                row
                for row in csv.DictReader(stream)
                if (row["case"], row["class"], row["state"]) == ("p0", name, "adapted")
            ]
        assert float(row["dice"]) == pytest.approx(dice, abs=0.02)


@pytest.mark.parametrize("prompts", ["box", "point"])
def test_prompted_regions_go_through_a_whole_run(run, tmp_path, prompts):
    root = nested_pictures(tmp_path / "nested")
    result = run(root, REGIONS, f"prompts={prompts}", "train.steps=2", "eval.instances=components")
    entries = result.summary["adapted"]["per_class"]
    assert [(name, entry["cases"]) for name, entry in entries.items()] == [
        ("whole", 2),
        ("core", 2),
    ]
    assert result.summary["adapted"]["instances"]["per_class"]["core"]["true_objects"] == 2
    with (result.run_dir / "eval" / "per_case.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        truth = np.asarray(Image.open(root / "masks" / f"{row['case']}.png"))
        voxels = (truth > 0) if row["class"] == "whole" else (truth == 1)
        assert int(row["truth_voxels"]) == voxels.sum()


@pytest.mark.parametrize("prompts", ["box", "semantic"])
def test_a_partly_annotated_case_is_scored_on_what_is_listed(run, tmp_path, prompts):
    root = nested_pictures(tmp_path / "nested")
    listed = {"p0": ["core"], "p1": ["rim"], "p2": {"classes": []}, "*": {}}
    (root / "known.json").write_text(json.dumps(listed), encoding="utf-8")
    classes = "data.classes={core: 1, rim: 2}"
    annotated = f"data.annotated={root / 'known.json'}"
    result = run(root, classes, annotated, f"prompts={prompts}", "train.steps=2")
    with (result.run_dir / "eval" / "per_case.csv").open(encoding="utf-8") as stream:
        scored = {(row["case"], row["class"]) for row in csv.DictReader(stream)}
    assert scored == {("p0", "core"), ("p5", "core"), ("p5", "rim")}
    notes = " ".join(result.summary["notes"])
    assert "classes that are not annotated in some of 2 cases: rim in 1" in notes
    assert result.summary["training_slices"] + result.summary["validation_slices"] == 3
    assert "annotated" not in read_record(result.adapter_dir).data_options


def test_the_model_card_says_that_classes_overlap(run, tmp_path):
    root = nested_pictures(tmp_path / "nested")
    result = run(root, REGIONS, "prompts=semantic", "train.steps=1")
    card = (result.adapter_dir / "README.md").read_text(encoding="utf-8")
    assert "a pixel may belong to several classes" in card
    from samadapt.config.compose import parse_settings
    from samadapt.config.evaluate_arguments import EvaluateArguments
    from samadapt.runs.evaluate import evaluate
    from samadapt.runs.recorded_configuration import recorded_keys

    asked = [f"adapter={result.adapter_dir}", "precision=fp32", f"output.dir={tmp_path / 'again'}"]
    base = recorded_keys(result.adapter_dir, read_record(result.adapter_dir))
    again = evaluate(parse_settings(EvaluateArguments, asked, base, origin="test"))
    assert again.summary["adapted"]["dice"] == result.summary["adapted"]["dice"]
    asked += ["data.regions=null", "data.classes={whole: 1, core: 2}"]
    with pytest.raises(ConfigError, match=r"may overlap; name those .* with data\.regions="):
        evaluate(parse_settings(EvaluateArguments, asked, base, origin="test"))
