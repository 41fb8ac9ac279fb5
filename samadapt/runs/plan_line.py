"""The line at the start of a run that says what it will need.

A run of a kind that was never planned and never ran has no memory and time to show there. It says
them in a second line, once its own first steps are measured.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from samadapt.runs.measured_run import MeasuredRun, find_run
from samadapt.runs.plan import predict, remembered
from samadapt.system.machine import peak_memory_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from samadapt.config.schema import Config
    from samadapt.runs.feature_planner import FeaturePlanner
    from samadapt.runs.run_slices import RunSlices
    from samadapt.training.progress import Progress

MEASURED_STEPS = 5
"""Steps that are measured for the second line. The very first one is left out: it is slow."""


def say_plan(config: Config, planner: FeaturePlanner, slices: RunSlices, started: float) -> None:
    """Say what a run that begins will need: now, or else what is left of it after a few steps.

    Args:
        config: the configuration of the run.
        planner: knows the features that the run needs.
        slices: the slices of the run.
        started: reading of ``time.perf_counter`` at the start of the run.
    """
    progress = planner.context.progress
    progress.say(plan_line(config, planner, slices))
    if remembered(config) is None and find_run(config) is None:
        start_seconds = time.perf_counter() - started
        progress.follow(FirstSteps(config, progress, start_seconds))


class FirstSteps:
    """Says what a run needs once its first steps are measured.

    Args:
        config: the configuration of the run.
        progress: that of the run; its phases are planned.
        start_seconds: what the start took, until the first phase.
    """

    def __init__(self, config: Config, progress: Progress, start_seconds: float) -> None:
        self._config, self._progress, self._start = config, progress, start_seconds
        self._totals = dict(progress.clock.left)
        self._steps, self._first = 0, 0.0

    def __call__(self, phase: str) -> bool:
        """Take note of an advance in a phase; return whether more of them are needed."""
        if phase != "train":
            return True
        clock = self._progress.clock
        self._steps += 1
        if self._steps == 1:
            self._first = clock.seconds_of("train")
        if self._steps <= MEASURED_STEPS:
            return True
        step = (clock.seconds_of("train") - self._first) / MEASURED_STEPS
        run = MeasuredRun(peak_memory_bytes(), self._start, clock.unit_seconds() | {"train": step})
        found = _memory_and_time(self._config, run, self._totals)
        self._progress.say(f"plan: {found} (as measured in the first {self._steps} steps)")
        return False


def plan_line(config: Config, planner: FeaturePlanner, slices: RunSlices) -> str:
    """Return in one line what a run that begins will need.

    Memory and time come from a rehearsal of such a run on this machine, or else from the last such
    run that ended; without either, the line says when they come and how to get them before.

    Args:
        config: the configuration of the run.
        planner: knows the features that the run needs.
        slices: the slices of the run.
    """
    injection, planned = planner.context.injection, planner.planned
    parameters = f"{injection.trainable:,} of {injection.total:,} parameters are trained"
    images, each = (planned.images, planned.bytes_each) if planned else (0, 0)
    found = remembered(config)
    if found is None:
        size = f"{images * each / 1e9:.2f} GB of features"
        return f"plan: {parameters}, {size}{_like_last_run(config, planner)}"
    measured, busy = found
    measured = replace(
        measured,
        images=images,
        missing=planner.missing,
        train=len(slices.train),
        validation=len(slices.validation),
        test=len(slices.test),
    )
    needed = predict(config, measured, busy=busy)
    times = ", ".join(f"{name} {value:.0f} s" for name, value in needed.seconds.items() if value)
    loaded = " (measured on a loaded machine)" if needed.is_loaded else ""
    memory = f"about {needed.memory_bytes / 1e9:.1f} GB of memory"
    size = f"{needed.feature_bytes / 1e9:.2f} GB of features"
    if needed.feature_place != "none":
        new = f"{needed.new_feature_bytes / 1e9:.2f} GB to be computed"
        size += f" ({needed.feature_place}; {new})"
    return f"plan: {parameters}, {memory}, {size}, {times}{loaded}"


def _like_last_run(config: Config, planner: FeaturePlanner) -> str:
    """Return memory and seconds by those of the last run of this kind, as the end of the line."""
    run = find_run(config)
    if run is None:
        return (
            "; memory and time follow after the first steps; `samadapt plan` with the same "
            "arguments predicts them"
        )
    found = _memory_and_time(config, run, planner.context.progress.clock.left)
    return f", {found} (as in the last such run)"


def _memory_and_time(config: Config, run: MeasuredRun, units: Mapping[str, int]) -> str:
    """Return what a run with so many units in each phase needs, by what was measured in one."""
    seconds = run.seconds(units)
    if (limit := config.train.max_seconds or config.train.max_cpu_seconds) is not None:
        seconds["train"] = min(limit, seconds.get("train", limit))
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    return f"about {run.memory_bytes / 1e9:.1f} GB of memory, {times}"
