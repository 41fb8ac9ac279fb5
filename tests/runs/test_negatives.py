"""Negative training: ``prompts.negatives``, and the counts of false positives."""

from __future__ import annotations

import csv
import json

import pytest

from samadapt.cli import main
from samadapt.errors import ConfigError

VOLUMES = "data.name=nifti"


def test_slices_without_a_class_must_exist(make_pictures, run):
    with pytest.raises(ConfigError, match=r"prompts\.negatives=0\.5: no training slice is without"):
        run(make_pictures(), "prompts=semantic", "prompts.negatives=0.5")


@pytest.mark.slow
def test_false_positives_without_prompts_are_in_summary_table_page_and_evaluation(
    make_scans, run, capsys
):
    root = make_scans(6)
    result = run(root, VOLUMES, "prompts=semantic", "prompts.negatives=0.5")
    counts = result.summary["adapted"]["false_positives"]
    assert "false_positives" not in result.summary["zero_shot"]  # its boxes say where objects are
    cases = result.summary["cases"]
    # One slice of four is without both classes.
    assert (counts["cases"], counts["empty_slices"]) == (cases, 2 * cases)
    assert 0 <= counts["false_slices"] <= counts["empty_slices"]
    path = result.run_dir / "eval" / "false_positives.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert {(line["class"], line["state"]) for line in lines} == {
        ("front", "adapted"),
        ("back", "adapted"),
    }
    assert sum(int(line["false_voxels"]) for line in lines) == counts["false_voxels"]
    page = (result.run_dir / "report.html").read_text(encoding="utf-8")
    assert "False positives without a prompt" in page
    keys = [f"adapter={result.adapter_dir}", f"data.root={root}", "precision=fp32"]
    capsys.readouterr()
    assert main(["evaluate", *keys]) == 0
    assert "False positives without a prompt" in capsys.readouterr().out
    assert main(["evaluate", *keys, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["summary"]["adapted"]["false_positives"]
    assert again == counts


@pytest.mark.slow
def test_a_prompted_model_is_asked_where_nothing_is(make_scans, run, capsys):
    root = make_scans(4)
    keys = [VOLUMES, "prompts.negatives=0.5", "folds=2", "train.steps=2"]
    result = run(root, *keys)
    for state in ("zero_shot", "adapted"):
        entry = result.summary[state]["absent_prompts"]
        assert 0 < entry["asked"] <= 4 * 3 * 2  # two objects in three slices of each volume
        assert entry["share"] == pytest.approx(entry["answered"] / entry["asked"])
    page = (result.run_dir / "report.html").read_text(encoding="utf-8")
    assert "Prompts where nothing is" in page
    kinds = "prompts.shares={point: 2, mask: 1, scribble: 1, semantic: 1}"
    both = run(root, VOLUMES, "prompts=mixed", kinds, "prompts.negatives=0.3", "train.steps=2")
    entries = both.summary["by_prompt"]
    for kind in ("point", "mask", "scribble"):
        assert entries[kind]["adapted"]["absent_prompts"]["asked"] > 0
    assert entries["semantic"]["adapted"]["false_positives"]["empty_slices"] > 0
    page = (both.run_dir / "report.html").read_text(encoding="utf-8")
    assert "semantic, adapted" in page


@pytest.mark.slow
def test_a_stopped_negative_training_ends_bit_equal(make_scans, resumes_bit_equal):
    keys = [VOLUMES, "prompts=interactive", "prompts.clicks=1", "prompts.negatives=0.4"]
    resumes_bit_equal(make_scans(6), keys, ["adapter/adapter_model.safetensors"])
