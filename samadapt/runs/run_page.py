"""``report.html`` of a run: everything that a reader needs to judge it, in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from samadapt.data.intensity import visible
from samadapt.evaluation.scores import SCORES
from samadapt.reports.by_prompt import by_prompt_table
from samadapt.reports.false_positives import negative_tables
from samadapt.reports.html import HTML_NAME, Page, ShownCase, write_html
from samadapt.reports.objects import objects_table
from samadapt.reports.one_slice import one_slice_table
from samadapt.reports.oracle_gap import PLOT_NAME, forgetting_text, gap_table
from samadapt.reports.strips import chosen_indices, draw_strip
from samadapt.reports.tables import (
    numbered_adapters,
    paired_table,
    results_table,
    side_by_side_tables,
    state_names,
)
from samadapt.reports.volume_clicks import VOLUME_PLOT_NAME, volume_clicks_table
from samadapt.runs.run_description import configuration_text, run_title, trained_name
from samadapt.sam.watershed import without_seams

if TYPE_CHECKING:
    from samadapt.config.schema import Config
    from samadapt.data.dataset import Dataset
    from samadapt.data.types import Sample, SliceRef
    from samadapt.evaluation.case_scores import CaseClassScore
    from samadapt.evaluation.evaluate import Evaluation
    from samadapt.runs.context import RunContext
    from samadapt.sam.watershed import Watershed
    from samadapt.system.arrays import Array


def write_page(
    context: RunContext,
    cases: Sequence[tuple[str, str]],
    refs: Sequence[SliceRef],
    evaluations: Mapping[str, Evaluation],
    summary: Mapping[str, Any],
) -> Path:
    """Write ``report.html`` into the run directory, and return its path.

    Args:
        context: the run.
        cases: (rank, name) of each case to leaf through, as in ("best", "case_07").
        refs: the slices that were scored.
        evaluations: the scores by state, ``zero_shot`` and ``adapted``.
        summary: the content of ``eval/summary.json``.
    """
    folder, names = context.run_dir, state_names(summary)
    shown = [
        _shown_case(context, rank, [r for r in refs if r.case == name], evaluations, names)
        for rank, name in cases
    ]
    page = run_page(
        folder,
        context.title,
        context.configuration,
        {state: found.rows for state, found in evaluations.items()},
        summary,
        context.dataset.classes,
        shown,
        [_findings(context.dataset)],
    )
    return write_html(folder / HTML_NAME, page)


def run_page(
    folder: Path,
    title: str,
    configuration: str,
    rows: Mapping[str, Sequence[CaseClassScore]],
    summary: Mapping[str, Any],
    classes: Sequence[str],
    cases: Sequence[ShownCase],
    findings: Sequence[Table],
) -> Page:
    """Return the page of a run.

    Args:
        folder: the run directory, whose plots, environment and splits are shown.
        title: the title of the page.
        configuration: the configuration as text.
        rows: the scores of every case by state.
        summary: the content of ``eval/summary.json``.
        classes: the class names in the order of their labels.
        cases: the cases to leaf through.
        findings: the table of the data check, if there is one.
    """
    return Page(
        title=title,
        subtitle=f"{_scope(summary)}; {folder.name}",
        notes=summary["notes"],
        tables=_tables(summary),
        figures={
            "Training": folder / "progress.png",
            "Oracle gap": folder / "eval" / PLOT_NAME,
            "A box and clicks in volumes": folder / "eval" / VOLUME_PLOT_NAME,
        },
        classes=classes,
        cases=cases,
        details=[*findings, *([_per_case(rows, state_names(summary))] if rows else [])],
        texts={
            "Configuration": configuration,
            "Environment": _json(folder / "env.json"),
            "Splits": _json(folder / "splits.json"),
        },
    )


def write_pooled_page(
    run_dir: Path,
    config: Config,
    rows: Mapping[str, Sequence[CaseClassScore]],
    summary: Mapping[str, Any],
) -> Path:
    """Write ``report.html`` of a cross-validation, with the scores of all folds together.

    Args:
        run_dir: the directory of the cross-validation.
        config: the configuration of all folds.
        rows: the scores of every case by state.
        summary: the content of ``eval/summary.json``.
    """
    page = Page(
        title=run_title(config.recipe, trained_name(config), summary["data"]),
        subtitle=f"{summary['cases']} cases, {summary['slices']} {summary['parts']}; "
        f"{summary['split']}; a case is a {summary['case_is']}; {run_dir.name}",
        notes=[*summary["notes"], "each fold has a page of its own, with cases to leaf through"],
        tables=_tables(summary),
        figures={},
        classes=(),
        cases=(),
        details=[_per_case(rows, state_names(summary))],
        texts={
            "Configuration": configuration_text(config),
            "Splits": _json(run_dir / "splits.json"),
        },
    )
    return write_html(run_dir / HTML_NAME, page)


def write_side_by_side_page(
    run_dir: Path,
    config: Config,
    rows: Mapping[str, Sequence[CaseClassScore]],
    summary: Mapping[str, Any],
) -> Path:
    """Write ``report.html`` of several adapters, with their scores side by side.

    Args:
        run_dir: the directory of the evaluation.
        config: the configuration of the first adapter's evaluation.
        rows: the scores of every case by state.
        summary: the content of ``eval/summary.json``.
    """
    page = Page(
        title=f"{len(summary['adapters'])} adapters on {summary['data']}",
        subtitle=f"{summary['cases']} {summary['scored']} cases, {summary['slices']} "
        f"{summary['parts']}; a case is a {summary['case_is']}; {run_dir.name}",
        notes=[
            *numbered_adapters(summary),
            *summary["notes"],
            "each adapter has a page of its own, with cases to leaf through",
        ],
        tables=side_by_side_tables(summary, "Scores"),
        figures={},
        classes=(),
        cases=(),
        details=[_per_case(rows, state_names(summary))],
        texts={"Configuration": configuration_text(config)},
    )
    return write_html(run_dir / HTML_NAME, page)


def _scope(summary: Mapping[str, Any]) -> str:
    """Return what was scored, what was trained, and how many labelled cases that took."""
    scored = "{cases} {scored} cases, {slices} {parts}; a case is a {case_is}".format_map(summary)
    text = scored if summary["scored"] != "nothing" else "nothing was scored"
    parameters = "{trained_parameters:,} of {total_parameters:,} parameters".format_map(summary)
    text += f"; trained {parameters}"
    if summary["last_step"] is not None:
        chose = summary["validation_cases"] or "none"
        text += f"; labelled cases: {summary['labelled_cases']} ({chose} chose the step)"
    return text


def _tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return the tables that are always open: scores, differences, oracle gap, objects."""
    if summary["scored"] == "nothing":
        return []
    names = state_names(summary)
    tables = [results_table(summary["zero_shot"], summary["adapted"], title="Scores", names=names)]
    if summary["paired"]:
        tables.append(paired_table(summary["paired"]))
    if "by_prompt" in summary:
        tables.append(by_prompt_table(summary["by_prompt"]))
    tables += negative_tables(summary, names)
    if "oracle_gap" in summary:
        gap = gap_table(summary["oracle_gap"], summary["clicks"])
        gap.caption = f"{gap.caption}. {forgetting_text(summary['forgetting'])}"
        tables.append(gap)
    if "volume_clicks" in summary:
        tables.append(volume_clicks_table(summary["volume_clicks"]))
    if "one_slice" in summary:
        tables.append(one_slice_table(summary["one_slice"]))
    objects = {
        name: summary[state]["instances"]
        for state, name in names.items()
        if summary[state] and "instances" in summary[state]
    }
    return [*tables, objects_table(objects)] if objects else tables


def true_labels(sample: Sample, watershed: Watershed | None) -> Array:
    """Return the true class ids (h, w) for drawing, with seams if the model separates objects."""
    if watershed is None or sample.instances is None:
        return sample.shown
    return without_seams(sample.shown, sample.instances)


def _shown_case(
    context: RunContext,
    rank: str,
    refs: Sequence[SliceRef],
    evaluations: Mapping[str, Evaluation],
    names: Mapping[str, str],
) -> ShownCase:
    """Draw the slices of one case, evenly spaced if there are too many for a page."""
    case, spacing = refs[0].case, context.dataset.case(refs[0].case).spacing_mm
    pixel_size = spacing[:2] if spacing else (1.0, 1.0)
    # The case opens on the slice of the overlay, the one with the most ground truth.
    start = refs.index(next(iter(evaluations.values())).shown[case][0])
    indices = chosen_indices(len(refs), start)
    strips = []
    for index in indices:
        sample = context.dataset.sample(refs[index])
        # The panels after the image, in the order of `heads`: the ground truth, then each state.
        maps = [
            true_labels(sample, context.model.watershed),
            *(found.labels[case][index] for found in evaluations.values()),
        ]
        strips.append(draw_strip(refs[index].index, visible(sample.image), maps, pixel_size))
    scores = [
        f"{names[state]} " + ", ".join(f"{row.class_name} {row.dice:.3f}" for row in rows)
        for state, found in evaluations.items()
        if (rows := [row for row in found.rows if row.case == case])
    ]
    return ShownCase(
        title=f"{rank}: {case}",
        scores="Dice " + "; ".join(scores),
        heads=("image", "ground truth", *(names[state] for state in evaluations)),
        strips=strips,
        start=indices.index(start),
        left_out=indices[1] - indices[0] if len(indices) < len(refs) else 0,
    )


def _findings(data: Dataset) -> Table:
    """Return the findings in the data's files; errors of files that were left out come first."""
    table = Table(title=f"Data check: {len(data.findings)} findings, {len(data.left_out)} left out")
    for heading in ("severity", "code", "file", "found", "fix"):
        table.add_column(heading)
    # "error" sorts before "warning".
    for found in sorted(data.findings, key=lambda finding: finding.severity):
        cells = (found.severity, found.code, found.file, found.message, found.fix)
        table.add_row(*map(Text, cells))
    return table


def _per_case(
    rows_by_state: Mapping[str, Sequence[CaseClassScore]], state_name: Mapping[str, str]
) -> Table:
    table = Table(title="Every case")
    for heading in ("case", "class", "state"):
        table.add_column(heading)
    for score in SCORES.values():
        table.add_column(score.heading, justify="right")
    table.add_column("empty mask")
    for state, rows in rows_by_state.items():
        for row in rows:
            numbers = [f"{row.values[name]:.3f}" for name in SCORES if name in row.values]
            names = map(Text, (row.case, row.class_name))
            table.add_row(*names, Text(state_name.get(state, state)), *numbers, row.flag)
    return table


def _json(path: Path) -> str:
    """Return the content of a JSON file for a reader, with little indentation."""
    if not path.is_file():
        return "not recorded"
    return json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=1)
