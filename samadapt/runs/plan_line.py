"""The line at the start of a run that says what it will need."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from samadapt.runs.measured_run import find_run
from samadapt.runs.plan import predict, remembered

if TYPE_CHECKING:
    from samadapt.config.schema import Config
    from samadapt.runs.feature_planner import FeaturePlanner
    from samadapt.runs.run_slices import RunSlices


def plan_line(config: Config, planner: FeaturePlanner, slices: RunSlices) -> str:
    """Return in one line what a run that begins will need.

    Memory and time come from a rehearsal of such a run on this machine, or else from the last such
    run that ended; without either, the line says how to get them.

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
        return "; `samadapt plan` with the same arguments predicts memory and time"
    seconds = run.seconds(planner.context.progress.clock.left)
    if (limit := config.train.max_seconds or config.train.max_cpu_seconds) is not None:
        seconds["train"] = min(limit, seconds.get("train", limit))
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    return f", about {run.memory_bytes / 1e9:.1f} GB of memory, {times} (as in the last such run)"
