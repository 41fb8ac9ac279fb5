"""Scores as files and tables: ``summary.json``, ``per_case.csv`` and the closing text of a run."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from samadapt.errors import RunError
from samadapt.evaluation.case_scores import CaseClassScore
from samadapt.evaluation.scores import OVERLAP, SCORES, Score
from samadapt.system import atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

SUMMARY_NAME = "summary.json"
PER_CASE_NAME = "per_case.csv"
COUNTS = ("truth_voxels", "prediction_voxels", "flag")
IGNORED_COLUMNS = ("ignored_voxels", "voxels")
"""Further columns of ``per_case.csv`` if voxels were ignored."""

STATES = {"zero_shot": "zero-shot", "adapted": "adapted"}
"""The two states of a model that are compared, and their names for people."""

NOTHING = "\N{EN DASH}"
"""The cell of a score that does not exist."""

FLAG_TEXT = {
    "truth_empty": "predicted where the ground truth is empty (0; HD95 is the image's diagonal)",
    "prediction_empty": "nothing predicted where there is ground truth (0; HD95 is the diagonal)",
    "both_empty": "both empty (left out)",
}


def state_names(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return what people call the states of a run.

    Args:
        summary: the content of ``summary.json``. With an entry ``baseline``, another model trained
            in SAM's place, and ``adapted`` holds its scores.
    """
    baseline = summary.get("baseline")
    return STATES if baseline is None else {**STATES, "adapted": str(baseline["title"])}


def write_summary(directory: Path, summary: Mapping[str, Any], name: str = SUMMARY_NAME) -> Path:
    """Write ``directory/summary.json``, or a file of another name, whole or not at all.

    NaN and infinities become null, scalars and arrays of numpy become numbers and lists, and paths
    become text.

    Returns:
        The path written.

    Raises:
        RunError: naming the key of a value that JSON cannot hold.
    """
    text = json.dumps(_plain(summary, "summary"), indent=2, ensure_ascii=False, allow_nan=False)
    return atomic.write_text(directory / name, text + "\n")


def per_case_columns() -> tuple[str, ...]:
    """Return the columns of ``per_case.csv``, with every score that is registered by now."""
    further = (name for name in SCORES if name not in OVERLAP)
    return ("case", "class", "state", *OVERLAP, *COUNTS, *further, "intersection", "length_unit")


def write_per_case(directory: Path, rows: Mapping[str, Sequence[CaseClassScore]]) -> Path:
    """Write ``directory/per_case.csv``: one line for each case, class and state.

    NaN (both masks are empty, or a ratio has no denominator) is an empty cell, and the flag names
    the empty mask. Lengths are in ``length_unit``; volumes are in ml, or in px if lengths are.

    Args:
        directory: the folder of the file; it is made if missing.
        rows: scores by state: ``{"zero_shot": […], "adapted": […]}``.

    Returns:
        The path written.
    """
    stream = io.StringIO()
    partly = any(row.ignored_voxels for scores in rows.values() for row in scores)
    # Without ignored voxels the file has no columns about them.
    further = IGNORED_COLUMNS if partly else ()
    writer = csv.DictWriter(stream, (*per_case_columns(), *further), lineterminator="\n")
    writer.writeheader()
    for state, scores in rows.items():
        for row in scores:
            numbers = {n: "" if math.isnan(x) else f"{x:.9g}" for n, x in row.values.items()}
            kept = (*COUNTS, "intersection", "length_unit", *further)
            line = {name: getattr(row, name) for name in kept}
            named = {"case": csv_name(row.case), "class": csv_name(row.class_name), "state": state}
            writer.writerow({**named, **numbers, **line})
    return atomic.write_text(directory / PER_CASE_NAME, stream.getvalue())


FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""Spreadsheets take a cell that starts with one of these for a formula, which may run programs
(OWASP, "CSV Injection")."""


def csv_name(name: str) -> str:
    """Return a name as a cell that no spreadsheet takes for a formula, with an apostrophe in front.

    A name that starts with an apostrophe gets another one, so that ``name_in_csv`` can undo it.
    """
    return f"'{name}" if name.startswith((*FORMULA_STARTS, "'")) else name


def name_in_csv(cell: str) -> str:
    """Return the name that ``csv_name`` turned into a cell."""
    return cell.removeprefix("'")


def read_per_case(directory: Path) -> dict[str, list[CaseClassScore]]:
    """Return the rows that ``write_per_case`` wrote into ``directory/per_case.csv``, by state.

    Raises:
        RunError: for a file that is missing or that ``write_per_case`` did not write.
    """
    path = directory / PER_CASE_NAME
    rows: dict[str, list[CaseClassScore]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for line in csv.DictReader(stream):
                # An empty cell is NaN. Columns of ignored voxels exist only if there are any.
                values = {name: float(line[name] or "nan") for name in SCORES}
                score = CaseClassScore(
                    name_in_csv(line["case"]),
                    name_in_csv(line["class"]),
                    values,
                    int(line["truth_voxels"]),
                    int(line["prediction_voxels"]),
                    int(line["intersection"]),
                    line["length_unit"],
                    *(int(line.get(name) or 0) for name in IGNORED_COLUMNS),
                )
                rows.setdefault(line["state"], []).append(score)
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise RunError(f"{path}: cannot read the scores of a run: {error!r}") from error
    return rows


def results_table(
    zero_shot: Mapping[str, Any] | None,
    adapted: Mapping[str, Any] | None,
    *,
    title: str | None = None,
    names: Mapping[str, str] = STATES,
) -> Table:
    """Return a table that compares two summaries of ``case_scores.summarise``.

    Args:
        zero_shot: the scores before training; None if they were not measured.
        adapted: the scores after training; None if they were not measured.
        title: see ``states_table``.
        names: what people call the two states; see ``state_names``.
    """
    measured = {names["zero_shot"]: zero_shot, names["adapted"]: adapted}
    return states_table(measured, title=title)


def states_table(
    measured: Mapping[str, Mapping[str, Any] | None], *, title: str | None = None
) -> Table:
    """Return a table that compares summaries of ``case_scores.summarise``, one state a row.

    Args:
        measured: the summary of each state by its name for people; None if it was not measured.
        title: for example "hippocampus, 52 volumes, box from the ground truth".

    Returns:
        A table with a row for each class and state, and the means over classes at the end. Its
        columns are Dice and HD95 with their 95 % intervals, IoU, NSD, and the number of cases in
        the mean. A score that does not exist is a dash. The caption counts empty masks.
    """
    states = {name: summary for name, summary in measured.items() if summary}
    shown = [score for score in SCORES.values() if score.in_table]
    table = Table(title=Text(title) if title else None, title_justify="left")
    table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
    table.add_column("class")
    table.add_column("")
    for score in shown:
        unit = next((u for s in states.values() if (u := _unit(s, score.name))), "")
        heading = f"{score.heading} ({unit})" if unit else score.heading
        bounds = " [95 %]" if score.in_table == "interval" else ""
        table.add_column(heading + bounds, justify="right")
    table.add_column("cases", justify="right")
    for name in dict.fromkeys(name for summary in states.values() for name in _classes(summary)):
        entries = {state: _classes(summary).get(name) for state, summary in states.items()}
        for n, (state, entry) in enumerate(entries.items()):
            cells = [_cell(entry, score) for score in shown]
            cases = str(entry["cases"]) if entry else NOTHING
            shown_name = f"{name} (not trained)" if _untrained(entries) else name
            # Names are Text, because rich reads brackets in plain strings as markup.
            table.add_row(Text("" if n else shown_name), Text(state), *cells, cases)
        table.add_section()
    for n, (state, summary) in enumerate(states.items()):
        cells = [_cell(summary, score) for score in shown]
        table.add_row("" if n else "mean", Text(state), *cells, "", style="bold")
    notes = _empty_notes(states)
    if notes:
        table.caption = Text("\n".join(notes))
    return table


def paired_table(
    paired: Mapping[str, Any], score: str = "dice", *, what: str = "adapted - zero-shot"
) -> Table:
    """Return the table of ``comparison.compare_states`` for one score.

    Args:
        paired: the entry ``paired`` of ``summary.json``.
        score: the name of the score.
        what: the two states that are compared.
    """
    heading = SCORES[score].heading
    table = Table(title=Text(f"{what}, case by case: {heading}"), title_justify="left")
    table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
    table.add_column("class")
    for name in ("difference [95 %]", "Wilcoxon p", "better", "worse", "same"):
        table.add_column(name, justify="right")
    lines = {name: entry[score] for name, entry in paired["per_class"].items()}
    for name, line in {**lines, "mean": paired[score]}.items():
        p = NOTHING if line["p"] is None else f"{line['p']:.2g}"
        counts = [str(line[key]) for key in ("better", "worse", "same")]
        cell = with_interval(line["difference"], line["interval"], "+.3f")
        table.add_row(Text(name), cell, p, *counts, style="bold" if line is paired[score] else "")
    if reason := paired[score].get("reason"):
        table.caption = Text(reason)
    return table


def side_by_side_tables(summary: Mapping[str, Any], title: str) -> list[Table]:
    """Return the tables of several adapters: their scores, and each beside the first one.

    In the tables adapters have numbers, because the names of runs are long; see
    ``numbered_adapters``.

    Args:
        summary: the content of ``eval/summary.json``.
        title: the title of the first table.
    """
    labels = {"zero_shot": STATES["zero_shot"]}
    for number, name in enumerate(summary["adapters"], start=1):
        labels |= {name: f"adapter {number}", f"zero_shot {name}": f"zero-shot {number}"}
    first = labels[summary["compared_with"]]
    return [
        states_table({labels[n]: found for n, found in summary["states"].items()}, title=title),
        *(
            paired_table(paired, what=f"{labels[name]} - {first}")
            for name, paired in summary["paired"].items()
        ),
    ]


def numbered_adapters(summary: Mapping[str, Any]) -> list[str]:
    """Return a line for each adapter that says which number it has in the tables."""
    return [
        f"adapter {number}: {entry['adapter']}"
        for number, entry in enumerate(summary["adapters"].values(), start=1)
    ]


def closing_text(
    table: RenderableType,
    *,
    trained: int,
    total: int,
    seconds: float,
    paths: Mapping[str, Path | str],
    notes: Sequence[str] = (),
) -> Group:
    """Return the text that a run prints at its end.

    Args:
        table: the result of ``results_table``.
        trained: the number of trained parameters.
        total: the number of all parameters, with the trained ones.
        seconds: the wall-clock time of the whole run.
        paths: where the results are: ``{"adapter": …, "report": …, "overlays": …}``.
        notes: remarks, one a line: the data set's note, oracle prompts, cases left out.
    """
    share = 100 * trained / total if total else 0.0
    facts = {"trained": f"{trained:,} of {total:,} parameters ({share:.2f} %)"}
    facts["time"] = format_seconds(seconds)
    facts |= {name: str(path) for name, path in paths.items()}
    width = max(len(name) for name in facts)
    lines = [Text(f"{name:<{width}}  {value}", overflow="fold") for name, value in facts.items()]
    return Group(table, *(Text(f"Note: {note}", style="yellow") for note in notes), *lines)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_seconds(seconds: float) -> str:
    """Return a time as people write it: ``8.4 s``, ``7 min 05 s``, ``2 h 03 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    # Rounded first, so that 119.6 s become 2 min 00 s and not 1 min 60 s.
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _classes(summary: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return summary["per_class"] if summary else {}


def _untrained(entries: Mapping[str, Any]) -> bool:
    """Whether a class occurs in no training slice, so that the model never saw it."""
    return any(entry and entry.get("untrained") for entry in entries.values())


def _unit(summary: Mapping[str, Any], score: str) -> str:
    return str(summary["detail"].get(score, {}).get("unit") or "")


def _cell(entry: Mapping[str, Any] | None, score: Score) -> str:
    """Return a mean, with its interval if the column of the score shows intervals."""
    form = ".2f" if score.kind == "length" else ".3f"
    if entry is None:
        return NOTHING
    interval = entry["detail"].get(score.name, {}).get("interval")
    shown = interval if score.in_table == "interval" else None
    return with_interval(entry.get(score.name), shown, form)


def with_interval(value: Any, interval: Sequence[float] | None, form: str) -> str:
    """Return a number with the bounds of its interval; a dash if there is none."""
    if value is None or math.isnan(value):
        return NOTHING
    bounds = f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
    return f"{value:{form}}{bounds}"


def _empty_notes(states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each kind of empty mask that occurred, with counts by state and class."""
    notes = []
    for flag, meaning in FLAG_TEXT.items():
        parts = []
        for state, summary in states.items():
            counts = {name: entry[flag] for name, entry in _classes(summary).items() if entry[flag]}
            if counts:
                listed = ", ".join(f"{name} {count}" for name, count in counts.items())
                parts.append(f"{state}: {listed}")
        if parts:
            notes.append(f"{meaning}: " + "; ".join(parts))
    return notes


def _plain(value: Any, key: str) -> Any:
    """Return a value as JSON holds it: None, bool, int, float, str, list or dict."""
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
