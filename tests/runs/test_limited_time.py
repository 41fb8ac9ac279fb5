"""``train.max_seconds`` and ``train.max_cpu_seconds`` of a whole run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from samadapt.cli import main
from samadapt.config.compose import from_yaml
from samadapt.errors import ConfigError
from samadapt.training import budget
from samadapt.training.features import Features
from samadapt.training.loop import TrainableTail


@pytest.fixture
def clocks(monkeypatch):
    """Clocks that move by a second for each image in the frozen blocks."""
    now = np.zeros(2)
    monkeypatch.setattr(budget, "read_clocks", lambda: now.copy())
    compute = Features.compute

    def timed(self, images):
        now[:] += len(images)
        return compute(self, images)

    monkeypatch.setattr(Features, "compute", timed)
    return now


@pytest.fixture
def timed_steps(clocks, monkeypatch):
    """``clocks``, in which a step takes a second too."""
    forward = TrainableTail.forward

    def timed(self, *given):
        clocks[:] += 1
        return forward(self, *given)

    monkeypatch.setattr(TrainableTail, "forward", timed)
    return clocks


@pytest.mark.usefixtures("timed_steps")
def test_features_and_steps_share_the_time_and_scores_are_outside(make_pictures, run):
    # Of 8 pictures two are held out, so that the features take 6 s.
    result = run(make_pictures(), "train.max_seconds=16.5")
    summary = result.summary
    assert summary["ended_by"] == "time"
    assert summary["last_step"] == 10
    assert summary["time"] == {
        "max_seconds": 16.5,
        "max_cpu_seconds": None,
        "used_seconds": 16.0,
        "used_cpu_seconds": 16.0,
    }
    assert any("16.0 of 16.5 s (train.max_seconds) used" in note for note in summary["notes"])
    assert "16.0 of 16.5 s (train.max_seconds) used" in (result.run_dir / "report.html").read_text(
        encoding="utf-8"
    )
    assert summary["adapted"]["dice"] is not None
    assert from_yaml(result.run_dir / "config.yaml").train.steps is None


@pytest.mark.slow
@pytest.mark.usefixtures("timed_steps")
def test_a_run_out_of_time_is_scored_again_and_trains_on_with_more(make_pictures, run, capsys):
    result = run(make_pictures(), "train.max_cpu_seconds=9.5")
    assert result.summary["last_step"] == 3
    weights = result.adapter_dir / "adapter_model.safetensors"
    before = weights.read_bytes()
    assert main(["finetune", f"resume={result.run_dir}"]) == 0
    assert weights.read_bytes() == before
    assert main(["finetune", f"resume={result.run_dir}", "train.max_cpu_seconds=13.5"]) == 0
    lines = map(
        json.loads, (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    )
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["used_cpu_seconds"] for line in steps] == [7, 8, 9, 10, 11, 12, 13]
    assert "13.0 of 13.5 CPU-seconds (train.max_cpu_seconds) used" in capsys.readouterr().err


@pytest.mark.usefixtures("clocks")
def test_features_that_take_all_the_time_are_refused(make_pictures, run, tmp_path):
    root = make_pictures()
    with pytest.raises(ConfigError, match=r"the features took 6\.0 of 5 s \(train\.max_seconds\)"):
        run(root, "train.max_seconds=5")
    assert not list((tmp_path / "runs").rglob("config.yaml"))


@pytest.mark.slow
def test_real_clocks(make_pictures, run):
    result = run(make_pictures(), "train.max_seconds=3", "train.validate_every=5")
    time = result.summary["time"]
    assert 0.5 < time["used_seconds"] < 5
    assert time["used_cpu_seconds"] > 0
    assert result.summary["last_step"] > 1
