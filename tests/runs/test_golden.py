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
    for key in ("loss", "lr", "dice"):
        after = [x[key] for x in found if key in x]
        assert after == pytest.approx([x[key] for x in expected if key in x], rel=1e-4)
    weights = load_file(tmp_path / "stopped_run" / "adapter" / WEIGHTS)
    for name, values in load_file(GOLDEN / "lora_box" / WEIGHTS).items():
        np.testing.assert_allclose(weights[name], values, rtol=1e-4, atol=1e-6)
