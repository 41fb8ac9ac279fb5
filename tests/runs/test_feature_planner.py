"""The planner of features: an image is hashed once, and later found by its key."""

from __future__ import annotations

import json

import pytest

from samadapt.training.features import Features
from samadapt.training.loop import TrainableTail


@pytest.fixture
def computed(monkeypatch):
    """How many images went through the frozen blocks so far, at each forward pass of the tail."""
    count, at_forward = [0], []
    compute, forward = Features.compute, TrainableTail.forward

    def counted(self, images):
        count[0] += len(images)
        return compute(self, images)

    def noted(self, *given):
        at_forward.append(count[0])
        return forward(self, *given)

    monkeypatch.setattr(Features, "compute", counted)
    monkeypatch.setattr(TrainableTail, "forward", noted)
    return at_forward


OPTIONS = ["peft.blocks=last:2", "train.batch_size=2", "train.validate_every=0"]


def test_only_features_that_steps_and_scores_read_are_computed(make_pictures, run):
    result = run(make_pictures(24), *OPTIONS, "train.steps=2")
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
    # Of 24 pictures 5 are held out and 2 validate; 2 steps read 4 of the 17 others.
    assert "features: 11 images" in log
    assert "features: 11 computed, 0 reused" in log


def test_training_begins_before_all_features_are_there(make_pictures, run, computed, monkeypatch):
    monkeypatch.setattr("samadapt.runs.plan_line._is_measured", lambda *_: False)
    run(make_pictures(40), *OPTIONS, "train.steps=14")
    assert computed[0] <= 1 + 8  # one that says their size, and a batch of them
    assert computed[-1] > 30


def test_features_that_are_changed_versions_are_foreseen_too(make_pictures, run, computed):
    options = [*OPTIONS, "train.augment=[flip]", "cache.variants=5", "train.steps=9"]
    result = run(make_pictures(12), *options)
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
    planned = int(log.partition("features: ")[2].split()[0])
    assert f"features: {planned} computed, 0 reused" in log
    steps = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(json.loads(line)["kind"] == "train" for line in steps) == 9


def test_a_resumed_run_with_features_in_memory_ends_bit_equal(make_pictures, resumes_bit_equal):
    options = [*OPTIONS, "train.steps=5", "cache.where=memory"]
    resumes_bit_equal(make_pictures(14), options, ["adapter/adapter_model.safetensors"])


def test_an_image_is_hashed_once_in_a_whole_run(make_pictures, run, monkeypatch):
    hashed, right = [], Features.key

    def key(self, image):
        hashed.append(right(self, image))
        return hashed[-1]

    monkeypatch.setattr(Features, "key", key)
    run(make_pictures(), "peft.blocks=last:2", "train.steps=6", "train.validate_every=1")
    assert len(hashed) == len(set(hashed)) == 8  # training, validation and both scorings included


def log_of(result):
    return (result.run_dir / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["data.val_every=0", "train.validate_cases=0", "train.augment=[flip]"], "plan: "),
        (["train.augment=[flip]", "train.steps=12"], "features: 3 computed, 0 reused"),
        (["eval.tta=flip", "prompts=semantic"], "features: 8 computed, 0 reused"),
        (["train.patience=1", "train.validate_every=1", "train.steps=90"], " not needed"),
        (["peft=none", "peft.decoder=frozen"], "features: 3 images"),
    ],
)
def test_the_counts_are_those_of_kept_features(make_pictures, run, options, said):
    count = 40 if "patience" in options[0] else 8
    result = run(make_pictures(count), "peft.blocks=last:2", "train.steps=3", *options)
    assert said in log_of(result)


def test_features_that_are_there_are_not_computed_again(make_pictures, run, tmp_path):
    root = make_pictures(30)
    options = [*OPTIONS, "train.steps=20", f"cache.dir={tmp_path / 'kept'}"]
    images = run(root, *options)
    files = sorted((tmp_path / "kept").glob("*.safetensors"))
    for file in files[::5]:
        file.unlink()
    again = run(root, *options)
    assert f"features: {len(files)} computed, 0 reused" in log_of(images)
    assert f"{len(files[::5])} computed, {len(files) - len(files[::5])} reused" in log_of(again)
