"""``prompts=mixed``: one adapter for boxes, points, clicks and classes, scored with each."""

from __future__ import annotations

import json

import numpy as np
import pytest

import samadapt
from samadapt.adapters.record import read_record
from samadapt.cli import main
from samadapt.config.compose import compose
from samadapt.errors import ConfigError
from samadapt.reports.tables import read_per_case
from samadapt.runs.scorer import mean_by_share

MIXED = ["data.name=nifti", "prompts=mixed", "prompts.clicks=1"]
KINDS = {"box", "point", "mask", "interactive", "semantic"}


def test_the_validation_is_the_mean_by_share():
    shares = {"box": 0.75, "semantic": 0.25}
    assert mean_by_share({"box": 0.8, "semantic": 0.4}, shares) == pytest.approx(0.7)
    assert mean_by_share({"box": 0.8, "semantic": np.nan}, shares) == pytest.approx(0.8)
    assert np.isnan(mean_by_share({"box": np.nan}, shares))
    assert mean_by_share({"box": 0.1 + 0.2}, {}) == 0.1 + 0.2  # one kind alone, bit for bit


def test_shares_without_a_mixture_and_slices_without_prompts_are_refused(make_scans, run):
    root = make_scans()
    with pytest.raises(ConfigError, match=r"prompts\.shares=.* has no effect with prompts=box"):
        run(root, "data.name=nifti", "prompts.shares={box: 1, semantic: 1}")
    keys = ["prompts=mixed", "prompts.shares={box: 1, point: 1}", "data.empty_slices=keep"]
    with pytest.raises(ConfigError, match=r"data\.empty_slices=keep: box and point prompts need"):
        run(root, "data.name=nifti", *keys)
    with pytest.raises(ConfigError, match=r"head=unet .* got prompts=mixed"):
        run(root, "data.name=nifti", "prompts=mixed", "head=unet")


def test_another_kind_on_the_command_line_drops_the_shares_of_a_recipe(recipe, tmp_path):
    text = recipe.read_text(encoding="utf-8")
    mixed = tmp_path / "mixed.yaml"
    more = "prompts: {name: mixed, shares: {box: 1, semantic: 1}}\n"
    mixed.write_text(text + more, encoding="utf-8")
    assert compose(str(mixed), []).prompts.shares == {"box": 1.0, "semantic": 1.0}
    assert compose(str(mixed), ["prompts=box"]).prompts.shares is None


@pytest.mark.slow
def test_one_adapter_is_trained_and_scored_with_every_kind(make_scans, run, capsys):
    root = make_scans(6)
    result = run(root, *MIXED)
    summary = result.summary
    assert set(summary["by_prompt"]) == KINDS
    assert summary["prompt"] == "mixed"
    assert summary["by_prompt"]["box"]["share"] == 0.2
    assert summary["by_prompt"]["box"]["adapted"]["dice"] == summary["adapted"]["dice"]
    assert summary["by_prompt"]["semantic"]["zero_shot"]["prompt"]["kind"] == "box"
    lines = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    validated = [x for x in map(json.loads, lines) if x["kind"] == "validate"]
    for line in validated:
        assert line["dice"] == pytest.approx(np.mean(list(line["by_prompt"].values())))
    log = (result.run_dir / "log.txt").read_text(encoding="utf-8")
    assert "validation Dice" in log
    assert "interactive 0." in log
    for kind in KINDS:
        rows = read_per_case(result.run_dir / "eval" / "by_prompt" / kind)
        mean = np.nanmean([row.dice for row in rows["adapted"]])
        assert mean == pytest.approx(summary["by_prompt"][kind]["adapted"]["dice"], abs=1e-6)
    page = (result.run_dir / "report.html").read_text(encoding="utf-8")
    assert "Dice by kind of prompt" in page
    card = (result.adapter_dir / "README.md").read_text(encoding="utf-8")
    assert "| prompt | Dice before training | Dice adapted |" in card
    record = read_record(result.adapter_dir)
    assert (record.class_tokens, record.prompt["kind"]) == (2, "mixed")
    # An evaluation finds the same scores, and one kind can be asked for alone.
    keys = [f"adapter={result.adapter_dir}", f"data.root={root}", "precision=fp32", "--json"]
    capsys.readouterr()
    assert main(["evaluate", *keys]) == 0
    again = json.loads(capsys.readouterr().out)["summary"]
    assert main(["evaluate", *keys, "prompts=semantic"]) == 0
    alone = json.loads(capsys.readouterr().out)["summary"]
    for kind in KINDS:
        expected = summary["by_prompt"][kind]["adapted"]["dice"]
        assert again["by_prompt"][kind]["adapted"]["dice"] == pytest.approx(expected, abs=1e-6)
    assert "by_prompt" not in alone
    assert alone["adapted"]["dice"] == pytest.approx(
        summary["by_prompt"]["semantic"]["adapted"]["dice"], abs=1e-6
    )
    assert main(["evaluate", *keys, "prompts=matrix"]) == 0
    assert {"none", "box"} <= set(json.loads(capsys.readouterr().out)["summary"]["oracle_gap"])
    # One loaded adapter answers with and without prompts.
    segmenter = samadapt.load_adapter(result.adapter_dir, device="cpu")
    image = np.random.default_rng(0).uniform(1, 300, (20, 28)).astype(np.float32)
    classes = segmenter.segment(image)
    boxed = segmenter.segment(image, boxes=[[2, 3, 12, 14]], labels="front")
    clicked = segmenter.segment(image, points=[[6, 8]], labels="front")
    assert classes.shape == boxed.shape == clicked.shape == (20, 28)
    assert set(np.unique(boxed)) <= {0, 1}
    assert not np.array_equal(boxed, clicked)
    found = segmenter.predict(image, objects=True)
    assert "fitted to prompts=box" in found.no_confidence


@pytest.mark.slow
def test_a_stopped_mixture_ends_bit_equal(make_scans, resumes_bit_equal):
    files = ["adapter/adapter_model.safetensors", "eval/by_prompt/semantic/per_case.csv"]
    resumes_bit_equal(make_scans(6), [*MIXED, "train.augment=[flip,noise]"], files)


@pytest.mark.slow
def test_every_kind_trains_in_every_step_and_resumes(make_scans, resumes_bit_equal):
    files = ["adapter/adapter_model.safetensors", "eval/by_prompt/mask/per_case.csv"]
    keys = ["prompts.every_kind=true", "data.slice_step=2", "prompts.max_objects=2"]
    resumes_bit_equal(make_scans(6), [*MIXED, *keys], files)


@pytest.mark.slow
def test_folds_pool_the_scores_of_every_kind(make_scans, run):
    root = make_scans(4)
    keys = ["prompts.shares={box: 1, semantic: 3}", "folds=2", "train.steps=1"]
    result = run(root, *MIXED, *keys)
    pooled = result.summary["by_prompt"]
    assert set(pooled) == {"box", "semantic"}
    rows = read_per_case(result.run_dir / "eval" / "by_prompt" / "box")["adapted"]
    assert {row.case for row in rows} == {f"scan_{index}" for index in range(4)}
    assert pooled["semantic"]["adapted"]["dice"] == result.summary["adapted"]["dice"]
