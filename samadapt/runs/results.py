"""Write the results of a run: scores, overlays, the report and the adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.adapters.record import (
    RECORD,
    UNET_RECORD,
    AdapterRecord,
    portable_options,
    read_record,
)
from samadapt.adapters.store import save_adapter
from samadapt.baselines.store import save_unet
from samadapt.baselines.unet import UNet
from samadapt.data.checks.resumed_run import merge_trained_on
from samadapt.data.checks.training_record import trained_on
from samadapt.data.intensity import visible
from samadapt.reports.by_prompt import compact
from samadapt.reports.false_positives import write_false_positives
from samadapt.reports.objects import write_objects
from samadapt.reports.overlays import choose_cases, draw_overlay
from samadapt.reports.plots import plot_progress
from samadapt.reports.tables import state_names, write_per_case, write_summary
from samadapt.runs.run_page import true_labels, write_page
from samadapt.runs.summary import why_not_scored
from samadapt.sam.model import Sam

if TYPE_CHECKING:
    from samadapt.config.schema import Config
    from samadapt.data.types import SliceRef
    from samadapt.evaluation.evaluate import Evaluation
    from samadapt.runs.context import RunContext
    from samadapt.sam.segmentation_model import SegmentationModel


def write_scores(
    context: RunContext,
    refs: Sequence[SliceRef],
    zero_shot: Evaluation | None,
    adapted: Evaluation | None,
    summary: Mapping[str, Any],
    *,
    overlays: int,
) -> None:
    """Write ``eval/``, ``overlays/``, ``progress.png`` and ``report.html``.

    Args:
        context: the run.
        refs: the slices that were scored.
        zero_shot: the scores of the base model; None if nothing was scored.
        adapted: the scores of the adapted model; None if nothing was trained or scored.
        summary: the content of ``eval/summary.json``.
        overlays: the number of cases that are drawn.
    """
    states = {"zero_shot": zero_shot, "adapted": adapted}
    evaluations = {state: found for state, found in states.items() if found}
    scored = adapted or zero_shot
    folder = context.run_dir / "eval"
    if scored and scored.objects:
        write_objects(folder, {state: found.objects for state, found in evaluations.items()})
    write_false_positives(folder, evaluations)
    write_summary(folder, summary)
    write_per_case(folder, {state: found.rows for state, found in evaluations.items()})
    rows = scored.rows if scored else []
    cases = list(choose_cases(rows).items())[:overlays]
    if cases:
        draw_overlays(context, cases, evaluations, state_names(summary))
    metrics = context.run_dir / "metrics.jsonl"
    if metrics.is_file():
        plot_progress(metrics, context.run_dir / "progress.png")
    write_page(context, cases, refs, evaluations, summary)


def draw_overlays(
    context: RunContext,
    cases: Sequence[tuple[str, str]],
    evaluations: Mapping[str, Evaluation],
    names: Mapping[str, str],
) -> None:
    """Draw the best, median and worst cases, each on its slice with the most ground truth.

    Args:
        context: the run.
        cases: (rank, name) of each case, as in ("best", "case_07").
        evaluations: the scores by state, ``zero_shot`` and ``adapted``; one may be missing.
        names: what people call the states.
    """
    zero_shot, adapted = evaluations.get("zero_shot"), evaluations.get("adapted")
    last = list(evaluations.values())[-1]
    for rank, case in cases:
        ref, position = last.shown[case]
        sample = context.dataset.sample(ref)
        spacing = context.dataset.case(case).spacing_mm
        draw_overlay(
            visible(sample.image),
            true_labels(sample, context.model.watershed),
            zero_shot.labels[case][position] if zero_shot else None,
            adapted.labels[case][position] if adapted else None,
            context.dataset.classes,
            path=context.run_dir / "overlays" / f"{rank}_{case}.png",
            title=f"{rank}: {case}, {sample.part} {ref.index}",
            scores={
                state: {row.class_name: row.dice for row in found.rows if row.case == case}
                for state, found in evaluations.items()
            },
            spacing=spacing[:2] if spacing else (1.0, 1.0),
            names=names,
        )


def class_token_count(model: SegmentationModel) -> int:
    """Return how many tokens predict classes beside the mask tokens of a model."""
    tokens = model.class_tokens if isinstance(model, Sam) else None
    return 0 if tokens is None else tokens.count


def head_entry(model: SegmentationModel) -> dict[str, Any]:
    """Return what a record says about the head: its name, its sizes, how it separates objects."""
    if model.dense_head is not None:
        return model.dense_head.describe()
    return {} if model.watershed is None else model.watershed.to_dict()


def adapter_folder(context: RunContext) -> Path:
    """Return where a run writes its adapter, or its U-Net."""
    return context.run_dir / ("baseline" if context.is_baseline else "adapter")


def write_adapter(context: RunContext, record: AdapterRecord, summary: Mapping[str, Any]) -> Path:
    """Write the adapter, or the U-Net, and return its directory.

    Args:
        context: the run.
        record: what it must remember; its scores come from ``summary``.
        summary: the content of ``eval/summary.json``.
    """
    model = context.model
    directory = adapter_folder(context)
    name = UNET_RECORD if context.is_baseline else RECORD
    # The model card shows these scores, and evaluations read from them what was not trained.
    scores = {key: summary[key] for key in ("zero_shot", "adapted", "oracle_prompt", "data")}
    if "by_prompt" in summary:
        scores["by_prompt"] = compact(summary["by_prompt"])
    if summary["adapted"] is None:
        reason = why_not_scored(context.dataset)
        scores = {"reason": reason, "labelled_cases": summary["labelled_cases"]}
    record = replace(record, scores=scores)
    if (directory / name).is_file():  # a resumed run was also trained on what it saw before
        before = read_record(directory, name).trained_on
        record = replace(record, trained_on=merge_trained_on(before, record.trained_on or {}))
    if isinstance(model, UNet):
        save_unet(directory, model, record)
    else:
        save_adapter(directory, context.sam, context.injection, record)
    return directory


def adapter_record(config: Config, context: RunContext) -> AdapterRecord:
    """Return what the adapter, or the U-Net, of a run must remember, without its scores."""
    model, data = context.model, context.dataset
    named = config.model.checkpoint
    return AdapterRecord(
        base="unet" if context.is_baseline else config.model.name,
        base_sha256=context.base_sha256,
        image_size=model.image_size,
        # The name alone, because an adapter names no folder of any machine.
        checkpoint=Path(named).name if named and not context.is_baseline else None,
        num_masks=len(data.classes) if context.is_baseline else context.sam.build.num_multimask,
        class_tokens=class_token_count(model),
        input_channels=model.input_channels,
        head=head_entry(model),
        preprocessing=asdict(model.preprocessing),
        intensity=dict(data.intensity.to_dict()),
        classes=list(data.classes),
        prompt=context.policy.to_dict(),
        threshold=model.mask_threshold,
        recipe=config.recipe,
        axis=data.axis,
        overlapping=data.overlapping,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        data=data.name,
        data_options=portable_options(asdict(config.data)),
        trained_on=trained_on(data),
        quantize="nf4" if context.quantize == "nf4" else "",
    )
