"""Thresholds of masks without prompts: which pictures choose, and when others are kept."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from samadapt.adapters.record import AdapterRecord
from samadapt.data.dataset import open_dataset
from samadapt.errors import ConfigError
from samadapt.prompts.policy import PromptPolicy
from samadapt.runs import tune_masks
from samadapt.runs.tune_masks import TunedMasks, is_better


@pytest.fixture
def dataset(tmp_path):
    """Forty pictures with an object each."""
    root = tmp_path / "data"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(40):
        truth = np.zeros((8, 9), np.uint8)
        truth[2:5, 1:6] = 1
        picture = np.random.default_rng(number).integers(0, 255, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "images" / f"{number:02}.png")
        Image.fromarray(truth).save(root / "masks" / f"{number:02}.png")
    return open_dataset("folder", root=root)


def record(**entries):
    return AdapterRecord("tiny", "", 64, prompt=PromptPolicy("box").to_dict(), **entries)


def test_only_validation_cases_choose_and_only_unseen_ones_are_scored(dataset, tmp_path):
    adapter = tmp_path / "adapter"
    choosing = {ref.case for ref in tune_masks._validation(dataset, adapter, record(), 99)}
    scored = {ref.case for ref in tune_masks._held_out(dataset, record(), 99)}
    assert len(choosing) == 3  # a tenth of those that train
    assert choosing < set(dataset.case_splits.train)
    assert scored == set(dataset.case_splits.val)
    # Of the recorded training images every tenth chose.
    kept = [case for case in dataset.cases if case.name in dataset.case_splits.train][:10]
    few = record(trained_on={case.digest: None for case in kept})
    chose = [ref.case for ref in tune_masks._validation(dataset, adapter, few, 99)]
    assert chose == [kept[5].name]
    # Held-out pictures that the adapter has seen are not scored.
    first = dataset.case(dataset.case_splits.val[0])
    known = record(trained_on={first.digest: None})
    assert first.name not in {ref.case for ref in tune_masks._held_out(dataset, known, 99)}


def test_a_training_that_set_nothing_aside_cannot_be_tuned(dataset, tmp_path):
    keys = {"train": {"validate_cases": 0}, "data": {"name": "folder", "root": "here"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"it had none \(train.validate_cases=0\)"):
        tune_masks._validation(dataset, tmp_path / "adapter", record(), 8)


def test_at_most_so_many_pictures_are_taken_from_everywhere(dataset):
    refs = dataset.slices("train")
    some = tune_masks._some(dataset, refs, 7)
    assert len(some) <= 7
    assert [refs.index(ref) for ref in some[:3]] == [0, 5, 10]


@pytest.mark.parametrize(
    ("tried", "given", "better"),
    [
        ([[0.5], [0.6]], [0.55], True),
        ([[0.5], [0.6]], [0.6], False),  # the given ones stay among equals
        ([[0.9, 0.1], [0.1, 0.8]], [0.45, 0.45], False),  # each fits one picture alone
        ([[0.9, 0.8], [0.1, 0.8]], [0.45, 0.45], True),
        ([[0.6, 0.6, 0.2], [0.5, 0.5, 0.5]], [0.35, 0.35, 0.35], True),
    ],
)
def test_others_must_be_better_on_pictures_that_did_not_choose(tried, given, better):
    assert is_better(np.array(tried), np.array(given)) is better


@pytest.mark.parametrize(
    ("pictures", "objects", "warns"), [(8, 8, False), (7, 90, True), (9, 3, True)]
)
def test_few_pictures_or_objects_warn(pictures, objects, warns):
    empty = ({}, {})
    tuned = TunedMasks(SimpleNamespace(), True, empty, None, pictures, objects, 0)
    assert bool(tuned.warnings) is warns
