"""Train an adapter, and score it before and after."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samadapt import console
from samadapt.adapters.store import load_trainable_state, trainable_state
from samadapt.config.schema import Config, validate, with_rates
from samadapt.data.stacks import stacks_in_batch
from samadapt.errors import ConfigError, RunError
from samadapt.runs.context import Session, open_session
from samadapt.runs.cross_validation import cross_validate
from samadapt.runs.results import (
    check_objects,
    summarise_run,
    untrained_classes,
    untrained_text,
    write_adapter,
    write_scores,
)
from samadapt.runs.run_directory import kept_if_started, locked, open_run_dir
from samadapt.system import atomic
from samadapt.system.atomic import DiskFullError
from samadapt.system.launchers import refuse_several_processes
from samadapt.training.batches import Sampler, endless, make_batch
from samadapt.training.checkpoint import (
    KEEP,
    Checkpoint,
    checkpoint_bytes,
    has_checkpoint,
    load_checkpoint,
    saved,
)
from samadapt.training.loop import LoopOptions, train
from samadapt.training.progress import keep_lines_up_to
from samadapt.training.selection import selection_split
from samadapt.training.state import Training, TrainingState

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from samadapt.data.types import SliceRef
    from samadapt.training.losses import LossFunction
    from samadapt.training.samples import Item


@dataclass(frozen=True)
class FinetuneResult:
    """What a run leaves.

    Attributes:
        run_dir: the run directory.
        adapter_dir: the best step's adapter; None where nothing was trained.
        summary: what ``eval/summary.json`` holds.
    """

    run_dir: Path
    adapter_dir: Path | None
    summary: dict[str, Any]


def finetune(config: Config) -> FinetuneResult:
    """Train and score as the configuration says.

    Raises:
        UserError: for a mistake in configuration, data or weights; nothing was trained. Also when
            a launcher started several processes.
        DivergedError: when the loss stays NaN or infinite.
        DiskFullError: when a file of the run cannot be written.
        InterruptedRunError: after Ctrl-C or another signal, with a checkpoint written.
    """
    refuse_several_processes()
    validate(config)
    config = with_rates(config)
    stacks_in_batch(config.train.batch_size, config.peft.stack)
    if config.folds is not None:
        run_dir, summary = cross_validate(config, train_and_score)
        return FinetuneResult(run_dir, None, summary)
    return train_and_score(config, open_run_dir(config))


def train_and_score(config: Config, run_dir: Path) -> FinetuneResult:
    """Train and score in a run directory that is new or is resumed, and locked meanwhile.

    Raises:
        RunLockedError: another process works there; nothing of it is changed.
        UserError: as ``finetune``; a new run directory is removed again.
    """
    with locked(run_dir):
        try:
            return _train_and_score(config, run_dir)
        except KeyboardInterrupt:  # outside of the training, which says so itself
            if (run_dir / "config.yaml").is_file():
                console.log(f"continue with: samadapt finetune resume={run_dir}")
            raise
        except DiskFullError as error:
            if not (run_dir / "config.yaml").is_file():
                raise
            command = f"samadapt finetune resume={run_dir}"
            raise RunError(f"{error}. When there is room, continue with: {command}") from error


def _train_and_score(config: Config, run_dir: Path) -> FinetuneResult:
    started = time.perf_counter()
    with kept_if_started(run_dir, keep=config.resume is not None):
        session = open_session(config, run_dir)
        trains = session.injection.trainable > 0
        resume = continued(session) if config.resume and trains else None
        loss, slices = session.loss(), divide(session)
        check_objects(session, slices["test"])
        session.plan(slices)
        if trains:
            check_space(session)
    untrained_names = untrained_classes(session, slices) if trains else []
    if untrained_names:
        session.say(f"warning: {untrained_text(untrained_names)}")
    session.say(session.injection.report())

    session.warm()
    untrained = trainable_state(session.sam, session.injection)
    adapted, state = None, None
    if trains:
        state = train_adapter(session, slices["train"], slices["validation"], loss, resume)
        with session.progress.phase("adapted"):
            adapted = session.score(slices["test"], session.policy)
    # Last, so that training starts at once: before any step the adapter changes nothing.
    with with_weights(session, untrained), session.progress.phase("zero-shot"):
        zero_shot = session.score(slices["test"], session.zero_shot_policy)

    summary = summarise_run(session, slices, zero_shot, adapted, state, untrained=untrained_names)
    summary["seconds"] = time.perf_counter() - started
    write_scores(session, slices["test"], zero_shot, adapted, summary)
    adapter_dir = write_adapter(session, summary) if adapted else None
    return FinetuneResult(run_dir, adapter_dir, summary)


def continued(session: Session) -> Checkpoint | None:
    """Return what a resumed run goes on from; None where it was stopped before its first save.

    Lines of ``metrics.jsonl`` that are going to be written again are removed, and so is what a
    killed process left half-written.

    Raises:
        CheckpointError: when no good checkpoint is left, or a finished run has none.
    """
    run_dir, folder = session.run_dir, session.run_dir / "checkpoints"
    for directory in (run_dir, folder, run_dir / "eval", run_dir / "overlays"):
        atomic.remove_leftovers(directory)
    found, step = None, 0
    if has_checkpoint(folder) or (run_dir / "adapter").exists():
        like = trainable_state(session.sam, session.injection)
        found = load_checkpoint(folder, session.say, like=like)
        step = found.step
    else:
        session.say("resume: no checkpoint was written yet; training starts at the first step")
    removed = keep_lines_up_to(run_dir / "metrics.jsonl", step)
    if removed:
        session.say(f"resume: {removed} lines of metrics.jsonl after step {step} are done again")
    return found


def check_space(session: Session) -> None:
    """Refuse to start where the disk cannot hold the checkpoints.

    Two are kept, and the next is written before an old one is deleted.

    Raises:
        ConfigError: naming the folder, the bytes needed and those that are free.
    """
    folder = session.run_dir / "checkpoints"
    one = checkpoint_bytes(trainable_state(session.sam, session.injection))
    lacking = KEEP + 1 - min(KEEP, len(saved(folder)))
    needed, free = lacking * one, shutil.disk_usage(session.run_dir).free
    if free < needed:
        raise ConfigError(
            f"{session.run_dir}: {lacking} checkpoints of this training need {needed} bytes "
            f"({needed / 2**20:.1f} MiB) and {free} bytes ({free / 2**20:.1f} MiB) are free; make "
            "room, choose another disk with output.dir, or train less (peft, peft.blocks)"
        )


@contextmanager
def with_weights(session: Session, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other trained weights into the model for a while."""
    kept = trainable_state(session.sam, session.injection)
    try:
        load_trainable_state(session.sam, session.injection, state)
        yield
    finally:
        load_trainable_state(session.sam, session.injection, kept)


def divide(session: Session) -> dict[str, list[SliceRef]]:
    """Return the slices that train, that choose the best step, and that are scored.

    Raises:
        ConfigError: when there is nothing to train on or to score.
    """
    config, data = session.config, session.dataset
    train = data.slices("train")
    for reason, count in train.left_out.items():
        if count:
            session.say(f"training slices left out: {count} ({reason})")
    usable = session.samples.usable(train)
    if len(usable) < len(train):
        session.say(f"training slices left out: {len(train) - len(usable)} (no object to prompt)")
    training, validation = selection_split(
        usable,
        config.train.validate_cases,
        lambda name: data.case(name).patient or name,
        data.tile,
        gap=config.peft.stack - 1,
    )
    test = list(data.slices("val"))
    if config.eval.max_cases is not None:
        kept = list(dict.fromkeys(ref.case for ref in test))[: config.eval.max_cases]
        test = [ref for ref in test if ref.case in kept]
    if not test or (session.injection.trainable and not (training and validation)):
        bare = sum(train.left_out.get(reason, 0) for reason in ("empty", "not annotated"))
        if not usable and bare:
            raise ConfigError(
                f"data: no training slice holds an object to learn; {bare} are without one. Check "
                "the masks of the training cases, or divide the cases otherwise (data.val_every, "
                f"data.fold). The cases are divided so: {data.parts.rule}"
            )
        raise ConfigError(
            f"data: {len(training)} slices to train on, {len(validation)} to choose the best step, "
            f"{len(test)} to score; each needs at least one. Use more cases (data.max_cases) or a "
            f"smaller data.slice_step. The cases are divided so: {data.parts.rule}"
        )
    return {"train": training, "validation": validation, "test": test}


def train_adapter(
    session: Session,
    training: Sequence[SliceRef],
    validation: Sequence[SliceRef],
    loss: LossFunction,
    resume: Checkpoint | None,
) -> TrainingState:
    """Train on some slices, choosing the best step on others."""
    config, accelerator = session.config, session.accelerator()
    items = session.samples.items(training)
    together = stacks_in_batch(config.train.batch_size, config.peft.stack)
    sampler = Sampler(len(items), together, config.seed, shard(accelerator))
    rng = np.random.default_rng([config.seed, accelerator.process_index])
    side = 4 * session.sam.embedding_size

    def make(drawn: Sequence[Item]) -> Any:
        samples, trained, versions = session.samples.take(drawn, rng)
        keys = session.feature_keys(versions)
        return make_batch(samples, session.policy, session.features.frame, side, rng, trained, keys)

    def score() -> float:
        with session.progress.aside("validation", len(validation)):
            value = session.score(validation, session.policy, report=False).summary["dice"]
        return math.nan if value is None else float(value)

    training_run = Training(
        sam=session.sam,
        injection=session.injection,
        features=session.features,
        batches=endless(items, sampler, make),
        sampler=sampler,
        rng=rng,
        loss=loss,
        multimask=session.policy.is_semantic or session.policy.is_ambiguous,
        validate=score,
        run_dir=session.run_dir,
        progress=session.progress,
    )
    keys = set(LoopOptions.__dataclass_fields__)
    options = LoopOptions(**{k: v for k, v in asdict(config.train).items() if k in keys})
    with session.precision.products():
        return train(training_run, options, accelerator, resume)


def shard(accelerator: Accelerator) -> tuple[int, int]:
    """Return this process's number and how many there are."""
    return accelerator.process_index, accelerator.num_processes
