"""Train the adapter of a run: draw its batches, and give the training loop what it works on."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from samadapt.data.stacks import stacks_in_batch
from samadapt.runs.scorer import Scorer, mean_by_share
from samadapt.sam.decode import class_frame
from samadapt.sam.tracking import Tracker
from samadapt.sam.video_memory import POINTERS
from samadapt.system import processes
from samadapt.training.batches import make_batch, make_batch_of_kinds
from samadapt.training.batches_ahead import BatchesAhead
from samadapt.training.budget import Budget
from samadapt.training.draws import BatchDraws, Drawn
from samadapt.training.loop import LoopOptions, train
from samadapt.training.state import Training, TrainingState

if TYPE_CHECKING:
    from samadapt.config.schema import Config
    from samadapt.runs.feature_planner import FeaturePlanner
    from samadapt.runs.run_loss import RunLosses
    from samadapt.runs.run_slices import RunSlices
    from samadapt.training.batches import Batch
    from samadapt.training.checkpoint import Checkpoint

NOTHING_RIGHT = (
    "warning: the validation Dice is 0: nothing is predicted in the validation cases, or only in "
    "wrong places. If it stays so and the loss stops falling, halve train.decoder_lr"
)


def train_adapter(
    config: Config,
    planner: FeaturePlanner,
    scorer: Scorer,
    slices: RunSlices,
    losses: RunLosses,
    checkpoint: Checkpoint | None,
    budget: Budget | None = None,
) -> TrainingState:
    """Train on ``slices.train``, and keep the weights of the best step on ``slices.validation``.

    Without validation slices the last weights are kept.

    Args:
        config: the configuration of the run.
        planner: the run's frozen features and training samples.
        scorer: scores the model on the validation slices.
        slices: the slices of the run.
        losses: the training losses.
        checkpoint: the state from which training is resumed; None starts at the first step.
        budget: the time that training may take; None: no limit.
    """
    training = prepare_training(config, planner, scorer, slices, losses, budget)
    # `train` has keys for other parts too, such as batch_size; the loop takes its own.
    keys = set(LoopOptions.__dataclass_fields__)
    values = {**asdict(config.train), "head_lr": config.head.lr}
    loop_options = LoopOptions(**{key: value for key, value in values.items() if key in keys})
    with planner.context.precision.products():
        return train(training, loop_options, checkpoint)


def prepare_training(
    config: Config,
    planner: FeaturePlanner,
    scorer: Scorer,
    slices: RunSlices,
    losses: RunLosses,
    budget: Budget | None = None,
) -> Training:
    """Return what the training loop works on, by the arguments of ``train_adapter``."""
    context, samples = planner.context, planner.context.samples
    policy = context.policy
    stacks = stacks_in_batch(config.train.slices, context.dataset.stack)
    draws = BatchDraws(samples, slices.train, stacks, config.seed)
    # Where an image of a shape (h, w) lies in the square that the loss is computed on.
    frame_of = partial(class_frame, context.model)
    logits_side = context.model.logits_side
    separated = len(context.dataset.classes) if context.model.watershed else 0

    prompted = partial(make_batch, frame_of=frame_of, side=logits_side, distances_of=separated)

    def make(drawn: Drawn) -> Batch:
        stack, trained, versions = samples.take(drawn.items, drawn.random.own)
        keys, has_object = planner.keys_of(versions), samples.has_object
        random = drawn.random.of_slices([len(item.refs) for item in drawn.items])
        batch = make_batch_of_kinds(stack, drawn.ways, has_object, trained, keys, random, prompted)
        return replace(batch, seeds=drawn.random.seeds)

    def validation_dice() -> float:
        by_kind: dict[str, float] = {}
        for kind, one in scorer.by_kind().items():
            with context.progress.aside("validation", len(slices.validation)):
                value = one.score_overlap(slices.validation, one.context.policy).summary["dice"]
            if value == 0:
                context.say(NOTHING_RIGHT)
            by_kind[kind] = math.nan if value is None else float(value)
        training.scores_by_kind = by_kind if policy.is_mixed else {}
        return mean_by_share(by_kind, policy.shares)

    # As many slices as make the code of a distance as fine as in a volume.
    tracker = Tracker(context.sam, POINTERS, training=True) if policy.clip > 1 else None
    # Several processes agree on what a batch holds, which their steps must not overtake.
    threads = 1 if processes.count() == 1 else 0
    batches = BatchesAhead(draws, make, threads=threads, ahead=config.train.accumulate)
    training = Training(
        sam=context.model,
        injection=context.injection,
        features=planner.features,
        batches=batches,
        sampler=batches,
        loss=losses.loss,
        validate=validation_dice if slices.validation else None,
        run_dir=context.run_dir,
        progress=context.progress,
        budget=budget or Budget(),
        class_loss=losses.class_loss,
        tracker=tracker,
        background_token=policy.background_token,
        precision=context.precision,
        scaler=context.precision.scaler(context.device),
    )
    return training
