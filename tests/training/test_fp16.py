"""``precision=fp16``: the loss is scaled, and a scale that is too large is no bad step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.amp import GradScaler

from samadapt.adapters.store import trainable_state
from samadapt.errors import DivergedError, RunError
from samadapt.training import loop
from samadapt.training.checkpoint import load_checkpoint
from samadapt.training.loop import LoopOptions
from samadapt.training.precision import Precision

CPU = torch.device("cpu")
FP16 = Precision("fp16", "")
OPTIONS = LoopOptions(steps=4, lr=1e-3, warmup_steps=1, validate_every=0, checkpoint_every=2)


def training_of(tools, folder, precision=FP16, scale=None, **options):
    made = tools.make_training(folder, kind="box", **options)
    made.precision, made.scaler = precision, precision.scaler(CPU)
    if scale is not None:
        made.scaler = GradScaler("cpu", init_scale=scale, enabled=precision.name == "fp16")
    return made


def gradient_of(tools, folder, precision, factor=1.0, scale=1024.0):
    """Return the gradient of the first step, in fp32."""
    made = training_of(tools, folder, precision, scale)
    right = made.loss
    made.loss = lambda *given: _times(right(*given), factor)
    options = replace(OPTIONS, steps=1, clip=0.0)
    found = []
    before = torch.optim.AdamW.step

    def step(self, *given):
        parameters = [p for group in self.param_groups for p in group["params"]]
        found.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        return before(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        loop.train(made, options, None)
    return found[0]


def _times(terms, factor):
    return replace(terms, total=terms.total * factor)


def test_the_gradient_is_that_of_fp32(tools, tmp_path):
    full = gradient_of(tools, tmp_path / "full", Precision("fp32", ""))
    half = gradient_of(tools, tmp_path / "half", FP16)
    brain = gradient_of(tools, tmp_path / "brain", Precision("bf16", ""))
    assert half.dtype == torch.float32
    assert (half - full).norm() < 0.03 * full.norm()
    assert (half - full).norm() < (brain - full).norm()


def test_small_gradients_do_not_vanish(tools, tmp_path):
    """Without a scale they round to zero in fp16, which ends at 6e-8."""
    full = gradient_of(tools, tmp_path / "full", Precision("fp32", ""), factor=1e-7)
    scaled = gradient_of(tools, tmp_path / "scaled", FP16, factor=1e-7, scale=2.0**32)
    assert (scaled - full).norm() < 0.02 * full.norm()
    with pytest.raises(RunError, match="no gradient reached block 0"):
        gradient_of(tools, tmp_path / "plain", FP16, factor=1e-7, scale=1.0)


def test_a_scale_that_is_too_large_is_halved_and_no_bad_step(tools, tmp_path):
    made = training_of(tools, tmp_path, scale=2.0**40)
    state = loop.train(made, replace(OPTIONS, steps=30), None)
    assert 5 < state.skipped < 30, "more steps in a row than a diverged run may have"
    assert state.bad_steps == []
    assert made.scaler.get_scale() == 2.0 ** (40 - state.skipped)
    assert all(value.isfinite().all() for value in state.best_weights.values())


def test_a_loss_that_is_not_finite_is_a_bad_step(tools, tmp_path):
    made = training_of(tools, tmp_path)
    right = made.loss
    made.loss = lambda *given: _times(right(*given), float("nan"))
    with pytest.raises(DivergedError, match="NaN or infinite in 5 steps in a row"):
        loop.train(made, replace(OPTIONS, steps=30), None)


def test_gradients_that_no_scale_makes_finite_end_the_run(tools, tmp_path):
    made = training_of(tools, tmp_path, scale=4.0)
    right = made.loss

    def broken(output, targets):
        terms = right(output, targets)
        # sqrt has an infinite slope at 0.
        return replace(terms, total=terms.total + (0 * output.logits.float().sum()).sqrt())

    made.loss = broken
    with pytest.raises(DivergedError):
        loop.train(made, replace(OPTIONS, steps=30), None)


def test_a_resumed_run_goes_on_with_its_scale(tools, tmp_path):
    whole = training_of(tools, tmp_path / "whole", scale=2.0**24)
    loop.train(whole, OPTIONS, None)
    begun = training_of(tools, tmp_path / "begun", scale=2.0**24)
    loop.train(begun, replace(OPTIONS, steps=2, schedule="constant"), None)
    whole = training_of(tools, tmp_path / "again", scale=2.0**24)
    loop.train(whole, replace(OPTIONS, schedule="constant"), None)
    resumed = training_of(tools, tmp_path / "resumed")
    checkpoint = load_checkpoint(tmp_path / "begun" / "checkpoints")
    loop.train(resumed, replace(OPTIONS, schedule="constant"), checkpoint)
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    expected = trainable_state(whole.sam, whole.injection)
    for name, value in trainable_state(resumed.sam, resumed.injection).items():
        assert torch.equal(value, expected[name]), name
