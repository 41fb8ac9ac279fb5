"""Score an adapter on a data set, beside its base model: read it from ``evaluate`` downwards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.adapters.hub import adapter_path
from samadapt.adapters.record import AdapterRecord, read_record
from samadapt.adapters.store import load_into
from samadapt.config.evaluate_arguments import EvaluateArguments
from samadapt.errors import AdapterError, ConfigError, RunError
from samadapt.evaluation.confidence import read_curve
from samadapt.runs.by_prompt import (
    KindScores,
    score_adapted,
    score_base,
    summarise_kinds,
    write_kinds,
)
from samadapt.runs.context import RunContext, open_run
from samadapt.runs.feature_planner import FeaturePlanner
from samadapt.runs.one_slice import OneSlice
from samadapt.runs.oracle_gap import OracleGap
from samadapt.runs.recorded_configuration import evaluation_config
from samadapt.runs.run_directory import open_run_dir, removed_if_refused
from samadapt.runs.run_slices import RunSlices, check_objects, plan_progress
from samadapt.runs.same_run import check_same_configuration
from samadapt.runs.scored_slices import Which, choose_slices
from samadapt.runs.scorer import Scorer, make_scorer
from samadapt.runs.side_by_side import ComparedAdapters, compare_adapters
from samadapt.runs.volume_clicks import VolumeClicks, refuse_pictures, refuse_without_memory
from samadapt.system import processes
from samadapt.system.launchers import refuse_several_processes

if TYPE_CHECKING:
    from samadapt.config.schema import Config, Eval
    from samadapt.data.types import SliceRef
    from samadapt.training.features import Features


@dataclass(frozen=True)
class EvaluateResult:
    """What ``evaluate`` returns.

    Attributes:
        run_dir: the directory with scores and overlays.
        summary: the content of ``eval/summary.json``.
    """

    run_dir: Path
    summary: dict[str, Any]


def evaluate(arguments: EvaluateArguments, record: AdapterRecord | None = None) -> EvaluateResult:
    """Score an adapter and its base model on a data set, or several adapters side by side.

    Args:
        arguments: the keys of ``samadapt evaluate``. Several adapters get the same keys;
            ``evaluate_side_by_side`` takes keys for each.
        record: the ``samadapt.json`` of the only adapter, if the caller has read it already.

    Raises:
        AdapterError: when the adapter or the base weights differ from what was recorded.
        DataError: for the errors of the data set's files.
    """
    if not isinstance(arguments.adapter, str):
        return evaluate_side_by_side(
            [replace(arguments, adapter=adapter) for adapter in arguments.adapter]
        )
    with processes.together(arguments.device):
        adapter = adapter_path(arguments.adapter)
        record = record or read_record(adapter)
        chosen_cases(arguments)
        config = evaluation_config(arguments, record)
        check_same_configuration(config)
        run_dir = open_run_dir(config)
        compared = ComparedAdapters({adapter: record}, trained_in=adapter.parent)
        return EvaluateResult(run_dir, score_adapter(arguments, config, run_dir, compared))


def evaluate_side_by_side(
    asked: Sequence[EvaluateArguments], records: Sequence[AdapterRecord] | None = None
) -> EvaluateResult:
    """Score several adapters on the same cases, of which none was trained on any.

    Args:
        asked: the keys of ``samadapt evaluate`` for each adapter. Those of the first one decide
            the data set and the output.
        records: the adapters' ``samadapt.json``, if the caller has read them already.

    Raises:
        ConfigError: when the adapters cannot be compared.
        AdapterError: as ``evaluate``.
        DataError: as ``evaluate``.
    """
    if not asked:
        raise ConfigError("adapter: expected one adapter directory or several; got an empty list")
    if len(asked) == 1:
        return evaluate(asked[0], records[0] if records else None)
    refuse_several_processes()
    chosen_cases(asked[0])
    found = records or [read_record(adapter_path(str(one.adapter))) for one in asked]
    return EvaluateResult(*compare_adapters(asked, found, score_adapter))


def chosen_cases(arguments: EvaluateArguments) -> Which:
    """Return which cases are scored.

    Raises:
        ConfigError: when two choices contradict each other.
    """
    if arguments.all_cases and arguments.unseen:
        raise ConfigError("unseen=true leaves out what all_cases=true scores: choose one")
    return "all" if arguments.all_cases else "unseen" if arguments.unseen else "held-out"


def score_adapter(
    arguments: EvaluateArguments, config: Config, run_dir: Path, compared: ComparedAdapters
) -> dict[str, Any]:
    """Score one adapter and its base model in a run directory.

    Args:
        arguments: the keys of ``samadapt evaluate`` for this adapter.
        config: the configuration of its evaluation.
        run_dir: a new run directory; it is removed if the evaluation is refused.
        compared: all adapters that are scored on the same cases, this one among them.

    Returns:
        The content of ``eval/summary.json``.
    """
    started = time.perf_counter()
    adapter = adapter_path(str(arguments.adapter))
    record = compared.records[adapter]
    with removed_if_refused(run_dir, keep=False):
        context = open_run(
            config,
            run_dir,
            copies_base=True,
            trained_in=compared.trained_in,
        )
        check_fit(context, adapter, record)
        if arguments.prompts.name in ("volume_clicks", "one_slice"):
            refuse_pictures(context.dataset, arguments.prompts.name)
        if arguments.propagate == "memory":
            refuse_without_memory(context.model)
        scored = choose_slices(context, config, compared.records, chosen_cases(arguments))
        compared.check_same_cases(context, scored.refs)
        slices = RunSlices(train=[], validation=[], test=scored.refs)
        planner = FeaturePlanner(context)
        scorer = make_scorer(planner, _as_recorded(config.eval, record, context.dataset.axis))
        check_objects(scorer, scored.refs)
        planner.plan(config, train=[], others=scored.refs)
        plan_progress(planner, slices, steps=0, validate_every=0)
    planner.warm()

    # Zero-shot first: a fresh adapter changes nothing, so the model is still the base.
    further = further_scores(arguments, scorer, scored.refs)
    found = {kind: KindScores() for kind in context.policy.kinds}
    with context.progress.phase("zero-shot"):
        score_base(scorer, scored.refs, found)
    if further:
        further.measure("zero_shot")
    use_trained_adapter(context, planner.features, adapter, record)
    with context.progress.phase("adapted"):
        curve = read_curve(record.confidence) if record.confidence else None
        score_adapted(scorer, scored.refs, curve, found)
    if further:
        further.measure("adapted")

    untrained = recorded_untrained(record, context.dataset.classes)
    summary = summarise_kinds(
        scorer,
        slices,
        found,
        scored=scored.which,
        notes=scored.notes,
        untrained=untrained,
    )
    if further:
        measured = further.summary()
        summary |= measured
        if processes.is_first():
            further.write(run_dir / "eval", measured)
    summary["seconds"] = time.perf_counter() - started
    if processes.is_first():
        write_kinds(context, scored.refs, found, summary, overlays=config.eval.overlays)
    processes.wait()  # until everything is written
    return summary


def further_scores(
    arguments: EvaluateArguments, scorer: Scorer, refs: Sequence[SliceRef]
) -> OracleGap | VolumeClicks | OneSlice | None:
    """Return what measures the further prompts that were asked for; None: nothing.

    Args:
        arguments: the keys of ``samadapt evaluate``.
        scorer: scores the model of the run.
        refs: the slices that are scored.
    """
    if arguments.prompts.name == "matrix":
        return OracleGap(scorer, refs)
    if arguments.prompts.name == "volume_clicks":
        return VolumeClicks(scorer, refs, by_memory=arguments.propagate == "memory")
    if arguments.prompts.name == "one_slice":
        return OneSlice(scorer, refs)
    return None


def _as_recorded(options: Eval, record: AdapterRecord, axis: str | None) -> Eval:
    """Take over what the adapter records of ``eval.keep_largest``, unless classes are named.

    What was recorded for volumes is left out for pictures, which have no ``axis``.
    """
    if options.keep_largest in (None, "auto"):
        is_other = axis is None and record.axis is not None
        return replace(options, keep_largest=[] if is_other else list(record.keep_largest))
    return options


def use_trained_adapter(
    context: RunContext, features: Features, adapter: Path, record: AdapterRecord
) -> None:
    """Replace the model of a run by the trained adapter on the untouched copy of its base.

    Raises:
        AdapterError: when the adapter does not fit its base.
    """
    sam = context.base_copy
    if sam is None:
        raise RunError("the run keeps no copy of the base model; open it with copies_base=True")
    context.injection = load_into(adapter, sam.to(context.device), record)
    context.precision.store_frozen(sam.to(context.device), context.injection.exact)
    context.model, context.base_copy = sam, None
    # Features that are not kept are computed with the model, which has changed.
    features.sam = sam


def recorded_untrained(record: AdapterRecord, classes: Sequence[str]) -> list[str]:
    """Return the classes that the record marks as absent from the training slices."""
    scores = record.scores.get("adapted") if isinstance(record.scores, dict) else None
    per_class = scores.get("per_class") if isinstance(scores, dict) else None
    known = per_class if isinstance(per_class, dict) else {}
    return [
        name
        for name in classes
        if isinstance(known.get(name), dict) and known[name].get("untrained") is True
    ]


def check_fit(context: RunContext, adapter: Path, record: AdapterRecord) -> None:
    """Refuse other base weights and, for an adapter that predicts classes, other classes.

    Raises:
        AdapterError: for base weights that are not those recorded.
        ConfigError: naming both lists of classes.
    """
    if context.base_sha256 != record.base_sha256:
        raise AdapterError(
            f"{adapter}: trained on base {record.base} with sha256 {record.base_sha256}; found one "
            f"with {context.base_sha256}. Give the file that it was trained with as checkpoint=FILE"
        )
    found = context.dataset.classes
    # Mask token k predicts class k, so the order of the classes must agree too.
    if context.policy.finds_classes and found != record.classes:
        raise ConfigError(
            f"{adapter}: predicts {', '.join(record.classes)}, in this order; the data set has "
            f"{', '.join(found)}. Name the same classes with data.classes={{name: value}}"
        )
    if context.policy.finds_classes and context.dataset.overlapping is not record.overlapping:
        kind = "may overlap" if record.overlapping else "do not overlap"
        key = "data.regions" if record.overlapping else "data.classes"
        raise ConfigError(
            f"{adapter}: its classes ({', '.join(record.classes)}) {kind}; name those of the data "
            f"set with {key}={{name: [values]}}"
        )
