"""The confidence of objects: fitted to validation cases and measured on held-out ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from samadapt.adapters.record import read_record
from samadapt.errors import PromptError
from samadapt.evaluation import confidence as module
from samadapt.evaluation.confidence import read_curve
from samadapt.inference.segmenter import load_adapter


@pytest.fixture
def any_number(monkeypatch):
    """Let a curve be fitted to a handful of objects, as a small run has them."""
    monkeypatch.setattr(module, "FEWEST", 1)
    monkeypatch.setattr(module, "FEWEST_OF_A_KIND", 0)


def test_a_small_run_says_why_there_is_none(make_pictures, run):
    result = run(make_pictures())
    reason = read_record(result.adapter_dir).confidence["reason"]
    assert reason.startswith("the validation cases gave 1 predicted objects")
    assert result.summary["adapted"]["confidence"] == {"reason": reason}
    found = load_adapter(result.adapter_dir, device="cpu").predict(
        np.zeros((24, 40, 3), np.uint8), boxes=[[3, 3, 30, 20]], objects=True
    )
    assert found.no_confidence == reason


@pytest.mark.parametrize("prompts", ["box", "semantic"])
def test_the_curve_is_fitted_recorded_and_measured(make_pictures, run, any_number, prompts):
    root = make_pictures(classes=2)
    result = run(root, f"prompts={prompts}", "train.lr=0.01", "train.steps=8")
    record = read_record(result.adapter_dir)
    curve = read_curve(record.confidence)
    assert curve.objects > 0
    measured = result.summary["adapted"]["confidence"]
    assert measured["objects"] > 0
    assert 0 <= measured["expected_error"] <= 1
    assert "confidence" not in result.summary["zero_shot"]
    segmenter = load_adapter(result.adapter_dir, device="cpu")
    given = {"boxes": [[3, 3, 30, 20]], "labels": record.classes[0]} if prompts == "box" else {}
    image = root / "images" / "p0.png"
    found = segmenter.predict(image, objects=True, **given)
    assert found.objects
    for one in found.objects:
        assert one.confidence == pytest.approx(curve(one.probability))


def test_final_scores_of_mirrored_copies(make_pictures, run):
    root = make_pictures(classes=2)
    plain, mirrored = (run(root, "prompts=semantic", f"eval.tta={tta}") for tta in ("null", "flip"))
    lines = [
        [
            json.loads(line)
            for line in (one.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for one in (plain, mirrored)
    ]
    assert [line.get("val_dice") for line in lines[0]] == [
        line.get("val_dice") for line in lines[1]
    ]
    assert mirrored.summary["adapted"]["dice"] != plain.summary["adapted"]["dice"]
    assert mirrored.summary["tta"] == "flip"
    assert "tta" not in plain.summary


def test_sides_are_refused_before_anything_is_trained(make_pictures, run, tmp_path):
    root = make_pictures(classes=2)
    sides = "data.classes={left: 1, right: 2}"
    with pytest.raises(PromptError, match=r"eval\.tta=flip: .*classes left, right name a side"):
        run(root, "prompts=semantic", sides, "eval.tta=flip")
    assert not any((tmp_path / "runs").rglob("adapter"))
