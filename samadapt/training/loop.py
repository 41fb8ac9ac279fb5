"""The training loop. Read ``train`` from top to bottom; everything else here is used by it."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from samadapt.adapters.store import load_trainable_state, trainable_state
from samadapt.errors import DivergedError, RunError
from samadapt.sam.decode import class_logits
from samadapt.sam.embed import embed_features
from samadapt.sam.types import MaskOutput, Prompts, at_least_fp32
from samadapt.system import processes
from samadapt.system.collectives import PartSums
from samadapt.system.interrupt import InterruptedRunError, StopRequest
from samadapt.system.out_of_memory import is_out_of_memory
from samadapt.system.peak_memory import peak_memory_bytes
from samadapt.training.batch_parts import split, stack_count
from samadapt.training.click_rounds import answers
from samadapt.training.clips import walk_clips
from samadapt.training.ema import averaged, start_averages, update_averages
from samadapt.training.gradients import digest, sum_over_processes
from samadapt.training.recompute import recomputed
from samadapt.training.state import (
    Training,
    TrainingState,
    random_states,
    restore,
    save,
    set_random_states,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from samadapt.adapters.injection import Injection
    from samadapt.sam.segmentation_model import SegmentationModel
    from samadapt.training.batches import Batch
    from samadapt.training.budget import Budget
    from samadapt.training.checkpoint import Checkpoint

MAX_BAD_STEPS = 5
"""The run stops after this many steps in a row whose loss or gradient is not finite. One such step
can come from a single odd slice; five in a row mean that the weights have diverged."""

WARMUP_SHARE = 0.1
"""The warm-up ends at the latest after this share of a limited time: with slow steps there may be
few of them, and the rate must reach its peak."""

TIME_PARTS = 1000
"""Steps that a run of limited time counts as, for methods whose schedule needs their number."""


@dataclass(frozen=True)
class LoopOptions:
    """How to train. These are the keys ``train.*`` of the command line."""

    # Number of optimizer steps; None: as many as the time allows (``Training.budget``).
    steps: int | None

    # Micro-batches in one step. Their gradients add up to those of a batch that is this many times
    # as large and would not fit into memory.
    accumulate: int = 1

    # Peak learning rate of the encoder's trained parameters. The best one depends on the method:
    # 1e-3 and more for new weights that start at zero, 3e-4 for pretrained ones (``Method.lr``).
    lr: float = 1e-3

    # Peak learning rate of the decoder, and of a memory that trains. Both are pretrained, so a
    # lower rate can be better. None: lr.
    decoder_lr: float | None = None

    # Peak learning rate of a dense head. It starts at random, so it learns faster than the rest.
    head_lr: float = 3e-3

    # AdamW's weight decay of matrices. Biases and the gains of norms are not decayed, because
    # pulling them to zero would take away what the pretrained model knows.
    weight_decay: float = 0.01

    # Steps over which the rate grows linearly. AdamW scales each update by running gradient
    # statistics, which are unreliable in the first steps. So the first updates must be small.
    warmup_steps: int = 10

    # The learning rate after the warm-up: it falls to 0 ("cosine"; "poly" with power 0.9, as in
    # nnU-Net and SAMed) or keeps its peak value ("constant").
    schedule: str = "cosine"

    # Largest norm of the gradient of a step, so that one odd slice cannot move the weights far.
    # 0 switches clipping off.
    clip: float = 1.0

    # Steps between validations, which choose the best step; 0: only at the end.
    validate_every: int = 50

    # Steps between checkpoints; 0: only at the end and after a signal.
    checkpoint_every: int = 50

    # Decay of the exponential moving average of the weights, which is then what is validated and
    # kept. 0: the weights themselves.
    ema: float = 0.0

    # Validations in a row without a better score after which the run stops; 0: it does not.
    patience: int = 0

    # Compute the activations of the encoder again in backward: less memory, more time.
    recompute: bool = False


class TrainableTail(nn.Module):
    """The part of the model that runs in every step: trainable encoder blocks and the decoder."""

    def __init__(
        self, sam: SegmentationModel, first_trainable_block: int, *, background_token: bool = False
    ) -> None:
        """Hold the model.

        Args:
            sam: the model.
            first_trainable_block: that of ``embed_features``; -1: the whole encoder runs in every
                step.
            background_token: that of ``class_logits``.
        """
        super().__init__()
        self.sam, self.first_trainable_block = sam, first_trainable_block
        self.background_token = background_token

    def forward(self, features: Tensor, trained: Tensor | None = None) -> Tensor:
        """Encode the rest of the way, and return the embeddings (b, ...).

        Args:
            features: (n, ...) features of n images; pixels if no block is frozen.
            trained: (b,) positions of the images with the loss; None: all n. The others are
                only seen by the encoder, as neighbouring slices of a stack.
        """
        embeddings = embed_features(self.sam, features, self.first_trainable_block)
        # The gradients of all answers add up in it.
        embeddings = at_least_fp32(embeddings)
        return embeddings if trained is None else embeddings[trained]

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> MaskOutput:
        """Decode p objects for each of b images, prompted in the model frame."""
        if self.sam.dense_head is not None:
            logits = class_logits(self.sam, embeddings, self.sam.dense_head.classes)
            return MaskOutput(logits=logits, iou=logits.new_zeros(logits.shape[:3]))
        if prompts.is_empty:
            output = self.sam.decode_classes(embeddings)
            if not self.background_token:
                return output
            count = output.logits.shape[2]
            logits = class_logits(self.sam, embeddings, count, background_token=True)
            return replace(output, logits=logits)
        return self.sam.decode(embeddings, prompts, multimask=multimask)


def train(training: Training, options: LoopOptions, resume: Checkpoint | None) -> TrainingState:
    """Train, and leave the weights of the best validation in the model.

    The training ends after ``options.steps``, when no further step fits into the time, or when
    ``options.patience`` is used up. Without validations the last weights are left.

    Raises:
        DivergedError: when the loss is NaN or infinite several times in a row.
        InterruptedRunError: after a signal that asks for an end, once a checkpoint is written.
        RunError: when a group of trained parameters gets no gradient in the first step.
    """
    sam, injection = training.sam, training.injection
    method, budget, parameters = injection.method, training.budget, injection.parameters

    optimizer = make_optimizer(injection, options)
    state = begin(training, options, optimizer, resume)
    first = injection.first_trainable_block
    tail = TrainableTail(sam, first, background_token=training.background_token)

    injection.set_training(sam)  # switch the adapter's dropout on; all else stays in eval mode
    recomputing = (
        recomputed(sam, injection.first_trainable_block) if options.recompute else nullcontext()
    )
    with StopRequest() as stop, training.progress.phase("train", state.step), recomputing:
        while not state.ended_by:
            started, began = time.perf_counter(), budget.begin_step()

            # Set the learning rate of this step. It follows from the step number, and from the time
            # that has passed if that is limited. A resumed run knows both.
            set_learning_rates(optimizer, learning_rate_factor(state.step, options, budget.share))

            # Forward and backward for each micro-batch, of which this process has its share. Every
            # loss is divided by their number, so the gradients add up to that of the mean loss.
            batches = [next(training.batches) for _ in range(options.accumulate)]
            loss = learn_step(training, tail, batches)
            names = [name for batch in batches for name in batch.names]

            # Add up the gradients of all processes. From here on they all have the same numbers.
            told = [loss, len(names), stop.requested]
            loss, images, stops = sum_over_processes(parameters.values(), told)

            # Check once that every trained group gets a gradient: a wrong cut between frozen and
            # trained blocks would otherwise train nothing, silently. The condition on the counts is
            # true until a loss is finite: every step so far was bad.
            if state.step == len(state.bad_steps) and math.isfinite(loss):
                injection.check_gradients()
                training.progress.say(f"gradients: present in {', '.join(injection.groups)}")

            # Clip, then update, unless the loss or a gradient is not finite: one such update would
            # make every weight NaN.
            if math.isfinite(loss) and clip_gradients(training, optimizer, options.clip):
                optimizer.step()
                # The gradients are still there, since a method may need them.
                method.after_step(sam, *place_in_run(state.step + 1, options, budget))
                update_averages(state.averages, parameters, options.ema, state.applied + 1)
                state.bad_steps.clear()
            else:
                count_bad_step(training, state, loss, names)
            optimizer.zero_grad(set_to_none=True)  # frees the gradients' memory

            state.step += 1
            budget.end_step(began)
            report_step(training, state, loss, int(images), started, optimizer)
            # The last step is validated. A validation takes time and may be the one too many for
            # the patience, so the question whether a step follows is asked again after it.
            state.ended_by = why_ended(state, options, budget)
            if is_due(state.step, options.validate_every, state.ended_by):
                validate_and_keep_best(training, state)
                state.ended_by = state.ended_by or why_ended(state, options, budget)

            # After a signal the step is finished and saved first, so nothing is lost. One that
            # arrives now may have reached a single process, so several wait for the next step.
            stops = stops or (stop.requested and processes.count() == 1)
            saves = stops or is_due(state.step, options.checkpoint_every, state.ended_by)
            if saves and processes.is_first():
                save(training, state, optimizer)
            if stops:
                number = max(processes.gather(stop.number))  # waits until all is saved
                raise InterruptedRunError(training.run_dir, state.step, number)

        # A signal that reached one process during the last step is heard by all.
        if processes.count() > 1 and (number := max(processes.gather(stop.number))):
            raise InterruptedRunError(training.run_dir, state.step, number)

    keep_weights(training, state)
    describe_ending(training, state, options)
    return state


def learn_step(training: Training, tail: TrainableTail, batches: Sequence[Batch]) -> float:
    """Add the gradients of all micro-batches of a step.

    If memory runs out, the step begins again with each of them in twice as many parts, which has
    the same gradients, and so do all later steps. This is for a single process: others would wait.

    Returns:
        This process's part of the step's loss.
    """
    random = random_states()
    while True:
        try:
            return math.fsum(
                learn_in_parts(training, tail, batch, len(batches)) for batch in batches
            )
        except Exception as error:
            # Several kinds of errors mean this; see ``is_out_of_memory``.
            largest = max(map(stack_count, batches))
            alone = training.parts >= largest or processes.count() > 1
            if alone or not is_out_of_memory(error):
                raise
        # Here the error is gone, and with it the tensors that its traceback holds.
        for parameter in training.injection.parameters.values():
            parameter.grad = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        set_random_states(random)
        training.parts *= 2
        training.progress.say(
            f"out of memory: from now on a batch of {largest} goes through the model in "
            f"{min(training.parts, largest)} parts, with the same gradients but for dropout; fewer "
            "slices (train.batch_size) or train.recompute=true need less memory from the start"
        )


def learn_in_parts(training: Training, tail: TrainableTail, batch: Batch, accumulate: int) -> float:
    """Add the gradients of a micro-batch, in as many parts as its memory asks for; see ``learn``.

    The loss of classes is over all images of the batch. So the parts first run without gradients,
    which says what each adds to the sums in this loss.
    """
    parts = split(batch, training.parts)
    if len(parts) == 1:
        return learn(training, tail, batch, accumulate)
    sums, states = PartSums(len(parts)), []
    for number, part in enumerate(parts):
        states.append(random_states())
        if part.prompts.is_empty:
            with torch.no_grad(), sums.recorded(number):
                learn(training, tail, part, accumulate)
    loss = 0.0
    for number, part in enumerate(parts):
        set_random_states(states[number])  # dropout as in the first pass
        with sums.replayed(number):
            loss += learn(training, tail, part, accumulate)
    return loss


def learn(training: Training, tail: TrainableTail, batch: Batch, accumulate: int) -> float:
    """Add the gradients of one of ``accumulate`` micro-batches to those of its step.

    Other processes learn their shares of the micro-batch at the same time. So nothing here ends
    early, not even for a loss that is not finite: the others would wait.

    The decoder answers once, or in several rounds of clicks, which weigh the same. Each round ends
    in backward, so that the graph of one round at a time is in memory. The gradients of all rounds
    add up in a copy of the embeddings and go through the encoder together.

    Returns:
        This process's part of the loss of the micro-batch, as a part of the step's loss. If it is
        not finite, the gradients are useless.
    """
    # The frozen blocks ran once on each planned image, whose features are read by key. An image
    # that augmentation has just changed has no key and runs through them now.
    features = (
        training.features.stored(batch.keys)
        if batch.keys
        else training.features.compute(batch.images)
    )
    if training.sam.dense_head is not None:
        training.sam.dense_head.jitter.seeds = batch.seeds
    with training.precision.autocast(training.sam.device):
        embeddings = tail(features, batch.trained)
    copy = embeddings.detach().requires_grad_(embeddings.requires_grad)
    loss = 0.0
    for one in (batch, *batch.others):
        rows = None if one is batch else one.trained
        loss += learn_answers(training, tail, one, copy, rows, accumulate)
    if embeddings.requires_grad and copy.grad is not None:
        embeddings.backward(copy.grad)
    return loss


def learn_answers(
    training: Training,
    tail: TrainableTail,
    batch: Batch,
    embeddings: Tensor,
    rows: Tensor | None,
    accumulate: int,
) -> float:
    """Add the gradients of what the decoder answers to one kind of prompt; see ``learn``.

    Each loss ends in backward: that of one answer, or the mean of the slices of a clip.

    Args:
        training: what is trained.
        tail: the part of the model that runs in every step.
        batch: the prompts and targets.
        embeddings: (b, ...), a leaf that gathers the gradient of all answers.
        rows: positions of the prompted images among the b; None: all.
        accumulate: number of micro-batches in the step.
    """
    sam, method = training.sam, training.injection.method
    device, precision = sam.device, training.precision
    prompts, targets = to_device(batch.prompts, device), batch.targets.to(device)
    rows = None if rows is None else rows.to(device)

    def decode(prompts: Prompts, multimask: bool) -> MaskOutput:
        # The rows are taken anew for each answer, whose graph is freed before the next one.
        seen = embeddings if rows is None else embeddings[rows]
        with precision.autocast(device):
            return tail.decode(seen, prompts, multimask=multimask)

    found: Iterable[list[tuple[MaskOutput, Tensor]]]
    if training.tracker is not None:
        autocast = partial(precision.autocast, device)
        found = walk_clips(
            training.tracker,
            embeddings,
            prompts,
            targets,
            batch.clip,
            autocast,
            multimask=batch.multimask,
        )
    elif batch.rounds is None:
        found = [[(decode(prompts, batch.multimask), targets)]]
    else:
        cell = sam.image_size / targets.shape[-1]
        rounds = answers(decode, prompts, targets, batch.rounds, sam.mask_threshold, cell)
        found = ([(output, targets)] for output in rounds)
    loss = 0.0
    parts = accumulate * batch.round_count / batch.weight
    for pairs in found:
        losses = [training.loss_of(batch, output, wanted) for output, wanted in pairs]
        total = torch.stack(losses).mean() + method.penalty(sam) * batch.share
        value = float(total.detach()) / parts  # waits for the GPU
        loss += value
        # Without a finite loss the step is skipped, and backward would be wasted.
        if math.isfinite(value) and torch.is_grad_enabled():
            training.scaler.scale(total / parts).backward()
    return loss


def begin(
    training: Training,
    options: LoopOptions,
    optimizer: torch.optim.Optimizer,
    resume: Checkpoint | None,
) -> TrainingState:
    """Return the state of a new training, or restore that of a checkpoint."""
    state = restore(training, optimizer, resume) if resume else TrainingState()
    parameters = training.injection.parameters
    state.averages = start_averages(parameters, state.averages) if options.ema else {}
    training.budget.agree()
    state.ended_by = why_ended(state, options, training.budget)  # a finished run may be resumed
    if not processes.is_first():  # dropout must not hide the same numbers in every process
        torch.manual_seed(torch.initial_seed() + 1000 * state.step + processes.place().rank)
    return state


def make_optimizer(injection: Injection, options: LoopOptions) -> torch.optim.AdamW:
    """Return AdamW with a group for encoder, decoder and head, each with and without decay.

    The memory of SAM 2 is pretrained too and learns as fast as the decoder.

    Each group has the extra entry ``peak_lr``, its learning rate after the warm-up.
    """
    decoder_lr = options.lr if options.decoder_lr is None else options.decoder_lr
    parts = {"decoder": "decoder", "memory": "decoder", "head": "head"}
    part_of = {
        name: part for group, part in parts.items() for name in injection.groups.get(group, [])
    }
    groups = []
    for lr, part in ((options.lr, "encoder"), (decoder_lr, "decoder"), (options.head_lr, "head")):
        for is_decayed in (True, False):
            members = [
                parameter
                for name, parameter in injection.parameters.items()
                # Only matrices are decayed; biases and gains of norms have one axis.
                if part_of.get(name, "encoder") == part and (parameter.ndim > 1) is is_decayed
            ]
            if members:
                decay = options.weight_decay if is_decayed else 0.0
                rates = {"lr": lr, "peak_lr": lr}
                groups.append({"params": members, "weight_decay": decay, **rates})
    return torch.optim.AdamW(groups)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]


def learning_rate_factor(step: int, options: LoopOptions, share: float = 0.0) -> float:
    """Return the learning rate of a step as a share of the peak rate.

    It grows linearly during the warm-up to 1. Then it falls to 0 (cosine, poly) or stays at 1
    (constant).

    Args:
        step: number of the step, from 0 on.
        options: the schedule, and the number of steps if there is one.
        share: the share of the time that has passed, 0 to 1; 0 where time is not limited. With a
            number of steps as well, whichever is closer to its end counts.
    """
    # Neither 0 in the first step, which would do nothing, nor 1 before the warm-up is over.
    warm = max((step + 1) / (options.warmup_steps + 1), share / WARMUP_SHARE)
    if step < options.warmup_steps and warm < 1:
        return warm
    if options.steps is not None:
        span = max(1, options.steps - options.warmup_steps)
        share = max(share, (step - options.warmup_steps) / span)
    left = 1 - min(1.0, share)
    if options.schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    return left**0.9 if options.schedule == "poly" else 1.0


def place_in_run(step: int, options: LoopOptions, budget: Budget) -> tuple[int, int]:
    """Return the number of a step and the number of all steps, for methods with a schedule.

    Nobody knows the number of steps if time is limited. Such a run counts as ``TIME_PARTS`` steps,
    each of them one part of the time. Only the first step has the number 1.

    Args:
        step: number of the step, from 1 on.
        options: the number of steps if there is one.
        budget: the time that has passed, if it is limited.
    """
    if options.steps is not None and not budget.is_limited:
        return step, options.steps
    done = max(budget.share, 0.0 if options.steps is None else step / options.steps)
    return max(min(step, 2), math.ceil(TIME_PARTS * done)), TIME_PARTS


def why_ended(state: TrainingState, options: LoopOptions, budget: Budget) -> str:
    """Return why no further step follows, ``steps``, ``time`` or ``patience``; empty: one does."""
    if options.steps is not None and state.step >= options.steps:
        return "steps"
    if not budget.fits_step():
        return "time"
    return "patience" if 0 < options.patience <= state.stale else ""


def clip_gradients(training: Training, optimizer: torch.optim.Optimizer, clip: float) -> bool:
    """Scale the gradients so that their norm is at most ``clip``; return whether it is finite.

    In fp16 the loss was scaled, so that small gradients did not vanish. Here they get their own
    size again. If one was scaled beyond what fp16 holds, the scale is halved for the next step.
    """
    training.scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(training.injection.parameters.values(), clip or math.inf)
    training.scaler.update()
    return math.isfinite(norm)  # it is not finite if any gradient is not


def count_bad_step(training: Training, state: TrainingState, loss: float, names: list[str]) -> None:
    """Count a step that is skipped because its loss or a gradient is not finite.

    In fp16 a gradient that is not finite is no bad sign as long as the scale of the loss can be
    halved; the step is skipped all the same.

    Raises:
        DivergedError: naming the slices, after ``MAX_BAD_STEPS`` bad steps in a row.
    """
    state.skipped += 1
    if math.isfinite(loss) and training.scaler.get_scale() >= 1 and training.scaler.is_enabled():
        return
    state.bad_steps.append([name for held in processes.gather(names) for name in held])
    if len(state.bad_steps) >= MAX_BAD_STEPS:
        listed = ", ".join(dict.fromkeys(name for step in state.bad_steps for name in step))
        raise DivergedError(
            f"the loss was NaN or infinite in {MAX_BAD_STEPS} steps in a row, up to step "
            f"{state.step + 1}; the slices: {listed}. Look at these images, or lower train.lr"
        )


def validate_and_keep_best(training: Training, state: TrainingState) -> None:
    """Score the model, by the averages of its weights if there are any, and keep the best.

    Without validation cases nothing happens.
    """
    if training.validate is None:
        return
    parameters = training.injection.parameters
    with training.budget.validation(), averaged(parameters, state.averages):
        training.injection.set_training(training.sam, enabled=False)
        score = training.validate()
        training.injection.set_training(training.sam)
        state.stale += 1
        # The first weights are kept even if their score is NaN, so that there is always something.
        if score > state.best_score or not state.best_weights:
            state.best_step, state.stale = state.step, 0
            state.best_score = score if math.isfinite(score) else state.best_score
            state.best_weights = trainable_state(training.sam, training.injection)
    check_same_weights(training, state.step)
    by_kind = training.scores_by_kind
    line = {"kind": "validate", "step": state.step, "dice": score}
    if by_kind:
        line["by_prompt"] = dict(by_kind)
    training.write_line(line)
    listed = ", ".join(f"{kind} {value:.4f}" for kind, value in by_kind.items())
    shown = f" ({listed})" if listed else ""
    training.progress.say(f"step {state.step}: validation Dice {score:.4f}{shown}")


def check_same_weights(training: Training, step: int) -> None:
    """Check that all processes have trained the same weights.

    Raises:
        RunError: they have not, for example because one machine computes wrongly.
    """
    if processes.count() == 1:
        return
    digests = processes.gather(digest(training.injection.parameters.values()))
    if len(set(digests)) > 1:
        raise RunError(
            f"after step {step} the processes of this run have different weights, so one of them "
            "computed wrongly; continue from the last checkpoint with resume=, on other machines"
        )


def keep_weights(training: Training, state: TrainingState) -> None:
    """Leave the weights of the best validation in the model; without validations the last ones."""
    sam, injection = training.sam, training.injection
    if training.validate is None:
        with averaged(injection.parameters, state.averages):
            state.best_step, state.best_weights = state.step, trainable_state(sam, injection)
    elif not state.best_weights:  # the time of a resumed run ended before its first validation
        validate_and_keep_best(training, state)
    load_trainable_state(sam, injection, state.best_weights)
    injection.set_training(sam, enabled=False)


def describe_ending(training: Training, state: TrainingState, options: LoopOptions) -> None:
    """Record what was used of the time, and say why the training ended if not by its steps."""
    budget, reasons = training.budget, []
    if state.ended_by == "patience":
        reasons.append(
            f"{state.stale} validations in a row were not better than {state.best_score:.4f} at "
            f"step {state.best_step} (train.patience={options.patience})"
        )
    if budget.is_limited:
        fits = ", and no further step fits" if state.ended_by == "time" else ""
        reasons.append(f"{budget.text()} used{fits}")
    state.time = budget.summary()
    if reasons:
        state.ending = f"training ended after step {state.step}: {'; '.join(reasons)}"
        training.progress.say(state.ending)


def report_step(
    training: Training,
    state: TrainingState,
    loss: float,
    images: int,
    started: float,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write a step to ``metrics.jsonl`` and show it."""
    seconds = time.perf_counter() - started
    memory = peak_memory_bytes()
    budget = training.budget
    line = {
        "kind": "train",
        "step": state.step,
        "loss": loss,
        "lr": float(optimizer.param_groups[0]["lr"]),
        "seconds": round(seconds, 4),
        "memory_bytes": memory,
        "skipped": state.skipped,
        **({"loss_scale": training.scaler.get_scale()} if training.scaler.is_enabled() else {}),
        **(budget.measured() if budget.is_limited else {}),
    }
    training.progress.clock.bound("train", budget.seconds_left)
    if budget.is_limited:  # validations are part of the limited time
        training.progress.clock.bound("validation", 0.0)
    training.write_line(line)
    dice = f"{state.best_score:.3f}" if math.isfinite(state.best_score) else "-"
    training.progress.advance(
        1,
        f"loss {loss:.4f}  best validation Dice {dice}  {images / seconds:.1f} images/s  "
        f"{memory / 2**30:.1f} GiB" + (f"  {state.skipped} skipped" if state.skipped else ""),
    )


def is_due(step: int, every: int, ended_by: str) -> bool:
    """Return whether ``step`` is a multiple of ``every``, or the last step. 0: only the last."""
    return bool(ended_by) or (every > 0 and step % every == 0)


def to_device(prompts: Prompts, device: torch.device) -> Prompts:
    """Return the prompts on a device."""

    def move(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device, non_blocking=True)

    return Prompts(
        move(prompts.points), move(prompts.point_labels), move(prompts.boxes), move(prompts.masks)
    )
