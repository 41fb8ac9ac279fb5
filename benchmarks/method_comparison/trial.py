"""Train one trial as ``samadapt finetune`` would, and score it on the held-out volumes."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from contextlib import redirect_stderr
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.method_comparison.plan import Settings, Trial, read_trials
from samadapt.config.compose import compose
from samadapt.config.schema import Config
from samadapt.runs.context import open_run
from samadapt.runs.feature_planner import FeaturePlanner
from samadapt.runs.run_loss import choose_losses
from samadapt.runs.run_slices import RunSlices, divide_slices
from samadapt.runs.scorer import Scorer, make_scorer
from samadapt.runs.train_adapter import train_adapter
from samadapt.training.state import TrainingState

TIMED_STEPS = 8


def configuration(trial: Trial, settings: Settings, root: Path, work: Path) -> Config:
    """Return the configuration of a trial; features are kept in ``work`` for all."""
    return compose(
        "hippocampus",
        [
            f"data.root={json.dumps(str(root))}",
            f"cache.dir={json.dumps(str(work / 'features'))}",
            "cache.where=disk",
            "precision=fp32",
            *trial.overrides(settings),
        ],
    )


def train_trial(trial: Trial, settings: Settings, root: Path, work: Path) -> dict[str, Any]:
    """Train, choose nothing, score, and return plain values.

    Args:
        trial: what to train.
        settings: what all have in common.
        root: folder of MSD Task04.
        work: folder for features.

    Returns:
        validation and held-out Dice and IoU (mean of the volumes), trained parameters in all and
        without the decoder, and the median seconds of a step.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=work) as folder, redirect_stderr(StringIO()):
        run_dir = Path(folder)
        config = configuration(trial, settings, root, work)
        planner, scorer, slices = open_trial(config, run_dir)
        context = planner.context
        slices = replace(slices, test=slices.test[:: settings.test_every])
        state = train_on(config, planner, scorer, slices)
        scores = scorer.score_overlap(slices.test, context.policy).summary
        seconds = step_seconds(run_dir)
    injection = context.injection
    decoder = sum(injection.parameters[n].numel() for n in injection.groups.get("decoder", ()))
    return {
        "validation_dice": state.best_score,
        "dice": scores["dice"],
        "iou": scores["iou"],
        "trained": injection.trainable,
        "trained_encoder": injection.trainable - decoder,
        "step_s": statistics.median(seconds),
        "skipped": state.skipped,
        "slices": {name: len(refs) for name, refs in vars(slices).items()},
        "total_s": time.perf_counter() - started,
    }


def open_trial(config: Config, run_dir: Path) -> tuple[FeaturePlanner, Scorer, RunSlices]:
    """Open the run of a trial as ``samadapt finetune`` does."""
    context = open_run(config, run_dir)
    planner = FeaturePlanner(context)
    slices = divide_slices(
        context,
        validate_cases=config.train.validate_cases,
        max_test_cases=config.eval.max_cases,
    )
    return planner, make_scorer(planner, config.eval), slices


def train_on(
    config: Config, planner: FeaturePlanner, scorer: Scorer, slices: RunSlices
) -> TrainingState:
    """Compute the frozen features of the slices and train."""
    planner.plan(config, train=slices.train, others=[*slices.validation, *slices.test])
    planner.warm()
    losses = choose_losses(config.loss, planner.context, slices.train)
    return train_adapter(config, planner, scorer, slices, losses, None)


def step_seconds(run_dir: Path) -> list[float]:
    """Return the seconds of each step of a run."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["seconds"] for line in lines if line["kind"] == "train"]


def time_steps(settings: Settings, root: Path, work: Path, trial: Trial) -> list[float]:
    """Return the seconds of a few steps of a trial on cached features, after two to warm up."""
    few = replace(settings, steps=TIMED_STEPS + 2)
    with tempfile.TemporaryDirectory(dir=work) as folder, redirect_stderr(StringIO()):
        run_dir = Path(folder)
        config = configuration(trial, few, root, work)
        planner, scorer, slices = open_trial(config, run_dir)
        slices = RunSlices(slices.train[:32], slices.validation[:1], slices.test[:1])
        train_on(config, planner, scorer, slices)
        return step_seconds(run_dir)[2:]


def timed(settings: Settings, root: Path, work: Path, output: Path, trial: Trial) -> None:
    """Time the steps of a trial and append them to the results."""
    seconds = time_steps(settings, root, work, trial)
    row = {**_described(settings, trial), "step_s": seconds, "machine": this_machine()}
    results.append(output, row)
    median = statistics.median(seconds)
    print(f"{trial.method:14} {trial.size:6} {trial.task:8} {median:.3f} s a step", flush=True)


def _described(settings: Settings, trial: Trial) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": asdict(settings),
        "trial": asdict(trial),
        "options": trial.options,
    }


def one_thread() -> None:
    """Keep the processes of a pool out of one another's way, and end each with its parent."""
    import torch

    torch.set_num_threads(1)
    if (parent := multiprocessing.parent_process()) is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def trained(settings: Settings, root: Path, work: Path, output: Path, trial: Trial) -> float:
    """Train a trial unless it is in the results; append it there; return the validation Dice."""
    for done in read_trials(output):
        if done["settings"] == asdict(settings) and done["trial"] == asdict(trial):
            return float(done["validation_dice"])
    found = train_trial(trial, settings, root, work)
    row = {**_described(settings, trial), **found, "machine": this_machine()}
    results.append(output, row)
    print(
        f"{trial.method:14} {trial.size:6} {trial.task:8} lr {trial.lr:g} seed {trial.seed}: "
        f"validation {found['validation_dice']:.3f}, held out {found['dice']:.3f}, "
        f"{found['trained_encoder']:,} parameters, {found['step_s']:.2f} s a step, "
        f"{found['total_s']:.0f} s",
        flush=True,
    )
    return float(found["validation_dice"])


@cache
def this_machine() -> dict[str, Any]:
    """Return what the seconds depend on."""
    from benchmarks import machine

    found = machine.describe()
    return {key: found[key] for key in ("processor", "threads", "commit", "samadapt")}
