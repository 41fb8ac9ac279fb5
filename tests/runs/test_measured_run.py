"""What a finished run needed, kept for the next one of its kind."""

from __future__ import annotations

import json

import pytest

from samadapt.config.compose import compose
from samadapt.runs import measured_run
from samadapt.runs.measured_run import MeasuredRun, find_run, keep_run
from samadapt.training.progress import Clock


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path / "cache"))
    return compose("photos", ["data.root=."])


def clock_of(**seconds):
    clock = Clock(dict.fromkeys(seconds, 10), {})
    for phase, value in seconds.items():
        clock.spent(phase, 10, value)
    return clock


def test_a_run_is_found_again(config):
    assert find_run(config) is None
    summary = {"seconds": 47.0, "peak_memory_bytes": 3 * 10**9}
    keep_run(config, clock_of(features=10.0, train=30.0), summary)
    found = find_run(config)
    assert found == MeasuredRun(3 * 10**9, 7.0, {"features": 1.0, "train": 3.0})
    assert found.seconds({"features": 4, "train": 20, "adapted": 9, "validation": 0}) == {
        "start": 7.0,
        "features": 4.0,
        "train": 60.0,
    }
    assert find_run(compose("photos", ["data.root=.", "train.steps=7"])) == found
    assert find_run(compose("photos", ["data.root=.", "train.batch_size=2"])) is None


def test_what_was_not_measured_again_is_kept(config):
    summary = {"seconds": 40.0, "peak_memory_bytes": 1}
    keep_run(config, clock_of(features=10.0, train=30.0), summary)
    keep_run(config, clock_of(train=20.0), summary)  # its features were all there
    assert find_run(config).unit_seconds == {"features": 1.0, "train": 2.0}


@pytest.mark.parametrize("text", ["{broken", "[]", json.dumps({"memory_bytes": 1})])
def test_a_broken_file_is_none(config, text):
    keep_run(config, clock_of(train=1.0), {"seconds": 1.0, "peak_memory_bytes": 1})
    measured_run._file(config).write_text(text, encoding="utf-8")
    assert find_run(config) is None
