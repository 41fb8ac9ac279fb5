"""Final scores with a second pass are those of the same prediction."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from samadapt.errors import PromptError
from samadapt.evaluation import second_pass as module
from samadapt.inference.segmenter import load_adapter


@pytest.mark.slow
def test_scores_of_a_second_pass_are_those_of_its_prediction(make_pictures, run, monkeypatch):
    monkeypatch.setattr(module, "AGREEMENT", 0.0)  # a random base agrees with nobody
    root = make_pictures(classes=2)
    keys = "prompts=semantic", "train.lr=0.01", "train.steps=8"
    plain, refined = (run(root, *keys, f"eval.second_pass={one}") for one in ("null", "base"))
    assert refined.summary["best_validation_dice"] == plain.summary["best_validation_dice"]
    assert refined.summary["zero_shot"]["dice"] == plain.summary["zero_shot"]["dice"]
    assert refined.summary["adapted"]["dice"] != plain.summary["adapted"]["dice"]
    assert refined.summary["second_pass"] == "base"
    assert "second_pass" not in plain.summary
    segmenter = load_adapter(refined.adapter_dir, device="cpu")
    table = refined.run_dir / "eval" / "per_case.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] == "adapted"]
    assert rows
    for row in rows:
        label = segmenter.classes.index(row["class"]) + 1
        found = segmenter.segment(root / "images" / f"{row['case']}.png", second_pass="base")
        true = np.asarray(Image.open(root / "masks" / f"{row['case']}.png")) == label
        both = 2 * ((found == label) & true).sum()
        assert float(row["dice"]) == pytest.approx(
            both / ((found == label).sum() + true.sum()), abs=0.02
        )


def test_a_second_pass_is_refused_with_prompts(make_pictures, run):
    with pytest.raises(PromptError, match=r"eval\.second_pass=base .*got prompts=box"):
        run(make_pictures(), "eval.second_pass=base")
