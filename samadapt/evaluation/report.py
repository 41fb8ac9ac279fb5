"""Scores as files and as a table: ``summary.json``, ``per_case.csv``, the run's closing text."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from samadapt.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from samadapt.evaluation.metrics import CaseClassScore

SUMMARY_NAME = "summary.json"
PER_CASE_NAME = "per_case.csv"
PER_CASE_COLUMNS = (
    "case",
    "class",
    "state",
    "dice",
    "iou",
    "truth_voxels",
    "prediction_voxels",
    "flag",
)
NOTHING = "\N{EN DASH}"
FLAG_TEXT = {
    "truth_empty": "predicted where the ground truth is empty (counts as 0)",
    "prediction_empty": "nothing predicted where the ground truth is not empty (counts as 0)",
    "both_empty": "both empty (left out)",
}


def write_summary(directory: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``directory/summary.json``, whole or not at all.

    NaN and infinities become null, numpy's scalars and arrays become numbers and lists, paths
    become text.

    Returns:
        The path written.

    Raises:
        RunError: for a value that JSON cannot hold, naming its key.
    """
    text = json.dumps(_plain(summary, "summary"), indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomic(directory / SUMMARY_NAME, text + "\n")


def write_per_case(directory: Path, rows: Mapping[str, Sequence[CaseClassScore]]) -> Path:
    """Write ``directory/per_case.csv``: one line a case, class and state.

    Args:
        directory: folder, made if missing.
        rows: scores by state: ``{"zero_shot": […], "adapted": […]}``.

    Returns:
        The path written. NaN (both masks empty) is an empty cell, told by the flag ``both_empty``.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(PER_CASE_COLUMNS)
    for state, scores in rows.items():
        for row in scores:
            numbers = ["" if math.isnan(x) else f"{x:.6f}" for x in (row.dice, row.iou)]
            writer.writerow(
                [
                    row.case,
                    row.class_name,
                    state,
                    *numbers,
                    row.truth_voxels,
                    row.prediction_voxels,
                    row.flag,
                ]
            )
    return write_atomic(directory / PER_CASE_NAME, stream.getvalue())


def results_table(
    zero_shot: Mapping[str, Any] | None,
    adapted: Mapping[str, Any] | None,
    *,
    title: str | None = None,
) -> Table:
    """Put two summaries of ``metrics.summarise`` side by side.

    Args:
        zero_shot: before training; None where it was not measured.
        adapted: after training; None where it was not measured.
        title: what was scored, for example "hippocampus, 52 volumes, box from the ground truth".

    Returns:
        class | Dice zero-shot | IoU zero-shot | Dice adapted | IoU adapted | cases, with a last
        row for the mean over classes. A score that does not exist is a dash. Where the two states
        average over different cases, ``cases`` says both. The caption counts empty masks.
    """
    table = Table(title=Text(title) if title else None, title_justify="left")
    table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
    table.add_column("class")
    for heading in ("Dice zero-shot", "IoU zero-shot", "Dice adapted", "IoU adapted"):
        table.add_column(heading, justify="right")
    table.add_column("cases", justify="right")
    names = list(dict.fromkeys([*_classes(zero_shot), *_classes(adapted)]))
    for name in names:
        states = [_classes(summary).get(name) for summary in (zero_shot, adapted)]
        table.add_row(Text(name), *_scores(*states), _cases(*states))
    table.add_section()
    table.add_row("mean", *_scores(zero_shot, adapted), "", style="bold")
    notes = _empty_notes(zero_shot, adapted)
    if notes:
        table.caption = Text("\n".join(notes))
    return table


def closing_text(
    table: RenderableType,
    *,
    trained: int,
    total: int,
    seconds: float,
    paths: Mapping[str, Path | str],
    notes: Sequence[str] = (),
) -> Group:
    """Compose what a run says last.

    Args:
        table: of ``results_table``.
        trained: number of trained parameters.
        total: number of all parameters, trained ones included.
        seconds: wall-clock time of the whole run.
        paths: what was written: ``{"adapter": …, "report": …, "overlays": …}``.
        notes: honest remarks, one a line: the data set's note, oracle prompts, cases left out.
    """
    share = 100 * trained / total if total else 0.0
    facts = {"trained": f"{trained:,} of {total:,} parameters ({share:.2f} %)"}
    facts["time"] = format_seconds(seconds)
    facts |= {name: str(path) for name, path in paths.items()}
    width = max(len(name) for name in facts)
    lines = [Text(f"{name:<{width}}  {value}", overflow="fold") for name, value in facts.items()]
    return Group(table, *(Text(f"Note: {note}", style="yellow") for note in notes), *lines)


def format_seconds(seconds: float) -> str:
    """Time for people: ``8.4 s``, ``7 min 05 s``, ``2 h 03 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _classes(summary: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return summary["per_class"] if summary else {}


def _scores(*states: Mapping[str, Any] | None) -> list[str]:
    return [_number(state and state.get(key)) for state in states for key in ("dice", "iou")]


def _number(value: Any) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.3f}"


def _cases(*states: Mapping[str, Any] | None) -> str:
    counts = [str(state["cases"]) for state in states if state]
    return " / ".join(dict.fromkeys(counts)) or NOTHING


def _empty_notes(
    zero_shot: Mapping[str, Any] | None, adapted: Mapping[str, Any] | None
) -> list[str]:
    """One line for each kind of empty mask that occurred, by state and class."""
    notes = []
    for flag, meaning in FLAG_TEXT.items():
        parts = []
        for state, summary in (("zero-shot", zero_shot), ("adapted", adapted)):
            counts = {name: entry[flag] for name, entry in _classes(summary).items() if entry[flag]}
            if counts:
                listed = ", ".join(f"{name} {count}" for name, count in counts.items())
                parts.append(f"{state}: {listed}")
        if parts:
            notes.append(f"{meaning}: " + "; ".join(parts))
    return notes


def _plain(value: Any, key: str) -> Any:
    """Turn a value into what JSON holds: None, bool, int, float, str, list, dict."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), key)
    if isinstance(value, dict):
        return {str(name): _plain(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{key}[{index}]") for index, item in enumerate(value)]
    raise RunError(
        f"{key} must be a number, text, path, list or dict to be written as JSON; "
        f"got {type(value).__name__}"
    )


def write_atomic(path: Path, text: str) -> Path:
    """Write beside the target and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
