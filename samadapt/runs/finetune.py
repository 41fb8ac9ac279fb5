"""Train an adapter, and score the model before and after: read it from ``finetune`` downwards."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt import console
from samadapt.adapters.store import load_trainable_state, trainable_state
from samadapt.config.compose import resolved
from samadapt.config.schema import Config
from samadapt.data.stacks import stacks_in_batch
from samadapt.errors import ConfigError, RunError
from samadapt.evaluation.confidence import ConfidenceCurve
from samadapt.runs.baseline import training_report
from samadapt.runs.batch_size import with_batch_size
from samadapt.runs.by_prompt import (
    KindScores,
    score_adapted,
    score_base,
    summarise_kinds,
    write_kinds,
)
from samadapt.runs.confidence import confidence_entry, fit_to_validation
from samadapt.runs.context import RunContext, open_run
from samadapt.runs.cross_validation import cross_validate, train_fold
from samadapt.runs.feature_planner import FeaturePlanner
from samadapt.runs.flip_note import say_what_flips_teach
from samadapt.runs.initial_adapter import (
    add_to_record,
    add_to_summary,
    start_from_adapter,
    with_initial_digest,
)
from samadapt.runs.measured_run import keep_run
from samadapt.runs.memory_budget import within_memory
from samadapt.runs.part_runs import read_summary
from samadapt.runs.plan_line import say_plan
from samadapt.runs.results import adapter_folder, adapter_record, write_adapter
from samadapt.runs.run_directory import (
    has_trained_weights,
    locked,
    open_run_dir,
    removed_if_refused,
    trained_folder,
)
from samadapt.runs.run_loss import RunLosses, choose_losses
from samadapt.runs.run_slices import (
    RunSlices,
    check_objects,
    divide_slices,
    plan_progress,
)
from samadapt.runs.same_run import check_same_configuration
from samadapt.runs.scorer import Scorer, make_scorer
from samadapt.runs.summary import untrained_classes, untrained_text, why_not_scored
from samadapt.runs.trackers import check_trackers, tracked
from samadapt.runs.train_adapter import train_adapter
from samadapt.system import atomic, processes
from samadapt.system.atomic import DiskFullError
from samadapt.training.budget import Budget
from samadapt.training.checkpoint import (
    COPIES,
    KEEP,
    Checkpoint,
    checkpoint_bytes,
    has_checkpoint,
    load_checkpoint,
    saved,
)
from samadapt.training.progress import keep_lines_up_to

if TYPE_CHECKING:
    from torch import Tensor

    from samadapt.adapters.record import AdapterRecord
    from samadapt.data.types import SliceRef


@dataclass(frozen=True)
class FinetuneResult:
    """What ``finetune`` returns.

    Attributes:
        run_dir: the run directory.
        adapter_dir: the adapter, or the U-Net, of the best step, or of the last one if nothing was
            validated; None if nothing was trained.
        summary: the content of ``eval/summary.json``.
    """

    run_dir: Path
    adapter_dir: Path | None
    summary: dict[str, Any]


def finetune(config: Config, only_fold: int | None = None) -> FinetuneResult:
    """Train an adapter, or the baseline in its place, and score it as the configuration says.

    If a launcher such as torchrun started several processes, all of them call this function and
    share the work. The first one writes the run directory; all get the same result.

    Args:
        config: the configuration of the run.
        only_fold: with ``resume`` of a cross-validation, the one fold to train. The result is that
            of the fold, or of the whole if no other fold is missing.

    Raises:
        UserError: for a mistake in configuration, data or weights; nothing was trained. Also when
            processes are missing, or have other configurations or data than the first one.
        DivergedError: when the loss stays NaN or infinite.
        DiskFullError: when a file of the run cannot be written.
        InterruptedRunError: after Ctrl-C or another signal, with a checkpoint written.
    """
    with processes.together(config.device):
        config = with_batch_size(resolved(config))
        if config.memory is not None:  # with several processes it is that of each
            chosen = within_memory(config) if processes.is_first() else config
            config = processes.from_first(chosen)
        if config.init is not None:
            config = with_initial_digest(config)
        check_same_configuration(config)
        if only_fold is not None:
            return finetune_fold(config, only_fold)
        if config.folds is not None:
            run_dir, summary = cross_validate(config, train_and_score)
            return FinetuneResult(run_dir, None, summary)
        return train_and_score(config, open_run_dir(config))


def finetune_fold(config: Config, fold: int) -> FinetuneResult:
    """Train one fold of a cross-validation; return the result of the whole if it is complete."""
    parent, summary = train_fold(config, fold, train_and_score)
    if summary is not None:
        return FinetuneResult(parent, None, summary)
    run_dir = parent / f"fold_{fold}"
    return FinetuneResult(run_dir, trained_folder(run_dir), read_summary(run_dir))


def train_and_score(config: Config, run_dir: Path) -> FinetuneResult:
    """Train and score in a run directory, which is new or resumed and stays locked meanwhile.

    Raises:
        RunLockedError: when another process uses the directory; nothing in it is changed.
        UserError: as ``finetune``; a new run directory is removed again.
    """
    started, options = time.perf_counter(), config.train
    # The lock comes first: nothing changes in a directory that another process uses.
    with locked(run_dir), resume_hint(run_dir), tracked(config, run_dir) as tracking:
        # Everything that can be refused is refused in this block, before the first step.
        with removed_if_refused(run_dir, keep=config.resume is not None):
            check_trackers(config)
            context = open_run(config, run_dir)
            say_what_flips_teach(context)
            planner = FeaturePlanner(context)
            scorer = make_scorer(planner, config.eval)
            trains = context.has_trained_parameters
            checkpoint = prepare_resume(context) if config.resume and trains else None
            slices = divide_slices(
                context,
                validate_cases=options.validate_cases,
                max_test_cases=config.eval.max_cases,
            )
            check_batch(options.slices, context.dataset.stack)
            losses = choose_losses(config.loss, context, slices.train)
            check_objects(scorer, slices.test, slices.train)
            # Before the first step a fresh adapter changes nothing, so the weights from before
            # training stand for the base model, also where training starts from other ones.
            weights_before = trainable_state(context.model, context.injection)
            first = None
            if config.init is not None:
                first = start_from_adapter(
                    config, context, slices.test, is_resumed=checkpoint is not None
                )
            # The clocks that train.max_seconds and train.max_cpu_seconds limit start here.
            limits = (options.max_seconds, options.max_cpu_seconds) if trains else (None, None)
            per_slice = len(context.policy.kinds) / (options.slices * options.accumulate)
            budget = Budget(*limits, validation_steps=per_slice * len(slices.validation))
            if trains and processes.is_first():
                check_disk_space(context, averages=options.ema > 0)
            plan_run(config, scorer, slices, losses, budget, started)
        untrained = untrained_classes(context.dataset, slices) if trains else []
        say_what_trains(config, context, untrained)
        if features_come_first(config):
            compute_features(planner, slices, budget)
        # A resumed run may have used up its time; it then goes on to the scores.
        with removed_if_refused(run_dir, keep=config.resume is not None):
            if checkpoint is None:
                budget.refuse_if_spent()
        tracking.start(context.say)
        state = None
        curve: ConfidenceCurve | str = "nothing was trained"
        if trains:
            state = train_adapter(config, planner, scorer, slices, losses, checkpoint, budget)
            curve = fit_to_validation(scorer.main(), slices)
        scored = score_held_out(scorer, slices.test, weights_before, curve)

        summary = summarise_kinds(scorer, slices, scored, state=state, untrained=untrained)
        add_to_summary(summary, first)
        summary["seconds"] = time.perf_counter() - started
        if processes.is_first():
            write_results(config, planner, slices.test, scored, summary)
            tracking.finish(summary)
            if trains:
                record = finished_record(config, scorer, curve)
                write_adapter(context, add_to_record(record, first), summary)
        processes.wait()  # until everything is written
        return FinetuneResult(run_dir, adapter_folder(context) if trains else None, summary)


def write_results(
    config: Config,
    planner: FeaturePlanner,
    refs: Sequence[SliceRef],
    scored: Mapping[str, KindScores],
    summary: Mapping[str, Any],
) -> None:
    """Write the scores and overlays, and keep what the run needed."""
    context = planner.context
    if planner.when_read:
        planner.say_computed()
    keep_run(config, context.progress.clock, summary)
    write_kinds(context, refs, scored, summary, overlays=config.eval.overlays)


def finished_record(config: Config, scorer: Scorer, curve: ConfidenceCurve | str) -> AdapterRecord:
    """Return what the adapter of a run must remember, without its scores."""
    return replace(
        adapter_record(config, scorer.context),
        confidence=confidence_entry(curve),
        keep_largest=list(scorer.keep_largest),
    )


def say_what_trains(config: Config, context: RunContext, untrained: Sequence[str]) -> None:
    """Show what trains, and warn of the classes that no training slice holds."""
    if untrained:
        context.say(f"warning: {untrained_text(untrained)}")
    context.say(context.injection.report())
    if context.is_baseline:
        context.say(training_report(config, context.samples.changes))


@contextmanager
def resume_hint(run_dir: Path) -> Iterator[None]:
    """If the block is interrupted or the disk is full, name the command that resumes the run.

    Inside the training loop a signal leads to a checkpoint and a message with this command, so a
    ``KeyboardInterrupt`` that arrives here comes from outside the loop.
    """
    command = f"samadapt finetune resume={run_dir}"
    try:
        yield
    except KeyboardInterrupt:
        if (run_dir / "config.yaml").is_file():
            console.log(f"continue with: {command}")
        raise
    except DiskFullError as error:
        if not (run_dir / "config.yaml").is_file():
            raise
        raise RunError(f"{error}. When there is room, continue with: {command}") from error


def plan_run(
    config: Config,
    scorer: Scorer,
    slices: RunSlices,
    losses: RunLosses,
    budget: Budget,
    started: float,
) -> None:
    """Look up the frozen features, and tell the user and the progress display what is to do."""
    planner, options = scorer.planner, config.train
    planner.plan(config, train=slices.train, others=[*slices.validation, *slices.test])
    if not features_come_first(config):
        planner.compute_when_read()
    plan_progress(planner, slices, steps=options.steps or 0, validate_every=options.validate_every)
    with budget.paused():  # what is only measured does not count
        say_plan(config, scorer, slices, losses, started)


def features_come_first(config: Config) -> bool:
    """Whether all frozen features are computed before the first step.

    Otherwise each is computed when it is first read, so that training starts at once. Several
    processes compute them first, because they share the work then. So does a run of limited time,
    whose learning rate follows the time: steps at its beginning must not be slower than others.
    """
    options = config.train
    limited = options.max_seconds is not None or options.max_cpu_seconds is not None
    return processes.count() > 1 or limited


def compute_features(planner: FeaturePlanner, slices: RunSlices, budget: Budget) -> None:
    """Compute the frozen features once, before the first step that reads them.

    Args:
        planner: knows which features are missing.
        slices: the slices of the run.
        budget: if it is limited, the features of held-out slices are left to the final scores,
            which are not part of the training.
    """
    trained = [*slices.train, *slices.validation]
    planner.warm(trained if budget.is_limited else None)


def score_held_out(
    scorer: Scorer,
    refs: Sequence[SliceRef],
    weights_before: Mapping[str, Tensor],
    curve: ConfidenceCurve | str,
) -> dict[str, KindScores]:
    """Score the base model and the trained model on the held-out slices.

    Args:
        scorer: scores the model of the run.
        refs: the held-out slices.
        weights_before: the trained parameters before training.
        curve: the confidence of the trained model's objects with its main kind of prompt, whose
            error is measured; or the reason why there is none.

    Returns:
        By kind of prompt the scores of the base model, which are None for a baseline, and those of
        the trained model, which are None if nothing is trained. Both are None if nothing is held
        out.
    """
    context = scorer.context
    scorer.planner.expect_only(refs)
    found = {kind: KindScores() for kind in context.policy.kinds}
    if not refs:
        context.say(f"note: {why_not_scored(context.dataset)}")
        return found
    if context.has_trained_parameters:
        with context.progress.phase("adapted"):
            score_adapted(scorer, refs, curve, found)
    if context.is_baseline:
        return found  # a random U-Net is no model before training
    # The base model is scored last, so that training starts at once. Before the first step the
    # adapter changes nothing, so the weights from before training stand for the base model.
    with with_weights(context, weights_before), context.progress.phase("zero-shot"):
        score_base(scorer, refs, found)
    return found


def prepare_resume(context: RunContext) -> Checkpoint | None:
    """Clean up what the stopped run left half-written, and return its last checkpoint.

    This removes half-written files of a killed process, and the lines of ``metrics.jsonl`` after
    the checkpoint, whose steps run again. If no checkpoint was written yet, it returns None.

    Raises:
        CheckpointError: when no checkpoint can be read, or a finished run has none.
    """
    run_dir, folder = context.run_dir, context.run_dir / "checkpoints"
    for directory in (run_dir, folder, run_dir / "eval", run_dir / "overlays"):
        if processes.is_first():
            atomic.remove_leftovers(directory)
    checkpoint, step = None, 0
    # A finished run without a checkpoint is refused by load_checkpoint and not trained again.
    if has_checkpoint(folder) or has_trained_weights(run_dir):
        like = trainable_state(context.model, context.injection)
        checkpoint = load_checkpoint(folder, context.say, like=like)
        step = checkpoint.step
    else:
        context.say("resume: no checkpoint was written yet; training starts at the first step")
    processes.wait()  # before the first one changes what others read
    if processes.is_first() and (removed := keep_lines_up_to(run_dir / "metrics.jsonl", step)):
        context.say(
            f"resume: removed {removed} lines of metrics.jsonl after step {step}; those steps run "
            "again"
        )
    return checkpoint


def check_batch(batch_size: int, stack: int) -> None:
    """Refuse batches of which some process would get nothing.

    Args:
        batch_size: slices in a batch.
        stack: slices that the encoder sees together, which go to one process.

    Raises:
        ConfigError: there are more processes than stacks.
    """
    stacks = stacks_in_batch(batch_size, stack)
    if stacks < processes.count():
        raise ConfigError(
            f"train.batch_size={batch_size} is {stacks} for {processes.count()} processes: each "
            "takes its share of every batch. Start fewer processes, or use larger batches"
        )


def check_disk_space(context: RunContext, *, averages: bool) -> None:
    """Refuse to start if the disk cannot hold the checkpoints.

    Two checkpoints are kept, and the next one is written before the oldest is deleted.

    Args:
        context: the run.
        averages: whether a checkpoint also holds moving averages of the weights.

    Raises:
        ConfigError: naming the folder, the bytes needed and the bytes that are free.
    """
    folder = context.run_dir / "checkpoints"
    copies = COPIES + context.injection.method.state_copies + averages
    one = checkpoint_bytes(trainable_state(context.model, context.injection), copies)
    lacking = KEEP + 1 - min(KEEP, len(saved(folder)))
    needed, free = lacking * one, shutil.disk_usage(context.run_dir).free
    if free < needed:
        raise ConfigError(
            f"{context.run_dir}: {lacking} checkpoints of this training need {needed} bytes "
            f"({needed / 2**20:.1f} MiB) and {free} bytes ({free / 2**20:.1f} MiB) are free; make "
            "room, choose another disk with output.dir, or train fewer parameters (peft, "
            "peft.blocks)"
        )


@contextmanager
def with_weights(context: RunContext, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other trained weights into the model while the block runs."""
    kept = trainable_state(context.model, context.injection)
    try:
        load_trainable_state(context.model, context.injection, state)
        yield
    finally:
        # The trained weights come back, because the adapter is written from the model afterwards.
        load_trainable_state(context.model, context.injection, kept)
