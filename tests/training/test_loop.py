"""The loop: what it trains, skips, keeps, saves and resumes."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from samadapt.adapters.store import trainable_state
from samadapt.errors import DivergedError, RunError
from samadapt.methods.adalora_layer import is_part
from samadapt.sam.weights.loading import load_sam
from samadapt.system.interrupt import InterruptedRunError
from samadapt.training import budget, loop
from samadapt.training.checkpoint import CheckpointError, load_checkpoint
from samadapt.training.loop import (
    LoopOptions,
    learning_rate_factor,
    make_optimizer,
)
from samadapt.training.mask_losses import LossTerms

OPTIONS = LoopOptions(
    steps=6, lr=1e-3, warmup_steps=1, validate_every=2, checkpoint_every=3, weight_decay=0.05
)


@pytest.fixture
def run():
    def start(training, options=OPTIONS, resume=None):
        return loop.train(training, options, resume)

    return start


def lines(training, kind):
    text = (training.run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def equal(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize("kind", ["box", "point", "semantic"])
@pytest.mark.parametrize("method", ["lora", "adapter", "full"])
def test_frozen_weights_stay_bit_equal_and_trained_ones_move(tools, run, tmp_path, method, kind):
    training = tools.make_training(tmp_path, method=method, kind=kind, blocks="last:2")
    before = {name: value.clone() for name, value in training.sam.state_dict().items()}
    start = trainable_state(training.sam, training.injection)
    state = run(training, replace(OPTIONS, validate_every=0))
    trained = set(training.injection.parameters)
    parametrised = {name.rpartition(".")[0] for name in trained}  # a packed B has another name
    for name, value in training.sam.state_dict().items():
        if name not in trained and name.rpartition(".")[0] not in parametrised:
            assert torch.equal(value, before[name]), name
    base = load_sam("tiny").state_dict()
    untouched = [name for name in base if name in before and name not in trained]
    assert len(untouched) > 10
    moved = [
        n
        for n, v in trainable_state(training.sam, training.injection).items()
        if (v != start[n]).any()
    ]
    assert len(moved) > 0.5 * len(start)
    assert state.skipped == 0
    assert len(lines(training, "train")) == 6


def test_the_loss_falls(tools, run, tmp_path):
    training = tools.make_training(tmp_path)
    run(training, replace(OPTIONS, steps=30, validate_every=0, lr=2e-3))
    losses = [line["loss"] for line in lines(training, "train")]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def breaking(training, bad):
    """Make the loss NaN at the given calls."""
    calls, right = [], training.loss

    def loss(output, targets):
        terms = right(output, targets)
        calls.append(1)
        return LossTerms(terms.total * math.nan, {}) if len(calls) in bad else terms

    training.loss = loss
    return training


@pytest.mark.parametrize("bad", [{1}, {2, 3, 4, 5}])
def test_a_nan_loss_is_skipped_and_counted(tools, run, tmp_path, bad):
    training = breaking(tools.make_training(tmp_path), bad)
    state = run(training, replace(OPTIONS, validate_every=1))
    assert state.skipped == len(bad)
    assert all(
        bool(v.isfinite().all()) for v in trainable_state(training.sam, training.injection).values()
    )
    written = lines(training, "train")
    assert [line["step"] for line in written if line["loss"] is None] == sorted(bad)
    assert written[-1]["skipped"] == len(bad)


def test_a_skipped_step_changes_no_weight(tools, run, tmp_path):
    training = breaking(tools.make_training(tmp_path), {1, 2, 3})
    before = trainable_state(training.sam, training.injection)
    run(training, replace(OPTIONS, steps=3))
    assert equal(trainable_state(training.sam, training.injection), before)


def test_an_infinite_gradient_is_skipped_too(tools, run, tmp_path):
    training = tools.make_training(tmp_path)
    right, calls = training.loss, []

    def loss(output, targets):
        terms = right(output, targets)
        calls.append(1)
        if len(calls) == 2:  # finite itself, with a gradient that is not
            corner = output.logits.flatten()[0]
            zero = ((corner - corner.detach()).abs() + 0.0).sqrt()
            return LossTerms(terms.total + zero, {})
        return terms

    training.loss = loss
    assert run(training).skipped == 1


def test_five_bad_steps_in_a_row_stop_the_run_naming_the_slices(tools, run, tmp_path):
    training = breaking(tools.make_training(tmp_path), set(range(2, 99)))
    with pytest.raises(DivergedError, match=r"in 5 steps in a row, up to step 6") as caught:
        run(training, replace(OPTIONS, steps=20))
    drawn = {f"case{index}[0]" for index in range(6)}
    assert sum(name in str(caught.value) for name in drawn) == 6
    assert "lower train.lr" in str(caught.value)


def test_a_group_without_gradient_is_an_error_even_after_a_skipped_step(tools, run, tmp_path):
    training = breaking(tools.make_training(tmp_path), {1})
    broken = training.loss

    def loss(output, targets):
        terms = broken(output, targets)
        return (
            LossTerms(terms.total * 0, {}) if math.isfinite(float(terms.total.detach())) else terms
        )

    training.loss = loss
    with pytest.raises(RunError, match="no gradient reached"):
        run(training)


def gradients(training, run, monkeypatch, count):
    """Return the loss of the first step and its gradients before clipping."""
    found = {}

    def spy(self, *args, **kwargs):
        parameters = training.injection.parameters.items()
        found.update({n: p.grad.clone() for n, p in parameters if p.grad is not None})

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", spy)
        run(training, replace(OPTIONS, steps=1, clip=0.0, accumulate=count))
    return lines(training, "train")[0]["loss"], found


@pytest.mark.parametrize("kind", ["box", "point"])
def test_two_batches_accumulated_equal_one_of_twice_the_size(
    tools, run, tmp_path, kind, monkeypatch
):
    """The prompts' noise is drawn object by object, so both see the same samples and prompts."""
    small = tools.make_training(tmp_path / "small", batch_size=2, kind=kind)
    large = tools.make_training(tmp_path / "large", batch_size=4, kind=kind)
    halves = [next(small.batches), next(small.batches)]
    whole = next(large.batches)
    given = whole.prompts.boxes if kind == "box" else whole.prompts.points
    parts = [half.prompts.boxes if kind == "box" else half.prompts.points for half in halves]
    small.batches = iter(
        replace(
            half,
            targets=whole.targets[2 * i : 2 * i + 2],
            prompts=replace(
                half.prompts,
                **{("boxes" if kind == "box" else "points"): given[2 * i : 2 * i + 2]},
            ),
        )
        for i, half in enumerate(halves)
    )
    large.batches = iter([whole])
    assert [part.shape for part in parts] == [given[:2].shape] * 2
    assert [name for half in halves for name in half.names] == whole.names
    first = gradients(small, run, monkeypatch, 2)
    second = gradients(large, run, monkeypatch, 1)
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        torch.testing.assert_close(gradient, second[1][name], rtol=1e-3, atol=1e-5)


def test_gradients_are_clipped(tools, run, tmp_path, monkeypatch):
    norms = []

    def spy(self, *args, **kwargs):
        grads = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        norms.append(float(torch.stack([grad.norm() for grad in grads]).norm()))
        return step(self, *args, **kwargs)

    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(tools.make_training(tmp_path / "a"), replace(OPTIONS, clip=0.01, steps=2))
    assert norms == pytest.approx([0.01] * 2, rel=1e-3)
    norms.clear()
    run(tools.make_training(tmp_path / "b"), replace(OPTIONS, clip=0.0, steps=2))
    assert min(norms) > 0.5


def factor(schedule, step, steps=110, warmup=10):
    options = LoopOptions(steps=steps, warmup_steps=warmup, schedule=schedule)
    return learning_rate_factor(step, options)


def test_the_rate_warms_up_and_decays():
    for schedule in ("cosine", "poly", "constant"):
        assert factor(schedule, 0) == pytest.approx(1 / 11)
        assert factor(schedule, 9) == pytest.approx(10 / 11)
        assert factor(schedule, 10) == 1
    assert factor("cosine", 60) == pytest.approx(0.5)
    assert factor("cosine", 35) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert factor("cosine", 110) == pytest.approx(0)
    assert factor("poly", 60) == pytest.approx(0.5**0.9)
    assert factor("poly", 110) == 0
    assert factor("constant", 109) == 1
    assert factor("cosine", 0, warmup=0) == 1
    assert factor("cosine", 3, steps=3, warmup=9) == pytest.approx(0.4)


def test_the_rate_follows_the_time_where_that_is_limited():
    for schedule in ("cosine", "poly"):
        timed = LoopOptions(steps=None, warmup_steps=10, schedule=schedule)
        for share in (0.0, 0.25, 0.9, 1.0):
            found = learning_rate_factor(500, timed, share)
            assert found == pytest.approx(factor(schedule, 10 + 100 * share))
        both = LoopOptions(steps=110, warmup_steps=10, schedule=schedule)
        assert learning_rate_factor(60, both, 0.2) == factor(schedule, 60)
        assert learning_rate_factor(60, both, 0.7) == pytest.approx(factor(schedule, 80))
    assert learning_rate_factor(3, timed, 0.01) == 4 / 11
    assert learning_rate_factor(3, timed, 0.05) == 0.5  # few steps: the warm-up follows the time
    assert learning_rate_factor(3, timed, 0.3) == pytest.approx(factor("poly", 40))


def test_the_rates_of_a_run_follow_the_schedule(tools, run, tmp_path):
    training = tools.make_training(tmp_path)
    run(training, replace(OPTIONS, warmup_steps=2, schedule="poly", lr=0.01))
    expected = [0.01 * factor("poly", step, 6, 2) for step in range(6)]
    assert [line["lr"] for line in lines(training, "train")] == pytest.approx(expected)


def test_the_decoder_may_have_its_own_rate_and_gains_do_not_decay(tools, tmp_path):
    training = tools.make_training(tmp_path)
    groups = make_optimizer(
        training.injection, LoopOptions(6, lr=1e-3, decoder_lr=1e-4)
    ).param_groups
    decoder = {id(training.injection.parameters[n]) for n in training.injection.groups["decoder"]}
    count = 0
    for group in groups:
        for parameter in group["params"]:
            count += 1
            assert group["lr"] == (1e-4 if id(parameter) in decoder else 1e-3)
            assert (group["weight_decay"] > 0) == (parameter.ndim > 1)
    assert count == len(training.injection.parameters)
    same = make_optimizer(training.injection, LoopOptions(6, lr=1e-3)).param_groups
    assert {group["lr"] for group in same} == {1e-3}


def test_the_weights_of_the_best_step_are_kept(tools, run, tmp_path):
    training = tools.make_training(tmp_path)
    scores, seen = iter([0.3, 0.8, 0.8, math.nan, 0.5, 0.1]), []

    def validate():
        seen.append(trainable_state(training.sam, training.injection))
        assert not any(module.training for module in training.sam.modules())
        return next(scores)

    training.validate = validate
    state = run(training, replace(OPTIONS, validate_every=1))
    assert (state.best_step, state.best_score) == (2, 0.8)
    assert equal(trainable_state(training.sam, training.injection), seen[1])
    assert not equal(seen[1], seen[5])
    assert [line["dice"] for line in lines(training, "validate")] == [0.3, 0.8, 0.8, None, 0.5, 0.1]


def test_without_a_score_the_first_validated_step_is_left(tools, run, tmp_path):
    training = tools.make_training(tmp_path)
    training.validate = lambda: math.nan
    state = run(training)
    assert state.best_step == 2
    assert state.best_score == -math.inf


class Stop:
    """Sends a signal after some validations, in the middle of a run."""

    def __init__(self, at):
        self.left, self.count = at, 0

    def __call__(self):
        self.count += 1
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
        return 0.1 * self.count if self.count != 2 else 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"method": "lora", "dropout": 0.3},
        {"method": "full"},
        {"method": "lora", "kind": "interactive"},
        {"method": "lora", "kind": "mask"},
        {"method": "lora", "kind": "scribble"},
    ],
)
def test_a_resumed_run_ends_as_if_it_had_not_stopped(tools, run, tmp_path, options):
    settings = replace(OPTIONS, validate_every=1, checkpoint_every=0)
    whole = tools.make_training(tmp_path / "whole", **options)
    whole.validate = Stop(0)
    expected = run(whole, settings)

    first = tools.make_training(tmp_path / "parts", **options)
    first.validate = Stop(3)
    with pytest.raises(InterruptedRunError, match="stopped after step 3, all saved"):
        run(first, settings)
    torch.manual_seed(12345)  # the state of the process is another one
    second = tools.make_training(tmp_path / "parts", seed=0, **options)
    with torch.no_grad():
        for parameter in second.injection.parameters.values():
            parameter.add_(1.0)
    second.validate = Stop(0)
    second.validate.count = 3
    torch.manual_seed(999)
    state = run(second, settings, load_checkpoint(tmp_path / "parts" / "checkpoints"))

    assert state.step == 6
    assert (
        (state.best_step, state.best_score) == (expected.best_step, expected.best_score) == (2, 0.9)
    )
    assert equal(state.best_weights, expected.best_weights)
    for kind in ("train", "validate"):
        keys = ("step", "loss", "lr", "dice")
        one, other = (
            [{k: x.get(k) for k in keys} for x in lines(w, kind)] for w in (whole, second)
        )
        assert one == other
    final = [load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    assert equal(final[0].weights, final[1].weights)
    assert not equal(final[0].weights, final[0].best_weights)
    assert final[0].progress == final[1].progress
    for index, entry in final[0].optimizer["state"].items():
        for key, value in entry.items():
            assert torch.equal(
                torch.as_tensor(value), torch.as_tensor(final[1].optimizer["state"][index][key])
            )
    assert torch.equal(final[0].random["cpu"], final[1].random["cpu"])


@pytest.mark.parametrize("fault", ["shape", "nan", "group", "entry", "type"])
def test_an_optimizer_of_another_run_is_refused(tools, run, tmp_path, fault):
    run(tools.make_training(tmp_path))
    saved = load_checkpoint(tmp_path / "checkpoints")
    first = saved.optimizer["state"][0]
    if fault == "shape":
        first["exp_avg"] = torch.zeros(3, 3, 3)
    elif fault == "nan":
        first["exp_avg_sq"].fill_(math.nan)
    elif fault == "group":
        saved.optimizer["param_groups"].pop()
    elif fault == "entry":
        del first["exp_avg"]
    else:
        saved.optimizer["state"][0] = 5
    with pytest.raises(CheckpointError, match=r"state\.pt: the state of the optimizer"):
        run(tools.make_training(tmp_path), resume=saved)


def test_dropout_draws_from_the_saved_random_state(tools, run, tmp_path):
    """Otherwise the test above would pass without any random state."""
    losses = []
    for seed in (1, 2):
        training = tools.make_training(tmp_path / str(seed), dropout=0.3)
        with torch.no_grad():
            for name, parameter in training.injection.parameters.items():
                if "lora_B" in name:
                    parameter.add_(0.5)
        torch.manual_seed(seed)
        run(training, replace(OPTIONS, steps=1))
        losses.append(lines(training, "train")[0]["loss"])
    assert losses[0] != losses[1]


def adalora(tools, tmp_path):
    """Six steps with AdaLoRA: prunes in steps 2 to 4, and the ranks are settled from step 4 on."""
    options = {"rank": 1, "first_rank": 4, "hold": 0.17, "settle": 0.34, "blocks": "last:1"}
    return tools.make_training(tmp_path, method="adalora", decoder="frozen", **options)


def stopped_and_resumed(tools, run, folder, stop, change=lambda checkpoint: checkpoint):
    """Train with AdaLoRA, stop after a step, resume, and return the final checkpoint."""
    settings = replace(OPTIONS, validate_every=1, checkpoint_every=0)
    first = adalora(tools, folder)
    first.validate = Stop(stop)
    with pytest.raises(InterruptedRunError, match=f"stopped after step {stop}"):
        run(first, settings)
    second = adalora(tools, folder)
    second.validate = Stop(0)
    second.validate.count = stop
    run(second, settings, change(load_checkpoint(folder / "checkpoints")))
    return load_checkpoint(folder / "checkpoints")


@pytest.mark.slow
def test_adalora_resumed_in_any_phase_ends_as_if_it_had_not_stopped(tools, run, tmp_path):
    training = adalora(tools, tmp_path / "whole")
    training.validate = Stop(0)
    run(training, replace(OPTIONS, validate_every=1, checkpoint_every=0))
    expected = load_checkpoint(tmp_path / "whole" / "checkpoints")
    kept = {name: mask for name, mask in expected.method.items() if name.startswith("kept.")}
    assert sum(int(mask.sum()) for mask in kept.values()) == len(kept)
    for stop in range(1, 6):
        found = stopped_and_resumed(tools, run, tmp_path / str(stop), stop)
        assert equal(found.weights, expected.weights), stop
        assert equal(found.best_weights, expected.best_weights), stop
        assert equal(found.method, expected.method), stop


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_adalora_resumes_from_a_checkpoint_without_importances(tools, run, tmp_path, stop):
    """Earlier versions wrote none. From step 4 on the weights say which directions are kept."""
    found = stopped_and_resumed(tools, run, tmp_path, stop, lambda c: replace(c, method=None))
    values = [value for name, value in found.weights.items() if ".lora_E." in name]
    assert sum(int(value.count_nonzero()) for value in values) == len(values)
    assert "without what peft=adalora remembers" in (tmp_path / "log.txt").read_text(
        encoding="utf-8"
    )
    if stop >= 4:
        expected = stopped_and_resumed(tools, run, tmp_path / "again", stop)
        assert equal(found.weights, expected.weights)


def test_adaloras_importances_of_another_run_are_refused(tools, run, tmp_path):
    def change(checkpoint):
        name = next(iter(checkpoint.method))
        return replace(checkpoint, method={**checkpoint.method, name: torch.zeros(3, 3)})

    with pytest.raises(CheckpointError, match=r"state\.pt: the state of the method is not that of"):
        stopped_and_resumed(tools, run, tmp_path, 3, change)


def test_adalora_trains_a_single_step(tools, run, tmp_path):
    training = adalora(tools, tmp_path)
    assert run(training, replace(OPTIONS, steps=1)).step == 1


def test_a_stop_in_the_last_step_is_obeyed_and_can_be_resumed(tools, run, tmp_path):
    training = tools.make_training(tmp_path)
    training.validate = Stop(3)
    with pytest.raises(InterruptedRunError, match="after step 6"):
        run(training)
    again = tools.make_training(tmp_path)
    state = run(again, resume=load_checkpoint(tmp_path / "checkpoints"))
    assert state.step == 6
    assert equal(trainable_state(again.sam, again.injection), state.best_weights)
    assert len(lines(again, "train")) == 6


def test_checkpoints_come_at_their_steps_and_the_older_one_stays(tools, run, tmp_path):
    run(tools.make_training(tmp_path), replace(OPTIONS, checkpoint_every=2))
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step_*"))
    assert names == ["step_000004", "step_000006"]
    saved = load_checkpoint(tmp_path / "checkpoints")
    assert saved.progress["sampler"] == 12


def test_what_is_due():
    assert [step for step in range(1, 8) if loop.is_due(step, 3, "steps" * (step == 7))] == [
        3,
        6,
        7,
    ]
    assert [step for step in range(1, 8) if loop.is_due(step, 0, "time" * (step == 7))] == [7]


def test_noise_of_prompts_differs_between_steps(tools, tmp_path):
    training = tools.make_training(tmp_path, batch_size=6)
    first, second = next(training.batches), next(training.batches)
    order = [np.argsort(batch.names) for batch in (first, second)]
    boxes = [
        b.prompts.boxes[torch.as_tensor(o)] for b, o in zip((first, second), order, strict=True)
    ]
    assert boxes[0].shape == boxes[1].shape
    assert not torch.equal(boxes[0], boxes[1])


class Clocks:
    """Clocks that move by a fixed time in each step and validation of a training."""

    def __init__(self, training, monkeypatch, step=1.0, validation=0.0, limit=None):
        self.now = np.zeros(2)
        monkeypatch.setattr(budget, "read_clocks", lambda: self.now.copy())
        right_loss, right_validate = training.loss, training.validate

        def loss(output, targets):
            self.now += step
            return right_loss(output, targets)

        def validate():
            self.now += validation
            return right_validate()

        training.loss = loss
        training.validate = right_validate and validate
        training.budget = budget.Budget(limit)


TIMED = replace(OPTIONS, steps=None, warmup_steps=0, validate_every=3, checkpoint_every=0)


def test_the_time_left_counts_no_validation_beyond_the_limit(tools, run, tmp_path, monkeypatch):
    training = tools.make_training(tmp_path)
    Clocks(training, monkeypatch, step=1.0, validation=2.0, limit=15.5)
    training.progress.plan({"train": 10**6, "validation": 10**6}, like={})
    training.progress.clock.spent("validation", 1, 2.0)
    shown = []
    monkeypatch.setattr(
        training.progress,
        "advance",
        lambda *given: shown.append(training.progress.clock.seconds_left()),
    )
    run(training, replace(TIMED, steps=10**6))
    assert max(shown) <= 15.5


def test_a_run_ends_when_no_step_and_validation_fit(tools, run, tmp_path, monkeypatch):
    training = tools.make_training(tmp_path)
    Clocks(training, monkeypatch, step=1.0, validation=2.0, limit=15.5)
    state = run(training, TIMED)
    # 3 steps and a validation take 5 s, so 2 validations and 8 steps, and the last validation.
    assert (state.step, state.ended_by) == (9, "time")
    assert [line["step"] for line in lines(training, "validate")] == [3, 6, 9]
    assert state.time == {
        "max_seconds": 15.5,
        "max_cpu_seconds": None,
        "used_seconds": 15.0,
        "used_cpu_seconds": 15.0,
    }
    written = lines(training, "train")
    assert [line["used_seconds"] for line in written] == [1, 2, 3, 6, 7, 8, 11, 12, 13]
    rates = [line["lr"] for line in written]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * rates[0]
    assert "training ended after step 9: 15.0 of 15.5 s (train.max_seconds) used, and no" in (
        tmp_path / "log.txt"
    ).read_text(encoding="utf-8")


def test_the_last_step_of_a_timed_run_is_validated_and_saved(tools, run, tmp_path, monkeypatch):
    training = tools.make_training(tmp_path)
    Clocks(training, monkeypatch, step=1.0, validation=0.5, limit=5.6)
    assert run(training, TIMED).step == 4
    assert [line["step"] for line in lines(training, "validate")] == [3, 4]
    assert load_checkpoint(tmp_path / "checkpoints").step == 4


def test_steps_and_time_both_limit_a_run(tools, run, tmp_path, monkeypatch):
    training = tools.make_training(tmp_path)
    Clocks(training, monkeypatch, limit=1000.0)
    state = run(training, replace(TIMED, steps=4))
    assert (state.step, state.ended_by) == (4, "steps")
    assert state.time["used_seconds"] == 4.0
    assert "4.0 of 1000 s (train.max_seconds) used" in state.ending


def test_a_resumed_run_has_the_rest_of_its_time(tools, run, tmp_path, monkeypatch):
    whole = tools.make_training(tmp_path / "whole", dropout=0.3)
    Clocks(whole, monkeypatch, limit=8.5)
    expected = run(whole, TIMED)
    assert expected.step == 8
    first = tools.make_training(tmp_path / "parts", dropout=0.3)
    first.validate = Stop(1)
    Clocks(first, monkeypatch, limit=8.5)
    with pytest.raises(InterruptedRunError):
        run(first, TIMED)
    second = tools.make_training(tmp_path / "parts", dropout=0.3)
    Clocks(second, monkeypatch, limit=8.5)
    state = run(second, TIMED, load_checkpoint(tmp_path / "parts" / "checkpoints"))
    assert (state.step, state.time) == (8, expected.time)
    one, other = ([x["lr"] for x in lines(w, "train")] for w in (whole, second))
    assert one == other
    final = [load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    assert equal(final[0].weights, final[1].weights)
    again = tools.make_training(tmp_path / "parts", dropout=0.3)
    Clocks(again, monkeypatch, limit=8.5)
    state = run(again, TIMED, load_checkpoint(tmp_path / "parts" / "checkpoints"))
    assert (state.step, len(lines(again, "train"))) == (8, 8)  # a finished run makes no step
    assert equal(trainable_state(again.sam, again.injection), state.best_weights)


def test_without_validation_cases_the_last_weights_are_left(tools, run, tmp_path):
    validated = tools.make_training(tmp_path / "a")
    run(validated)
    training = tools.make_training(tmp_path / "b")
    training.validate = None
    state = run(training)
    assert (state.best_step, state.best_score) == (6, -math.inf)
    assert not lines(training, "validate")
    last = load_checkpoint(tmp_path / "a" / "checkpoints").weights
    assert equal(state.best_weights, last)
    assert equal(trainable_state(training.sam, training.injection), last)
    again = tools.make_training(tmp_path / "b")
    again.validate = None
    assert equal(
        run(again, resume=load_checkpoint(tmp_path / "b" / "checkpoints")).best_weights, last
    )


@pytest.mark.parametrize(
    "method",
    ["lora", "adalora", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dora", "adapter"))],
)
def test_validation_and_result_use_the_average(tools, run, tmp_path, method):
    plain = tools.make_training(tmp_path / "plain", method=method)
    run(plain, replace(OPTIONS, validate_every=1))
    training, seen = tools.make_training(tmp_path / "ema", method=method), []

    def validate():
        seen.append(trainable_state(training.sam, training.injection))
        return float(len(seen))

    training.validate = validate
    state = run(training, replace(OPTIONS, validate_every=1, ema=0.9))
    raw, last = (load_checkpoint(tmp_path / name / "checkpoints") for name in ("plain", "ema"))
    assert equal(raw.weights, last.weights)  # training itself goes on as without the average
    assert [x["loss"] for x in lines(plain, "train")] == [
        x["loss"] for x in lines(training, "train")
    ]
    assert equal(state.best_weights, seen[-1])
    assert equal(last.averages, {name: value.float() for name, value in seen[-1].items()})
    assert not equal(seen[-1], last.weights)
    assert equal(trainable_state(training.sam, training.injection), seen[-1])
    assert not raw.averages


def test_the_average_is_bit_equal_after_a_resume(tools, run, tmp_path):
    settings = replace(OPTIONS, validate_every=1, checkpoint_every=0, ema=0.95)
    whole = tools.make_training(tmp_path / "whole")
    whole.validate = Stop(0)
    expected = run(whole, settings)
    first = tools.make_training(tmp_path / "parts")
    first.validate = Stop(3)
    with pytest.raises(InterruptedRunError):
        run(first, settings)
    second = tools.make_training(tmp_path / "parts")
    second.validate = Stop(0)
    second.validate.count = 3
    state = run(second, settings, load_checkpoint(tmp_path / "parts" / "checkpoints"))
    assert equal(state.best_weights, expected.best_weights)
    final = [load_checkpoint(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    assert equal(final[0].averages, final[1].averages)
    # Switched off later, the average is no longer used.
    off = tools.make_training(tmp_path / "parts")
    off.validate = lambda: 5.0
    resume = load_checkpoint(tmp_path / "parts" / "checkpoints")
    state = run(off, replace(settings, steps=7, ema=0.0), resume)
    saved = load_checkpoint(tmp_path / "parts" / "checkpoints")
    assert equal(state.best_weights, saved.weights)
    assert not saved.averages


def test_a_skipped_step_does_not_move_the_average(tools, run, tmp_path):
    training = breaking(tools.make_training(tmp_path), {1, 2, 3})
    before = trainable_state(training.sam, training.injection)
    run(training, replace(OPTIONS, steps=3, ema=0.9))
    assert equal(load_checkpoint(tmp_path / "checkpoints").averages, before)


def scored(training, scores):
    left = iter(scores)
    training.validate = lambda: next(left)
    return training


def test_patience_stops_the_run(tools, run, tmp_path):
    scores = [0.3, 0.8, 0.7, math.nan, 0.9, 0.9, 0.1]
    training = scored(tools.make_training(tmp_path), [*scores, 0.2])
    state = run(training, replace(OPTIONS, steps=99, validate_every=1, patience=3))
    assert (state.step, state.best_step, state.ended_by) == (8, 5, "patience")
    assert state.ending == (
        "training ended after step 8: 3 validations in a row were not better than 0.9000 at step 5 "
        "(train.patience=3)"
    )
    assert load_checkpoint(tmp_path / "checkpoints").step == 8
    again = scored(tools.make_training(tmp_path), [])
    resume = load_checkpoint(tmp_path / "checkpoints")
    state = run(again, replace(OPTIONS, steps=99, validate_every=1, patience=3), resume)
    assert (state.step, state.ended_by) == (8, "patience")


def test_a_resumed_run_keeps_its_patience(tools, run, tmp_path):
    settings = replace(OPTIONS, steps=99, validate_every=1, patience=3, checkpoint_every=0)
    first = scored(tools.make_training(tmp_path), [0.5, 0.4])
    right, calls = first.validate, []

    def stop():
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return right()

    first.validate = stop
    with pytest.raises(InterruptedRunError):
        run(first, settings)
    second = scored(tools.make_training(tmp_path), [0.3, 0.2])
    state = run(second, settings, load_checkpoint(tmp_path / "checkpoints"))
    assert (state.step, state.best_step) == (4, 1)


def test_the_schedule_of_a_method_follows_the_time(tools, run, tmp_path, monkeypatch):
    training = tools.make_training(tmp_path, method="adalora", rank=1, first_rank=4)
    training.validate = None
    Clocks(training, monkeypatch, limit=20.5)
    assert run(training, replace(TIMED, lr=5e-3)).step == 20
    pruned = [v for n, v in training.injection.parameters.items() if is_part(n, "E")]
    zeros = sum(int((value == 0).sum()) for value in pruned)
    total = sum(value.numel() for value in pruned)
    assert zeros == total - total // 4  # of a rank of 4, 1 is left on average


def test_the_place_in_a_timed_run_follows_its_time(monkeypatch):
    now = np.zeros(2)
    monkeypatch.setattr(budget, "read_clocks", lambda: now.copy())
    timed, options = budget.Budget(10.0), LoopOptions(steps=None)
    timed.begin_step()
    assert loop.place_in_run(1, options, timed) == (1, 1000)
    assert loop.place_in_run(2, options, timed) == (2, 1000)  # a method begins anew at 1
    now += 5.0
    assert loop.place_in_run(7, options, timed) == (500, 1000)
    assert loop.place_in_run(8, LoopOptions(steps=10), timed) == (800, 1000)
    now += 50.0
    assert loop.place_in_run(9, options, timed) == (1000, 1000)
    assert loop.place_in_run(9, LoopOptions(steps=9), budget.Budget()) == (9, 9)
