"""A run that an earlier version stopped goes on as that version would have gone on."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from samadapt.cli import main

GOLDEN = Path(__file__).parents[1] / "golden"
INPUTS = runpy.run_path(str(GOLDEN / "inputs.py"))
WEIGHTS = "adapter_model.safetensors"


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_of_an_earlier_version_is_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    INPUTS["write_base"](tmp_path)
    INPUTS["write_pictures"](tmp_path)
    shutil.copytree(GOLDEN / "stopped_run", "stopped_run")
    assert main(["finetune", "resume=stopped_run"]) == 0
    found = lines_of(tmp_path / "stopped_run" / "metrics.jsonl")
    expected = lines_of(GOLDEN / "finished_run.jsonl")
    assert [(x["kind"], x["step"]) for x in found] == [(x["kind"], x["step"]) for x in expected]
    # This version draws the noise of prompts from the place of a slice in the training, and that
    # one drew it from a stream. So the steps after the checkpoint have other noise and no other
    # weights to start from: the optimizer, the schedule and the slices are the same.
    for key, near in (("lr", {"rel": 1e-6}), ("loss", {"rel": 0.02}), ("dice", {"abs": 0.02})):
        after = [x[key] for x in found if key in x]
        assert after == pytest.approx([x[key] for x in expected if key in x], **near)
    weights = load_file(tmp_path / "stopped_run" / "adapter" / WEIGHTS)
    golden = load_file(GOLDEN / "lora_box" / WEIGHTS)
    assert weights.keys() == golden.keys()
    away = sum(np.sum((weights[name] - values) ** 2) for name, values in golden.items())
    assert away < 0.05**2 * sum(np.sum(values**2) for values in golden.values())
