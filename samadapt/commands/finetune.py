"""``samadapt finetune``: train an adapter and score it before and after."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt import console
from samadapt.config.schema import (
    Config,
    from_arguments,
    from_yaml,
    to_dict,
    to_yaml,
    validate,
    with_rates,
)
from samadapt.data.stacks import stacks_in_batch
from samadapt.errors import ConfigError, RunError, UserError
from samadapt.system import atomic
from samadapt.system.atomic import DiskFullError
from samadapt.system.launchers import refuse_several_processes

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from samadapt.data.types import SliceRef
    from samadapt.runs.context import Session
    from samadapt.training.checkpoint import Checkpoint
    from samadapt.training.loop import State
    from samadapt.training.losses import LossFunction
    from samadapt.training.samples import Item

HELP = """
Trains the adapter that the recipe names, with the backbone frozen, and writes a run directory:
configuration, environment, splits, progress, checkpoints, the best step's adapter, scores before
and after, and overlays. The best step is chosen on a part of the training cases; the held-out cases
are only scored. Ctrl-C saves and stops; resume=RUN_DIR goes on. folds=5 trains five adapters, each
scored on the cases that it did not see, and pools them: every case is scored once.
"""
SCHEMA = Config

MAY_MOVE = {"root", "on_error"}
"""Keys of ``data`` that a resumed run may change: the same files elsewhere."""


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


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Run the command line's configuration and return plain values.

    Raises:
        SamadaptError: as ``finetune``.
    """
    result = finetune(from_arguments(arguments))
    return {
        "run_dir": str(result.run_dir),
        "adapter_dir": result.adapter_dir and str(result.adapter_dir),
        "summary": result.summary,
    }


def render(result: dict[str, Any]) -> str:
    """Return the closing table and paths."""
    from rich.console import Group

    from samadapt.reports.objects import objects_table
    from samadapt.reports.tables import closing_text, paired_table, results_table

    summary, run_dir = result["summary"], Path(result["run_dir"])
    title = f"{summary['data']}: {summary['cases']} {summary['scored']} cases"
    title += f", {summary['slices']} {summary['parts']}"
    folds = len(summary.get("folds", ()))
    if folds:
        title += f"; each scored by the one of {folds} adapters that did not see it"
    title += f"; a case is a {summary['case_is']}"
    adapter = result["adapter_dir"] or "none: nothing was trained"
    of_runs = run_dir / "fold_*" if folds else run_dir
    paths = {
        "adapter": of_runs / "adapter" if folds and summary["adapted"] else adapter,
        "report": run_dir / "report.html",
        "overlays": of_runs / "overlays",
    }
    tables: list[Any] = [results_table(summary["zero_shot"], summary["adapted"], title=title)]
    if summary["paired"]:
        tables.append(paired_table(summary["paired"]))
    states = {n: s for n, s in (("zero-shot", "zero_shot"), ("adapted", "adapted")) if summary[s]}
    if "instances" in summary["zero_shot"]:
        objects = {name: summary[state]["instances"] for name, state in states.items()}
        tables.append(objects_table(objects))
    text = closing_text(
        Group(*tables),
        trained=summary["trained_parameters"],
        total=summary["total_parameters"],
        seconds=summary["seconds"],
        paths=paths,
        notes=summary["notes"],
    )
    return console.to_text(text)


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
        from samadapt.runs.cross_validation import cross_validate

        return cross_validate(config)
    return train_and_score(config, open_run_dir(config))


def train_and_score(config: Config, run_dir: Path) -> FinetuneResult:
    """Train and score in a run directory that is new or is resumed, and locked meanwhile.

    Raises:
        RunLockedError: another process works there; nothing of it is changed.
        UserError: as ``finetune``; a new run directory is removed again.
    """
    from samadapt.runs.run_lock import locked

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
    from samadapt.adapters.store import trainable_state
    from samadapt.runs.context import open_session
    from samadapt.runs.results import (
        check_objects,
        summarise_run,
        untrained_classes,
        untrained_text,
        write_adapter,
        write_scores,
    )

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


@contextmanager
def kept_if_started(run_dir: Path, *, keep: bool) -> Iterator[None]:
    """Remove a new run directory again when the run is refused before it starts."""
    try:
        yield
    except UserError:
        if not keep:  # on Windows the lock stays until it is released
            shutil.rmtree(run_dir, ignore_errors=os.name == "nt")
        raise


def continued(session: Session) -> Checkpoint | None:
    """Return what a resumed run goes on from; None where it was stopped before its first save.

    Lines of ``metrics.jsonl`` that are going to be written again are removed, and so is what a
    killed process left half-written.

    Raises:
        CheckpointError: when no good checkpoint is left, or a finished run has none.
    """
    from samadapt.adapters.store import trainable_state
    from samadapt.training.checkpoint import has_checkpoint, load_checkpoint
    from samadapt.training.progress import keep_lines_up_to

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
    from samadapt.adapters.store import trainable_state
    from samadapt.training.checkpoint import KEEP, checkpoint_bytes, saved

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
    from samadapt.adapters.store import load_trainable_state, trainable_state

    kept = trainable_state(session.sam, session.injection)
    try:
        load_trainable_state(session.sam, session.injection, state)
        yield
    finally:
        load_trainable_state(session.sam, session.injection, kept)


def open_run_dir(config: Config) -> Path:
    """Make a new run directory, or open the one that is resumed; ``config.yaml`` is written.

    Raises:
        ConfigError: when the directory to resume does not exist, or was made otherwise.
    """
    if config.resume is not None:
        run_dir = Path(config.resume)
        if not (run_dir / "config.yaml").is_file():
            raise ConfigError(f"resume={run_dir}: expected a run directory with config.yaml")
        check_same_run(config, from_yaml(run_dir / "config.yaml"))
        return run_dir
    recipe = Path(config.recipe).stem or "custom"
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{config.peft.name}-{config.model.name}"
    parent = Path(config.output.dir) / recipe
    for attempt in range(1, 1000):
        run_dir = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"output.dir={config.output.dir}: cannot write: {error}") from error
        atomic.write_text(run_dir / "config.yaml", to_yaml(config))
        return run_dir
    raise ConfigError(f"{parent}: a thousand runs have this name; use another output.dir")


def check_same_run(config: Config, stored: Config) -> None:
    """Refuse to go on with a model, data, prompts or a seed that the checkpoints do not know.

    Raises:
        ConfigError: naming every such key.
    """
    asked, was = to_dict(config), to_dict(stored)
    alone = [key for key in ("seed", "folds", "privacy") if asked[key] != was[key]]
    groups = ["model", "peft", "data", "prompts"]
    if config.folds is not None:  # those that are done stay as they were
        alone += ["precision"] if asked["precision"] != was["precision"] else []
        groups += ["loss", "train", "eval"]
    changed = [f"{key}={asked[key]} (was {was[key]})" for key in alone]
    for group in groups:
        for key in sorted({*asked[group], *was[group]} - MAY_MOVE):
            new, old = asked[group].get(key), was[group].get(key)
            if new != old:
                changed.append(f"{group}.{key}={new} (was {old})")
    if changed:
        raise ConfigError(
            f"resume={config.resume}: its checkpoints do not fit {', '.join(changed)}; leave these "
            "out, or start a new run"
        )


def divide(session: Session) -> dict[str, list[SliceRef]]:
    """Return the slices that train, that choose the best step, and that are scored.

    Raises:
        ConfigError: when there is nothing to train on or to score.
    """
    from samadapt.training.selection import selection_split

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
) -> State:
    """Train on some slices, choosing the best step on others."""
    import numpy as np

    from samadapt.training.batches import Sampler, endless, make_batch
    from samadapt.training.loop import LoopOptions, Training, train

    config, accelerator = session.config, session.accelerator()
    items = session.samples.items(training)
    together = stacks_in_batch(config.train.batch_size, config.peft.stack)
    sampler = Sampler(len(items), together, config.seed, shard(accelerator))
    rng = np.random.default_rng([config.seed, accelerator.process_index])
    side = 4 * session.sam.embedding_size

    def make(drawn: Sequence[Item]) -> Any:
        samples, trained = session.samples.take(drawn, rng)
        return make_batch(samples, session.policy, session.features.frame, side, rng, trained)

    def score() -> float:
        with session.progress.aside("validation", len(validation)):
            value = session.score(validation, session.policy, report=False).summary["dice"]
        return math.nan if value is None else float(value)

    work = Training(
        sam=session.sam,
        injection=session.injection,
        features=session.training_features,
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
        return train(work, options, accelerator, resume)


def shard(accelerator: Accelerator) -> tuple[int, int]:
    """Return this process's number and how many there are."""
    return accelerator.process_index, accelerator.num_processes
