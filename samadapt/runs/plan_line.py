"""The line at the start of a run that says what it will need."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from samadapt.runs.measured_run import MeasuredRun, find_run
from samadapt.runs.plan import Rehearsal, predict, remembered
from samadapt.runs.rehearsal import measure_beginning, scored_by_first
from samadapt.system import processes
from samadapt.system.machine import busy_processors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from samadapt.config.schema import Config
    from samadapt.runs.feature_planner import FeaturePlanner
    from samadapt.runs.run_loss import RunLosses
    from samadapt.runs.run_slices import RunSlices
    from samadapt.runs.scorer import Scorer

SHORT, SHORT_S = 10, 300.0
"""A run of fewer steps, or of fewer seconds if they are limited, is not measured first: that takes
as long as a few steps and scores."""


def say_plan(
    config: Config, scorer: Scorer, slices: RunSlices, losses: RunLosses, started: float
) -> None:
    """Say in one line what a run that begins will need.

    Memory and time come from a rehearsal of such a run on this machine (``samadapt plan``), or else
    from the last such run that ended, or else from a little of this run itself. For short runs,
    resumed ones, and several processes with versions of slices, the line says how to get them.

    Args:
        config: the configuration of the run.
        scorer: scores the model of the run; its planner knows the features.
        slices: the slices of the run.
        losses: the training losses.
        started: reading of ``time.perf_counter`` at the start of the run.
    """
    planner, context = scorer.planner, scorer.context
    # The first process decides: the others may run on machines that remember other runs.
    known, last = processes.from_first((remembered(config), find_run(config)))
    source = ""
    if known is None and last is None and _is_measured(config, scorer):
        busy = busy_processors()
        with context.progress.aside("measurement", 1):
            known = measure_beginning(config, scorer, slices, losses, started), busy
        source = " (as measured just now)"
    if known is not None:
        needs = _as_rehearsed(config, planner, slices, *known) + source
    else:
        needs = _features_alone(planner)
        if last is None:
            needs += "; `samadapt plan` with the same arguments predicts memory and time"
            needs += " of one process" if processes.count() > 1 else ""
        else:
            found = _memory_and_time(config, last, context.progress.clock.left)
            needs += f", {found} (as in the last such run)"
    trained, total = context.injection.trainable, context.injection.total
    context.say(f"plan: {trained:,} of {total:,} parameters are trained, {needs}")


def _is_measured(config: Config, scorer: Scorer) -> bool:
    """Whether a run is worth the time of a look at its beginning."""
    steps, limits = config.train.steps, (config.train.max_seconds, config.train.max_cpu_seconds)
    is_short = (steps is not None and steps < SHORT) or any(
        limit is not None and limit < SHORT_S for limit in limits
    )
    # Several processes would compute all versions of the slices, which takes too long.
    is_long = processes.count() > 1 and scorer.context.samples.variants > 1
    is_new = config.resume is None and not is_short and not is_long
    return is_new and scorer.context.has_trained_parameters


def _memory(count: int) -> str:
    each = " in each process" if processes.count() > 1 else ""
    return f"about {count / 1e9:.1f} GB of memory{each}"


def _features_alone(planner: FeaturePlanner) -> str:
    planned = planner.planned
    return f"{planned.images * planned.bytes_each / 1e9 if planned else 0:.2f} GB of features"


def _as_rehearsed(
    config: Config, planner: FeaturePlanner, slices: RunSlices, measured: Rehearsal, busy: float
) -> str:
    """Return what a run needs by the rehearsal of one of its kind."""
    planned = planner.planned
    measured = replace(
        measured,
        images=planned.images if planned else 0,
        missing=planner.missing,
        train=len(slices.train),
        validation=scored_by_first(slices.validation),
        test=scored_by_first(slices.test),
    )
    needed = predict(config, measured, busy=busy)
    times = ", ".join(f"{name} {value:.0f} s" for name, value in needed.seconds.items() if value)
    loaded = " (measured on a loaded machine)" if needed.is_loaded else ""
    size = f"{needed.feature_bytes / 1e9:.2f} GB of features"
    if needed.feature_place != "none":
        new = f"{needed.new_feature_bytes / 1e9:.2f} GB to be computed"
        size += f" ({needed.feature_place}; {new})"
    return f"{_memory(needed.memory_bytes)}, {size}, {times}{loaded}"


def _memory_and_time(config: Config, run: MeasuredRun, units: Mapping[str, int]) -> str:
    """Return what a run with so many units in each phase needs, by what was measured in one."""
    seconds = run.seconds(units)
    if (limit := config.train.max_seconds or config.train.max_cpu_seconds) is not None:
        seconds["train"] = min(limit, seconds.get("train", limit))
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    return f"{_memory(run.memory_bytes)}, {times}"
