"""The one training loop: read it from ``train`` downwards."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from samadapt.adapters.store import load_trainable_state, trainable_state
from samadapt.errors import DivergedError
from samadapt.sam.embed import embed_features
from samadapt.sam.types import MaskOutput, Prompts
from samadapt.system.interrupt import InterruptedRunError, StopRequest
from samadapt.system.machine import peak_memory_bytes
from samadapt.training.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from samadapt.training.progress import Progress, append_line
from samadapt.training.recompute import recomputed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from samadapt.adapters.injection import Injection
    from samadapt.sam.model import Sam
    from samadapt.training.batches import Batch, Sampler
    from samadapt.training.losses import LossFunction

MAX_BAD_STEPS = 5
"""Steps in a row whose loss is not a number before the run is stopped."""


@dataclass(frozen=True)
class LoopOptions:
    """How to train; see the schema in ``config/schema.py`` for each key."""

    steps: int
    accumulate: int = 1
    lr: float = 1e-3
    decoder_lr: float | None = None
    weight_decay: float = 0.01
    warmup_steps: int = 10
    schedule: str = "cosine"
    clip: float = 1.0
    validate_every: int = 50
    checkpoint_every: int = 50
    recompute: bool = False


@dataclass
class Training:
    """Everything the loop works on.

    Attributes:
        sam: the model with its adapter.
        injection: what of it is trained.
        features: images (h, w, 3) to the frozen prefix's output (b, ...).
        batches: micro-batches without end.
        sampler: what draws them; its state is saved.
        rng: noise of the prompts; its state is saved.
        loss: of a ``MaskOutput`` and targets.
        multimask: train several masks an object.
        validate: scores the model as it is; higher is better, NaN where nothing can be scored.
        run_dir: receives ``metrics.jsonl`` and ``checkpoints/``.
        progress: what the user sees.
    """

    sam: Sam
    injection: Injection
    features: Callable[[list[Any]], Tensor]
    batches: Iterator[Batch]
    sampler: Sampler
    rng: np.random.Generator
    loss: LossFunction
    multimask: bool
    validate: Callable[[], float]
    run_dir: Path
    progress: Progress


@dataclass
class State:
    """How far a run is.

    Attributes:
        step: optimizer steps done.
        best_step: step with the highest validation score.
        best_score: that score.
        best_weights: trained parameters at that step.
        skipped: steps whose loss was NaN or infinite.
        bad_cases: slices of the last such steps in a row.
    """

    step: int = 0
    best_step: int = 0
    best_score: float = -math.inf
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    skipped: int = 0
    bad_cases: list[list[str]] = field(default_factory=list)


class TrainableTail(nn.Module):
    """What runs in every step: the encoder from its first trained block on, and the decoder."""

    def __init__(self, sam: Sam, first_trainable_block: int, multimask: bool) -> None:
        """Hold the model; ``first_trainable_block`` is its first trained unit."""
        super().__init__()
        self.sam, self.first_trainable_block, self.multimask = sam, first_trainable_block, multimask

    def forward(
        self, features: Tensor, prompts: Prompts, trained: Tensor | None = None
    ) -> MaskOutput:
        """Decode prompts for images, or those ``trained``, given as the frozen prefix's output."""
        embeddings = embed_features(self.sam, features, self.first_trainable_block)
        if trained is not None:
            embeddings = embeddings[trained]
        return self.sam.decode(embeddings, prompts, multimask=self.multimask)


def train(
    work: Training, options: LoopOptions, accelerator: Accelerator, resume: Checkpoint | None
) -> State:
    """Train until ``options.steps``; leaves the best step's weights in the model.

    Raises:
        DivergedError: when the loss is NaN or infinite several times in a row.
        InterruptedRunError: after a signal that asks for an end, once a checkpoint is written.
        RunError: when a group of trained parameters gets no gradient in the first step.
    """
    injection = work.injection
    optimizer = make_optimizer(injection, options)
    factor = rate(options)
    state = restore(work, optimizer, resume) if resume else State()
    module = TrainableTail(work.sam, injection.first_trainable_block, work.multimask)
    live, prepared = accelerator.prepare(module, optimizer)
    parameters = list(injection.parameters.values())
    injection.set_training(work.sam)

    blocks = (
        recomputed(work.sam, injection.first_trainable_block)
        if options.recompute
        else nullcontext()
    )
    with StopRequest() as stop, work.progress.phase("train", state.step), blocks:
        while state.step < options.steps:
            started, lr = time.perf_counter(), set_rate(optimizer, factor(state.step))
            loss, names = accumulate_gradients(work, live, accelerator, options.accumulate)
            if state.step == state.skipped and math.isfinite(loss):  # the first that counts
                injection.check_gradients()
                work.progress.say(f"gradients: present in {', '.join(injection.groups)}")
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, options.clip or math.inf))
            if math.isfinite(loss) and math.isfinite(norm):
                prepared.step()
                injection.method.after_step(work.sam, state.step + 1, options.steps)
                state.bad_cases.clear()
            else:
                skip(state, names)
            prepared.zero_grad(set_to_none=True)
            state.step += 1
            report_step(work, state, loss, lr, len(names), started)

            if due(state.step, options.validate_every, options.steps):
                validate(work, state)
            at_hand = stop.requested or due(state.step, options.checkpoint_every, options.steps)
            if at_hand and accelerator.is_main_process:
                save(work, state, optimizer)
            if stop.requested:
                raise InterruptedRunError(work.run_dir, state.step, stop.number)

    load_trainable_state(work.sam, injection, state.best_weights)
    injection.set_training(work.sam, enabled=False)
    return state


def accumulate_gradients(
    work: Training, live: nn.Module, accelerator: Accelerator, count: int
) -> tuple[float, list[str]]:
    """Add the gradients of ``count`` micro-batches; return the mean loss and the slices' names."""
    total, names = 0.0, []
    for _ in range(count):
        batch = next(work.batches)
        prompts = to_device(batch.prompts, accelerator.device)
        output = live(work.features(batch.images), prompts, batch.trained)
        terms = work.loss(output, batch.targets.to(accelerator.device))
        names += batch.names
        loss = terms.total + work.injection.method.penalty(work.sam)
        total += float(loss.detach()) / count
        if not math.isfinite(total):
            break
        accelerator.backward(loss / count)
    return total, names


def make_optimizer(injection: Injection, options: LoopOptions) -> torch.optim.AdamW:
    """Return AdamW; biases and the gains of norms are not decayed."""
    decoder = set(injection.groups.get("decoder", []))
    decoder_lr = options.lr if options.decoder_lr is None else options.decoder_lr
    groups = []
    for lr, chosen in ((options.lr, False), (decoder_lr, True)):
        for decayed in (True, False):
            members = [
                parameter
                for name, parameter in injection.parameters.items()
                if (name in decoder) is chosen and (parameter.ndim > 1) is decayed
            ]
            if members:
                decay = options.weight_decay if decayed else 0.0
                rates = {"lr": lr, "peak_lr": lr}
                groups.append({"params": members, "weight_decay": decay, **rates})
    return torch.optim.AdamW(groups)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale the peak rate of every group, and return the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]
    return float(optimizer.param_groups[0]["lr"])


def rate(options: LoopOptions) -> Callable[[int], float]:
    """Return the learning rate's factor by step: linear warm-up, then the schedule down to 0."""

    def factor(step: int) -> float:
        if step < options.warmup_steps:
            return (step + 1) / (options.warmup_steps + 1)
        span = max(1, options.steps - options.warmup_steps)
        left = 1 - min(1.0, (step - options.warmup_steps) / span)
        if options.schedule == "cosine":
            return 0.5 * (1 - math.cos(math.pi * left))
        return left**0.9 if options.schedule == "poly" else 1.0

    return factor


def skip(state: State, names: list[str]) -> None:
    """Count a step whose loss or gradient is not a number.

    Raises:
        DivergedError: naming the slices, when it happens several times in a row.
    """
    state.skipped += 1
    state.bad_cases.append(names)
    if len(state.bad_cases) >= MAX_BAD_STEPS:
        listed = ", ".join(dict.fromkeys(name for step in state.bad_cases for name in step))
        raise DivergedError(
            f"the loss was NaN or infinite in {MAX_BAD_STEPS} steps in a row, up to step "
            f"{state.step + 1}; the slices: {listed}. Look at these images, or lower train.lr"
        )


def validate(work: Training, state: State) -> None:
    """Score the model; keep its weights if it is the best so far, or if none was kept yet."""
    work.injection.set_training(work.sam, enabled=False)
    score = work.validate()
    work.injection.set_training(work.sam)
    if score > state.best_score or not state.best_weights:
        state.best_step = state.step
        state.best_score = score if math.isfinite(score) else state.best_score
        state.best_weights = trainable_state(work.sam, work.injection)
    line = {"kind": "validate", "step": state.step, "dice": score}
    append_line(work.run_dir / "metrics.jsonl", line)
    work.progress.say(f"step {state.step}: validation Dice {score:.4f}")


def report_step(
    work: Training, state: State, loss: float, lr: float, images: int, started: float
) -> None:
    """Write the step to ``metrics.jsonl`` and show it."""
    seconds = time.perf_counter() - started
    memory = peak_memory_bytes()
    line = {
        "kind": "train",
        "step": state.step,
        "loss": loss,
        "lr": lr,
        "seconds": round(seconds, 4),
        "memory_bytes": memory,
        "skipped": state.skipped,
    }
    append_line(work.run_dir / "metrics.jsonl", line)
    dice = f"{state.best_score:.3f}" if math.isfinite(state.best_score) else "-"
    work.progress.advance(
        1,
        f"loss {loss:.4f}  best validation Dice {dice}  {images / seconds:.1f} images/s  "
        f"{memory / 2**30:.1f} GiB" + (f"  {state.skipped} skipped" if state.skipped else ""),
    )


def save(work: Training, state: State, optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint of everything that ``restore`` needs."""
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    checkpoint = Checkpoint(
        step=state.step,
        weights=trainable_state(work.sam, work.injection),
        best_weights=state.best_weights,
        optimizer=optimizer.state_dict(),
        progress={
            "step": state.step,
            "best_step": state.best_step,
            "best_score": state.best_score if math.isfinite(state.best_score) else None,
            "skipped": state.skipped,
            "sampler": work.sampler.drawn,
            "prompts": work.rng.bit_generator.state,
        },
        random=random,
    )
    save_checkpoint(work.run_dir / "checkpoints", checkpoint)


def restore(work: Training, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> State:
    """Put weights, optimizer, sampler and random states back; the rate follows from the step."""
    progress = checkpoint.progress
    load_trainable_state(work.sam, work.injection, checkpoint.weights)
    peaks = [group["peak_lr"] for group in optimizer.param_groups]
    load_optimizer(optimizer, checkpoint.optimizer)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["peak_lr"] = peak  # of the configuration, which may have changed
    work.sampler.drawn = progress["sampler"]
    work.rng.bit_generator.state = progress["prompts"]
    torch.set_rng_state(checkpoint.random["cpu"])
    if "cuda" in checkpoint.random and torch.cuda.is_available():
        torch.cuda.set_rng_state(checkpoint.random["cuda"])
    best = progress["best_score"]
    return State(
        step=checkpoint.step,
        best_step=progress["best_step"],
        best_score=-math.inf if best is None else best,
        best_weights=checkpoint.best_weights,
        skipped=progress["skipped"],
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put AdamW's state back.

    Raises:
        CheckpointError: for groups, entries or shapes that are not those of the parameters.
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


def due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens every so many steps, and at the end, is due."""
    return step == steps or (every > 0 and step % every == 0)


def to_device(prompts: Prompts, device: torch.device) -> Prompts:
    """Return the prompts on a device."""

    def move(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device, non_blocking=True)

    return Prompts(
        move(prompts.points), move(prompts.point_labels), move(prompts.boxes), move(prompts.masks)
    )
