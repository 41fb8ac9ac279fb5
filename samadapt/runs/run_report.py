"""Write the page of a finished run anew, or one page of several runs, from what the runs wrote.

``samadapt report RUN`` reads the files of a run directory and loads no model. The slices to leaf
through were drawn while the model was there, so they are taken over from the page that the run
wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from samadapt.config.compose import from_yaml
from samadapt.config.schema import Config
from samadapt.errors import ConfigError
from samadapt.evaluation.case_scores import CaseClassScore
from samadapt.evaluation.comparison import compare_states
from samadapt.reports.html import HTML_NAME, CaseRow, Page, write_html
from samadapt.reports.old_page import read_page
from samadapt.reports.plots import plot_runs
from samadapt.reports.tables import (
    NOTHING,
    format_seconds,
    paired_table,
    read_per_case,
    state_names,
    states_table,
    with_interval,
)
from samadapt.runs.past_runs import differences, flat
from samadapt.runs.run_description import (
    configuration_text,
    run_title,
    shown_configuration,
    trained_name,
)
from samadapt.runs.run_page import run_page, write_pooled_page

COMPARED_BY = ("data", "scored", "case_is", "nsd_tolerance")
"""Entries of the summary that must agree, besides the scored cases, for scores to be comparable."""

COMPARISON_NAME = "comparison.html"
"""Name of the page of several runs in the working folder, if the command names no file."""


@dataclass(frozen=True)
class FinishedRun:
    """A run directory with its scores.

    Attributes:
        folder: the directory.
        number: its number on the page, from 1.
        config: its configuration.
        summary: the content of ``eval/summary.json``.
    """

    folder: Path
    number: int
    config: Config
    summary: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What the page calls it."""
        return f"run {self.number}"

    @cached_property
    def rows(self) -> dict[str, list[CaseClassScore]]:
        """The scores of every case by state."""
        return read_per_case(self.folder / "eval")

    @property
    def cases(self) -> set[str]:
        """Names of the scored cases."""
        return {row.case for rows in self.rows.values() for row in rows}

    @property
    def overlays(self) -> dict[str, Path]:
        """The overlays by case; their files are named as in ``best_CASE.png``."""
        files = sorted((self.folder / "overlays").glob("*.png"))
        return {path.stem.partition("_")[2]: path for path in files}


def open_finished(folder: Path, number: int) -> FinishedRun:
    """Read the configuration and the scores of a run.

    Raises:
        ConfigError: it is no run directory, has no scores, or they cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{folder}: expected a run directory with config.yaml; `samadapt ls runs` lists them"
        )
    file = folder / "eval" / "summary.json"
    if not file.is_file():
        raise ConfigError(
            f"{folder}: expected a finished run; it has no eval/summary.json. Go on with it: "
            f"samadapt finetune resume={folder}"
        )
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: expected the scores of a run; it is broken") from error
    if not isinstance(summary, dict) or "adapted" not in summary or "notes" not in summary:
        raise ConfigError(
            f"{file}: expected the scores of one training or evaluation; of several adapters side "
            "by side, name their directories instead"
        )
    return FinishedRun(folder, number, from_yaml(folder / "config.yaml"), summary)


def rewrite_page(folder: Path) -> dict[str, Any]:
    """Write ``report.html`` of a run, or of a cross-validation, anew.

    Returns:
        As ``write_comparison``.

    Raises:
        ConfigError: as ``open_finished``.
    """
    run = open_finished(folder, 1)
    rows, summary = run.rows, run.summary
    if "folds" in summary:
        path = write_pooled_page(folder, run.config, rows, summary)
        return {"report": str(path), "runs": [_entry(run, "")]}
    before = read_page(folder / HTML_NAME)
    scores = summary["adapted"] or summary["zero_shot"]
    page = run_page(
        folder,
        run_title(run.config.recipe, trained_name(run.config), summary["data"]),
        configuration_text(run.config),
        rows,
        summary,
        list(scores["per_class"]) if scores else [],
        before.cases,
        [before.findings] if before.findings is not None else [],
    )
    if not before.cases and run.overlays:
        # The page that the run wrote is gone, so there is one slice of each case: its overlay.
        lost = "the former page could not be read, so each case is shown with one slice alone"
        overlays = [CaseRow(case, {"overlay": file}) for case, file in run.overlays.items()]
        page = replace(page, rows=overlays, notes=[*page.notes, lost])
    path = write_html(folder / HTML_NAME, page)
    return {"report": str(path), "runs": [_entry(run, "")]}


def write_comparison(folders: Sequence[Path], path: Path) -> dict[str, Any]:
    """Write one page of several runs.

    Args:
        folders: their directories; the first is the one that others are compared with.
        path: the page.

    Returns:
        The page, and for each run its directory, scores, and why it is not comparable, if it is
        not.

    Raises:
        ConfigError: as ``open_finished``, and for a run that is named twice.
    """
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise ConfigError("report: a run is named twice; name each run once")
    runs = [open_finished(folder, number) for number, folder in enumerate(folders, 1)]
    reasons = [why_not_comparable(runs[0], run) for run in runs]
    page = Page(
        title=f"{len(runs)} runs",
        subtitle=", ".join(dict.fromkeys(str(run.summary["data"]) for run in runs)),
        notes=_notes(runs, reasons),
        tables=[
            _runs_table(runs, reasons),
            *_differences_table(runs),
            _scores_table(runs, reasons),
            *_paired_tables(runs, reasons),
        ],
        figures={"Training": plot_runs({run.label: run.folder / "metrics.jsonl" for run in runs})},
        classes=(),
        cases=(),
        details=(),
        texts={f"Configuration of {run.label}": configuration_text(run.config) for run in runs},
        rows=_overlay_rows(runs, reasons),
    )
    write_html(path, page)
    return {
        "report": str(path),
        "runs": [_entry(run, reason) for run, reason in zip(runs, reasons, strict=True)],
    }


def _entry(run: FinishedRun, reason: str) -> dict[str, Any]:
    """Return what the command says about a run."""
    return {
        "run_dir": str(run.folder),
        "title": run_title(run.config.recipe, trained_name(run.config), str(run.summary["data"])),
        "before": _dice(run, "zero_shot"),
        "after": _dice(run, "adapted"),
        "not_comparable": reason or None,
    }


def why_not_comparable(first: FinishedRun, run: FinishedRun) -> str:
    """Return why the scores of a run cannot be set against those of the first; empty: they can."""
    for key in COMPARED_BY:
        ours, theirs = first.summary.get(key), run.summary.get(key)
        if ours != theirs:
            return f"{key.replace('_', ' ')}: {theirs}, and {first.label} has {ours}"
    if first.cases != run.cases:
        shared = len(first.cases & run.cases)
        return f"other cases are scored: {shared} of {len(run.cases)} are also in {first.label}"
    classes = [
        {row.class_name: None for rows in one.rows.values() for row in rows} for one in (first, run)
    ]
    if set(classes[0]) != set(classes[1]):
        return f"other classes: {', '.join(classes[1])}"
    return ""


def _notes(runs: Sequence[FinishedRun], reasons: Sequence[str]) -> list[str]:
    """Return what is not comparable, then what differs in how the models were asked."""
    notes = [
        f"{run.label} is not comparable with {runs[0].label}: {reason}"
        for run, reason in zip(runs, reasons, strict=True)
        if reason
    ]
    prompts = {str(run.summary["prompt"]) for run in runs}
    if len(prompts) > 1:
        notes.append(
            f"the models were prompted in different ways ({', '.join(sorted(prompts))}): a prompt "
            "from the ground truth makes a score an upper bound"
        )
    return notes


def _runs_table(runs: Sequence[FinishedRun], reasons: Sequence[str]) -> Table:
    table = _table("Runs")
    for heading in ("run", "directory", "recipe", "trained", "data", "prompt"):
        table.add_column(heading)
    for heading in ("parameters", "labelled cases", "validation Dice", "seconds"):
        table.add_column(heading, justify="right")
    table.add_column("comparable")
    for run, reason in zip(runs, reasons, strict=True):
        summary = run.summary
        names = (run.label, run.folder.name, Path(run.config.recipe).stem, trained_name(run.config))
        labelled = summary.get("labelled_cases")
        numbers = (
            f"{summary['trained_parameters']:,}",
            NOTHING if labelled is None else str(labelled),
            with_interval(summary.get("best_validation_dice"), None, ".3f"),
            format_seconds(summary["seconds"]) if "seconds" in summary else NOTHING,
        )
        texts = (*names, str(summary["data"]), str(summary["prompt"]))
        table.add_row(*map(Text, texts), *numbers, "no" if reason else "yes")
    return table


def _differences_table(runs: Sequence[FinishedRun]) -> list[Table]:
    """Return the keys that differ, a column for each run; nothing if none does."""
    found = differences([flat(shown_configuration(run.config)) for run in runs])
    if not found[0]:
        return []
    table = _table("Keys that differ")
    table.add_column("key")
    for run in runs:
        table.add_column(run.label)
    for key in found[0]:
        table.add_row(Text(key), *(Text(str(values[key])) for values in found))
    return [table]


def _scores_table(runs: Sequence[FinishedRun], reasons: Sequence[str]) -> Table:
    """Return the scores of all states; those of equal base models stand once."""
    measured: dict[str, Any] = {}
    bases: list[Any] = []
    for run, reason in zip(runs, reasons, strict=True):
        mark = " (not comparable)" if reason else ""
        names = state_names(run.summary)
        base = run.summary["zero_shot"]
        if base and base not in bases:
            bases.append(base)
            measured[f"{run.label}: {names['zero_shot']}{mark}"] = base
        if run.summary["adapted"]:
            measured[f"{run.label}: {names['adapted']}{mark}"] = run.summary["adapted"]
    return states_table(measured, title="Scores")


def _paired_tables(runs: Sequence[FinishedRun], reasons: Sequence[str]) -> list[Table]:
    """Return each run beside the first one, case by case, where the same cases are scored."""
    first = runs[0]
    tables = []
    for run, reason in zip(runs[1:], reasons[1:], strict=True):
        before, after = first.rows.get("adapted"), run.rows.get("adapted")
        if not reason and before and after:
            classes = list(dict.fromkeys(row.class_name for row in before))
            paired = compare_states(before, after, classes)
            tables.append(paired_table(paired, what=f"{run.label} - {first.label}"))
    return tables


def _overlay_rows(runs: Sequence[FinishedRun], reasons: Sequence[str]) -> list[CaseRow]:
    """Return the overlays by case, those of most runs first, with one of each run that has it."""
    of_case: dict[str, dict[str, Path]] = {}
    for run, reason in zip(runs, reasons, strict=True):
        # A case of other data may have the same name.
        mark = f" ({run.summary['data']})" if reason else ""
        for case, path in run.overlays.items():
            of_case.setdefault(f"{case}{mark}", {})[run.label] = path
    rows = [CaseRow(case, pictures) for case, pictures in of_case.items()]
    return sorted(rows, key=lambda row: -len(row.pictures))


def _dice(run: FinishedRun, state: str) -> float | None:
    scores = run.summary[state]
    return scores["dice"] if scores else None


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left")
