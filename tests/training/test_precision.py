"""Which arithmetic and device a run takes, and why."""

from __future__ import annotations

import pytest
import torch

from samadapt.errors import ConfigError
from samadapt.training import precision
from samadapt.training.precision import choose_device, choose_precision

CPU = torch.device("cpu")


def test_what_is_asked_for_is_taken():
    full = choose_precision("fp32", CPU)
    assert (full.name, full.dtype, full.accelerate_name) == ("fp32", torch.float32, "no")
    half = choose_precision("bf16", CPU)
    assert (half.name, half.dtype, half.accelerate_name) == ("bf16", torch.bfloat16, "bf16")
    a = torch.ones(2, 2)
    with half.autocast(CPU):
        assert (a @ a).dtype == torch.bfloat16
    with full.autocast(CPU):
        assert (a @ a).dtype == torch.float32


@pytest.mark.parametrize(("ratio", "name"), [(1.2, "fp32"), (3.0, "bf16")])
def test_auto_measures_a_cpu(monkeypatch, ratio, name):
    monkeypatch.setattr(precision, "_bf16_speedup", lambda: ratio)
    chosen = choose_precision("auto", CPU)
    assert chosen.name == name
    assert f"{ratio:.1f}x" in chosen.reason
    assert choose_precision("auto", torch.device("mps")).name == "fp32"


def test_the_measure_is_a_ratio():
    assert 0 < precision._bf16_speedup(side=64, repeats=1) < 1000


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_gets_what_it_has(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    device = torch.device("cuda")
    assert choose_precision("auto", device).name == ("bf16" if supported else "fp32")
    if not supported:
        with pytest.raises(ConfigError, match="this GPU has no bf16; use precision=fp32"):
            choose_precision("bf16", device)


def test_a_device_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    assert choose_device("cpu") == CPU
    with pytest.raises(ConfigError, match="device=cuda: not available here; this machine has: cpu"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
