"""What a training works on, how far it is, and how checkpoints save and restore that."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from samadapt.adapters.store import load_trainable_state, trainable_state
from samadapt.system import processes
from samadapt.training.budget import Budget
from samadapt.training.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from samadapt.training.precision import FP32, Precision
from samadapt.training.progress import append_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from samadapt.adapters.injection import Injection
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.sam.tracking import Tracker
    from samadapt.sam.types import MaskOutput
    from samadapt.training.batches import Batch, Sampler
    from samadapt.training.batches_ahead import BatchesAhead
    from samadapt.training.features import Features
    from samadapt.training.mask_losses import LossFunction
    from samadapt.training.progress import Progress


@dataclass
class Training:
    """Everything that the loop works on.

    Attributes:
        sam: the model with its adapter.
        injection: names the trained parameters.
        features: the output of the frozen blocks, by key or computed anew.
        batches: micro-batches without end.
        sampler: says how many slices the batches so far have ``drawn``, which is saved.
        loss: maps a ``MaskOutput`` and targets to ``LossTerms``.
        validate: scores the model as it is; higher is better, NaN if nothing can be scored. None:
            there are no validation cases, and the last weights are kept.
        run_dir: receives ``metrics.jsonl`` and ``checkpoints/``.
        progress: shows the user what happens.
        budget: counts the time, and limits it where the user asks for that.
        class_loss: the loss of batches without prompts, where others have prompts; None: ``loss``.
        scores_by_kind: the scores that the last call of ``validate`` averaged, by kind of prompt;
            empty where there is one kind alone.
        tracker: the model with its memory, for batches of clips; None: there are none.
        background_token: without prompts, the background has a token; see ``class_logits``.
        precision: the arithmetic of forward passes.
        scaler: scales the loss; ``Precision.scaler``.
        parts: parts in which each batch goes through the model; more than one after memory ran
            out.
    """

    sam: SegmentationModel
    injection: Injection
    features: Features
    batches: Iterator[Batch]
    sampler: Sampler | BatchesAhead
    loss: LossFunction
    validate: Callable[[], float] | None
    run_dir: Path
    progress: Progress
    budget: Budget = field(default_factory=Budget)
    class_loss: LossFunction | None = None
    scores_by_kind: dict[str, float] = field(default_factory=dict)
    tracker: Tracker | None = None
    background_token: bool = False
    precision: Precision = FP32
    scaler: GradScaler = field(default_factory=lambda: GradScaler("cpu", enabled=False))
    parts: int = 1

    def write_line(self, values: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``, which is that of the first process."""
        if processes.is_first():
            append_line(self.run_dir / "metrics.jsonl", values)

    def loss_of(self, batch: Batch, output: MaskOutput, targets: Tensor) -> Tensor:
        """Return this process's part of the loss of what the decoder answers to a batch.

        With several processes the parts add up to the loss of the batch of all.
        """
        if batch.prompts.is_empty:
            # It is the part of a loss over the images of all processes.
            return (self.class_loss or self.loss)(output, targets).total
        return self.loss(output, targets).total * batch.share


@dataclass
class TrainingState:
    """How far a training is.

    Attributes:
        step: number of optimizer steps done.
        best_step: the step with the highest validation score; without validations the last step.
        best_score: that score.
        best_weights: the trained parameters at that step, by name.
        skipped: number of steps whose loss or gradient was NaN or infinite.
        bad_steps: for each of the last such steps in a row, the names of its slices.
        stale: number of validations since the best one.
        averages: moving averages of the trained parameters, by name; empty without ``train.ema``.
        ended_by: ``steps``, ``time`` or ``patience``; empty before the end.
        ending: why the training ended and what it used of its time, as a sentence; else empty.
        time: the limits of the time and what was used; None if it was not limited.
    """

    step: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    skipped: int = 0
    bad_steps: list[list[str]] = field(default_factory=list)
    stale: int = 0
    averages: dict[str, Tensor] = field(default_factory=dict)
    ended_by: str = ""
    ending: str = ""
    time: dict[str, float | None] | None = None

    @property
    def applied(self) -> int:
        """Number of steps that changed the weights."""
        return self.step - self.skipped


def save(training: Training, state: TrainingState, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint of everything that ``restore`` needs."""
    method = training.injection.method
    # Only where time is limited: without that, equal runs have equal checkpoints.
    extra = {"budget": training.budget.state()} if training.budget.is_limited else {}
    if training.scaler.is_enabled():
        extra["loss_scale"] = training.scaler.state_dict()
    checkpoint = Checkpoint(
        step=state.step,
        weights=trainable_state(training.sam, training.injection),
        best_weights=state.best_weights,
        averages=state.averages,
        optimizer=optimizer.state_dict(),
        progress={
            "step": state.step,
            "best_step": state.best_step,
            "best_score": state.best_score if math.isfinite(state.best_score) else None,
            "skipped": state.skipped,
            "stale": state.stale,
            "sampler": training.sampler.drawn,
            **extra,
        },
        random=random_states(),
        # A method without a state leaves no entry, so the file is the same as ever.
        method=method.state_dict(training.sam) if method.state_copies else None,
    )
    save_checkpoint(training.run_dir / "checkpoints", checkpoint)


def restore(
    training: Training, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint
) -> TrainingState:
    """Restore weights, optimizer, sampler, random states and the time used.

    Returns:
        How far the training is.

    Raises:
        CheckpointError: when the optimizer's state, or that of the method, does not fit the
            parameters.
    """
    progress = checkpoint.progress
    load_trainable_state(training.sam, training.injection, checkpoint.weights)
    # The peak rates come from the configuration, which may have changed since the checkpoint.
    peaks = [group["peak_lr"] for group in optimizer.param_groups]
    load_optimizer(optimizer, checkpoint.optimizer)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["peak_lr"] = peak
    load_method(training, checkpoint.method)
    training.sampler.drawn = progress["sampler"]
    set_random_states(checkpoint.random)
    if training.budget.is_limited and "budget" in progress:
        training.budget.restore(progress["budget"])
    if training.scaler.is_enabled() and "loss_scale" in progress:
        training.scaler.load_state_dict(progress["loss_scale"])
    best = progress["best_score"]
    return TrainingState(
        step=checkpoint.step,
        best_step=progress["best_step"],
        best_score=-math.inf if best is None else best,
        best_weights=checkpoint.best_weights,
        skipped=progress["skipped"],
        stale=progress.get("stale", 0),  # earlier versions did not count them
        averages=checkpoint.averages,
    )


def random_states() -> dict[str, Tensor]:
    """Return the states of torch's generators by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Restore what ``random_states`` returned."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore the state of AdamW.

    Raises:
        CheckpointError: when groups, entries or shapes are not those of the parameters, or a value
            is not finite.
    """
    try:
        optimizer.load_state_dict(state)
        for parameter, entries in optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                if entries[name].shape != parameter.shape or not entries[name].isfinite().all():
                    raise ValueError(f"{name} does not fit its parameter")
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(
            "state.pt: the state of the optimizer is not that of this run's parameters; restore "
            "the checkpoint from a copy, or start a new run"
        ) from error


def load_method(training: Training, state: dict[str, Tensor] | None) -> None:
    """Restore what the method remembers between steps; say so if the checkpoint does not hold it.

    Raises:
        CheckpointError: when the tensors do not fit the method's parameters.
    """
    method = training.injection.method
    if state is None and method.state_copies:
        training.progress.say(
            "warning: an earlier version wrote this checkpoint, without what "
            f"peft={method.name} remembers between steps; that starts anew"
        )
    try:
        method.load_state_dict(training.sam, state or {})
    except ValueError as error:
        raise CheckpointError(
            f"state.pt: the state of the method is not that of this run's parameters ({error}); "
            "restore the checkpoint from a copy, or start a new run"
        ) from error
