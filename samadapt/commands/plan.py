"""``samadapt plan``: what a run will need, before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samadapt import console
from samadapt.config.plan_arguments import PlanArguments, plan_arguments

HELP = """
Predicts what `samadapt finetune` with the same arguments will need: parameters, memory, disk for
the features, and seconds of each phase. It opens the data and the model, and does a little of each
phase to measure it: five batches of features, training steps with one, two and all slices of a
batch, and the scores of a usual case. Nothing is trained. The features that it computes are kept
for the run.

memory=8GB chooses micro-batches, recomputation, the place of the features and, last, the precision,
so that the process stays below that, and the plan is of that choice.

Memory and disk do not depend on what else the machine does; the seconds do, so they are measured
on a quiet machine, and the plan says if this one is not.
"""
SCHEMA = PlanArguments


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the plan as plain values.

    Raises:
        SamadaptError: for all that the run itself would refuse.
    """
    asked = plan_arguments(arguments)
    config = asked.configuration()
    from samadapt.runs.rehearsal import plan  # it imports torch, so mistakes are reported before

    return plan(config, quick=asked.quick).to_dict()


def render(result: Mapping[str, Any]) -> str:
    """Return the plan as a table and its notes."""
    from samadapt.reports.tables import format_seconds

    share = result["trained"] / max(1, result["total"])
    batch = f"{result['accumulate']} x {result['batch_size']} slices a step"
    rows = [
        ["parameters", f"{result['trained']:,} of {result['total']:,} are trained ({share:.2%})"],
        ["memory", f"{_gb(result['memory_bytes'])} at most, with {batch}"],
        *([f"  {name}", _gb(size)] for name, size in result["memory_by_phase"].items()),
        ["features", _features(result)],
        ["time", format_seconds(sum(result["seconds"].values()) * result["folds"])],
        *([f"  {name}", format_seconds(each)] for name, each in result["seconds"].items()),
    ]
    if result["folds"] > 1:
        rows.append(["folds", f"{result['folds']}, one after another; the rest is for one of them"])
    lines = [console.table(["what", "how much"], rows)]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _features(result: Mapping[str, Any]) -> str:
    if result["feature_place"] == "none":
        return "none are kept"
    size, new = _gb(result["feature_bytes"]), _gb(result["new_feature_bytes"])
    place = "on disk" if result["feature_place"] == "disk" else "in memory"
    return f"{size} {place}, of which {new} are still to be computed"


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
