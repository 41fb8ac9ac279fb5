"""``eval.keep_largest``: which classes are one piece, and what runs and predictions do with it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from skimage.measure import label

import samadapt
from samadapt.adapters.record import read_record
from samadapt.cli import main
from samadapt.errors import ConfigError
from samadapt.runs.kept_components import classes_of_one_piece, kept_classes

CLASSES = ["organ", "lesion", "rare"]


def data(*volumes, slab=None):
    """Return what the rule reads of a data set: volumes (h, w, d) of class ids."""
    by_name = {f"v{number}": volume for number, volume in enumerate(volumes)}
    return SimpleNamespace(
        classes=CLASSES,
        train=list(by_name),
        case=lambda name: SimpleNamespace(shape=by_name[name].shape),
        case_splits=SimpleNamespace(slab=slab),
        samples=lambda name: [
            SimpleNamespace(truth=by_name[name][..., index])
            for index in range(by_name[name].shape[2])
        ],
    )


def volume(depth=3, *, lesions=2):
    labels = np.zeros((8, 8, depth), np.int16)
    labels[1:3, 1:3, 0] = 1  # connected through a corner to the next slice
    labels[3, 3, 1:] = 1
    labels[6, : lesions * 3 : 3, 0] = 2
    return labels


def test_a_class_with_one_component_in_every_volume_is_one_piece():
    assert classes_of_one_piece(data(volume(), volume(), volume())) == ["organ"]
    assert classes_of_one_piece(data(*[volume(lesions=1)] * 3)) == ["organ", "lesion"]
    split = volume()
    split[7, 7, 2] = 1
    assert classes_of_one_piece(data(volume(), volume(), volume(), split)) == []


def test_pictures_few_volumes_and_a_part_of_one_have_no_class_of_one_piece():
    assert classes_of_one_piece(data(volume(), volume())) == []
    assert classes_of_one_piece(data(*[volume(depth=1)] * 3)) == []
    assert classes_of_one_piece(data(*[volume()] * 3, slab=object())) == []


def test_classes_are_named_or_none():
    assert kept_classes(None, data(*[volume()] * 3)) == []
    assert kept_classes(["lesion"], data(volume())) == ["lesion"]
    with pytest.raises(ConfigError, match=r"eval\.keep_largest: .* got 'organs'"):
        kept_classes(["organs"], data(volume()))


@pytest.mark.slow
def test_pictures_keep_what_is_named_in_scores_and_predictions(make_pictures, run, capsys):
    root = make_pictures(6)
    result = run(root, "prompts=semantic", "train.steps=1", "eval.keep_largest=[foreground]")
    keys = [f"adapter={result.adapter_dir}", f"data.root={root}", "precision=fp32", "--json"]

    def dice(*more):
        capsys.readouterr()
        assert main(["evaluate", *keys, *more]) == 0
        return json.loads(capsys.readouterr().out)["summary"]["adapted"]["dice"]

    # After one step the mask is speckled, so it makes a difference.
    assert dice() == pytest.approx(result.summary["adapted"]["dice"], abs=1e-6)
    assert dice() != pytest.approx(dice("eval.keep_largest=[]"), abs=1e-6)
    segmenter = samadapt.load_adapter(result.adapter_dir, device="cpu")
    image = sorted((root / "images").iterdir())[-1]
    kept = segmenter.segment(image)
    assert label(kept, connectivity=2).max() <= 1
    assert label(segmenter.segment(image, keep_largest=False), connectivity=2).max() > 1


@pytest.mark.slow
def test_a_run_records_what_it_kept_and_predictions_follow(make_scans, run, capsys):
    root = make_scans(6)
    keys = ["data.name=nifti", "prompts=semantic", "eval.keep_largest=[front]"]
    result = run(root, *keys)
    record = read_record(result.adapter_dir)
    assert record.keep_largest == ["front"]
    keys = [f"adapter={result.adapter_dir}", f"data.root={root}", "precision=fp32", "--json"]
    capsys.readouterr()
    assert main(["evaluate", *keys]) == 0
    again = json.loads(capsys.readouterr().out)["summary"]["adapted"]
    assert again["dice"] == pytest.approx(result.summary["adapted"]["dice"], abs=1e-6)
    segmenter = samadapt.load_adapter(result.adapter_dir, device="cpu")
    image = sorted((root / "imagesTr").iterdir())[0]
    kept = segmenter.segment(image)
    assert np.array_equal(kept, segmenter.segment(image, keep_largest=["front"]))
    everything = segmenter.segment(image, keep_largest=False)
    assert ((kept == 0) | (kept == everything)).all()
    # A slice of an organ may show it in several pieces, so a picture keeps them.
    one = np.random.default_rng(0).normal(size=(24, 24)).astype(np.float32)
    assert np.array_equal(segmenter.segment(one), segmenter.segment(one, keep_largest=False))
