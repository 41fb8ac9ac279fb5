"""False positives of a run: the file ``false_positives.csv`` and the tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from samadapt.errors import RunError
from samadapt.evaluation.false_positives import FalsePositives
from samadapt.reports.tables import NOTHING, csv_name, name_in_csv
from samadapt.system import atomic

if TYPE_CHECKING:
    from samadapt.evaluation.evaluate import Evaluation

FALSE_POSITIVES_NAME = "false_positives.csv"
_COUNTED = [item.name for item in fields(FalsePositives)][2:]


def write_false_positives(directory: Path, evaluations: Mapping[str, Evaluation]) -> Path | None:
    """Write ``directory/false_positives.csv``: one line for each case, class and state.

    Args:
        directory: the folder of the file.
        evaluations: the scores by state. Those with prompts have no such counts.

    Returns:
        The path written; None if there is nothing to write.
    """
    rows = {state: found.false_positives for state, found in evaluations.items()}
    return _write(directory, {state: found for state, found in rows.items() if found})


def _write(directory: Path, rows: Mapping[str, Sequence[FalsePositives]]) -> Path | None:
    if not rows:
        return None
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["case", "class", "state", *_COUNTED], lineterminator="\n")
    writer.writeheader()
    for state, found in rows.items():
        for row in found:
            named = {"case": csv_name(row.case), "class": csv_name(row.class_name), "state": state}
            writer.writerow({**named, **{name: asdict(row)[name] for name in _COUNTED}})
    return atomic.write_text(directory / FALSE_POSITIVES_NAME, stream.getvalue())


def pool_false_positives(directory: Path, parts: Sequence[Path]) -> dict[str, list[FalsePositives]]:
    """Join what ``write_false_positives`` wrote in several folders, and write it into one more.

    Args:
        directory: the folder that receives the joined file.
        parts: the folders to read; a folder without the file has no counts.

    Returns:
        The counts by state.

    Raises:
        RunError: for a file that ``write_false_positives`` did not write.
    """
    rows: dict[str, list[FalsePositives]] = {}
    for path in (part / FALSE_POSITIVES_NAME for part in parts):
        if not path.is_file():
            continue
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                for line in csv.DictReader(stream):
                    names = name_in_csv(line["case"]), name_in_csv(line["class"])
                    counts = [int(line[name]) for name in _COUNTED]
                    rows.setdefault(line["state"], []).append(FalsePositives(*names, *counts))
        except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
            raise RunError(f"{path}: cannot read the counts of a run: {error!r}") from error
    _write(directory, rows)
    return rows


def negative_tables(summary: Mapping[str, Any], names: Mapping[str, str]) -> list[Table]:
    """Return the tables about what is predicted where there is nothing; none if nothing was asked.

    Args:
        summary: the content of ``summary.json``.
        names: what people call the states.
    """
    states = dict(_states(summary, names))
    unprompted = {
        name: entry["false_positives"]
        for name, entry in states.items()
        if entry.get("false_positives", {}).get("empty_slices")
    }
    asked = {
        name: entry["absent_prompts"] for name, entry in states.items() if "absent_prompts" in entry
    }
    tables = [false_positives_table(unprompted, str(summary["parts"]))] if unprompted else []
    return [*tables, absent_table(asked)] if asked else tables


def _states(
    summary: Mapping[str, Any], names: Mapping[str, str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each state with its scores; with several kinds of prompts those of every kind."""
    kinds = summary.get("by_prompt") or {"": summary}
    for kind, scores in kinds.items():
        for state, name in names.items():
            if scores[state]:
                yield f"{kind}, {name}" if kind else name, scores[state]


def false_positives_table(states: Mapping[str, Mapping[str, Any]], parts: str) -> Table:
    """Return the table of ``summarise_false_positives``, one line for each class and state.

    Args:
        states: the counts by name of the state.
        parts: what a case consists of, ``slices`` or ``tiles``.
    """
    part = "slices" if parts == "slices" else "pictures"
    table = Table(title="False positives without a prompt", title_justify="left")
    table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
    table.add_column("class")
    table.add_column("")
    for heading in (
        f"predicted in empty {part}",
        "voxels there",
        "predicted in cases without it",
        "false components",
        "a case",
    ):
        table.add_column(heading, justify="right")
    for name in next(iter(states.values()))["per_class"]:
        for n, (state, found) in enumerate(states.items()):
            entry = found["per_class"][name]
            table.add_row(Text("" if n else name), Text(state), *_cells(entry))
        table.add_section()
    for n, (state, found) in enumerate(states.items()):
        table.add_row("" if n else "all", Text(state), *_cells(found), style="bold")
    table.caption = Text("a false component touches no voxel of the class")
    return table


def absent_table(states: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of ``AbsentAnswers.to_dict``: prompts where nothing is, one line a state."""
    table = Table(title="Prompts where nothing is", title_justify="left", title_style="bold")
    table.add_column("")
    for heading in ("prompts", "answered with a mask", "pixels a prompt", "pixels of the objects"):
        table.add_column(heading, justify="right")
    for state, entry in states.items():
        count = entry["asked"]
        cells = [NOTHING] * 3
        if count:
            pixels = [f"{entry[key] / count:.1f}" for key in ("pixels", "asked_pixels")]
            cells = [f"{entry['answered']} ({entry['share']:.1%})", *pixels]
        table.add_row(Text(state), str(count), *cells)
    return table


def _cells(entry: Mapping[str, Any]) -> list[str]:
    per_case = entry["components_per_case"]
    return [
        f"{entry['false_slices']} of {entry['empty_slices']}",
        str(entry["false_voxels"]),
        f"{entry['false_cases']} of {entry['absent_cases']}",
        str(entry["false_components"]),
        NOTHING if per_case is None else f"{per_case:.2f}",
    ]
